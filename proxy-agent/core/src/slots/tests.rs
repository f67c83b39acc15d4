use proptest::collection::btree_set;
use proptest::prelude::*;

use super::*;
use crate::model::{Frontend, Protocol};

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
    PortKey { name: name.into(), frontend: Frontend { ip: [10, 96, 0, 1].into(), port: 80, protocol: Protocol::Tcp } }
}

/// Seats backends with these port numbers, by port of the Service, and returns the seats.
fn seat(slots: &mut Slots, name: &str, ports: &[(&str, &[u16])]) -> Vec<Seat> {
    let ports = ports.iter().map(|(port, backends)| (key(port), addrs(backends.iter().copied()))).collect();
    let before = slots.of(&service(name)).to_vec();
    assert_eq!(slots.seat(&service(name), ports)[..], before, "what it had before");
    slots.of(&service(name)).to_vec()
}

#[test]
fn a_newcomer_takes_the_place_of_one_that_left() {
    let mut slots = Slots::default();
    seat(&mut slots, "web", &[("", &[1, 2, 3, 4])]);
    let seats = seat(&mut slots, "web", &[("", &[1, 3, 4, 9])]);
    assert_eq!(seats[0].slots[..], addrs([1, 9, 3, 4]));
}

#[test]
fn the_last_one_moves_into_a_gap() {
    let mut slots = Slots::default();
    seat(&mut slots, "web", &[("", &[1, 2, 3, 4])]);
    let seats = seat(&mut slots, "web", &[("", &[2, 3, 4])]);
    assert_eq!(seats[0].slots[..], addrs([4, 2, 3]));
}

#[test]
fn numbers_are_kept_and_not_given_again() {
    let mut slots = Slots::default();
    let seats = seat(&mut slots, "web", &[("a", &[]), ("b", &[])]);
    let (a, b) = (seats[0].id, seats[1].id);
    let seats = seat(&mut slots, "web", &[("b", &[]), ("c", &[])]);
    assert_eq!(seats[0].id, b);
    assert!(seats[1].id > b && a != b);
    assert!(seat(&mut slots, "web", &[]).is_empty());
    assert!(seat(&mut slots, "web", &[("b", &[])])[0].id > b, "the number of what was given up");
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
    let seats = seat(&mut slots, "a", &[("", &[1, 3])]);
    assert_eq!(seats, [Seat { key: key(""), id: 7, slots: addrs([1, 3]).into() }]);
    let mut ids: Vec<u32> = ["a", "b", "c", "d"].map(|name| seat(&mut slots, name, &[("", &[1, 3])])[0].id).into();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 7, u32::MAX]);
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
