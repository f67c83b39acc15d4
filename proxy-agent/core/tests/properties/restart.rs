//! An agent that starts on what another left behind.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proptest::sample::Index;
use proxy_core::lower::bpf::{self, Bpf};
use proxy_core::lower::nft::{self, Nft};
use proxy_core::lower::{Lowering, ObjectsOf};
use proxy_core::model::Change;
use proxy_core::route::{Masquerade, Pool};
use proxy_core::settings::Settings;

use super::kernel::{Agent, Subject};
use super::steps::is_between;
use super::world::Event;
use super::world::{changes, config, events, flows, forwarding, last, object_changes, settings};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn bpf_restart_changes_nothing(around in settings(), events in events()) {
        restart_changes_nothing::<Bpf>(&around, &events);
    }

    #[test]
    fn nft_restart_changes_nothing(around in settings(), events in events()) {
        restart_changes_nothing::<Nft>(&around, &events);
    }

    #[test]
    fn bpf_takes_over(around in settings(), before in changes(), after in changes(), at in any::<Index>(), noise in any::<u64>()) {
        takes_over::<Bpf>(&around, &before, &after, at, noise);
    }

    #[test]
    fn nft_takes_over(around in settings(), before in changes(), after in changes(), at in any::<Index>(), noise in any::<u64>()) {
        takes_over::<Nft>(&around, &before, &after, at, noise);
    }

    /// An agent is killed in the middle of a commit, another takes over: packets meet old or new at every moment.
    #[test]
    fn bpf_crash_is_safe(around in settings(), before in changes(), after in object_changes(), at in any::<Index>()) {
        crash_is_safe::<Bpf>(&around, &before, &after, at);
    }

    #[test]
    fn nft_crash_is_safe(around in settings(), before in changes(), after in object_changes(), at in any::<Index>()) {
        crash_is_safe::<Nft>(&around, &before, &after, at);
    }

    /// Numbers of Services are distinct, whatever was found in the kernel.
    #[test]
    fn numbers_are_distinct(changes in changes(), found in prop::collection::vec((any::<bool>(), 0..4u32), 0..6)) {
        let labels = ["a/web", "a/web:x", "a/web:y", "a/dns", "a/dns:x", "b/web"];
        let mut observed = ObjectsOf::<Bpf>::new();
        for (i, (high, low)) in found.into_iter().enumerate() {
            let id = if high { u32::MAX - low } else { low };
            observed.insert(bpf::Key::Name(id), bpf::Value::Name(labels[i].into()));
            let addr = proxy_abi::Addr::v4(i as u32 + 1, 53);
            let value = proxy_abi::Frontend { service: id, count: low };
            observed.insert(bpf::Key::Frontend(proxy_abi::FrontendKey::new(addr, 6)), bpf::Value::Frontend(value));
        }
        let mut agent = Agent::start(Bpf::default(), forwarding(&Settings::default(), changes), observed);
        agent.finish();
        agent.check(&agent.kernel.0, &flows(), "kernel");
    }
}

/// Slots and numbers are kept, so that there is nothing to do.
fn restart_changes_nothing<L: Subject>(around: &Settings, events: &[Event]) {
    for lowering in L::all(around) {
        let mut agent = Agent::new(lowering.clone(), around);
        for event in events {
            agent.event(event.clone());
        }
        agent.commit();
        let changes: Vec<Change> = events.iter().filter_map(|e| if let Event::Change(c) = e { Some(c.clone()) } else { None }).collect();
        let mut next = Agent::start(lowering.clone(), forwarding(around, last(&changes)), agent.kernel.0.clone());
        assert_eq!(next.commit(), [], "only what lingered is left to delete");
        next.sweep();
        agent.sweep();
        assert_eq!(next.kernel.0, agent.kernel.0);
    }
}

/// Some of what was left behind is missing, stale or not ours: it becomes right.
fn takes_over<L: Subject + Stray>(around: &Settings, before: &[Change], after: &[Change], at: Index, noise: u64) {
    for lowering in L::all(around) {
        let mut agent = Agent::new(lowering.clone(), around);
        for change in before {
            agent.change(change.clone());
        }
        agent.commit();
        let mut found = agent.kernel.0;
        let mut i = 0;
        found.retain(|_, _| {
            i += 1;
            !noise.rotate_left(i * 5).is_multiple_of(4)
        });
        found.extend(L::strays(noise as u32 % 16));
        let kept = &after[..at.index(after.len())];
        let mut next = Agent::start(lowering.clone(), forwarding(around, before.iter().chain(kept).cloned()), found);
        next.finish();
        assert_eq!(next.kernel.0, next.plan.desired());
        next.check(&next.kernel.0, &flows(), "kernel");
        assert_eq!(next.commit(), []);
    }
}

