use proptest::collection::btree_set;
use proptest::prelude::*;

use super::*;
use std::net::Ipv4Addr;

use crate::model::{Family, Protocol};
use crate::route::{EntryKind, Masquerade, Treatment};

fn addr(port: u16) -> Address {
    Address { ip: [10, 1, 0, 1].into(), port }
}

fn addrs(ports: impl IntoIterator<Item = u16>) -> Vec<Address> {
    ports.into_iter().map(addr).collect()
}

fn service(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn key(name: &str) -> PortKey {
    PortKey { name: name.into(), protocol: Protocol::Tcp, family: Family::V4 }
}

const FRONTEND: Frontend = Frontend { ip: IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)), port: 80, protocol: Protocol::Tcp };

fn route(name: &str, cluster: &[u16], affinity: Option<u32>) -> Route {
    let treatment = Treatment::To(Pool::Cluster, Masquerade::Never);
    let entry = Entry { frontend: FRONTEND, kind: EntryKind::ClusterIp, treatment, sources: None };
    let cluster = addrs(cluster.iter().copied());
    Route {
        key: key(name),
        cluster_ip: FRONTEND.ip,
        cluster,
        local: Vec::new(),
        here: Vec::new(),
        affinity,
        tracked: false,
        entries: vec![entry],
    }
}

/// Seats routes, and returns the seats.
fn seat_routes(slots: &mut Slots, name: &str, routes: Vec<Route>) -> Vec<Seat> {
    let before = slots.of(&service(name)).to_vec();
    assert_eq!(slots.seat(&service(name), routes)[..], before, "what it had before");
    slots.of(&service(name)).to_vec()
}

/// Seats backends with these port numbers, by port of the Service, and returns the seats.
fn seat(slots: &mut Slots, name: &str, ports: &[(&str, &[u16])]) -> Vec<Seat> {
    seat_routes(slots, name, ports.iter().map(|(port, backends)| route(port, backends, None)).collect())
}

#[test]
fn a_newcomer_takes_the_place_of_one_that_left() {
    let mut slots = Slots::default();
    seat(&mut slots, "web", &[("", &[1, 2, 3, 4])]);
    let seats = seat(&mut slots, "web", &[("", &[1, 3, 4, 9])]);
    assert_eq!(seats[0].cluster[..], addrs([1, 9, 3, 4]));
}

#[test]
fn the_last_one_moves_into_a_gap() {
    let mut slots = Slots::default();
    seat(&mut slots, "web", &[("", &[1, 2, 3, 4])]);
    let seats = seat(&mut slots, "web", &[("", &[2, 3, 4])]);
    assert_eq!(seats[0].cluster[..], addrs([4, 2, 3]));
}

#[test]
fn numbers_are_kept_and_not_given_again() {
    let number = |seat: &Seat| seat.places[0].number;
    let mut slots = Slots::new(true);
    let seats = seat(&mut slots, "web", &[("a", &[]), ("b", &[])]);
    let (a, b) = (number(&seats[0]), number(&seats[1]));
    let seats = seat(&mut slots, "web", &[("b", &[]), ("c", &[])]);
    assert_eq!(number(&seats[0]), b);
    assert!(number(&seats[1]) > b && a != b);
    assert!(seat(&mut slots, "web", &[]).is_empty());
    assert!(number(&seat(&mut slots, "web", &[("b", &[])])[0]) > b, "the number of what was given up");
}

#[test]
fn identities_of_sticky_ports_and_backends_are_kept_and_not_given_again() {
    let mut slots = Slots::default();
    let sticky = |slots: &mut Slots, backends: &[u16], seconds| {
        let seats = seat_routes(slots, "web", vec![route("", backends, seconds)]);
        seats[0].sticky.as_deref().cloned()
    };
    let first = sticky(&mut slots, &[1, 2], Some(10)).expect("sticky");
    let second = sticky(&mut slots, &[2, 3], Some(20)).expect("sticky");
    assert_eq!((second.identity, second.seconds), (first.identity, 20));
    assert_eq!(second.id(&addr(2)), first.id(&addr(2)));
    assert!(first.ids.iter().all(|(_, id)| second.id(&addr(3)) != Some(*id)));
    assert_eq!(sticky(&mut slots, &[2, 3], None), None);
    let third = sticky(&mut slots, &[2, 3], Some(20)).expect("sticky");
    assert!(third.identity > second.identity && third.ids.iter().all(|(_, id)| second.ids.iter().all(|(_, former)| former != id)));
}

#[test]
fn restored_seats_are_distinct() {
    let mut slots = Slots::new(true);
    let at = |name| (service(name), key(""));
    let observed = |number, cluster: &[u16], identity, id| Observed {
        numbers: BTreeMap::from([(FRONTEND, number)]),
        cluster: addrs(cluster.iter().copied()),
        local: Vec::new(),
        sticky: Some((identity, BTreeMap::from([(addr(1), id)]))),
    };
    slots.restore(BTreeMap::from([
        (at("a"), observed(7, &[3, 1, 3], 9, 5)),
        (at("b"), observed(7, &[2], 9, 5)),
        (at("c"), observed(0, &[2], 0, 0)),
        (at("d"), observed(u32::MAX, &[], u32::MAX, u32::MAX)),
    ]));
    let mut of = |name| seat_routes(&mut slots, name, vec![route("", &[1, 3], Some(1))]).remove(0);
    let seats = ["a", "b", "c", "d"].map(&mut of);
    assert_eq!(seats[0].cluster[..], addrs([3, 1]));
    let sorted = |mut numbers: Vec<u32>| {
        numbers.sort_unstable();
        numbers
    };
    assert_eq!(sorted(seats.iter().map(|seat| seat.places[0].number).collect()), [1, 2, 7, u32::MAX]);
    let sticky = || seats.iter().filter_map(|seat| seat.sticky.as_deref());
    assert_eq!(sorted(sticky().map(|sticky| sticky.identity).collect()), [1, 2, 9, u32::MAX]);
    assert_eq!(sorted(sticky().flat_map(|sticky| sticky.ids.iter().map(|(_, id)| *id)).collect()), [1, 2, 3, 4, 5, 6, 7, u32::MAX]);
    assert_eq!(sticky().next().and_then(|sticky| sticky.id(&addr(1))), Some(5));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// EP-18: every backend sits once. A slot is rewritten only for a backend that came or went.
    #[test]
    fn everyone_sits_once_and_few_move(sets in prop::collection::vec(btree_set(1u16..12, 0..10), 1..8)) {
        let mut slots: Box<[Address]> = Box::default();
        for set in sets {
            let before: Box<[Address]> = slots;
            slots = reseat(&before, addrs(set.clone()));
            let mut seated = slots.to_vec();
            seated.sort_unstable();
            prop_assert_eq!(&seated, &addrs(set));
            let rewritten = before.iter().zip(&slots).filter(|(old, new)| old != new).count();
            let came = slots.iter().filter(|backend| !before.contains(backend)).count();
            let went = before.iter().filter(|backend| !slots.contains(backend)).count();
            prop_assert!(rewritten <= went, "{:?} to {:?}", before, slots);
            prop_assert_eq!(before.len() + came, slots.len() + went);
        }
    }
}
