use std::net::IpAddr;

use super::*;
use crate::model::{Change, Service, ServicePort};

/// A Service with TCP port 80 at these addresses.
fn service(ips: &[&str]) -> Service {
    let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().expect("an address")).collect();
    let port = ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: 0 };
    Service { cluster_ips: [ips[0]].into(), external_ips: ips[1..].into(), ports: [port].into(), ..Service::default() }
}

fn at(ip: &str) -> Frontend {
    Frontend { ip: ip.parse().expect("an address"), port: 80, protocol: Protocol::Tcp }
}

#[derive(Default)]
struct Rig {
    forwarding: Forwarding,
}

impl Rig {
    /// The Service is this now; several may be in one round.
    fn change(&mut self, name: &str, service: Option<Service>) {
        self.forwarding.apply(Change::Service(ObjectName::new("default", name), service));
    }

    fn follow(&mut self, connections: &mut Connections) -> bool {
        let touched = self.forwarding.take_touched();
        connections.follow(&self.forwarding, &touched)
    }
}

fn counters(connections: &Connections) -> Vec<(String, u64)> {
    let series = connections.series().into_iter();
    series.map(|(port, total)| (port.service.name.to_string(), total)).collect()
}

fn is(connections: &Connections, wanted: &[(&str, u64)]) {
    let wanted: Vec<(String, u64)> = wanted.iter().map(|(name, total)| ((*name).to_owned(), *total)).collect();
    assert_eq!(counters(connections), wanted);
}

#[test]
fn counts_of_all_frontends_in_all_places_come_to_one_counter() {
    let (mut rig, mut connections) = (Rig::default(), Connections::new(10));
    rig.change("a", Some(service(&["10.0.0.1", "10.1.0.1"])));
    rig.change("b", Some(service(&["10.0.0.2"])));
    assert!(rig.follow(&mut connections), "what is left of before may be there");
    is(&connections, &[("a", 0), ("b", 0)]);
    // What there was before is taken over.
    let read = [((0, at("10.0.0.1")), 5), ((0, at("10.1.0.1")), 2), ((1, at("10.0.0.1")), 1)];
    assert_eq!(connections.take_in(read), []);
    is(&connections, &[("a", 8), ("b", 0)]);
    assert_eq!(connections.take_in(read), []);
    is(&connections, &[("a", 8), ("b", 0)]);
    // One begins anew; another cannot be read, and then can.
    assert_eq!(connections.take_in([((0, at("10.0.0.1")), 3)]), []);
    assert_eq!(connections.take_in([((0, at("10.1.0.1")), 3)]), []);
    is(&connections, &[("a", 12), ("b", 0)]);
    assert_eq!(connections.others(), None);
    assert!(!rig.follow(&mut connections));
}

#[test]
fn nothing_is_forgotten_before_it_is_known_who_has_what() {
    let (mut rig, mut connections) = (Rig::default(), Connections::new(10));
    assert_eq!(connections.take_in([((0, at("10.0.0.1")), 5)]), []);
    rig.change("a", Some(service(&["10.0.0.1"])));
    rig.follow(&mut connections);
    assert_eq!(connections.take_in([((0, at("10.0.0.1")), 6), ((0, at("10.0.0.9")), 7)]), [(0, at("10.0.0.9"))]);
    is(&connections, &[("a", 6)]);
}

