//! Random clusters, small enough for conflicts: few names, addresses and ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::RngSeed;
use proxy_core::forward::{Flow, Forwarding};
use proxy_core::model::{Change, Endpoint, EndpointState, Family, Frontend, ObjectName, Protocol, Service, ServicePort, Slice, SlicePort};

/// So many cases that a run takes seconds. The seed is chosen here to be printed: nothing is stored beside the sources.
pub(crate) fn config() -> ProptestConfig {
    let chosen = ProptestConfig::default();
    let seed = match chosen.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => std::time::UNIX_EPOCH.elapsed().map_or(0, |now| now.as_nanos() as u64),
    };
    // Captured unless the test fails.
    println!("PROPTEST_RNG_SEED={seed}");
    ProptestConfig { rng_seed: RngSeed::Fixed(seed), failure_persistence: None, max_shrink_iters: 20_000, ..chosen }
}

/// An event of a sequence.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Change(Change),
    /// What is due is committed.
    Commit,
    /// What is due is committed, and what lingers from before it is swept.
    Sweep,
}

pub(crate) fn service_names() -> Vec<ObjectName> {
    [("a", "web"), ("a", "dns"), ("b", "web")].map(|(namespace, name)| ObjectName::new(namespace, name)).into()
}

pub(crate) fn cluster_ips(family: Family) -> Vec<IpAddr> {
    match family {
        Family::V4 => (1..=3).map(|i| Ipv4Addr::new(10, 96, 0, i).into()).collect(),
        Family::V6 => (1..=2).map(|i| Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, i).into()).collect(),
    }
}

pub(crate) fn backend_ips(family: Family) -> Vec<IpAddr> {
    match family {
        Family::V4 => (1..=5).map(|i| Ipv4Addr::new(10, 1, 0, i).into()).collect(),
        Family::V6 => (1..=3).map(|i| Ipv6Addr::new(0xfd00, 0x1, 0, 0, 0, 0, 0, i).into()).collect(),
    }
}

pub(crate) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
pub(crate) const PORTS: [u16; 2] = [53, 80];

fn service() -> impl Strategy<Value = Service> {
    let ips = |family| option::weighted(0.8, select(cluster_ips(family)));
    let port = (select(vec!["", "x", "y"]), select(&PROTOCOLS), select(&PORTS));
    let port = port.prop_map(|(name, protocol, port)| ServicePort { name: name.into(), protocol, port });
    (ips(Family::V4), ips(Family::V6), vec(port, 0..4)).prop_map(|(v4, v6, ports)| {
        let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
        let unique = |p: &ServicePort| numbers.insert((p.port, p.protocol)) && names.insert((p.name.clone(), p.protocol));
        Service { cluster_ips: v4.into_iter().chain(v6).collect(), ports: ports.into_iter().filter(unique).collect() }
    })
}

fn slice() -> impl Strategy<Value = Slice> {
    let mut owners = service_names();
    owners.push(ObjectName::new("b", "unknown"));
    let port = (select(vec!["", "x", "y"]), select(&PROTOCOLS), select(vec![5353, 8080]));
    let port = port.prop_map(|(name, protocol, port)| SlicePort { name: name.into(), protocol, port });
    let states = [
        EndpointState::Gone,
        EndpointState::Draining,
        EndpointState::ReadyLeaving,
        EndpointState::NotReady,
        EndpointState::Ready,
        EndpointState::Ready,
    ];
    let endpoints = select(&Family::ALL).prop_flat_map(move |family| {
        let endpoint = (select(backend_ips(family)), select(states.to_vec()));
        vec(endpoint.prop_map(|(ip, state)| Endpoint { ip, state }), 0..6)
    });
    (select(owners), vec(port, 0..3), endpoints).prop_map(|(service, ports, endpoints)| Slice {
        service,
        ports: ports.into(),
        endpoints: endpoints.into(),
    })
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    let services = (select(service_names()), option::weighted(0.8, service())).prop_map(|(name, s)| Change::Service(name, s));
    let names: Vec<_> = (1..=4).map(|i| ObjectName::new("a", format!("slice-{i}"))).collect();
    let slices = (select(names), option::weighted(0.85, slice())).prop_map(|(name, s)| Change::Slice(name, s));
    prop_oneof![2 => services, 3 => slices]
}

pub(crate) fn changes() -> impl Strategy<Value = Vec<Change>> {
    vec(change(), 1..25)
}

pub(crate) fn events() -> impl Strategy<Value = Vec<Event>> {
    vec(prop_oneof![4 => change().prop_map(Event::Change), 1 => Just(Event::Commit), 1 => Just(Event::Sweep)], 1..35)
}

/// The object that a change is about.
pub(crate) fn object(change: &Change) -> (bool, ObjectName) {
    match change {
        Change::Service(name, _) => (true, name.clone()),
        Change::Slice(name, _) => (false, name.clone()),
    }
}

pub(crate) fn forwarding(changes: impl IntoIterator<Item = Change>) -> Forwarding {
    let mut forwarding = Forwarding::default();
    for change in changes {
        forwarding.apply(change);
    }
    forwarding
}

/// The last change of every object.
pub(crate) fn last(changes: &[Change]) -> Vec<Change> {
    let by_object: BTreeMap<_, _> = changes.iter().map(|change| (object(change), change.clone())).collect();
    by_object.into_values().collect()
}

/// A flow to every frontend that a random cluster can have, and to some that it cannot.
pub(crate) fn flows() -> Vec<Flow> {
    let mut flows = Vec::new();
    for family in Family::ALL {
        let source = backend_ips(family)[0];
        for ip in cluster_ips(family).into_iter().chain(backend_ips(family)) {
            for port in PORTS.into_iter().chain([81]) {
                let to = |protocol| Flow { source, destination: SocketAddr::new(ip, port), protocol };
                flows.extend(PROTOCOLS.map(to));
            }
        }
    }
    flows
}

/// Every frontend that is served.
pub(crate) fn frontends(forwarding: &Forwarding) -> Vec<Frontend> {
    let names: BTreeSet<_> = forwarding.services().collect();
    names.into_iter().flat_map(|name| forwarding.routes(name)).map(|(frontend, _)| frontend).collect()
}
