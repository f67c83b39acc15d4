//! Random clusters, small enough for conflicts: few names, addresses and ports.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use proptest::test_runner::RngSeed;
use proxy_core::cidr::Cidr;
use proxy_core::cluster::Kind;
use proxy_core::forward::{Flow, Forwarding};
use proxy_core::model::{
    Change, Endpoint, EndpointState, Family, Node, NodeHint, ObjectName, Protocol, RemovedEndpoints, Service, ServicePort, Slice,
    SlicePort, TrafficPolicy,
};
use proxy_core::settings::{LocalDetection, NodePortAddresses, Settings};
use proxy_core::surroundings::Origin;

/// So many cases that a run takes seconds. The seed is chosen here to be printed: nothing is stored beside the sources.
pub(crate) fn config() -> ProptestConfig {
    let mut chosen = ProptestConfig::default();
    if std::env::var_os("PROPTEST_CASES").is_none() {
        chosen.cases = 100;
    }
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

pub(crate) fn cidr(text: &str) -> Cidr {
    text.parse().expect("a range")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// External addresses and those of load balancers; one is a ClusterIP too.
pub(crate) fn external_ips(family: Family) -> Vec<IpAddr> {
    match family {
        Family::V4 => ["10.97.0.1", "10.97.0.2", "10.96.0.3"].map(ip).into(),
        Family::V6 => ["fd00:97::1", "fd00:97::2"].map(ip).into(),
    }
}

/// Addresses that the host may have.
pub(crate) fn host_ips(family: Family) -> Vec<IpAddr> {
    match family {
        Family::V4 => ["10.0.0.1", "10.0.0.2", "192.168.0.1", "127.0.0.1"].map(ip).into(),
        Family::V6 => ["fd00::1", "fd00::2", "::1"].map(ip).into(),
    }
}

pub(crate) fn settings() -> impl Strategy<Value = Settings> {
    let local = select(vec![
        LocalDetection::ClusterCidrs(vec![cidr("10.1.0.0/30"), cidr("fd00:1::/126")]),
        LocalDetection::ClusterCidrs(vec![cidr("10.1.0.0/29")]),
        LocalDetection::ClusterCidrs(Vec::new()),
        LocalDetection::NodeCidrs,
        LocalDetection::Bridge("cni0".into()),
        LocalDetection::InterfacePrefix("veth".into()),
    ]);
    let node_ports = select(vec![
        NodePortAddresses { primary: true, cidrs: Vec::new() },
        NodePortAddresses { primary: true, cidrs: vec![cidr("10.0.0.0/8"), cidr("::/0")] },
        NodePortAddresses { primary: false, cidrs: vec![cidr("0.0.0.0/0")] },
        NodePortAddresses { primary: false, cidrs: vec![cidr("192.168.0.0/16"), cidr("127.0.0.0/8")] },
        NodePortAddresses { primary: true, cidrs: vec![cidr("127.0.0.0/8"), cidr("::1/128")] },
    ]);
    (local, node_ports, prop::bool::weighted(0.2), any::<bool>()).prop_map(|(local, node_ports, masquerade_all, open)| Settings {
        node: "this".into(),
        local,
        masquerade_all,
        node_ports,
        open_unnamed_families: open,
        ..Settings::default()
    })
}

pub(crate) const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
pub(crate) const PORTS: [u16; 2] = [53, 80];
pub(crate) const NODE_PORTS: [u16; 2] = [30_053, 30_080];

fn port() -> impl Strategy<Value = ServicePort> {
    let node_port = option::weighted(0.4, select(&NODE_PORTS)).prop_map(Option::unwrap_or_default);
    let port =
        (select(vec!["", "x", "y"]), select(vec![Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Sctp]), select(&PORTS), node_port);
    port.prop_map(|(name, protocol, port, node_port)| ServicePort { name: name.into(), protocol, port, node_port })
}

fn service() -> impl Strategy<Value = Service> {
    let ips = |family| option::weighted(0.8, select(cluster_ips(family)));
    let some = || {
        let all: Vec<IpAddr> = Family::ALL.into_iter().flat_map(external_ips).collect();
        prop_oneof![2 => Just(Vec::new()), 1 => subsequence(all, 0..3)]
    };
    let policy = || select(vec![TrafficPolicy::Cluster, TrafficPolicy::Local]);
    let affinity = option::weighted(0.3, select(vec![10, 20]));
    let ranges = option::weighted(
        0.3,
        subsequence(["10.0.0.0/24", "10.1.0.0/31", "0.0.0.0/0", "fd00::/64", "192.0.2.0/24"].map(cidr).to_vec(), 0..3),
    );
    use RemovedEndpoints::{AsUsual, Drain, Keep, Reset};
    let removed = select(vec![AsUsual, AsUsual, Keep, Drain, Reset]);
    (ips(Family::V4), ips(Family::V6), vec(port(), 0..4), some(), some(), policy(), policy(), affinity, ranges, removed).prop_map(
        |(v4, v6, ports, external_ips, load_balancer_ips, internal, external, affinity, ranges, removed)| {
            let (mut numbers, mut names) = (BTreeSet::new(), BTreeSet::new());
            let unique = |p: &ServicePort| numbers.insert((p.port, p.protocol)) && names.insert((p.name.clone(), p.protocol));
            Service {
                cluster_ips: v4.into_iter().chain(v6).collect(),
                external_ips: external_ips.into(),
                load_balancer_ips: load_balancer_ips.into(),
                ports: ports.into_iter().filter(unique).collect(),
                internal,
                external,
                affinity,
                source_ranges: ranges.map(Into::into),
                health_check_port: if external == TrafficPolicy::Local { 30_100 } else { 0 },
                removed,
            }
        },
    )
}

fn endpoint(family: Family) -> impl Strategy<Value = (Endpoint, Box<[std::sync::Arc<str>]>)> {
    let state = select(vec![
        EndpointState::Gone,
        EndpointState::Draining,
        EndpointState::ReadyLeaving,
        EndpointState::NotServing,
        EndpointState::NotReady,
        EndpointState::Ready,
        EndpointState::Ready,
    ]);
    let nodes = select(vec![NodeHint::None, NodeHint::Others, NodeHint::This, NodeHint::This]);
    let zones = prop_oneof![1 => Just(vec![]), 3 => subsequence(vec!["a", "b"], 1..=2)];
    (select(backend_ips(family)), state, any::<bool>(), nodes, zones).prop_map(|(ip, state, is_local, nodes, zones)| {
        (Endpoint { ip, state, is_local, nodes }, zones.into_iter().map(Into::into).collect())
    })
}

fn slice() -> impl Strategy<Value = Slice> {
    let mut owners = service_names();
    owners.push(ObjectName::new("b", "unknown"));
    let port = (select(vec!["", "x", "y"]), select(&PROTOCOLS), select(vec![5353, 8080]));
    let port = port.prop_map(|(name, protocol, port)| SlicePort { name: name.into(), protocol, port });
    let endpoints = select(&Family::ALL).prop_flat_map(move |family| vec(endpoint(family), 0..6));
    (select(owners), vec(port, 0..3), endpoints, any::<bool>()).prop_map(|(service, ports, endpoints, hinted)| {
        let (endpoints, zones): (Vec<Endpoint>, Vec<_>) = endpoints.into_iter().unzip();
        Slice { service, ports: ports.into(), endpoints: endpoints.into(), zones: if hinted { zones.into() } else { Box::default() } }
    })
}

fn around() -> impl Strategy<Value = Change> {
    let zone = option::weighted(0.8, select(vec!["a", "b", "c"])).prop_map(|zone| zone.map(Into::into));
    let ips = || (option::weighted(0.8, select(host_ips(Family::V4))), option::weighted(0.6, select(host_ips(Family::V6))));
    let ips = ips().prop_map(|(v4, v6)| v4.into_iter().chain(v6).collect());
    let pod_cidrs = subsequence(["10.1.0.0/31", "fd00:1::/127"].map(cidr).to_vec(), 0..=2);
    let node = (zone, ips, pod_cidrs).prop_map(|(zone, ips, pod_cidrs)| Node { zone, ips, pod_cidrs: pod_cidrs.into(), is_leaving: false });
    let host: Vec<IpAddr> = Family::ALL.into_iter().flat_map(host_ips).collect();
    let cidrs = subsequence(["10.96.0.0/24", "10.96.0.0/28", "fd00:96::/112"].map(cidr).to_vec(), 0..=3);
    prop_oneof![
        option::weighted(0.8, node).prop_map(Change::Node),
        subsequence(host.clone(), 0..=host.len()).prop_map(|addresses| Change::HostAddresses(addresses.into())),
        (select(vec!["kubernetes", "more"]), option::weighted(0.8, cidrs))
            .prop_map(|(name, cidrs)| Change::ServiceCidr(ObjectName::new("", name), cidrs.map(Into::into))),
    ]
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    let services = (select(service_names()), option::weighted(0.8, service())).prop_map(|(name, s)| Change::Service(name, s));
    let names: Vec<_> = (1..=4).map(|i| ObjectName::new("a", format!("slice-{i}"))).collect();
    let slices = (select(names), option::weighted(0.85, slice())).prop_map(|(name, s)| Change::Slice(name, s));
    prop_oneof![4 => services, 6 => slices, 3 => around()]
}

/// Changes of Services and slices alone. (When what is around changes in the same moment, a packet may meet the one before the
/// other.)
pub(crate) fn object_changes() -> impl Strategy<Value = Vec<Change>> {
    let is_object = |change: &Change| matches!(change, Change::Service(..) | Change::Slice(..));
    changes().prop_map(move |changes| changes.into_iter().filter(is_object).collect())
}

pub(crate) fn changes() -> impl Strategy<Value = Vec<Change>> {
    vec(change(), 1..25)
}

pub(crate) fn events() -> impl Strategy<Value = Vec<Event>> {
    vec(prop_oneof![4 => change().prop_map(Event::Change), 1 => Just(Event::Commit), 1 => Just(Event::Sweep)], 1..35)
}

/// The object that a change is about.
pub(crate) fn object(change: &Change) -> (Option<Kind>, ObjectName) {
    match change {
        Change::Service(name, _) => (Some(Kind::Service), name.clone()),
        Change::Slice(name, _) => (Some(Kind::Slice), name.clone()),
        Change::ServiceCidr(name, _) => (Some(Kind::ServiceCidr), name.clone()),
        Change::Node(_) => (Some(Kind::Node), ObjectName::new("", "this")),
        Change::HostAddresses(_) => (None, ObjectName::new("", "")),
    }
}

pub(crate) fn forwarding(settings: &Settings, changes: impl IntoIterator<Item = Change>) -> Forwarding {
    let mut forwarding = Forwarding::new(settings.clone());
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

/// A flow to every frontend that a random cluster can have, from every kind of sender, and to some that it cannot have.
pub(crate) fn flows() -> Vec<Flow> {
    let mut flows = Vec::new();
    for family in Family::ALL {
        let (pods, host) = (backend_ips(family), host_ips(family));
        let client = ip(if family == Family::V4 { "192.0.2.1" } else { "2001:db8::1" });
        let interface = |name: &str| Origin::Interface(name.into());
        let senders = [(pods[0], interface("veth1")), (pods[2], interface("cni0")), (host[0], Origin::Host), (client, interface("eth0"))];
        let unallocated = ip(if family == Family::V4 { "10.96.0.9" } else { "fd00:96::9" });
        let served = cluster_ips(family).into_iter().chain(external_ips(family)).chain([unallocated, pods[0]]);
        let served = served.map(|ip| (ip, false, vec![PORTS[0], PORTS[1], 81]));
        let node = host.iter().map(|ip| (*ip, true, NODE_PORTS.to_vec()));
        for (ip, is_to_host, ports) in served.chain(node) {
            for port in ports {
                for (i, (source, origin)) in senders.iter().enumerate() {
                    let protocols = [Some(Protocol::Tcp), Some(Protocol::Udp), Some(Protocol::Sctp), None];
                    // All senders by TCP, one each by the others.
                    for protocol in protocols.into_iter().take(if i == port as usize % 4 { 4 } else { 1 }) {
                        let destination = SocketAddr::new(ip, if protocol.is_some() { port } else { 0 });
                        flows.push(Flow { source: *source, origin: origin.clone(), destination, is_to_host, protocol });
                    }
                }
            }
        }
    }
    flows
}
