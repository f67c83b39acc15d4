//! Order is irrelevant, following changes gives what starting anew gives, and every lowering means what the model means.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use proxy_core::cluster::Kind;
use proxy_core::lower::StepOf;
use proxy_core::lower::bpf::Bpf;
use proxy_core::lower::nft::Nft;
use proxy_core::model::{Change, ObjectName};
use proxy_core::settings::Settings;

use super::definition::Definition;
use super::kernel::{Agent, Subject};
use super::world::{Event, service_names};
use super::world::{changes, config, events, flows, forwarding, last, object, settings};

proptest! {
    #![proptest_config(config())]

    /// Only the order of the changes of one object matters; of those, only the last.
    #[test]
    fn order_is_irrelevant(around in settings(), (changes, shuffled) in changes().prop_flat_map(|c| (Just(c.clone()), Just(c).prop_shuffle()))) {
        let reordered = in_order_of(&changes, shuffled.iter().map(object));
        let (one, other) = (forwarding(&around, changes.clone()), forwarding(&around, reordered));
        let fresh = forwarding(&around, last(&changes));
        for lowering in Nft::all(&around) {
            prop_assert_eq!(one.view(&lowering), other.view(&lowering));
            prop_assert_eq!(one.view(&lowering), fresh.view(&lowering));
        }
        for flow in flows() {
            prop_assert_eq!(one.decide(&flow), other.decide(&flow));
            prop_assert_eq!(one.decide(&flow), fresh.decide(&flow));
        }
        for name in service_names() {
            prop_assert_eq!(one.conflicts(&name), other.conflicts(&name));
        }
    }

    /// A complete list leaves what a start with that list gives.
    #[test]
    fn a_list_replaces_what_was_known(around in settings(), before in changes(), listed in changes()) {
        let listed = last(&listed);
        let mut relisted = forwarding(&around, before);
        // The host's addresses are always told.
        relisted.apply(Change::HostAddresses(Box::default()));
        for change in &listed {
            relisted.apply(change.clone());
        }
        for kind in [Kind::Service, Kind::Slice, Kind::Node, Kind::ServiceCidr] {
            let names = listed.iter().map(object).filter(|(k, _)| *k == Some(kind)).map(|(_, name)| name).collect();
            relisted.retain_listed(kind, &names);
        }
        let fresh = forwarding(&around, listed);
        for flow in flows() {
            prop_assert_eq!(relisted.decide(&flow), fresh.decide(&flow));
        }
    }

    /// The model is what the definition says, computed the slow way.
    #[test]
    fn the_model_is_the_definition(around in settings(), changes in changes()) {
        let model = forwarding(&around, changes.clone());
        let definition = Definition::new(&around, last(&changes));
        for flow in flows() {
            prop_assert_eq!(model.decide(&flow), definition.decide(&flow), "{:?}", flow);
        }
    }

    #[test]
    fn bpf_follows(around in settings(), events in events()) {
        follows::<Bpf>(&around, &events);
    }

    #[test]
    fn nft_follows(around in settings(), events in events()) {
        follows::<Nft>(&around, &events);
    }

    #[test]
    fn bpf_commits_may_overlap_changes(around in settings(), events in events()) {
        overlaps::<Bpf>(&around, &events);
    }

    #[test]
    fn nft_commits_may_overlap_changes(around in settings(), events in events()) {
        overlaps::<Nft>(&around, &events);
    }
}

/// The changes in another order of objects, those of one object as they were.
fn in_order_of(changes: &[Change], objects: impl Iterator<Item = (Option<Kind>, ObjectName)>) -> Vec<Change> {
    let mut queues: BTreeMap<_, VecDeque<_>> = BTreeMap::new();
    for change in changes {
        queues.entry(object(change)).or_default().push_back(change.clone());
    }
    objects.filter_map(|object| queues.get_mut(&object)?.pop_front()).collect()
}

/// After every event: the objects that are wanted are those of a fresh start, up to slots and numbers, which have history; they
/// decide as the model does, and so does the kernel once they are committed, whatever lingers in it.
fn follows<L: Subject>(around: &Settings, events: &[Event]) {
    let flows = flows();
    for lowering in L::all(around) {
        let mut agent = Agent::new(lowering.clone(), around);
        for event in events {
            let committed = !matches!(event, Event::Change(_));
            agent.event(event.clone());
            let desired = agent.plan.desired();
            agent.check(&desired, &flows, "desired");
            assert_eq!(agent.plan.believed(), agent.kernel.0, "believed");
            if committed {
                agent.check(&agent.kernel.0, &flows, "kernel");
                assert_eq!(agent.plan.due(), [], "a second commit has nothing to do");
            }
        }
        agent.finish();
        let desired = agent.plan.desired();
        assert_eq!(agent.kernel.0, desired, "nothing lingers after a sweep");
        assert!(!agent.plan.ledger().has_lingering());
        let mut fresh = Agent::start(lowering, forwarding(around, changes_of(events)), Default::default());
        fresh.finish();
        assert_eq!(desired.len(), fresh.kernel.0.len(), "as many objects as after a fresh start");
        for flow in agent.mine(&flows) {
            assert_eq!(agent.decide(flow), fresh.decide(flow));
        }
    }
}

fn changes_of(events: &[Event]) -> Vec<Change> {
    let changes = events.iter().filter_map(|event| match event {
        Event::Change(change) => Some(change.clone()),
        _ => None,
    });
    changes.collect()
}

/// Changes that come between what was due and its settlement are neither lost nor undone, and what was refused meanwhile is
/// tried again when it changes or on request.
fn overlaps<L: Subject>(around: &Settings, events: &[Event]) {
    for lowering in L::all(around) {
        let mut agent = Agent::new(lowering, around);
        let mut under_way: (Vec<StepOf<L>>, BTreeSet<L::Key>) = Default::default();
        for (i, event) in events.iter().enumerate() {
            match event {
                Event::Change(change) => agent.change(change.clone()),
                Event::Commit | Event::Sweep => {
                    agent.plan.settle(&under_way.0, &under_way.1);
                    let round = agent.plan.ledger().round();
                    let steps = if matches!(event, Event::Commit) { agent.plan.due() } else { agent.plan.sweep(round) };
                    let refused: BTreeSet<_> = steps.iter().map(|s| s.key().clone()).skip(i % 3).step_by(3).collect();
                    for step in steps.iter().filter(|step| !refused.contains(step.key())) {
                        agent.kernel.apply(step);
                    }
                    under_way = (steps, refused);
                }
            }
        }
        agent.plan.settle(&under_way.0, &under_way.1);
        assert_eq!(agent.plan.believed(), agent.kernel.0, "believed");
        agent.plan.ledger().retry();
        agent.finish();
        assert_eq!(agent.kernel.0, agent.plan.desired());
        agent.check(&agent.kernel.0, &flows(), "kernel");
    }
}
