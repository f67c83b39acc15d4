//! Against the running kernel, each test in a network namespace of its own, with flows that have never had a packet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::mpsc;

use proxy_core::model::{Address, Change, Endpoint, EndpointState, NodeHint, Protocol, Service, ServicePort, Slice, SlicePort};
use proxy_core::settings::Settings;
use proxy_core::stale::Flow;

use super::table::{cta, protocol_family};
use super::*;
use crate::netfilter::socket::{Outcome, Socket, Subsystem};
use crate::netfilter::testing::in_namespace;
use crate::netfilter::wire::{attribute, nest, number, request};

const DEADLINE: Duration = Duration::from_secs(60);

/// Addresses of a family, by their last number.
fn ip(family: Family, last: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 96, 0, last).into(),
        Family::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).into(),
    }
}

/// A flow to port 53 of this address, which this one answers from port 5353.
fn flow(family: Family, protocol: Protocol, to: u8, answered_by: u8) -> Flow {
    let to = Frontend { ip: ip(family, to), port: 53, protocol };
    Flow { to, answered_by: Address { ip: ip(family, answered_by), port: 5353 } }
}

/// Makes the kernel remember a flow from this port.
fn remember(socket: &mut Socket, flow: &Flow, port: u16, zone: u16) {
    let family = flow.to.family();
    let client = ip(family, 200);
    let tuple = |out: &mut Vec<u8>, [from, to]: [(IpAddr, u16); 2]| {
        nest(out, cta::TUPLE_IP, |out| {
            for (ip, v4, v6) in [(from.0, cta::IP_V4_SRC, cta::IP_V6_SRC), (to.0, cta::IP_V4_DST, cta::IP_V6_DST)] {
                match ip {
                    IpAddr::V4(ip) => attribute(out, v4, &ip.octets()),
                    IpAddr::V6(ip) => attribute(out, v6, &ip.octets()),
                }
            }
        });
        nest(out, cta::TUPLE_PROTO, |out| {
            attribute(out, cta::PROTO_NUM, &[flow.to.protocol.number()]);
            attribute(out, cta::PROTO_SRC_PORT, &from.1.to_be_bytes());
            attribute(out, cta::PROTO_DST_PORT, &to.1.to_be_bytes());
        });
    };
    let seq = socket.take_seq(1);
    let (new, timeout) = (Subsystem::Conntrack.message_type(0), 7);
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL | libc::NLM_F_ACK;
    let bytes = request(new, flags, seq + 1, protocol_family(family), |out| {
        nest(out, cta::TUPLE_ORIG, |out| tuple(out, [(client, port), (flow.to.ip, flow.to.port)]));
        nest(out, cta::TUPLE_REPLY, |out| tuple(out, [(flow.answered_by.ip, flow.answered_by.port), (client, port)]));
        number(out, timeout, 600);
        if zone != 0 {
            attribute(out, cta::ZONE, &zone.to_be_bytes());
        }
    });
    match socket.transact(&bytes, seq, 1).expect("an answer") {
        Outcome::Done => {}
        Outcome::Refused(failures) => panic!("{flow:?}: {}", failures[0].reason()),
        Outcome::TooLong => panic!("no room"),
    }
}

fn found(table: &mut Table, filter: Filter) -> Vec<Flow> {
    let mut flows: Vec<Flow> = table.find(filter, 100, |_| true).expect("read").iter().map(|entry| entry.flow).collect();
    flows.sort();
    flows
}

#[test]
fn flows_are_found_by_family_protocol_and_address_whoever_filters() {
    in_namespace(|| {
        let mut socket = Socket::open(Subsystem::Conntrack).expect("a socket");
        let mut all = Vec::new();
        for family in Family::ALL {
            for (port, protocol, to) in [(1, Protocol::Udp, 1), (2, Protocol::Udp, 2), (3, Protocol::Tcp, 1), (4, Protocol::Udp, 1)] {
                let flow = flow(family, protocol, to, 100 + port as u8);
                remember(&mut socket, &flow, port, 0);
                all.push(flow);
            }
            remember(&mut socket, &flow(family, Protocol::Udp, 1, 150), 5, 7);
        }
        let mut table = Table::open().expect("a table");
        assert!(table.filters);
        for filters in [true, false] {
            table.filters = filters;
            for (family, protocol) in Family::ALL.into_iter().flat_map(|family| [(family, Protocol::Udp), (family, Protocol::Tcp)]) {
                let of_kind = |flow: &&Flow| flow.to.family() == family && flow.to.protocol == protocol;
                let mut wanted: Vec<Flow> = all.iter().filter(of_kind).copied().collect();
                wanted.sort();
                assert_eq!(
                    found(&mut table, Filter { family, protocol, ip: None }),
                    wanted,
                    "{family} {protocol}, the kernel filters: {filters}"
                );
                let one = Filter { family, protocol, ip: Some(ip(family, 1)) };
                // A kernel that does not filter gives those to other addresses as well: whoever asks looks at them.
                let wanted_of_one = |flow: &Flow| flow.to.ip == ip(family, 1);
                let mut flows: Vec<Flow> = table.find(one, 100, wanted_of_one).expect("read").iter().map(|entry| entry.flow).collect();
                flows.sort();
                wanted.retain(wanted_of_one);
                assert_eq!(flows, wanted);
            }
            assert_eq!(table.filters, filters, "the kernel takes the filter");
        }
    });
}

