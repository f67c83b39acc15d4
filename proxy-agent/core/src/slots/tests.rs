use proptest::collection::btree_set;
use proptest::prelude::*;

use super::*;
use crate::model::{Frontend, Protocol};

fn addr(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 1, 0, 1], port))
}

fn addrs(ports: impl IntoIterator<Item = u16>) -> Vec<SocketAddr> {
    ports.into_iter().map(addr).collect()
}

fn service(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn key(name: &str) -> PortKey {
    PortKey { name: name.into(), frontend: Frontend { ip: [10, 96, 0, 1].into(), port: 80, protocol: Protocol::Tcp } }
}

#[test]
fn a_newcomer_takes_the_place_of_one_that_left() {
    let mut slots = Slots::default();
    slots.seat(&service("web"), &[(key(""), &addrs(1..=4))]);
    let seats = slots.seat(&service("web"), &[(key(""), &addrs([1, 3, 4, 9]))]);
    assert_eq!(seats[0].1.slots, addrs([1, 9, 3, 4]));
}

#[test]
fn the_last_one_moves_into_a_gap() {
    let mut slots = Slots::default();
    slots.seat(&service("web"), &[(key(""), &addrs(1..=4))]);
    let seats = slots.seat(&service("web"), &[(key(""), &addrs([2, 3, 4]))]);
    assert_eq!(seats[0].1.slots, addrs([4, 2, 3]));
}

#[test]
fn numbers_are_kept_and_not_given_again() {
    let mut slots = Slots::default();
    let id = |seats: &[(PortKey, Seat)], i: usize| seats[i].1.id;
    let seats = slots.seat(&service("web"), &[(key("a"), &[]), (key("b"), &[])]);
    let (a, b) = (id(seats, 0), id(seats, 1));
    let seats = slots.seat(&service("web"), &[(key("b"), &[]), (key("c"), &[])]);
    assert_eq!(id(seats, 0), b);
    assert!(id(seats, 1) > b && a != b);
    assert!(slots.seat(&service("web"), &[]).is_empty());
    assert!(slots.seat(&service("web"), &[(key("b"), &[])])[0].1.id > b, "the number of what was given up");
}

#[test]
fn restored_seats_are_distinct_and_without_gaps() {
    let mut slots = Slots::default();
    let at = |name| (service(name), key(""));
    slots.restore(BTreeMap::from([
        (at("a"), (7, BTreeMap::from([(0, addr(1)), (2, addr(3)), (3, addr(1))]))),
        (at("b"), (7, BTreeMap::from([(0, addr(2))]))),
        (at("c"), (0, BTreeMap::from([(0, addr(2))]))),
        (at("d"), (u32::MAX, BTreeMap::new())),
    ]));
    assert_eq!(slots.seat(&service("a"), &[(key(""), &addrs([1, 3]))])[0].1, Seat { id: 7, slots: addrs([1, 3]) });
    let mut ids: Vec<u32> = ["a", "b", "c", "d"].map(|name| slots.seat(&service(name), &[(key(""), &addrs([1, 3]))])[0].1.id).into();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 7, u32::MAX]);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// EP-18: every backend sits once. A slot is rewritten only for a backend that came or went.
    #[test]
    fn everyone_sits_once_and_few_move(sets in prop::collection::vec(btree_set(1u16..12, 0..10), 1..8)) {
        let mut slots = Vec::new();
        for set in sets {
            let before: Vec<SocketAddr> = slots.clone();
            reseat(&mut slots, &addrs(set.clone()));
            let mut seated = slots.clone();
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
