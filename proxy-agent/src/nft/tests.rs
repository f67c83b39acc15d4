//! Against the running kernel, each test in a network namespace of its own.

mod counting;
mod dumps;
mod fields;
mod many;
mod packets;
mod refusals;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

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
use super::{Dataplane, NftTable, sets};
pub(super) use crate::netfilter::testing::in_namespace;

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
    objects.extend(by_source(Frontend::node_port(family, 30_084, Protocol::Tcp), "default/local", &backends(family, 1, 3), &[]));
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
    objects.insert(Key::Dropped(frontend(family, 5, Protocol::Tcp)), Value::Label("default/local".into()));
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
            objects.insert(Key::BySource(frontend, pool), Value::Target(None));
            continue;
        }
        let target = Target { masquerade: Masquerade::Never, is_node_port, pool, pick: Pick::Even(backends.len() as u16) };
        objects.insert(Key::BySource(frontend, pool), Value::Target(Some(target)));
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

/// Objects but for the base, as a ledger takes them.
fn list(objects: &Objects<Key, Value>) -> Vec<(Key, Value)> {
    objects.iter().filter(|(key, _)| **key != Key::Base).map(|(key, value)| (*key, value.clone())).collect()
}

/// A plan that wants `objects`, as an agent has it after a restart.
fn plan_of(table: &NftTable, observed: ObjectsOf<Nft>, objects: &Objects<Key, Value>) -> Plan<Nft> {
    let mut plan = Plan::new(table.lowering(), observed, &Forwarding::default());
    plan.ledger().exchange(Vec::new(), list(objects));
    plan.complete();
    plan
}

/// What is due at once, then what lingers.
fn carry_out(table: &mut NftTable, plan: &mut Plan<Nft>) {
    for sweep in [false, true] {
        let steps = if sweep { plan.sweep(u64::MAX) } else { plan.due() };
        assert!(!steps.is_empty());
        committed(table, &steps);
        plan.settle(&steps, &Default::default());
    }
}

/// Without what needs the field that not every kernel has.
fn without_affinity(mut objects: Objects<Key, Value>) -> Objects<Key, Value> {
    objects.retain(|key, value| {
        let set = key.set().unwrap_or_default();
        let sticky = |target: &Target| matches!(target.pick, Pick::Sticky(_));
        !match (key, value) {
            (Key::StickPick(..), _) => true,
            (Key::Chain(target), _) => sticky(target),
            (_, Value::Service(Class::Target(target), _)) => sticky(target),
            _ => set.starts_with("stick-") || set.contains("identities"),
        }
    });
    objects
}

#[test]
fn what_is_committed_is_observed_and_the_next_start_has_nothing_to_do() {
    in_namespace(|| {
        for (family, scratch) in Family::ALL.into_iter().flat_map(|f| [Field::Secmark, Field::Priority].map(|s| (f, s))) {
            let mut table = with_scratch(default(family), scratch);
            assert_eq!(table.observe().expect("observe"), Objects::new());
            let objects = if scratch == Field::Secmark { example(family) } else { without_affinity(example(family)) };
            assert_eq!(table.lowering().is_sticky, scratch == Field::Secmark);
            committed(&mut table, &adding(&objects));
            let mut again = with_scratch(default(family), scratch);
            let observed = again.observe().expect("observe");
            assert_eq!(observed, objects);
            assert_eq!(plan_of(&again, observed, &objects).due(), []);
            // Nobody need know the configuration to read it.
            assert_eq!(super::read(family).expect("read"), objects);
            table.remove().expect("remove");
        }
    });
}

#[test]
fn every_set_has_an_element_in_the_example() {
    let all = sets::SETS.iter().chain(&sets::STICKY).map(|set| set.name);
    let verdicts = [sets::CLASSES, sets::BY_SOURCE_CLASSES, sets::STICK_CLASSES];
    for family in Family::ALL {
        let used: BTreeSet<_> = example(family).keys().filter_map(Key::set).collect();
        assert_eq!(used, all.clone().filter(|name| !verdicts.contains(name)).collect());
    }
}