fn crash_is_safe<L: Subject>(around: &Settings, before: &[Change], after: &[Change], at: Index) {
    let flows = flows();
    for lowering in L::all(around) {
        let mut agent = Agent::new(lowering.clone(), around);
        for change in before {
            agent.change(change.clone());
        }
        agent.commit();
        let old: Vec<_> = agent.mine(&flows).into_iter().map(|flow| (flow, agent.decide(flow))).collect();
        for change in after {
            agent.change(change.clone());
        }
        let steps = agent.plan.due();
        for step in &steps[..at.index(steps.len() + 1)] {
            agent.kernel.apply(step);
        }
        let all = || forwarding(around, before.iter().chain(after).cloned());
        let desired = Agent::start(lowering.clone(), all(), Default::default()).plan.desired();
        // Some Services at a time, as a large cluster is taken in, or all at once.
        for at_once in [1, usize::MAX] {
            let mut next = Agent::starting(lowering.clone(), all(), agent.kernel.0.clone());
            assert!(next.plan.is_gradual());
            let names: Vec<_> = next.forwarding.services().cloned().collect();
            let parts = names.chunks(at_once).map(Some).chain([None]);
            for part in parts {
                match part {
                    Some(names) => next.plan.update(names, &next.forwarding),
                    None => next.plan.complete(),
                }
                let steps = next.plan.due();
                for step in &steps {
                    next.kernel.apply(step);
                    for (flow, old) in &old {
                        let (now, new) = (next.decide(flow), lowering.decide(&desired, flow));
                        assert!(is_between(old, &now, &new), "{flow:?}: {old:?}, {now:?}, then {new:?}");
                    }
                }
                next.plan.settle(&steps, &BTreeSet::new());
            }
            next.sweep();
            assert_eq!(next.kernel.0, next.plan.desired());
            next.check(&next.kernel.0, &flows, "kernel");
        }
    }
}

/// Objects that no plan makes.
pub(crate) trait Stray: Lowering {
    fn strays(number: u32) -> ObjectsOf<Self>;
}

impl Stray for Bpf {
    fn strays(number: u32) -> ObjectsOf<Self> {
        let addr = proxy_abi::Addr::v4(number, 80);
        let frontend = proxy_abi::Frontend { service: number, count: number };
        ObjectsOf::<Self>::from([
            (bpf::Key::Name(number), bpf::Value::Name("not a label".into())),
            (bpf::Key::Slot(proxy_abi::SlotKey { service: number, slot: 7 }), bpf::Value::Slot(addr)),
            (bpf::Key::Frontend(proxy_abi::FrontendKey::new(addr, 6)), bpf::Value::Frontend(frontend)),
            (bpf::Key::Frontend(proxy_abi::FrontendKey::new(addr, 1)), bpf::Value::Frontend(frontend)),
        ])
    }
}

impl Stray for Nft {
    fn strays(number: u32) -> ObjectsOf<Self> {
        let ip = std::net::Ipv4Addr::from(number).into();
        let frontend = proxy_core::model::Frontend { ip, port: 80, protocol: proxy_core::model::Protocol::Tcp };
        let pick = nft::Pick::Even(number as u16 + 1);
        let target = nft::Target { masquerade: Masquerade::Never, is_node_port: false, pool: Pool::Cluster, pick };
        let label: std::sync::Arc<str> = "not a label".into();
        ObjectsOf::<Self>::from([
            (nft::Key::Chain(target), nft::Value::Present),
            (nft::Key::Slot(frontend, number), nft::Value::Backend(proxy_core::model::Address { ip, port: 1 })),
            (nft::Key::StickSlot(number, number), nft::Value::Number(number)),
            (nft::Key::Identity(frontend), nft::Value::Number(number)),
            (nft::Key::Service(frontend), nft::Value::Service(nft::Class::Target(target), label)),
            (nft::Key::Refused(frontend), nft::Value::Label("a/web".into())),
        ])
    }
}
