//! Against the running kernel, each test in a network namespace of its own.

mod packets;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use proxy_core::cidr::Cidr;
use proxy_core::forward::Forwarding;
use proxy_core::ledger::{Objects, Step};
use proxy_core::lower::nft::{Class, Key, LAYOUT, LOCAL_SLOTS, Nft, Pick, PodMatch, Target, Value};
use proxy_core::lower::{Lowering, ObjectsOf, StepOf};
use proxy_core::model::{Address, Family, Frontend, Protocol};
use proxy_core::plan::Plan;
use proxy_core::route::{Masquerade, Pool};
use proxy_core::settings::Settings;

use super::expr::Field;
use super::layout::Layout;
use super::{Dataplane, NftTable, by_key, commit, element, flaw};

/// Runs a test on a thread with a network namespace of its own. Without the right to make one it is skipped, which is a
/// failure where PROXY_TEST_REQUIRED is set.
pub(super) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => test(),
        Err(errno) => {
            assert!(std::env::var_os("PROXY_TEST_REQUIRED").is_none(), "no network namespace: {errno}");
            eprintln!("skipped: no network namespace: {errno}");
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// nft's output, or None where nft is not installed.
pub(super) fn nft(args: &[&str]) -> Option<String> {
    let output = match Command::new("nft").args(args).output() {
        Ok(output) => output,
        Err(error) => {
            assert!(std::env::var_os("PROXY_TEST_REQUIRED").is_none(), "nft: {error}");
            eprintln!("not compared with nft: {error}");
            return None;
        }
    };
    assert!(output.status.success(), "nft {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn ip(family: Family, net: u8, host: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from(u32::from(net) << 24 | host).into(),
        Family::V6 => Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(net) << 64 | u128::from(host)).into(),
    }
}

fn frontend(family: Family, host: u32, protocol: Protocol) -> Frontend {
    Frontend { ip: ip(family, 10, host), port: 80, protocol }
}

fn target(masquerade: Masquerade, pool: Pool, pick: Pick) -> Target {
    Target { masquerade, is_node_port: false, pool, pick }
}

/// What the lowering gives for one frontend of any kind, with the same backends in both pools.
fn served(frontend: Frontend, label: &str, masquerade: Masquerade, backends: &[Address]) -> Objects<Key, Value> {
    let count = backends.len() as u16;
    if count == 0 {
        return Objects::from([(Key::Refused(frontend), Value::Label(label.into()))]);
    }
    let target = Target { masquerade, is_node_port: frontend.is_node_port(), pool: Pool::Cluster, pick: Pick::Even(count) };
    let mut objects = Objects::from([
        (Key::Service(frontend), Value::Service(Class::Target(target), label.into())),
        (Key::Chain(target), Value::Present),
        (Key::Chain(target.unmasqueraded()), Value::Present),
    ]);
    objects.extend((0..).zip(backends).map(|(slot, backend)| (Key::Slot(frontend, slot), Value::Backend(*backend))));
    objects
}

/// Affinity for a frontend.
fn sticky(frontend: Frontend, label: &str, (identity, seconds): (u32, u32), backends: &[Address]) -> Objects<Key, Value> {
    let count = backends.len() as u16;
    let target =
        Target { masquerade: Masquerade::Never, is_node_port: frontend.is_node_port(), pool: Pool::Cluster, pick: Pick::Sticky(seconds) };
    let mut objects = Objects::from([
        (Key::Service(frontend), Value::Service(Class::Target(target), label.into())),
        (Key::Chain(target), Value::Present),
        (Key::Identity(frontend), Value::Number(identity)),
    ]);
    for (pool, first) in [(Pool::Cluster, 0), (Pool::Local, LOCAL_SLOTS)] {
        objects.insert(Key::StickPick(pool, count), Value::Present);
        objects.insert(Key::StickSize(identity, pool), Value::Count(count));
        for (i, backend) in (0..).zip(backends) {
            let id = identity * 100 + i;
            objects.insert(Key::StickEndpoint(id), Value::Backend(*backend));
            objects.insert(Key::StickSlot(identity, first + i), Value::Number(id));
            objects.insert(Key::StickMember(identity, pool, id), Value::Present);
        }
    }
    objects
}

fn backends(family: Family, from: u32, count: u32) -> Vec<Address> {
    (from..from + count).map(|host| Address { ip: ip(family, 172, host), port: 8080 }).collect()
}

/// `namespace/name:port` as long as Kubernetes allows.
fn long_label() -> String {
    format!("{}/{}:{}", "n".repeat(63), "s".repeat(63), "p".repeat(63))
}

fn cidr(text: &str) -> Cidr {
    text.parse().expect("a range")
}

