//! Connections are counted where they are led to a backend, and are led there whether or not they can be counted.

use std::io::ErrorKind;
use std::sync::Arc;

use super::packets::{A, NODE, Net, VIP, on_a_node};
use super::*;
use crate::dataplane::Meter;
use crate::netfilter::socket::{Outcome, Socket, Subsystem};
use crate::nft::wire::Batch;
use crate::nft::{Monitor, NftMeter, element, protocol};

/// How many elements a set takes that has no size.
const ROOM: usize = 65_535;

fn meter(net: &Net, monitor: &Arc<Monitor>) -> NftMeter {
    let (family, monitor) = (net.family, Arc::clone(monitor));
    net.node.run(move || NftMeter::open(family, &monitor)).expect("a meter")
}

fn read(meter: &mut NftMeter) -> BTreeMap<Frontend, u64> {
    meter.read().expect("read").into_iter().collect()
}

#[test]
fn what_finds_a_backend_is_counted_until_it_is_forgotten() {
    on_a_node(|net| {
        let monitor = Arc::new(net.node.run(Monitor::open).expect("monitor"));
        let mut table = net.table(default(net.family)).watched(&monitor).expect("watched");
        let mut meter = meter(net, &monitor);
        assert!(meter.read().is_err(), "there is no table");
        let [tcp, udp] = [Protocol::Tcp, Protocol::Udp].map(|protocol| net.frontend(protocol));
        let node_port = Frontend::node_port(net.family, 30_080, Protocol::Tcp);
        let lost = Frontend { port: 81, ..tcp };
        let mut objects = base();
        objects.insert(Key::NodeAddress(net.ip(NODE)), Value::Present);
        for frontend in [tcp, udp, node_port, lost] {
            objects.extend(served(frontend, "default/web", Masquerade::Never, &net.backends(&[A])));
        }
        // A class whose slot is missing.
        objects.remove(&Key::Slot(lost, 0));
        committed(&mut table, &adding(&objects));
        assert_eq!(read(&mut meter), BTreeMap::new());
        for who in ["client", "b", "node"] {
            net.connect(who, VIP, 80).expect("a connection");
        }
        net.send("client", VIP, 80).expect("an answer");
        net.connect("client", NODE, 30_080).expect("a connection");
        assert_eq!(net.connect("client", VIP, 81), Err(ErrorKind::TimedOut));
        assert_eq!(read(&mut meter), BTreeMap::from([(tcp, 3), (udp, 1), (node_port, 1)]));
        // What is changed beside a counter leaves it.
        let steps = [Step::Delete(Key::Slot(tcp, 0), Value::Present), Step::Add(Key::Slot(tcp, 0), Value::Backend(net.backends(&[A])[0]))];
        committed(&mut table, &steps);
        net.connect("client", VIP, 80).expect("a connection");
        assert_eq!(read(&mut meter), BTreeMap::from([(tcp, 4), (udp, 1), (node_port, 1)]));
        // Some of them are not there.
        meter.forget(&[lost, tcp, Frontend { port: 99, ..udp }, node_port]).expect("forget");
        meter.forget(&[lost]).expect("forget");
        assert_eq!(read(&mut meter), BTreeMap::from([(udp, 1)]));
        net.connect("client", VIP, 80).expect("a connection");
        assert_eq!(read(&mut meter), BTreeMap::from([(tcp, 1), (udp, 1)]));
        assert_eq!(table.disturbance(), None, "packets and the meter are nobody else");
        let of_observed = table.observe().expect("observe");
        assert_eq!(of_observed, objects);
        table.remove().expect("remove");
    });
}

#[test]
fn a_connection_that_cannot_be_counted_is_led_on() {
    on_a_node(|net| {
        let mut table = net.table(default(net.family));
        let tcp = net.frontend(Protocol::Tcp);
        let mut objects = base();
        objects.extend(served(tcp, "default/web", Masquerade::Never, &net.backends(&[A])));
        committed(&mut table, &adding(&objects));
        let family = net.family;
        let others: Vec<Key> = (0..ROOM as u32).map(|i| Key::Service(frontend(family, 1 << 20 | i, Protocol::Tcp))).collect();
        let filled = net.node.run(move || {
            let mut socket = Socket::open(Subsystem::Tables)?;
            let first = socket.take_seq(ROOM as u32);
            let mut batch = Batch::begin(protocol(family), first);
            let kind = (libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE);
            batch.elements(kind, ("proxy-agent", "connections"), 0..ROOM, |out, i| element::write(out, &others[i], None), |_, _| {});
            let count = batch.len();
            socket.transact(&batch.end(), first, count)
        });
        assert!(matches!(filled.expect("netlink"), Outcome::Done), "the set takes so many");
        for who in ["client", "node"] {
            assert_eq!(net.connect(who, VIP, 80).map(|(name, _)| name), Ok("a".into()), "{who}");
        }
        let monitor = Arc::new(net.node.run(Monitor::open).expect("monitor"));
        assert_eq!(read(&mut meter(net, &monitor)).get(&tcp), None);
        table.remove().expect("remove");
    });
}

#[test]
fn a_table_that_does_not_count_has_nothing_for_it() {
    in_namespace(|| {
        for family in Family::ALL {
            let mut table = NftTable::open(Nft { counts: false, ..default(family) }).expect("open");
            committed(&mut table, &adding(&example(family)));
            let Some(listed) = nft(&["list", "table", super::super::word(family), "proxy-agent"]) else { return };
            assert!(!listed.contains("connections"), "{listed}");
            // An agent that counts makes it anew.
            assert_eq!(open(family).observe().expect("observe"), Objects::from([(Key::Base, Value::Base(0))]));
            table.remove().expect("remove");
        }
    });
}
