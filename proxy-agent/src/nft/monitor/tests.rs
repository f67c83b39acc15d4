//! Against the running kernel.

use std::time::Duration;

use proxy_core::ledger::Step;
use proxy_core::lower::nft::{Pick, Target};
use proxy_core::route::{Masquerade, Pool};

use super::super::tests::{adding, committed, example, in_namespace, nft, open};
use super::super::{Dataplane, NftTable};
use super::*;

const FAMILIES: [Family; 2] = Family::ALL;

/// A table of each family, of which the monitor knows that they are ours, filled.
fn watched() -> (Arc<Monitor>, [NftTable; 2]) {
    let monitor = Arc::new(Monitor::open().expect("monitor"));
    let mut tables = FAMILIES.map(|family| open(family).watched(&monitor).expect("table"));
    for (table, family) in tables.iter_mut().zip(FAMILIES) {
        committed(table, &adding(&example(family)));
    }
    (monitor, tables)
}

#[test]
fn our_own_changes_are_nobody_elses() {
    in_namespace(|| {
        let (_monitor, mut tables) = watched();
        for (table, family) in tables.iter_mut().zip(FAMILIES) {
            // Few steps, while it listens, and many at once, while it does not.
            let steps = adding(&example(family));
            committed(table, &steps[1..3]);
            committed(table, &steps.iter().cycle().take(MANY * 2).cloned().collect::<Vec<_>>());
        }
        assert_eq!(tables.each_mut().map(NftTable::disturbance), [None, None]);
    });
}

#[test]
fn somebody_else_is_named_and_the_other_family_is_left_alone() {
    in_namespace(|| {
        let (_monitor, mut tables) = watched();
        let changes = ["add table ip other; delete table ip other; add table inet proxy-agent", "flush map ip6 proxy-agent slots"];
        for (change, of_family) in changes.into_iter().zip([None, Some(1)]) {
            if nft(&[change]).is_none() {
                return;
            }
            for (i, told) in tables.each_mut().map(NftTable::disturbance).into_iter().enumerate() {
                let by = told.map(|told| told.by).unwrap_or_default();
                let right = if of_family == Some(i) { matches!(&by[..], [one] if one.starts_with("nft (pid ")) } else { by.is_empty() };
                assert!(right, "{change}: {by:?}");
            }
        }
        assert_eq!(tables.each_mut().map(NftTable::disturbance), [None, None], "it is said once");
    });
}

#[test]
fn elements_are_known_one_by_one() {
    in_namespace(|| {
        let (_monitor, mut tables) = watched();
        for ((table, family), other) in tables.iter_mut().zip(FAMILIES).zip(FAMILIES.map(open)) {
            let (mut other, objects) = (other, example(family));
            // A range is two elements, each of which says nothing by itself.
            let is_one = |key: &Key| key.set().is_some() && !matches!(key, Key::PodCidr(_) | Key::ServiceCidr(_));
            let elements: BTreeMap<Key, Value> = objects.into_iter().filter(|(key, _)| is_one(key)).collect();
            let steps = |deleted: bool| {
                elements
                    .iter()
                    .map(move |(key, value)| if deleted { Step::Delete(*key, value.clone()) } else { Step::Add(*key, value.clone()) })
            };
            committed(&mut other, &steps(true).collect::<Vec<_>>());
            let told = table.disturbance().expect("deletions").objects;
            assert_eq!(told, Some(elements.keys().map(|key| (*key, None)).collect()));
            committed(&mut other, &steps(false).collect::<Vec<_>>());
            let told = table.disturbance().expect("additions").objects;
            assert_eq!(told, Some(elements.iter().map(|(key, value)| (*key, Some(value.clone()))).collect()));
            // A chain that somebody else has filled is not believed to be there, one that is always there is damaged.
            let other_rules = |chain: &str| {
                let word = super::super::word(family);
                nft(&[&format!("add rule {word} proxy-agent {chain} accept")])
            };
            if other_rules("nat-output").is_some() && other_rules("pick-3").is_some() {
                let pick = Target { masquerade: Masquerade::Never, is_node_port: false, pool: Pool::Cluster, pick: Pick::Even(3) };
                let told = table.disturbance().expect("rules").objects;
                let wanted = [(Key::Chain(pick), None), (Key::Damage("nat-output"), Some(Value::Present))];
                assert_eq!(told, Some(BTreeMap::from(wanted)));
            }
            // Of a chain that is made it is not known.
            committed(&mut other, &[Step::Add(Key::StickPick(Pool::Cluster, 77), Value::Present)]);
            assert_eq!(table.disturbance().expect("a chain").objects, None);
        }
    });
}

#[test]
fn a_commit_of_somebody_else_while_nobody_listens_is_noticed() {
    in_namespace(|| {
        let (monitor, mut tables) = watched();
        let mut other = open(Family::V4);
        for foreign in [false, true] {
            monitor.away(&mut tables[0].socket, |_| {
                if foreign {
                    committed(&mut other, &adding(&example(Family::V4))[1..2]);
                }
            });
            assert_eq!(tables.each_mut().map(|table| table.disturbance().is_some_and(|told| told.objects.is_none())), [foreign; 2]);
        }
        // More than the socket takes.
        setsockopt(&monitor.fd, sockopt::RcvBuf, &1).expect("a small buffer");
        for _ in 0..100 {
            committed(&mut other, &adding(&example(Family::V4)));
        }
        let told = tables[1].disturbance();
        let by = told.map(|told| told.by).unwrap_or_default();
        assert!(by.iter().any(|by| by.contains("more changes than could be followed")), "{by:?}");
    });
}

#[test]
fn the_alarm_rings() {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            let alarm = Alarm::default();
            let monitor = Monitor::start(&alarm).expect("monitor");
            let mut table = open(Family::V6);
            committed(&mut table, &adding(&example(Family::V6)));
            tokio::time::timeout(Duration::from_secs(20), alarm.notified()).await.expect("it rings");
            assert_eq!((monitor.take(Family::V4).is_some(), monitor.take(Family::V6).is_some()), (false, true));
        });
    });
}
