use std::net::Ipv4Addr;

use super::*;
use crate::model::{Change, Endpoint, EndpointState, NodeHint, Service, ServicePort, Slice, SlicePort, TrafficPolicy};
use crate::settings::{NodePortAddresses, Settings};
use EndpointState::{Draining, Gone, NotReady, NotServing, Ready, ReadyLeaving};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1));
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8));
const NODE_PORT: u16 = 30_053;

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn pod(i: u8) -> IpAddr {
    Ipv4Addr::new(10, 1, 0, i).into()
}

/// An agent that follows.
struct World {
    forwarding: Forwarding,
    tracker: Tracker,
}

impl World {
    fn new() -> Self {
        let node_ports = NodePortAddresses { primary: false, cidrs: vec!["10.0.0.0/8".parse().expect("a range")] };
        let mut forwarding = Forwarding::new(Settings { node_ports, ..Settings::default() });
        forwarding.apply(Change::HostAddresses([NODE].into()));
        Self { forwarding, tracker: Tracker::default() }
    }

    fn service(&mut self, service: &str, ports: &[Protocol], removed: RemovedEndpoints) -> &mut Self {
        let port = |protocol: &Protocol| ServicePort { name: "".into(), protocol: *protocol, port: 53, node_port: NODE_PORT };
        let service_of = Service { cluster_ips: [VIP].into(), ports: ports.iter().map(port).collect(), removed, ..Service::default() };
        self.forwarding.apply(Change::Service(name(service), Some(service_of)));
        self
    }

    fn endpoints(&mut self, port: u16, states: &[(u8, EndpointState)]) -> &mut Self {
        let endpoint = |(i, state): &(u8, EndpointState)| Endpoint { ip: pod(*i), state: *state, is_local: false, nodes: NodeHint::None };
        let ports = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|protocol| SlicePort { name: "".into(), protocol, port });
        let endpoints = states.iter().map(endpoint).collect();
        let slice = Slice { service: name("dns"), ports: ports.into(), endpoints, zones: Box::default() };
        self.forwarding.apply(Change::Slice(name("dns-1"), Some(slice)));
        self
    }

    fn news(&mut self) -> News {
        let touched = self.forwarding.take_touched();
        self.tracker.follow(&self.forwarding, &touched, true)
    }

    fn follow(&mut self) -> Stale {
        self.news().stale
    }
}

fn flow(protocol: Protocol, ip: IpAddr, port: u16, answered_by: (IpAddr, u16)) -> Flow {
    Flow { to: Frontend { ip, port, protocol }, answered_by: Address { ip: answered_by.0, port: answered_by.1 } }
}

/// To the ClusterIP and to the NodePort, answered by this pod.
fn to_pod(protocol: Protocol, i: u8) -> [Flow; 2] {
    [flow(protocol, VIP, 53, (pod(i), 5353)), flow(protocol, NODE, NODE_PORT, (pod(i), 5353))]
}

const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

#[test]
fn each_policy_keeps_flows_to_endpoints_in_the_states_that_it_says() {
    let states = [(1, Ready), (2, ReadyLeaving), (3, NotReady), (4, Draining), (5, NotServing), (6, Gone)];
    let udp_as_usual: &[u8] = &[1, 2, 3, 4];
    let everybody: &[u8] = &[1, 2, 3, 4, 5, 6, 7];
    for (removed, tcp, others) in [
        (RemovedEndpoints::AsUsual, everybody, udp_as_usual),
        (RemovedEndpoints::Keep, everybody, everybody),
        (RemovedEndpoints::Drain, udp_as_usual, udp_as_usual),
        (RemovedEndpoints::Reset, &[1, 2], &[1, 2]),
    ] {
        let mut world = World::new();
        let stale = world.service("dns", &ALL, removed).endpoints(5353, &states).follow();
        for protocol in ALL {
            let kept = if protocol == Protocol::Tcp { tcp } else { others };
            for i in everybody {
                for flow in to_pod(protocol, *i) {
                    assert_eq!(stale.is_stale(&flow), !kept.contains(i), "{removed:?} {flow:?}");
                }
            }
        }
    }
}