#[test]
fn nft_prints_everything() {
    in_namespace(|| {
        for family in Family::ALL {
            let pods = if family == Family::V4 { PodMatch::Interface("cni0".into()) } else { PodMatch::InterfacePrefix("veth".into()) };
            let nft = Nft { pods, any_node_port: family == Family::V6, ..default(family) };
            committed(&mut NftTable::open(nft).expect("open"), &adding(&example(family)));
        }
        let Some(text) = nft(&["list", "ruleset"]) else { return };
        let long = long_label();
        for expected in [
            "10.0.0.1 . tcp . 80 comment \"default/web:http\" : 0x70000003",
            "10.0.0.1 . tcp . 80 . 2 : 172.0.0.3 . 8080",
            "tcp . 30082 . 32769 : 172.0.0.2 . 8080",
            "fd00:0:0:a::1 . udp . 80 . 0 : fd00:0:0:ac::9 . 8080",
            "0x70000003 : goto pick-3",
            "0x70280003 : goto node-masquerade-pick-3",
            "0x70000002 : jump stick-pick-2",
            "tcp . 30084 : 0x70300001",
            "10.0.0.4 . udp . 80 comment \"default/none-either\"",
            "fd00:0:0:a::5 . tcp . 80 . fd00:0:0:1::/64",
            "10.0.1.0/24",
            "iifname \"cni0\" goto pick-1",
            "iifname \"veth*\" goto pick-1",
            "meta secmark set ip daddr . meta l4proto . th dport map @services meta secmark vmap @classes",
            "meta secmark set numgen random mod 3 goto to-slot",
            "meta secmark set numgen random mod 2 offset 32768 goto node-to-slot",
            "meta l4proto . th dport . meta secmark map @slots",
            "meta priority . meta secmark map @stick-slots return",
            "ip6 daddr != ::1 fib daddr type local goto node-ports",
            "fib saddr type local meta secmark set ip daddr . meta l4proto . th dport map @by-source-cluster meta mark set meta mark | 0x00004000",
            "ip6 daddr . meta l4proto . th dport . ip6 saddr != @sources",
            "update @stick-pins { ip saddr . meta priority timeout 3h : meta secmark }",
            "delete @stick-pins { ip6 saddr . meta priority : meta secmark }",
            "ct state invalid ip saddr . meta l4proto . tcp sport @endpoints counter packets 0 bytes 0 drop",
            "meta mark & 0x00004000 == 0x00004000 meta mark set meta mark ^ 0x00004000 masquerade fully-random",
            "ct state new ct status ! dnat jump unserved",
            "ip6 daddr . meta l4proto . th dport @refused goto refuse",
            "reject with tcp reset",
            &long,
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    });
}

#[test]
fn elements_are_replaced_and_deleted() {
    in_namespace(|| {
        let (family, mut table) = (Family::V6, open(Family::V6));
        let (mut objects, web) = (example(family), frontend(family, 1, Protocol::Tcp));
        committed(&mut table, &adding(&objects));
        let observed = table.observe().expect("observe");
        let mut plan = plan_of(&table, observed, &objects);
        let before = list(&objects);
        // Two backends instead of three, a label that differs alone, and ranges that overlap former ones.
        objects.retain(|key, _| *key != Key::Slot(web, 2) && !matches!(key, Key::PodCidr(_) | Key::Source(..)));
        objects.extend(served(web, "default/web:http", Masquerade::Never, &backends(family, 5, 2)));
        objects.extend(served(frontend(family, 2, Protocol::Tcp), "default/renamed", Masquerade::Always, &backends(family, 20, 3)));
        let all = cidr("::/0");
        objects.extend([Key::PodCidr(all), Key::Source(frontend(family, 5, Protocol::Tcp), all)].map(|key| (key, Value::Present)));
        plan.ledger().exchange(before, list(&objects));
        carry_out(&mut table, &mut plan);
        assert_eq!(table.observe().expect("observe"), objects);
        // Everything goes but the base.
        plan.ledger().exchange(list(&objects), Vec::new());
        carry_out(&mut table, &mut plan);
        assert_eq!(table.observe().expect("observe"), base());
    });
}

#[test]
fn another_layout_or_configuration_is_replaced_in_one_batch() {
    in_namespace(|| {
        let family = Family::V4;
        let objects = example(family);
        let formers = [
            Nft { masquerade_mark: 1 << 15, ..default(family) },
            Nft { pods: PodMatch::Interface("cni0".into()), ..default(family) },
            Nft { any_node_port: true, ..default(family) },
        ];
        let mut formers: Vec<NftTable> = formers.map(|nft| with_scratch(nft, Field::Secmark)).into();
        formers.push(with_scratch(default(family), Field::Priority));
        for mut former in formers {
            let there = if former.lowering().is_sticky { objects.clone() } else { without_affinity(objects.clone()) };
            committed(&mut former, &adding(&there));
            let mut table = with_scratch(default(family), Field::Secmark);
            let observed = table.observe().expect("observe");
            assert_eq!(observed, Objects::from([(Key::Base, Value::Base(0))]));
            let mut plan = plan_of(&table, observed, &objects);
            let steps = plan.due();
            assert!(matches!(steps[0], Step::Replace(Key::Base, Value::Base(LAYOUT), Value::Base(0))));
            assert!(steps[1..].iter().all(|step| matches!(step, Step::Add(..))));
            committed(&mut table, &steps);
            assert_eq!(table.observe().expect("observe"), objects);
            table.remove().expect("remove");
        }
        // Somebody's table of the same name, and one whose chains somebody took to pieces.
        let mut table = with_scratch(default(family), Field::Secmark);
        committed(&mut table, &adding(&objects));
        for script in [
            "delete table ip proxy-agent; add table ip proxy-agent { comment \"layout 7 whatever\"; }",
            "delete chain ip proxy-agent nat-output; add chain ip proxy-agent nat-output { type nat hook output priority -90; }",
            "delete chain ip proxy-agent filter-input; add chain ip proxy-agent filter-input",
        ] {
            if nft(&[script]).is_some() {
                let version = if script.contains("layout 7") { 7 } else { 0 };
                assert_eq!(table.observe().expect("observe"), Objects::from([(Key::Base, Value::Base(version))]));
                committed(&mut table, &adding(&objects));
                assert_eq!(table.observe().expect("observe"), objects);
            }
        }
    });
}

#[test]
fn chains_that_are_damaged_or_out_of_reach_are_made_anew() {
    in_namespace(|| {
        let (family, mut table) = (Family::V4, open(Family::V4));
        let objects = example(family);
        committed(&mut table, &adding(&objects));
        let pick = Key::Chain(target(Masquerade::Never, Pool::Cluster, Pick::Even(3)));
        for (script, lost) in [
            ("flush chain ip proxy-agent pick-3", pick),
            ("delete element ip proxy-agent by-source-classes { 0x70000003 }", pick),
            ("flush chain ip proxy-agent pick-3; add rule ip proxy-agent pick-3 counter drop", pick),
            ("delete element ip proxy-agent stick-classes { 0x70000002 }", Key::StickPick(Pool::Cluster, 2)),
        ] {
            if nft(&[script]).is_none() {
                continue;
            }
            let observed = table.observe().expect("observe");
            let missing: Vec<_> = objects.keys().filter(|key| !observed.contains_key(key)).collect();
            assert_eq!(missing, [&lost], "{script}");
            let mut plan = plan_of(&table, observed, &objects);
            let steps = plan.due();
            committed(&mut table, &steps);
            assert_eq!(table.observe().expect("observe"), objects);
        }
    });
}

#[test]
fn a_chain_with_other_rules_is_filled_anew_and_the_rest_stays() {
    in_namespace(|| {
        for (family, word) in [(Family::V4, "ip"), (Family::V6, "ip6")] {
            let mut table = open(family);
            let objects = example(family);
            committed(&mut table, &adding(&objects));
            for (script, chain) in [
                // As many rules as before.
                ("flush chain TABLE refuse; add rule TABLE refuse meta l4proto tcp accept; add rule TABLE refuse reject", "refuse"),
                ("flush chain TABLE no-backend; add rule TABLE no-backend counter accept", "no-backend"),
                ("flush chain TABLE nat-output", "nat-output"),
                ("insert rule TABLE filter-forward drop", "filter-forward"),
                ("add chain TABLE filter-output { policy drop; }", "filter-output"),
                ("delete chain TABLE sources-output", "sources-output"),
                ("delete element TABLE classes { 0x70300000 }", "by-source"),
            ] {
                // A pin stays.
                let pin = format!("add element {word} proxy-agent stick-pins {{ {} . 7 : 700 }}", ip(family, 10, 9));
                if nft(&[&script.replace("TABLE", &format!("{word} proxy-agent"))]).is_none() || nft(&[&pin]).is_none() {
                    return;
                }
                let observed = table.observe().expect("observe");
                let damage: Vec<_> = observed.iter().filter(|(key, value)| objects.get(key) != Some(value)).collect();
                assert_eq!(damage, [(&Key::Damage(chain), &Value::Present)], "{script}");
                let mut plan = plan_of(&table, observed, &objects);
                let steps = plan.due();
                assert_eq!(steps, [Step::Delete(Key::Damage(chain), Value::Present)], "{script}");
                committed(&mut table, &steps);
                assert_eq!(table.observe().expect("observe"), objects, "{script}");
                let pins = nft(&["list", "map", word, "proxy-agent", "stick-pins"]).unwrap_or_default();
                assert!(pins.contains(&ip(family, 10, 9).to_string()), "{pins}");
            }
        }
    });
}

#[test]
fn every_chain_has_a_name_that_is_known() {
    for family in Family::ALL {
        let layout = Layout::new(default(family), Field::Secmark);
        for chain in super::chains::base(&layout) {
            assert!(super::chains::damage(&chain.name).is_some(), "{}", chain.name);
        }
    }
    for masquerade in [Masquerade::Never, Masquerade::UnlessPod, Masquerade::Always] {
        for pick in [Pick::Even(7), Pick::Sticky(10_800)] {
            for (is_node_port, pool) in [(false, Pool::Cluster), (true, Pool::Local)] {
                let target = Target { masquerade, is_node_port, pool, pick };
                assert_eq!(Key::of_chain(&target.to_string()), Some(Key::Chain(target)));
            }
        }
    }
    assert_eq!(Key::of_chain("stick-pick-local-3"), Some(Key::StickPick(Pool::Local, 3)));
    assert!(
        ["", "mine", "pick-", "pick-03", "stick-pick-x", "unless-pod-masquerade-pick-1"].iter().all(|name| Key::of_chain(name).is_none())
    );
}

#[test]
fn other_tables_stay_and_ours_goes_without_a_trace() {
    in_namespace(|| {
        if nft(&["add table ip other { comment \"not ours\"; map services { type ipv4_addr : mark; elements = { 1.2.3.4 : 5 }; }; }; add table inet proxy-agent"]).is_none() {
            return;
        }
        let before = nft(&["list", "ruleset"]);
        let mut tables = Family::ALL.map(open);
        assert_eq!(nft(&["list", "ruleset"]), before, "a trial changes nothing");
        for (table, family) in tables.iter_mut().zip(Family::ALL) {
            committed(table, &adding(&example(family)));
            committed(table, &adding(&example(family)));
        }
        for table in &mut tables {
            table.remove().expect("remove");
            table.remove().expect("remove what is absent");
        }
        assert_eq!(nft(&["list", "ruleset"]), before);
    });
}

#[test]
fn what_somebody_else_put_there_is_ignored() {
    in_namespace(|| {
        let (family, mut table) = (Family::V4, open(Family::V4));
        let objects = example(family);
        committed(&mut table, &adding(&objects));
        let script = "add element ip proxy-agent services { 1.1.1.1 . tcp . 1 : 0x5 }; add element ip proxy-agent refused { 1.1.1.1 . icmp . 1 }; \
                      add chain ip proxy-agent mine; add element ip proxy-agent classes { 7 : goto mine }; \
                      add element ip proxy-agent pods { 10.9.0.1-10.9.0.7 }; add element ip proxy-agent stick-pins { 1.1.1.1 . 7 : 700 }";
        if nft(&[script]).is_some() {
            assert_eq!(table.observe().expect("observe"), objects);
        }
    });
}

#[test]
fn versions_are_read_from_comments() {
    assert_eq!(Layout::in_comment("layout 12 scratch secmark base 0"), Some((12, Field::Secmark)));
    assert_eq!(Layout::in_comment("layout 1 scratch priority base 0"), Some((1, Field::Priority)));
    assert_eq!(Layout::in_comment("layout x"), None);
    assert_eq!(Layout::in_comment(""), None);
}
