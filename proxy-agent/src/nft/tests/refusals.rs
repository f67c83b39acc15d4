//! What the kernel refuses, and what it is not even asked.

use super::*;
use crate::nft::{commit, element};

#[test]
fn refusals_name_the_object_and_spare_the_others() {
    in_namespace(|| {
        let (family, mut table) = (Family::V4, open(Family::V4));
        let mut objects = example(family);
        let (bad, other) = (frontend(family, 77, Protocol::Tcp), frontend(family, 78, Protocol::Tcp));
        // The kernel's own refusals: of chains, and of one element among others. What leads to a refused chain is not sent.
        let none = target(Masquerade::Never, Pool::Cluster, Pick::Even(0));
        let marking = Target { masquerade: Masquerade::Always, ..none };
        let mut steps = adding(&objects);
        steps.insert(1, Step::Add(Key::Chain(none), Value::Present));
        steps.insert(2, Step::Add(Key::Chain(marking), Value::Present));
        steps.insert(3, Step::Add(Key::StickPick(Pool::Local, 0), Value::Present));
        steps.extend([
            Step::Add(Key::Refused(bad), Value::Label("x".repeat(254).into())),
            Step::Add(Key::Service(bad), Value::Service(Class::Target(marking), "default/bad".into())),
            Step::Add(Key::BySource(other, Pool::Cluster), Value::Target(Some(none))),
            Step::Add(Key::Service(other), Value::Service(Class::BySource { is_node_port: false }, "default/bad".into())),
        ]);
        let mut refused = BTreeMap::new();
        commit::carry_out(&table.layout, &mut table.socket, &steps, &mut refused).expect("commit");
        let expected = [
            Key::StickPick(Pool::Local, 0),
            Key::Chain(none),
            Key::Chain(marking),
            Key::BySource(other, Pool::Cluster),
            Key::Service(bad),
            Key::Service(other),
            Key::Refused(bad),
        ];
        assert_eq!(refused.keys().copied().collect::<Vec<_>>(), expected);
        assert!(refused[&Key::Chain(none)].contains("Numerical result out of range"), "{refused:?}");
        assert!(refused[&Key::Service(bad)].contains("masquerade-pick-0 was refused: "), "{refused:?}");
        assert_eq!(table.observe().expect("observe"), objects);
        // Believed absent and present, believed present and absent, and the longest label.
        let web = frontend(family, 1, Protocol::Tcp);
        let class = Class::Target(target(Masquerade::Never, Pool::Cluster, Pick::Even(3)));
        objects.insert(Key::Service(web), Value::Service(class, "x".repeat(element::MAX_LABEL).into()));
        objects.insert(Key::Slot(web, 0), Value::Backend(backends(family, 99, 1)[0]));
        let steps = [
            Step::Add(Key::Slot(web, 0), objects[&Key::Slot(web, 0)].clone()),
            Step::Add(Key::Service(web), objects[&Key::Service(web)].clone()),
            Step::Delete(Key::Slot(bad, 0), Value::Backend(backends(family, 1, 1)[0])),
            Step::Delete(Key::Chain(target(Masquerade::Never, Pool::Local, Pick::Even(9))), Value::Present),
        ];
        committed(&mut table, &steps);
        assert_eq!(table.observe().expect("observe"), objects);
        // A range within another that somebody else has put there.
        if nft(&["add element ip proxy-agent service-cidrs { 10.64.0.0/10 }"]).is_some() {
            let key = Key::ServiceCidr(cidr("10.96.0.0/12"));
            let refused = table.commit(&[Step::Add(key, Value::Present)]).expect("commit");
            assert_eq!(refused.keys().collect::<Vec<_>>(), [&key]);
        }
        // Nothing to write to.
        table.remove().expect("remove");
        for step in [0, 3] {
            let error = table.commit(&steps[step..step + 1]).expect_err("no table");
            assert!(format!("{error:#}").contains("somebody else deleted the table"), "{error:#}");
        }
    });
}

/// The kernel gives a packet the chains of one moment and the elements of another.
#[test]
fn chains_are_there_before_anything_leads_to_them() {
    in_namespace(|| {
        let (family, mut table) = (Family::V4, open(Family::V4));
        committed(&mut table, &adding(&example(family)));
        let ten = served(frontend(family, 77, Protocol::Tcp), "default/ten", Masquerade::Never, &backends(family, 7, 10));
        let before = table.socket.committed();
        committed(&mut table, &adding(&ten));
        assert_eq!(table.socket.committed() - before, 2, "the chain first");
        let before = table.socket.committed();
        let again = served(frontend(family, 78, Protocol::Tcp), "default/again", Masquerade::Never, &backends(family, 8, 10));
        let known = |(key, _): &(Key, Value)| !ten.contains_key(key);
        committed(&mut table, &adding(&again.into_iter().filter(known).collect()));
        assert_eq!(table.socket.committed() - before, 1, "it is there");
    });
}

#[test]
fn what_cannot_be_said_is_not_sent() {
    in_namespace(|| {
        let (family, mut table) = (Family::V4, open(Family::V4));
        committed(&mut table, &adding(&base()));
        let (v4, v6) = (frontend(family, 1, Protocol::Tcp), frontend(Family::V6, 1, Protocol::Tcp));
        let node_port = Frontend::node_port(family, 30_080, Protocol::Tcp);
        let one = target(Masquerade::Never, Pool::Cluster, Pick::Even(1));
        let none = target(Masquerade::Never, Pool::Cluster, Pick::Even(0));
        let service = |target, label: &str| Value::Service(Class::Target(target), label.into());
        let steps = [
            Step::Add(Key::Refused(v6), Value::Label("default/v6".into())),
            Step::Add(Key::Service(v4), service(one, &"x".repeat(element::MAX_LABEL + 1))),
            Step::Add(Key::Service(Frontend { port: 81, ..v4 }), Value::Present),
            Step::Add(Key::Service(node_port), service(one, "default/web")),
            Step::Add(Key::Slot(v4, 0), Value::Backend(backends(Family::V6, 1, 1)[0])),
            Step::Add(Key::Chain(none), Value::Present),
            Step::Add(Key::BySource(v4, Pool::Local), Value::Target(Some(none))),
            Step::Add(Key::Restricted(node_port), Value::Present),
            Step::Add(Key::Identity(v4), Value::Number(0)),
            Step::Add(Key::StickSize(1, Pool::Local), Value::Count(0)),
            Step::Add(Key::PodCidr(cidr("fd00::/64")), Value::Present),
        ];
        assert_eq!(table.commit(&steps).expect("commit").len(), steps.len());
        assert_eq!(table.observe().expect("observe"), base());
        // Where there is no affinity.
        table.remove().expect("remove");
        let mut table = with_scratch(default(family), Field::Priority);
        let sticky = sticky(v4, "default/web", (7, 60), &backends(family, 1, 2));
        let mut steps = adding(&base());
        steps.extend(adding(&sticky));
        let refused = table.commit(&steps).expect("commit");
        let service = Key::Service(v4);
        assert_eq!(refused.into_keys().collect::<Vec<_>>(), sticky.into_keys().collect::<Vec<_>>(), "{service} too");
    });
}