#[test]
fn a_flow_that_has_begun_anew_is_another() {
    in_namespace(|| {
        let mut socket = Socket::open(Subsystem::Conntrack).expect("a socket");
        let mut table = Table::open().expect("a table");
        for family in Family::ALL {
            let (stale, other) = (flow(family, Protocol::Udp, 1, 100), flow(family, Protocol::Udp, 1, 101));
            remember(&mut socket, &stale, 1, 0);
            remember(&mut socket, &other, 2, 0);
            let filter = Filter { family, protocol: Protocol::Udp, ip: None };
            let entries = table.find(filter, 100, |flow| *flow == stale).expect("read");
            let entries: Vec<&Entry> = entries.iter().collect();
            assert_eq!(table.delete(&entries).expect("deleted"), Deleted { count: 1, busy: 0 });
            assert_eq!(table.delete(&entries).expect("nothing to delete"), Deleted::default());
            let anew = flow(family, Protocol::Udp, 1, 102);
            remember(&mut socket, &anew, 1, 0);
            assert_eq!(table.delete(&entries).expect("nothing to delete"), Deleted::default());
            assert_eq!(found(&mut table, filter), [other, anew]);
        }
    });
}

/// Service `dns` with these endpoints.
fn serve(family: Family, protocol: Protocol, endpoints: &[u8]) -> [Change; 2] {
    let (name, port) = (ObjectName::new("default", "dns"), ServicePort { name: "".into(), protocol, port: 53, node_port: 0 });
    let service = Service { cluster_ips: [ip(family, 1)].into(), ports: [port].into(), ..Service::default() };
    let ports = [SlicePort { name: "".into(), protocol, port: 5353 }].into();
    let endpoint = |last: &u8| Endpoint { ip: ip(family, *last), state: EndpointState::Ready, is_local: false, nodes: NodeHint::None };
    let slice = Slice { service: name.clone(), ports, endpoints: endpoints.iter().map(endpoint).collect(), zones: Box::default() };
    [Change::Service(name.clone(), Some(service)), Change::Slice(name, Some(slice))]
}

#[test]
fn a_cleaner_ends_all_that_has_gone_stale_and_says_how_much() {
    const FLOWS: u16 = 3_000;
    in_namespace(|| {
        let mut socket = Socket::open(Subsystem::Conntrack).expect("a socket");
        let mut table = Table::open().expect("a table");
        let kinds = Family::ALL.into_iter().flat_map(|family| [(family, Protocol::Udp), (family, Protocol::Sctp)]);
        for (family, protocol) in kinds {
            let (stale, kept, others) = (flow(family, protocol, 1, 100), flow(family, protocol, 1, 101), flow(family, protocol, 9, 100));
            (1..=FLOWS).for_each(|port| remember(&mut socket, &stale, port, 0));
            [&kept, &others].into_iter().zip(60_000..).for_each(|(flow, port)| remember(&mut socket, flow, port, 0));
            let changes = |family, endpoints: &[u8]| serve(family, protocol, endpoints);
            let (report, reports) = mpsc::channel();
            let mut cleaner = Cleaner::start(Vec::new(), move |cleaned| report.send(cleaned).expect("somebody listens")).expect("a thread");
            let mut forwarding = Forwarding::new(Settings::default());
            let mut follow = |endpoints: &[u8]| {
                changes(family, endpoints).into_iter().for_each(|change| {
                    forwarding.apply(change);
                });
                let touched = forwarding.take_touched();
                cleaner.follow(&forwarding, &touched);
                reports.recv_timeout(DEADLINE).expect("a report")
            };
            let before = follow(&[100, 101]);
            assert_eq!((before.family, before.deleted), (family, 0), "everything is looked at once");
            let after = follow(&[101]);
            assert_eq!((after.family, after.deleted), (family, FLOWS.into()));
            assert_eq!(found(&mut table, Filter { family, protocol, ip: None }), [kept, others]);
        }
    });
}
