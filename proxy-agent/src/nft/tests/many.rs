//! Tables that are large, or too large for one batch.

use super::*;
use crate::nft::by_key;

#[test]
fn a_batch_that_does_not_fit_goes_in_pieces() {
    in_namespace(|| {
        let (family, mut table) = (Family::V4, open(Family::V4));
        let mut objects = example(family);
        for host in 100..20_000 {
            objects.extend(served(frontend(family, host, Protocol::Tcp), "default/some", Masquerade::Never, &backends(family, host, 1)));
        }
        table.socket.forbid_room();
        committed(&mut table, &adding(&objects));
        assert_eq!(table.observe().expect("observe"), objects);
    });
}

/// The elements of a set.
fn of_set(objects: &Objects<Key, Value>, set: &str) -> Objects<Key, Value> {
    objects.iter().filter(|(key, _)| key.set() == Some(set)).map(|(key, value)| (*key, value.clone())).collect()
}

#[test]
fn large_sets_are_read_by_key() {
    in_namespace(|| {
        let (family, mut table) = (Family::V4, open(Family::V4));
        let mut objects = base();
        for host in 1..=(by_key::MANY as u32 / 10) {
            let (frontend, backends) = (frontend(family, host, Protocol::Tcp), backends(family, host * 16, 10));
            objects.extend(backends.iter().map(|backend| (Key::Endpoint(*backend, Protocol::Tcp), Value::Present)));
            match host % 3 {
                0 => objects.extend(by_source(frontend, "default/some", &backends, &backends[..4])),
                1 => objects.extend(served(frontend, "default/some", Masquerade::UnlessPod, &backends)),
                _ => objects.extend(served(frontend, "default/some", Masquerade::Always, &backends)),
            }
        }
        committed(&mut table, &adding(&objects));
        let mut by_key = |objects: &Objects<Key, Value>, set: &str| {
            let known = objects.iter().filter(|(key, _)| key.set() != Some(set)).map(|(key, value)| (*key, value.clone())).collect();
            by_key::elements(&table.layout, &mut table.socket, set, &known).expect("read")
        };
        assert_eq!(by_key(&objects, "slots"), Some(of_set(&objects, "slots")));
        assert_eq!(by_key(&objects, "endpoints"), Some(of_set(&objects, "endpoints")));
        assert_eq!(by_key(&objects, "node-slots"), None, "there are few");
        assert_eq!(table.observe().expect("observe"), objects);
        // Some linger above those in use, without their endpoints.
        let local = LOCAL_SLOTS + 4;
        let lingering = [(1, 10), (1, 11), (3, local), (3, local + 1)];
        let lingering = lingering
            .map(|(host, slot)| (Key::Slot(frontend(family, host, Protocol::Tcp), slot), Value::Backend(backends(family, 7, 1)[0])));
        committed(&mut table, &adding(&lingering.clone().into()));
        objects.extend(lingering);
        let mut by_key = |objects: &Objects<Key, Value>, set: &str| {
            let known = objects.iter().filter(|(key, _)| key.set() != Some(set)).map(|(key, value)| (*key, value.clone())).collect();
            by_key::elements(&table.layout, &mut table.socket, set, &known).expect("read")
        };
        assert_eq!(by_key(&objects, "slots"), Some(of_set(&objects, "slots")));
        assert_eq!(by_key(&objects, "endpoints"), Some(of_set(&objects, "endpoints")));
        // One of no Service, and one that is missing.
        let orphan = (Key::Slot(frontend(family, 9_999_999, Protocol::Tcp), 3), Value::Backend(backends(family, 7, 1)[0]));
        let missing = Key::Slot(frontend(family, 8, Protocol::Tcp), 3);
        let endpoint = Key::Endpoint(backends(family, 8 * 16 + 3, 1)[0], Protocol::Tcp);
        let steps = [missing, endpoint].map(|key| Step::Delete(key, objects[&key].clone()));
        committed(&mut table, &[Step::Add(orphan.0, orphan.1.clone())]);
        committed(&mut table, &steps);
        objects.extend([orphan]);
        objects.retain(|key, _| *key != missing && *key != endpoint);
        let known = objects.iter().filter(|(key, _)| key.set() != Some("slots")).map(|(key, value)| (*key, value.clone())).collect();
        assert_eq!(by_key::elements(&table.layout, &mut table.socket, "slots", &known).expect("read"), None);
        assert_eq!(table.observe().expect("observe"), objects);
    });
}
