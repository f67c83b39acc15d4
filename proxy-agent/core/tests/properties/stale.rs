//! Following changes finds every flow that has gone stale, and no other.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proxy_core::forward::Forwarding;
use proxy_core::model::{Address, Family, Frontend, ObjectName, Protocol};
use proxy_core::stale::{Flow, Stale, Tracker};

use super::world::{
    NODE_PORTS, PORTS, PROTOCOLS, backend_ips, changes, cluster_ips, config, external_ips, forwarding, host_ips, object_changes,
    service_names, settings,
};

/// Every flow that a random cluster can have, and as many that it cannot have.
fn flows() -> Vec<Flow> {
    let mut flows = Vec::new();
    for family in Family::ALL {
        let backends: Vec<Address> = backend_ips(family).into_iter().flat_map(|ip| [5353, 8080].map(|port| Address { ip, port })).collect();
        let served = cluster_ips(family).into_iter().chain(external_ips(family)).map(|ip| (ip, PORTS));
        let served = served.chain(host_ips(family).into_iter().map(|ip| (ip, NODE_PORTS))).chain([(backends[0].ip, [8080, 5353])]);
        for (ip, ports) in served {
            for to in ports.into_iter().flat_map(|port| PROTOCOLS.map(|protocol| Frontend { ip, port, protocol })) {
                let nobody = Address { ip, port: to.port };
                flows.extend(backends.iter().chain([&nobody]).map(|answered_by| Flow { to, answered_by: *answered_by }));
            }
        }
    }
    flows
}

/// What a look at everything finds.
fn everywhere(forwarding: &Forwarding) -> Stale {
    Tracker::default().follow(forwarding, &service_names().into_iter().collect(), false).stale
}

/// Whether a flow is to what any Service has: at its address, or as a NodePort.
fn is_ours(forwarding: &Forwarding, flow: &Flow) -> bool {
    let node_port = Frontend::node_port(flow.to.family(), flow.to.port, flow.to.protocol);
    let serves = forwarding.surroundings().node_port_addresses(flow.to.family()).contains(&flow.to.ip);
    forwarding.owner(&flow.to).is_some() || (serves && forwarding.owner(&node_port).is_some())
}

fn is_translated(flow: &Flow) -> bool {
    flow.answered_by != Address { ip: flow.to.ip, port: flow.to.port }
}

fn never_cut(forwarding: &Forwarding, name: &ObjectName) -> bool {
    forwarding.service(name).is_none_or(|service| !service.removed.cuts())
}

proptest! {
    #![proptest_config(config())]

    /// Whatever flows there are: after every change only those are left that a look at everything leaves, and gone are only those
    /// that it does not leave, or whose Service is gone.
    #[test]
    fn following_finds_what_a_look_at_everything_finds(around in settings(), before in changes(), steps in prop::collection::vec(object_changes(), 1..6)) {
        let all = flows();
        let mut forwarding = forwarding(&around, before);
        let mut tracker = Tracker::default();
        let mut alive: BTreeSet<Flow> = all.iter().copied().collect();
        let mut was_ours: BTreeSet<Flow> = BTreeSet::new();
        // Somebody who has not found the time to look yet.
        let mut looking = Stale::default();
        for changes in [Vec::new()].into_iter().chain(steps) {
            changes.into_iter().for_each(|change| {
                forwarding.apply(change);
            });
            let touched = forwarding.take_touched();
            let news = tracker.follow(&forwarding, &touched, !looking.is_empty());
            let found = news.stale.clone();
            let (gone, left): (BTreeSet<Flow>, BTreeSet<Flow>) = alive.iter().copied().partition(|flow| found.is_stale(flow));
            let wanted = everywhere(&forwarding);
            looking.hear(news);
            for flow in all.iter().filter(|flow| is_ours(&forwarding, flow) && looking.is_stale(flow)) {
                prop_assert!(wanted.is_stale(flow), "{:?} may go on by now", flow);
            }
            for flow in &left {
                // Who is not translated while there is nobody to translate to may begin again at once.
                prop_assert!(!wanted.is_stale(flow) || begins_untranslated(&forwarding, flow), "{:?} is left", flow);
            }
            for flow in &gone {
                let is_ours = is_ours(&forwarding, flow);
                prop_assert!(is_ours || was_ours.contains(flow), "{:?} was nobody's", flow);
                prop_assert!(!is_ours || wanted.is_stale(flow), "{:?} may go on", flow);
            }
            prop_assert!(tracker.follow(&forwarding, &touched, false).is_empty(), "nothing has changed since");
            // Whatever may begin now does.
            alive = all.iter().copied().filter(|flow| left.contains(flow) || !is_translated(flow) || is_ours(&forwarding, flow)).collect();
            alive.retain(|flow| !wanted.is_stale(flow) || begins_untranslated(&forwarding, flow));
            was_ours = all.iter().copied().filter(|flow| is_ours(&forwarding, flow)).collect();
        }
    }

    /// As kube-proxy: TCP goes on whatever happens to its Service, unless that says otherwise.
    #[test]
    fn tcp_goes_on_unless_its_service_says_otherwise(around in settings(), before in changes(), changes in object_changes()) {
        let mut forwarding = forwarding(&around, before);
        let mut tracker = Tracker::default();
        let names: BTreeSet<ObjectName> = service_names().into_iter().collect();
        let cut_before = names.iter().any(|name| !never_cut(&forwarding, name));
        tracker.follow(&forwarding, &names, false);
        changes.into_iter().for_each(|change| {
                forwarding.apply(change);
            });
        let found = tracker.follow(&forwarding, &names, false).stale;
        if !cut_before && names.iter().all(|name| never_cut(&forwarding, name)) {
            prop_assert!(found.kinds().keys().all(|(_, protocol)| *protocol != Protocol::Tcp), "{:?}", found);
        }
    }
}

/// Whether a packet that is not translated may begin this flow: it is to nobody, or to somebody without endpoints.
fn begins_untranslated(forwarding: &Forwarding, flow: &Flow) -> bool {
    if is_translated(flow) {
        return false;
    }
    let node_port = Frontend::node_port(flow.to.family(), flow.to.port, flow.to.protocol);
    let Some(name) = forwarding.owner(&flow.to).or_else(|| forwarding.owner(&node_port)) else { return true };
    let routes = forwarding.routes(name).into_iter();
    let mut routes = routes.filter(|route| route.entries.iter().any(|entry| entry.frontend == flow.to || entry.frontend == node_port));
    routes.all(|route| route.cluster.is_empty() && route.local.is_empty())
}