#[test]
fn tcp_is_not_cut_where_what_is_new_is_dropped() {
    let mut world = World::new();
    world.service("dns", &ALL, RemovedEndpoints::Reset).endpoints(5353, &[(1, Ready)]);
    let mut service = world.forwarding.service(&name("dns")).expect("a Service").clone();
    service.external = TrafficPolicy::Local;
    world.forwarding.apply(Change::Service(name("dns"), Some(service)));
    // No endpoint says that it is on this node.
    let stale = world.follow();
    let [to_cluster_ip, to_node_port] = to_pod(Protocol::Tcp, 2);
    assert!(stale.is_stale(&to_cluster_ip) && !stale.is_stale(&to_node_port));
    assert!(to_pod(Protocol::Udp, 2).iter().all(|flow| stale.is_stale(flow)));
}

#[test]
fn who_was_never_translated_is_served_once_there_are_endpoints() {
    let mut world = World::new();
    world.service("dns", &ALL, RemovedEndpoints::AsUsual).follow();
    let stale = world.endpoints(5353, &[(1, Ready)]).follow();
    assert!(stale.is_stale(&flow(Protocol::Udp, VIP, 53, (VIP, 53))));
    assert!(stale.is_stale(&flow(Protocol::Udp, NODE, NODE_PORT, (NODE, NODE_PORT))));
    assert!(!stale.is_stale(&flow(Protocol::Tcp, VIP, 53, (VIP, 53))));
}

#[test]
fn flows_to_the_former_target_port_are_stale() {
    let mut world = World::new();
    world.service("dns", &ALL, RemovedEndpoints::AsUsual).endpoints(5353, &[(1, Ready)]).follow();
    let stale = world.endpoints(5354, &[(1, Ready)]).follow();
    assert!(to_pod(Protocol::Udp, 1).iter().all(|flow| stale.is_stale(flow)));
    assert!(!stale.is_stale(&flow(Protocol::Udp, VIP, 53, (pod(1), 5354))));
}

#[test]
fn nothing_is_looked_for_where_no_flow_can_have_gone_stale() {
    let mut world = World::new();
    world.service("dns", &ALL, RemovedEndpoints::AsUsual).endpoints(5353, &[(1, Ready)]).follow();
    let unchanged = [
        ("an endpoint more", vec![(1, Ready), (2, Ready)]),
        ("one that terminates and serves", vec![(1, Draining), (2, Ready)]),
        ("one that is not ready and serves", vec![(1, NotReady), (2, Ready)]),
    ];
    for (what, states) in unchanged {
        assert!(world.endpoints(5353, &states).follow().is_empty(), "{what}");
    }
    assert!(!world.endpoints(5353, &[(2, Ready)]).follow().is_empty(), "one that is gone");
    let mut world = World::new();
    world.service("web", &[Protocol::Tcp], RemovedEndpoints::AsUsual);
    assert!(world.follow().is_empty(), "TCP alone");
}

#[test]
fn flows_of_a_service_without_endpoints_and_of_one_that_is_gone_are_stale() {
    let mut world = World::new();
    world.service("dns", &ALL, RemovedEndpoints::AsUsual).endpoints(5353, &[(1, Ready)]).follow();
    let stale = world.endpoints(5353, &[]).follow();
    assert!(to_pod(Protocol::Udp, 1).iter().all(|flow| stale.is_stale(flow)), "no endpoints");
    world.endpoints(5353, &[(1, Ready)]).follow();
    world.forwarding.apply(Change::Service(name("dns"), None));
    let stale = world.follow();
    for protocol in [Protocol::Udp, Protocol::Sctp] {
        assert!(to_pod(protocol, 1).iter().all(|flow| stale.is_stale(flow)), "gone, {protocol}");
    }
    assert!(!to_pod(Protocol::Tcp, 1).iter().any(|flow| stale.is_stale(flow)), "TCP goes on");
    assert!(!stale.is_stale(&flow(Protocol::Udp, ELSEWHERE, NODE_PORT, (pod(1), 5353))), "a NodePort is at the node's addresses only");
    assert!(!stale.is_stale(&flow(Protocol::Udp, ELSEWHERE, 53, (pod(1), 53))), "to nobody of ours");
}

