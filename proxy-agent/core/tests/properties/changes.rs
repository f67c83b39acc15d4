//! Order is irrelevant, following changes gives what starting anew gives, and every lowering means what the model means.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use proxy_core::forward::{Flow, Verdict};
use proxy_core::lower::StepOf;
use proxy_core::lower::bpf::Bpf;
use proxy_core::lower::nft::Nft;
use proxy_core::model::{Change, EndpointState, Family};

use super::kernel::{Agent, Subject};
use super::world::{Event, backend_ips, service_names};
use super::world::{changes, config, events, flows, forwarding, frontends, last, object};

proptest! {
    #![proptest_config(config())]

    /// Only the order of the changes of one object matters; of those, only the last.
    #[test]
    fn order_is_irrelevant((changes, shuffled) in changes().prop_flat_map(|c| (Just(c.clone()), Just(c).prop_shuffle()))) {
        let reordered = in_order_of(&changes, shuffled.iter().map(object));
        let (one, other) = (forwarding(changes.clone()), forwarding(reordered));
        let fresh = forwarding(last(&changes));
        prop_assert_eq!(one.view(), other.view());
        prop_assert_eq!(one.view(), fresh.view());
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
    fn a_list_replaces_what_was_known(before in changes(), listed in changes()) {
        let listed = last(&listed);
        let mut relisted = forwarding(before);
        for change in &listed {
            relisted.apply(change.clone());
        }
        for (services, kind) in [(true, proxy_core::cluster::Kind::Service), (false, proxy_core::cluster::Kind::Slice)] {
            let names = listed.iter().map(object).filter(|(service, _)| *service == services).map(|(_, name)| name).collect();
            relisted.retain_listed(kind, &names);
        }
        prop_assert_eq!(relisted.view(), forwarding(listed).view());
    }

    /// Routes are what the definition says, computed the slow way.
    #[test]
    fn the_model_is_the_definition(changes in changes()) {
        let model = forwarding(changes.clone());
        for flow in flows() {
            prop_assert_eq!(model.decide(&flow), by_definition(&last(&changes), &flow), "{:?}", flow);
        }
    }

    #[test]
    fn bpf_follows(events in events()) {
        follows::<Bpf>(&events);
    }

    #[test]
    fn nft_follows(events in events()) {
        follows::<Nft>(&events);
    }

    #[test]
    fn bpf_commits_may_overlap_changes(events in events()) {
        overlaps::<Bpf>(&events);
    }

    #[test]
    fn nft_commits_may_overlap_changes(events in events()) {
        overlaps::<Nft>(&events);
    }
}

/// The changes in another order of objects, those of one object as they were.
fn in_order_of(changes: &[Change], objects: impl Iterator<Item = (bool, proxy_core::model::ObjectName)>) -> Vec<Change> {
    let mut queues: BTreeMap<_, VecDeque<_>> = BTreeMap::new();
    for change in changes {
        queues.entry(object(change)).or_default().push_back(change.clone());
    }
    objects.filter_map(|object| queues.get_mut(&object)?.pop_front()).collect()
}

/// A verdict straight from the objects: the Service that is first by name among those that have the address, and of its
/// endpoints the ready ones, else those that drain.
fn by_definition(objects: &[Change], flow: &Flow) -> Verdict {
    let services = objects.iter().filter_map(|object| match object {
        Change::Service(name, Some(service)) if service.cluster_ips.contains(&flow.destination.ip()) => {
            let port = service.ports.iter().find(|p| p.port == flow.destination.port() && p.protocol == flow.protocol)?;
            (flow.protocol != proxy_core::model::Protocol::Sctp).then_some((name, port))
        }
        _ => None,
    });
    let Some((service, port)) = services.min_by_key(|(name, _)| *name) else { return Verdict::Untouched };
    let mut best = BTreeMap::new();
    for object in objects {
        let Change::Slice(_, Some(slice)) = object else { continue };
        for p in slice.ports.iter().filter(|p| slice.service == *service && p.name == port.name && p.protocol == port.protocol) {
            for e in slice.endpoints.iter().filter(|e| e.ip.is_ipv4() == flow.destination.is_ipv4()) {
                let state = best.entry(std::net::SocketAddr::new(e.ip, p.port)).or_insert(e.state);
                *state = e.state.max(*state);
            }
        }
    }
    let of = |states: &'static [EndpointState]| best.iter().filter(move |(_, state)| states.contains(state)).map(|(addr, _)| *addr);
    const READY: &[EndpointState] = &[EndpointState::Ready, EndpointState::ReadyLeaving];
    if of(READY).next().is_some() { Verdict::to(of(READY)) } else { Verdict::to(of(&[EndpointState::Draining])) }
}

/// After every event: the objects that are wanted are those of a fresh start, up to slots and numbers, which have history; they
/// decide as the model does, and so does the kernel once they are committed, whatever lingers in it.
fn follows<L: Subject>(events: &[Event]) {
    let flows = flows();
    for lowering in L::ALL {
        let mut agent = Agent::new(*lowering);
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
        let mut fresh = Agent::start(*lowering, forwarding(changes_of(events)), Default::default());
        fresh.finish();
        assert_eq!(desired.len(), fresh.kernel.0.len(), "as many objects as after a fresh start");
        for frontend in frontends(&agent.forwarding) {
            let source = backend_ips(Family::of(frontend.ip))[0];
            let flow = Flow { source, destination: (frontend.ip, frontend.port).into(), protocol: frontend.protocol };
            if agent.mine(&[flow]).next().is_some() {
                assert_eq!(agent.decide(&flow), fresh.decide(&flow));
            }
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
fn overlaps<L: Subject>(events: &[Event]) {
    for lowering in L::ALL {
        let mut agent = Agent::new(*lowering);
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
