//! Against the running kernel, each test in a network namespace of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use proxy_core::ledger::{Objects, Step};
use proxy_core::lower::nft::{Key, LAYOUT, Nft, Value};
use proxy_core::lower::{Lowering, ObjectsOf, StepOf};
use proxy_core::model::{Address, Family, Frontend, Protocol};
use proxy_core::plan::Plan;

use super::layout::{Layout, Scratch};
use super::{Dataplane, NftTable, by_key, commit, element};

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

/// What the lowering gives for one frontend.
fn served(frontend: Frontend, label: &str, backends: &[Address]) -> Objects<Key, Value> {
    let count = backends.len() as u16;
    if count == 0 {
        return Objects::from([(Key::Refused(frontend), Value::Refused(label.into()))]);
    }
    let mut objects = Objects::from([(Key::Service(frontend), Value::Service(count, label.into())), (Key::Pick(count), Value::Pick)]);
    objects.extend((0..).zip(backends).map(|(slot, backend)| (Key::Slot(frontend, slot), Value::Slot(*backend))));
    objects
}

fn backends(family: Family, from: u32, count: u32) -> Vec<Address> {
    (from..from + count).map(|host| Address { ip: ip(family, 172, host), port: 8080 }).collect()
}

/// `namespace/name:port` as long as Kubernetes allows.
fn long_label() -> String {
    format!("{}/{}:{}", "n".repeat(63), "s".repeat(63), "p".repeat(63))
}