#[test]
fn whoever_has_an_address_next_begins_anew() {
    let (mut rig, mut connections) = (Rig::default(), Connections::new(10));
    rig.change("a", Some(service(&["10.0.0.1", "10.1.0.1"])));
    rig.follow(&mut connections);
    let place = (0, at("10.1.0.1"));
    assert_eq!(connections.take_in([(place, 5)]), []);
    // It passes to another in one round, whose name comes before or after.
    for (from, to, so_far) in [("a", "b", [5, 0]), ("b", "a", [7, 4])] {
        rig.change(from, Some(service(&[if from == "a" { "10.0.0.1" } else { "10.0.0.2" }])));
        rig.change(to, Some(service(&[if to == "a" { "10.0.0.1" } else { "10.0.0.2" }, "10.1.0.1"])));
        assert!(rig.follow(&mut connections), "{from} to {to}");
        is(&connections, &[("a", so_far[0]), ("b", so_far[1])]);
        // The last two are still the former one's, also where they cannot be forgotten at once.
        assert_eq!(connections.take_in([(place, 6)]), [place]);
        assert_eq!(connections.take_in([(place, 7)]), [place]);
        connections.forgotten(&[place]);
        assert_eq!(connections.take_in([(place, 4)]), []);
        assert_eq!(connections.take_in([(place, 4)]), []);
        if from == "a" {
            is(&connections, &[("a", 7), ("b", 4)]);
        } else {
            is(&connections, &[("a", 11), ("b", 7)]);
        }
    }
}

#[test]
fn a_service_that_is_gone_has_no_series_and_its_counts_are_forgotten() {
    let (mut rig, mut connections) = (Rig::default(), Connections::new(10));
    rig.change("a", Some(service(&["10.0.0.1"])));
    rig.change("b", Some(service(&["10.0.0.2"])));
    rig.follow(&mut connections);
    let places = ["10.0.0.1", "10.0.0.2"].map(|ip| (0, at(ip)));
    assert_eq!(connections.take_in(places.map(|place| (place, 5))), []);
    rig.change("a", None);
    assert!(rig.follow(&mut connections));
    is(&connections, &[("b", 5)]);
    assert_eq!(connections.take_in(places.map(|place| (place, 6))), [places[0]]);
    connections.forgotten(&places[..1]);
    is(&connections, &[("b", 6)]);
    // It comes back.
    rig.change("a", Some(service(&["10.0.0.1"])));
    rig.follow(&mut connections);
    assert_eq!(connections.take_in([(places[0], 1)]), []);
    is(&connections, &[("a", 1), ("b", 6)]);
    assert_eq!((connections.last.len(), connections.given_up.len(), connections.owners.len()), (2, 0, 2));
}

#[test]
fn above_the_most_those_with_connections_have_series_and_keep_them() {
    let (mut rig, mut connections) = (Rig::default(), Connections::new(2));
    let names = ["a", "b", "c", "d"];
    let place = |i: usize| (0, at(&format!("10.0.0.{i}")));
    let mut counts = [0; 4];
    let mut read = |connections: &mut Connections, more: [u64; 4]| {
        counts.iter_mut().zip(more).for_each(|(count, more)| *count += more);
        connections.take_in((0..4).filter(|i| counts[*i] > 0).map(|i| (place(i), counts[i])));
    };
    for (i, name) in names.iter().enumerate().take(2) {
        rig.change(name, Some(service(&[&*format!("10.0.0.{i}")])));
    }
    rig.follow(&mut connections);
    is(&connections, &[("a", 0), ("b", 0)]);
    for (i, name) in names.iter().enumerate().skip(2) {
        rig.change(name, Some(service(&[&*format!("10.0.0.{i}")])));
    }
    rig.follow(&mut connections);
    is(&connections, &[]);
    assert_eq!(connections.others(), Some(0));
    // At the first reading those with most; the others' sum begins with 0.
    read(&mut connections, [1, 0, 3, 2]);
    is(&connections, &[("c", 3), ("d", 2)]);
    assert_eq!(connections.others(), Some(0));
    read(&mut connections, [100, 10, 1, 0]);
    is(&connections, &[("c", 4), ("d", 2)]);
    assert_eq!(connections.others(), Some(110));
    // One goes: the next one that has a connection takes its place, from 0 on; the sum does not shrink.
    rig.change("c", None);
    rig.follow(&mut connections);
    is(&connections, &[("d", 2)]);
    read(&mut connections, [0, 1, 0, 1]);
    is(&connections, &[("b", 1), ("d", 3)]);
    assert_eq!(connections.others(), Some(110));
    rig.change("a", None);
    rig.follow(&mut connections);
    is(&connections, &[("b", 1), ("d", 3)]);
    assert_eq!(connections.others(), Some(110));
}
