//! A change costs what it changes, however large the cluster.

use std::net::{IpAddr, Ipv4Addr};

use proxy_core::forward::Forwarding;
use proxy_core::ledger::Step;
use proxy_core::lower::bpf::Bpf;
use proxy_core::lower::nft::Nft;
use proxy_core::model::{Change, Endpoint, EndpointState, Family, NodeHint, ObjectName, Protocol, Service, ServicePort, Slice, SlicePort};
use proxy_core::settings::Settings;

use super::kernel::{Agent, Subject};

const SERVICES: u32 = 10_000;
/// Backends of the Service that changes.
const LARGE: u32 = 500;
/// What one added or removed backend of a Service port may cost: a slot, another that moves, a member, a frontend, two chains, an
/// endpoint.
const STEPS_PER_BACKEND: usize = 7;

#[test]
fn a_slice_update_costs_what_it_changes_in_bpf() {
    one_slice_update(Bpf::default());
}

#[test]
fn a_slice_update_costs_what_it_changes_in_nft() {
    one_slice_update(Nft::new(Family::V4, &Settings::default()));
}

fn one_slice_update<L: Subject>(lowering: L) {
    let mut agent = Agent::new(lowering, &Settings::default());
    for i in 0..SERVICES {
        agent.forwarding.apply(service(i, cluster_ip(i)));
        agent.forwarding.apply(slice(i, 0..3));
    }
    let large = ObjectName::new("default", "service-42");
    agent.forwarding.apply(slice(42, 0..LARGE));
    agent.update();
    agent.finish();
    // From and to so many: a range is the backends that are ready.
    for (from, to) in
        [(0..LARGE, 1..LARGE), (1..LARGE, 0..LARGE), (0..LARGE, 7..LARGE + 7), (7..LARGE + 7, 7..12), (7..12, 0..1), (0..1, 0..0)]
    {
        agent.forwarding.apply(slice(42, from.clone()));
        agent.update();
        agent.finish();
        let before = agent.plan.wanted_by(&large);
        agent.forwarding.apply(slice(42, to.clone()));
        assert_eq!(agent.update().into_iter().collect::<Vec<_>>(), std::slice::from_ref(&large), "only this Service is touched");
        let mut steps = agent.commit();
        steps.extend(agent.sweep());
        let after = agent.plan.wanted_by(&large);
        let foreign = steps.iter().find(|step| [&before, &after].iter().all(|wanted| wanted.iter().all(|(key, _)| key != step.key())));
        assert_eq!(foreign, None, "only this Service's objects");
        let changed = from.clone().filter(|i| !to.contains(i)).count() + to.clone().filter(|i| !from.contains(i)).count();
        // Two ports.
        assert!(steps.len() <= 2 * STEPS_PER_BACKEND * changed, "{from:?} to {to:?}: {} steps", steps.len());
    }
}

/// SVC-15, EP-10: what says nothing new touches nothing.
#[test]
fn saying_the_same_again_touches_nothing() {
    let mut forwarding = Forwarding::default();
    forwarding.apply(service(1, cluster_ip(1)));
    forwarding.apply(slice(1, 0..3));
    forwarding.take_touched();
    forwarding.apply(service(1, cluster_ip(1)));
    forwarding.apply(slice(1, 0..3));
    assert!(forwarding.take_touched().is_empty());
}

/// However many Services claim one address, one that comes or goes touches itself and at most one other.
#[test]
fn conflicts_touch_only_who_wins_and_loses() {
    let shared = cluster_ip(0);
    let mut forwarding = Forwarding::default();
    for i in 0..1_000 {
        forwarding.apply(service(i, shared));
    }
    for change in [service(5_000, shared), service(0, cluster_ip(1)), service(0, shared), Change::Service(name(0), None)] {
        forwarding.take_touched();
        forwarding.apply(change);
        let touched = forwarding.take_touched();
        assert!(touched.len() <= 2, "{touched:?}");
    }
    assert_eq!(forwarding.conflicts(&name(2)).len(), 2, "the other names are known as losers");
}

/// What a commit prints: overwritten first, then deleted from what points to what is pointed at.
#[test]
fn steps_read_as_changes() {
    let mut agent = Agent::new(Bpf::default(), &Settings::default());
    agent.change(service(1, cluster_ip(1)));
    agent.change(slice(1, 1..3));
    agent.finish();
    agent.change(slice(1, 2..3));
    let steps: Vec<String> = agent.commit().iter().map(Step::to_string).collect();
    let expected = [
        "~ slots[1 0] = 10.1.0.2:8080 (was 10.1.0.1:8080)",
        "~ slots[2 0] = 10.1.0.2:5353 (was 10.1.0.1:5353)",
        "~ frontends[10.96.0.1:53/UDP] = service 2 count 1 (was service 2 count 2)",
        "~ frontends[10.96.0.1:80/TCP] = service 1 count 1 (was service 1 count 2)",
        "- members[2 10.1.0.1:5353] (was yes)",
        "- slots[1 1] (was 10.1.0.2:8080)",
        "- slots[2 1] (was 10.1.0.2:5353)",
    ];
    assert_eq!(steps, expected);
}

fn name(i: u32) -> ObjectName {
    ObjectName::new("default", format!("service-{i}"))
}

fn cluster_ip(i: u32) -> IpAddr {
    Ipv4Addr::from(0x0a60_0000 + i).into()
}

/// A Service with a TCP and a UDP port.
fn service(i: u32, ip: IpAddr) -> Change {
    let http = ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
    let dns = ServicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53, node_port: 0 };
    Change::Service(name(i), Some(Service { cluster_ips: [ip].into(), ports: [http, dns].into(), ..Service::default() }))
}

/// Its only slice.
fn slice(i: u32, backends: std::ops::Range<u32>) -> Change {
    let http = SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 };
    let dns = SlicePort { name: "dns".into(), protocol: Protocol::Udp, port: 5353 };
    let endpoint = |b| {
        let ip = Ipv4Addr::from(0x0a01_0000 + b).into();
        Endpoint { ip, state: EndpointState::Ready, is_local: false, nodes: NodeHint::None }
    };
    let slice = Slice { service: name(i), ports: [http, dns].into(), endpoints: backends.map(endpoint).collect(), zones: Box::default() };
    Change::Slice(ObjectName::new("default", format!("service-{i}-1")), Some(slice))
}