#[test]
fn a_frontend_that_another_service_takes_over_is_looked_at_with_that() {
    let mut world = World::new();
    world.service("dns", &ALL, RemovedEndpoints::AsUsual).endpoints(5353, &[(1, Ready)]).follow();
    // Its name comes later: it has the address once the other is gone.
    world.service("later", &[Protocol::Udp], RemovedEndpoints::Keep).follow();
    world.forwarding.apply(Change::Service(name("dns"), None));
    let stale = world.follow();
    assert!(!stale.is_stale(&to_pod(Protocol::Udp, 1)[0]), "the new owner keeps");
    assert!(stale.is_stale(&to_pod(Protocol::Sctp, 1)[0]), "the new owner has no such port");
}

#[test]
fn what_an_agent_before_has_served_and_nobody_does_any_more_is_stale() {
    let frontend = |ip, port, protocol| Frontend { ip, port, protocol };
    let before = ALL.map(|protocol| frontend(VIP, 54, protocol)).into_iter().chain([frontend(VIP, 53, Protocol::Udp)]);
    let mut world = World::new();
    world.tracker = Tracker::new(before.collect());
    let stale = world.service("dns", &[Protocol::Udp], RemovedEndpoints::Keep).endpoints(5353, &[(1, Ready)]).follow();
    assert!(stale.is_stale(&flow(Protocol::Udp, VIP, 54, (pod(1), 5353))));
    assert!(!stale.is_stale(&flow(Protocol::Tcp, VIP, 54, (pod(1), 5353))), "TCP goes on");
    assert!(!stale.is_stale(&flow(Protocol::Udp, VIP, 53, (pod(1), 5353))), "still served");
}

#[test]
fn kinds_name_the_address_that_all_frontends_have() {
    let mut world = World::new();
    let mut stale = world.service("dns", &[Protocol::Udp], RemovedEndpoints::AsUsual).follow();
    assert_eq!(stale.kinds(), BTreeMap::from([((Family::V4, Protocol::Udp), None)]), "a ClusterIP and a NodePort");
    stale.rules.retain(|frontend, _| frontend.ip == VIP);
    assert_eq!(stale.kinds(), BTreeMap::from([((Family::V4, Protocol::Udp), Some(VIP))]));
}

#[test]
fn what_is_heard_during_a_look_is_not_done_with_it() {
    let mut world = World::new();
    let mut looking = Stale::default();
    looking.hear(world.service("dns", &ALL, RemovedEndpoints::AsUsual).endpoints(5353, &[(1, Ready)]).news());
    let heard = looking.heard();
    looking.hear(world.endpoints(5353, &[]).news());
    looking.done(Family::V4, Protocol::Udp, heard);
    looking.done(Family::V4, Protocol::Sctp, looking.heard());
    assert!(looking.is_stale(&to_pod(Protocol::Udp, 1)[0]));
    assert_eq!(looking.kinds().into_keys().collect::<Vec<_>>(), [(Family::V4, Protocol::Udp)]);
    looking.done(Family::V4, Protocol::Udp, looking.heard());
    assert!(looking.is_empty());
}

#[test]
fn who_is_still_looking_hears_of_what_may_go_on_since() {
    let mut world = World::new();
    world.service("dns", &ALL, RemovedEndpoints::Drain).endpoints(5353, &[(1, Ready), (2, Ready)]).news();
    let mut looking = world.endpoints(5353, &[(2, Ready)]).follow();
    let news = world.endpoints(5353, &[(2, Ready), (3, Ready)]).news();
    assert!(news.stale.is_empty() && !news.is_empty());
    looking.hear(news.clone());
    for flow in to_pod(Protocol::Tcp, 3) {
        assert!(!looking.is_stale(&flow), "{flow:?} began meanwhile");
    }
    assert!(to_pod(Protocol::Tcp, 1).iter().all(|flow| looking.is_stale(flow)), "not cleaned yet");
    let mut not_looking = Stale::default();
    not_looking.hear(news);
    assert!(not_looking.is_empty());
    looking.hear(world.service("dns", &ALL, RemovedEndpoints::AsUsual).news());
    assert!(!to_pod(Protocol::Tcp, 1).iter().any(|flow| looking.is_stale(flow)), "TCP goes on whatever happens, now");
    assert!(to_pod(Protocol::Udp, 1).iter().all(|flow| looking.is_stale(flow)));
}