pub(super) fn example(family: Family) -> Objects<Key, Value> {
    let mut objects = Nft { family }.base();
    objects.extend(served(frontend(family, 1, Protocol::Tcp), "default/web:http", &backends(family, 1, 3)));
    objects.extend(served(frontend(family, 1, Protocol::Udp), "kube-system/dns", &backends(family, 9, 1)));
    objects.extend(served(frontend(family, 2, Protocol::Tcp), &long_label(), &backends(family, 20, 3)));
    objects.extend(served(frontend(family, 3, Protocol::Sctp), "default/none", &[]));
    objects.extend(served(frontend(family, 4, Protocol::Udp), "default/none-either", &[]));
    objects
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

fn with_scratch(family: Family, scratch: Scratch) -> NftTable {
    NftTable::open_with(family, scratch).expect("open").expect("supported")
}

/// Objects but for the base, as a ledger takes them.
fn list(objects: &Objects<Key, Value>) -> Vec<(Key, Value)> {
    objects.iter().filter(|(key, _)| **key != Key::Base).map(|(key, value)| (*key, value.clone())).collect()
}

/// A plan that wants `objects`, as an agent has it after a restart.
fn plan_of(observed: ObjectsOf<Nft>, family: Family, objects: &Objects<Key, Value>) -> Plan<Nft> {
    let mut plan = Plan::new(Nft { family }, observed);
    plan.ledger().exchange(Vec::new(), list(objects));
    plan.complete();
    plan
}

#[test]
fn what_is_committed_is_observed_and_the_next_start_has_nothing_to_do() {
    in_namespace(|| {
        for (family, scratch) in Family::ALL.into_iter().flat_map(|f| [Scratch::Secmark, Scratch::Priority].map(|s| (f, s))) {
            let mut table = with_scratch(family, scratch);
            assert_eq!(table.observe().expect("observe"), Objects::new());
            let objects = example(family);
            committed(&mut table, &adding(&objects));
            let mut again = with_scratch(family, scratch);
            let observed = again.observe().expect("observe");
            assert_eq!(observed, objects);
            assert_eq!(plan_of(observed, family, &objects).due(), []);
            table.remove().expect("remove");
        }
    });
}

#[test]
fn nft_prints_everything() {
    in_namespace(|| {
        for family in Family::ALL {
            let mut table = NftTable::open(family).expect("open");
            committed(&mut table, &adding(&example(family)));
        }
        let Some(text) = nft(&["list", "ruleset"]) else { return };
        let long = long_label();
        for expected in [
            "10.0.0.1 . tcp . 80 comment \"default/web:http\" : 0x70720003",
            "10.0.0.1 . tcp . 80 . 2 : 172.0.0.3 . 8080",
            "fd00:0:0:a::1 . udp . 80 . 0 : fd00:0:0:ac::9 . 8080",
            "0x70720003 : goto pick-3",
            "10.0.0.4 . udp . 80 comment \"default/none-either\"",
            "meta secmark set ip daddr . meta l4proto . th dport map @services meta secmark vmap @classes",
            "meta l4proto . th dport . numgen random mod 3 map @slots",
            "ct state new ip6 daddr . meta l4proto . th dport @refused goto refuse",
            "reject with tcp reset",
            &long,
        ] {
            assert!(text.contains(expected), "{expected}");
        }
    });
}

#[test]
fn elements_are_replaced_and_deleted() {
    in_namespace(|| {
        let (family, mut table) = (Family::V6, NftTable::open(Family::V6).expect("open"));
        let (mut objects, web) = (example(family), frontend(family, 1, Protocol::Tcp));
        committed(&mut table, &adding(&objects));
        let mut plan = plan_of(table.observe().expect("observe"), family, &objects);
        let before = list(&objects);
        // Two backends instead of three, and a label that differs alone.
        objects.remove(&Key::Slot(web, 2));
        objects.extend(served(web, "default/web:http", &backends(family, 5, 2)));
        objects.extend(served(frontend(family, 2, Protocol::Tcp), "default/renamed", &backends(family, 20, 3)));
        plan.ledger().exchange(before, list(&objects));
        for sweep in [false, true] {
            let steps = if sweep { plan.sweep(u64::MAX) } else { plan.due() };
            assert!(!steps.is_empty());
            committed(&mut table, &steps);
            plan.settle(&steps, &Default::default());
        }
        assert_eq!(table.observe().expect("observe"), objects);
        // Everything goes but the base.
        plan.ledger().exchange(list(&objects), Vec::new());
        for sweep in [false, true] {
            let steps = if sweep { plan.sweep(u64::MAX) } else { plan.due() };
            committed(&mut table, &steps);
            plan.settle(&steps, &Default::default());
        }
        assert_eq!(table.observe().expect("observe"), Nft { family }.base());
    });
}

#[test]
fn another_layout_is_replaced_in_one_batch() {
    in_namespace(|| {
        let family = Family::V4;
        let mut former = with_scratch(family, Scratch::Priority);
        committed(&mut former, &adding(&example(family)));
        let mut table = with_scratch(family, Scratch::Secmark);
        let observed = table.observe().expect("observe");
        assert_eq!(observed, Objects::from([(Key::Base, Value::Base(0))]));
        let objects = example(family);
        let mut plan = plan_of(observed, family, &objects);
        let steps = plan.due();
        assert!(matches!(steps[0], Step::Replace(Key::Base, Value::Base(LAYOUT), Value::Base(0))));
        assert!(steps[1..].iter().all(|step| matches!(step, Step::Add(..))));
        committed(&mut table, &steps);
        assert_eq!(table.observe().expect("observe"), objects);
        // Somebody's table of the same name, and one that somebody changed.
        for script in [
            "delete table ip proxy-agent; add table ip proxy-agent { comment \"layout 7 whatever\"; }",
            "flush chain ip proxy-agent refuse",
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
fn refusals_name_the_object_and_spare_the_others() {
    in_namespace(|| {
        let (family, mut table) = (Family::V4, NftTable::open(Family::V4).expect("open"));
        let mut objects = example(family);
        let (bad, other) = (frontend(family, 77, Protocol::Tcp), frontend(Family::V6, 1, Protocol::Tcp));
        let mut steps = adding(&objects);
        steps.push(Step::Add(Key::Pick(0), Value::Pick));
        steps.push(Step::Add(Key::Refused(bad), Value::Refused("x".repeat(254).into())));
        // The kernel's own refusals: of a chain, and of one element among others.
        let refused = commit::carry_out(&table.layout, &mut table.socket, &steps.iter().collect::<Vec<_>>()).expect("commit");
        assert_eq!(refused.keys().collect::<Vec<_>>(), [&Key::Pick(0), &Key::Refused(bad)]);
        assert!(refused[&Key::Pick(0)].contains("Numerical result out of range"), "{refused:?}");
        assert_eq!(table.observe().expect("observe"), objects);
        // Ours: what the kernel could not be told, or would lose.
        let steps = [
            Step::Add(Key::Refused(other), Value::Refused("default/v6".into())),
            Step::Add(Key::Service(bad), Value::Service(3, "x".repeat(element::MAX_LABEL + 1).into())),
            Step::Add(Key::Service(frontend(family, 78, Protocol::Tcp)), Value::Pick),
            Step::Add(Key::Slot(bad, 0), Value::Slot(backends(Family::V6, 1, 1)[0])),
        ];
        assert_eq!(table.commit(&steps).expect("commit").len(), steps.len());
        assert_eq!(table.observe().expect("observe"), objects);
        // Believed absent and present, believed present and absent, and the longest label.
        let web = frontend(family, 1, Protocol::Tcp);
        objects.insert(Key::Service(web), Value::Service(3, "x".repeat(element::MAX_LABEL).into()));
        objects.insert(Key::Slot(web, 0), Value::Slot(backends(family, 99, 1)[0]));
        let steps = [
            Step::Add(Key::Slot(web, 0), objects[&Key::Slot(web, 0)].clone()),
            Step::Add(Key::Service(web), objects[&Key::Service(web)].clone()),
            Step::Delete(Key::Slot(bad, 0), Value::Slot(backends(family, 1, 1)[0])),
            Step::Delete(Key::Pick(9), Value::Pick),
        ];
        committed(&mut table, &steps);
        assert_eq!(table.observe().expect("observe"), objects);
        // Nothing to write to.
        table.remove().expect("remove");
        let error = table.commit(&steps[..1]).expect_err("no table");
        assert!(format!("{error:#}").contains("somebody else deleted the table"), "{error:#}");
        let error = table.commit(&steps[3..]).expect_err("no table");
        assert!(format!("{error:#}").contains("somebody else deleted the table"), "{error:#}");
    });
}

#[test]
fn other_tables_stay_and_ours_goes_without_a_trace() {
    in_namespace(|| {
        if nft(&["add table ip other { comment \"not ours\"; map services { type ipv4_addr : mark; elements = { 1.2.3.4 : 5 }; }; }; add table inet proxy-agent"]).is_none() {
            return;
        }
        let before = nft(&["list", "ruleset"]);
        let mut tables = Family::ALL.map(|family| NftTable::open(family).expect("open"));
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
        let (family, mut table) = (Family::V4, NftTable::open(Family::V4).expect("open"));
        let objects = example(family);
        committed(&mut table, &adding(&objects));
        let script = "add element ip proxy-agent services { 1.1.1.1 . tcp . 1 : 0x5 }; add element ip proxy-agent refused { 1.1.1.1 . icmp . 1 }; \
                      add chain ip proxy-agent mine; add element ip proxy-agent classes { 7 : goto mine }";
        if nft(&[script]).is_some() {
            assert_eq!(table.observe().expect("observe"), objects);
        }
    });
}

#[test]
fn a_batch_that_does_not_fit_goes_in_pieces() {
    in_namespace(|| {
        let (family, mut table) = (Family::V4, NftTable::open(Family::V4).expect("open"));
        let mut objects = example(family);
        for host in 100..20_000 {
            objects.extend(served(frontend(family, host, Protocol::Tcp), "default/some", &backends(family, host, 1)));
        }
        table.socket.forbid_room();
        committed(&mut table, &adding(&objects));
        assert_eq!(table.observe().expect("observe"), objects);
    });
}

#[test]
fn many_slots_are_read_by_key() {
    in_namespace(|| {
        let (family, mut table) = (Family::V4, NftTable::open(Family::V4).expect("open"));
        let mut objects = Nft { family }.base();
        for host in 1..=(by_key::MANY as u32 / 10) {
            objects.extend(served(frontend(family, host, Protocol::Tcp), "default/some", &backends(family, host, 10)));
        }
        committed(&mut table, &adding(&objects));
        let services: Objects<_, _> = objects.iter().filter(|(k, _)| matches!(k, Key::Service(_))).map(|(k, v)| (*k, v.clone())).collect();
        let mut slots: Objects<_, _> = objects.iter().filter(|(k, _)| matches!(k, Key::Slot(..))).map(|(k, v)| (*k, v.clone())).collect();
        assert_eq!(by_key::slots(&table.layout, &mut table.socket, &services).expect("read"), Some(slots.clone()));
        assert_eq!(table.observe().expect("observe"), objects);
        // Some linger above those in use.
        let lingering = [10, 11].map(|slot| (Key::Slot(frontend(family, 7, Protocol::Tcp), slot), Value::Slot(backends(family, 7, 1)[0])));
        committed(&mut table, &adding(&lingering.clone().into()));
        slots.extend(lingering.clone());
        objects.extend(lingering);
        assert_eq!(by_key::slots(&table.layout, &mut table.socket, &services).expect("read"), Some(slots));
        // One of no Service, and one that is missing.
        let orphan = (Key::Slot(frontend(family, 9_999_999, Protocol::Tcp), 3), Value::Slot(backends(family, 7, 1)[0]));
        let missing = Key::Slot(frontend(family, 8, Protocol::Tcp), 3);
        let step = Step::Delete(missing, objects[&missing].clone());
        committed(&mut table, &[Step::Add(orphan.0, orphan.1.clone()), step]);
        objects.extend([orphan]);
        objects.remove(&missing);
        assert_eq!(by_key::slots(&table.layout, &mut table.socket, &services).expect("read"), None);
        assert_eq!(table.observe().expect("observe"), objects);
    });
}

#[test]
fn versions_are_read_from_comments() {
    assert_eq!(Layout::version_in("layout 12 scratch secmark base 0"), Some(12));
    assert_eq!(Layout::version_in("layout x"), None);
    assert_eq!(Layout::version_in(""), None);
}

#[test]
fn a_backend_of_an_observed_slot_is_read_with_its_port() {
    in_namespace(|| {
        let family = Family::V6;
        let mut table = NftTable::open(family).expect("open");
        committed(&mut table, &adding(&example(family)));
        let seats = Nft::seats(&table.observe().expect("observe"));
        let backend = Address { ip: ip(family, 172, 9), port: 8080 };
        assert!(seats.values().any(|(_, slots)| slots.get(&0) == Some(&backend)));
    });
}
