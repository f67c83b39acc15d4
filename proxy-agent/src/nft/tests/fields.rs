//! What our rules do to fields of packets: nothing that anybody could see.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};

use nftnl::{ChainType, Hook};
use nix::sys::socket::{setsockopt, sockopt};

use super::packets::{A, B, Net, PORT, VIP, on_a_node};
use super::*;
use crate::netfilter::socket::{Outcome, Socket, Subsystem};
use crate::nft::chains::Chain;
use crate::nft::expr::{self, Field};
use crate::nft::wire::Batch;

/// Our table and somebody else's, whose chains look last at what leaves, before anybody has translated the source, and at what
/// comes in.
const HOOKS: [(&str, Hook, i32); 3] = [("out", Hook::PostRouting, 300), ("early", Hook::PostRouting, 98), ("in", Hook::In, 300)];

/// Counts packets with a number in the field for security marks, by our own encoder: nft's text has no such comparison.
fn watch(net: &Net, layout: &Layout) {
    let family = if net.family == Family::V4 { "ip" } else { "ip6" };
    let script = format!("add table {family} other; add set {family} other zero {{ type mark; elements = {{ 0 }}; }}");
    let layout = layout.clone();
    net.node.run(move || {
        nft(&[&script]).expect("nft");
        let mut socket = Socket::open(Subsystem::Tables).expect("socket");
        let first = socket.take_seq(100);
        let mut batch = Batch::begin(layout.protocol(), first);
        for (name, hook, priority) in HOOKS {
            let marked = expr::Key::new(layout.nft.family).field(Field::Secmark).outside("zero");
            // Dropped, so that it shows as well.
            Chain::at(name, ChainType::Filter, hook, priority).rule([marked, expr::drop_counted()]).write(&layout, &mut batch, "other");
        }
        let count = batch.len();
        assert!(matches!(socket.transact(&batch.end(), first, count).expect("other"), Outcome::Done));
    });
    // First packets with a priority count, by the priority.
    let script = format!(
        "add chain {family} other priorities {{ type filter hook postrouting priority 299; }}; add set {family} other seen {{ typeof {family} daddr . meta priority; flags dynamic; size 1000; }}; add rule {family} other priorities ct state new add @seen {{ {family} daddr . meta priority }}"
    );
    net.node.run(move || nft(&[&script])).expect("nft");
}

fn other(net: &Net) -> String {
    let family = if net.family == Family::V4 { "ip" } else { "ip6" };
    net.node.run(move || nft(&["list", "table", family, "other"])).expect("nft")
}

/// A new flow of the node's own with a priority.
fn send(net: &Net, to: Ipv4Addr, port: u16, priority: i32) {
    let to = SocketAddr::new(net.ip(to), port);
    let any = SocketAddr::new(net.family.unspecified(), 0);
    net.node.run(move || {
        let socket = UdpSocket::bind(any).expect("a port");
        setsockopt(&socket, sockopt::Priority, &priority).expect("SO_PRIORITY");
        socket.send_to(b"?", to).expect("no rule is in the way");
    });
}

#[test]
fn nothing_of_ours_leaves_with_a_packet() {
    on_a_node(|net| {
        if nft(&["--version"]).is_none() {
            return;
        }
        let mut table = net.table(default(net.family));
        let udp = net.frontend(Protocol::Udp);
        let others = [Frontend { port: 81, ..udp }, Frontend { port: 82, ..udp }];
        let mut objects = base();
        objects.extend(served(udp, "default/even", Masquerade::Always, &net.backends(&[B])));
        objects.extend(sticky(others[0], "default/sticky", (7, 60), &net.backends(&[B])));
        objects.extend(by_source(others[1], "default/local", &net.backends(&[B]), &[]));
        committed(&mut table, &adding(&objects));
        watch(net, &table.layout);
        // To nobody's Service, with what our own fields might hold: it arrives as it was sent.
        let priorities = [1, 6, 7, 0x10003, 0x7000_0001];
        for priority in priorities {
            send(net, A, PORT, priority);
        }
        // To Services, new clients and known ones.
        for port in [80, 81, 82].repeat(3) {
            send(net, VIP, port, 5);
        }
        let found = other(net);
        for priority in priorities {
            // As class of a traffic control, in hexadecimal.
            let text = format!("{} . {:x}:{:x}", net.ip(A), priority >> 16, priority & 0xffff);
            assert!(found.contains(&text), "{text}: {found}");
        }
        assert!(found.contains(&net.ip(B).to_string()), "{found}");
        assert_eq!(found.matches("counter packets 0 bytes 0 drop").count(), HOOKS.len(), "{found}");
    });
}