/// Elements of every set, chains of every kind.
pub(super) fn example(family: Family) -> Objects<Key, Value> {
    let mut objects = base();
    objects.extend(served(frontend(family, 1, Protocol::Tcp), "default/web:http", Masquerade::Never, &backends(family, 1, 3)));
    objects.extend(served(frontend(family, 1, Protocol::Udp), "kube-system/dns", Masquerade::UnlessPod, &backends(family, 9, 1)));
    objects.extend(served(frontend(family, 2, Protocol::Tcp), &long_label(), Masquerade::Always, &backends(family, 20, 3)));
    objects.extend(served(frontend(family, 3, Protocol::Sctp), "default/none", Masquerade::Never, &[]));
    objects.extend(served(frontend(family, 4, Protocol::Udp), "default/none-either", Masquerade::Never, &[]));
    let node_port = Frontend::node_port(family, 30_080, Protocol::Tcp);
    objects.extend(served(node_port, "default/web:http", Masquerade::Always, &backends(family, 1, 3)));
    objects.extend(served(Frontend::node_port(family, 30_081, Protocol::Udp), "default/none", Masquerade::Never, &[]));
    objects.extend(by_source(frontend(family, 5, Protocol::Tcp), "default/local", &backends(family, 1, 3), &backends(family, 1, 2)));
    objects.extend(by_source(
        Frontend::node_port(family, 30_082, Protocol::Tcp),
        "default/local",
        &backends(family, 1, 3),
        &backends(family, 1, 2),
    ));
    objects.extend(sticky(frontend(family, 6, Protocol::Tcp), "default/sticky", (7, 10_800), &backends(family, 1, 2)));
    objects.extend(sticky(Frontend::node_port(family, 30_083, Protocol::Tcp), "default/sticky", (7, 10_800), &backends(family, 1, 2)));
    let restricted = frontend(family, 5, Protocol::Tcp);
    let present = [
        Key::NodeAddress(ip(family, 192, 1)),
        Key::ClusterIp(ip(family, 10, 1)),
        Key::Hairpin(ip(family, 172, 1)),
        Key::Endpoint(backends(family, 1, 1)[0], Protocol::Tcp),
        Key::Restricted(restricted),
    ];
    objects.extend(present.map(|key| (key, Value::Present)));
    for range in ranges(family) {
        objects.extend([Key::PodCidr(range), Key::ServiceCidr(range), Key::Source(restricted, range)].map(|key| (key, Value::Present)));
    }
    let dropped = [frontend(family, 5, Protocol::Tcp), Frontend::node_port(family, 30_082, Protocol::Tcp)];
    objects.extend(dropped.map(|frontend| (Key::Dropped(frontend), Value::Label("default/local".into()))));
    objects
}

/// Ranges that follow each other, one address, and the last of all.
fn ranges(family: Family) -> [Cidr; 5] {
    match family {
        Family::V4 => ["10.0.0.0/24", "10.0.1.0/24", "10.7.0.0/32", "224.0.0.0/3", "0.0.0.0/8"].map(cidr),
        Family::V6 => ["fd00::/64", "fd00:0:0:1::/64", "fd01::/128", "ff00::/8", "::/8"].map(cidr),
    }
}

/// `externalTrafficPolicy: Local`
fn by_source(frontend: Frontend, label: &str, cluster: &[Address], local: &[Address]) -> Objects<Key, Value> {
    let is_node_port = frontend.is_node_port();
    let class = Class::BySource { is_node_port };
    let mut objects = Objects::from([(Key::Service(frontend), Value::Service(class, label.into()))]);
    for (pool, first, backends) in [(Pool::Cluster, 0, cluster), (Pool::Local, LOCAL_SLOTS, local)] {
        if backends.is_empty() {
            continue;
        }
        let target = Target { masquerade: Masquerade::Never, is_node_port, pool, pick: Pick::Even(backends.len() as u16) };
        objects.insert(Key::BySource(frontend, pool), Value::Target(target));
        objects.insert(Key::Chain(target), Value::Present);
        objects.extend((first..).zip(backends).map(|(slot, backend)| (Key::Slot(frontend, slot), Value::Backend(*backend))));
    }
    objects
}

fn base() -> Objects<Key, Value> {
    Objects::from([(Key::Base, Value::Base(LAYOUT))])
}

fn default(family: Family) -> Nft {
    Nft::new(family, &Settings::default())
}

pub(super) fn open(family: Family) -> NftTable {
    NftTable::open(default(family)).expect("open")
}

fn with_scratch(nft: Nft, scratch: Field) -> NftTable {
    NftTable::open_with(Layout::new(nft, scratch)).expect("open").expect("supported")
}

pub(super) fn adding(objects: &Objects<Key, Value>) -> Vec<StepOf<Nft>> {
    let mut steps = objects.iter().map(|(key, value)| Step::Add(*key, value.clone())).collect();
    Nft::order(&mut steps);
    steps
}

pub(super) fn committed(table: &mut NftTable, steps: &[StepOf<Nft>]) {
    let refused = table.commit(steps).expect("commit");
    assert_eq!(refused, BTreeMap::new());
}

#[test]
fn printed() {
    in_namespace(|| {
        for family in Family::ALL {
            let mut nft = default(family);
            if family == Family::V6 {
                nft.pods = PodMatch::InterfacePrefix("veth".into());
                nft.any_node_port = true;
            }
            let mut table = NftTable::open(nft).expect("open");
            committed(&mut table, &adding(&example(family)));
            assert_eq!(table.observe().expect("observe"), example(family));
            println!("{}", super::name(family));
        }
        let Some(text) = nft(&["list", "ruleset"]) else { return };
        println!("{text}");
    });
}
