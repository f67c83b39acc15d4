//! The rules with real packets: a node with two pods behind it, and a client elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use super::*;

/// Where pods listen.
pub(super) const PORT: u16 = 8080;
/// So long a dropped packet is waited for.
const PATIENCE: Duration = Duration::from_millis(300);
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(super) const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const A: Ipv4Addr = Ipv4Addr::new(10, 1, 1, 2);
pub(super) const B: Ipv4Addr = Ipv4Addr::new(10, 1, 2, 2);
/// Behind the node's default route.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
pub(super) const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// An address of the network elsewhere, where it answers.
const OTHER_VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 2);

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace with a thread in it.
pub(super) struct Space {
    jobs: Sender<Job>,
    thread: i32,
}

impl Space {
    fn new() -> Self {
        let (jobs, inbox) = channel::<Job>();
        let (told, thread) = channel();
        // IPv6 addresses are ready at once.
        let dad = ["all", "default"].map(|of| format!("/proc/sys/net/ipv6/conf/{of}/accept_dad"));
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            dad.iter().for_each(|setting| std::fs::write(setting, "0").expect("a setting"));
            told.send(gettid().as_raw()).expect("somebody waits");
            inbox.into_iter().for_each(|job| job());
        });
        Self { jobs, thread: thread.recv().expect("the thread lives") }
    }

    /// Runs something there.
    pub(super) fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (told, result) = channel();
        self.jobs.send(Box::new(move || drop(told.send(job())))).expect("the thread lives");
        result.recv().expect("the job ends")
    }

    fn ip(&self, arguments: &str) {
        let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
        let output = self.run(move || Command::new("ip").args(&arguments).output().map(|output| (output, arguments)));
        let (output, arguments) = output.expect("ip");
        assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The node and who is around it, in one family.
pub(super) struct Net {
    pub(super) family: Family,
    pub(super) node: Space,
    around: BTreeMap<&'static str, Space>,
}

impl Net {
    fn new(family: Family) -> Self {
        let (node, mut around) = (Space::new(), BTreeMap::new());
        node.ip("link set lo up");
        let setting = if family == Family::V4 { "/proc/sys/net/ipv4/ip_forward" } else { "/proc/sys/net/ipv6/conf/all/forwarding" };
        node.run(move || std::fs::write(setting, "1")).expect("forwarding");
        for (name, address) in [("client", CLIENT), ("a", A), ("b", B), ("elsewhere", ELSEWHERE)] {
            let space = Space::new();
            let len = if family == Family::V4 { 24 } else { 120 };
            let (ip, gateway) = (of(family, address), of(family, gateway(address)));
            node.ip(&format!("link add name to-{name} type veth peer name eth0 netns {}", space.thread));
            node.ip(&format!("address add {gateway}/{len} dev to-{name}"));
            node.ip(&format!("link set to-{name} up"));
            space.ip("link set lo up");
            space.ip(&format!("address add {ip}/{len} dev eth0"));
            space.ip("link set eth0 up");
            space.ip(&format!("route add default via {gateway}"));
            around.insert(name, space);
        }
        // A packet to a Service must have a way before it is translated.
        node.ip(&format!("route add default via {}", of(family, ELSEWHERE)));
        around["elsewhere"].ip(&format!("address add {} dev lo", of(family, OTHER_VIP)));
        for name in ["a", "b", "elsewhere"] {
            around[name].run(move || serve(name, family));
        }
        Self { family, node, around }
    }

    pub(super) fn ip(&self, ip: Ipv4Addr) -> IpAddr {
        of(self.family, ip)
    }

    fn space(&self, who: &str) -> &Space {
        self.around.get(who).unwrap_or(&self.node)
    }

    /// Who answers a TCP connection, and whom it sees.
    pub(super) fn connect(&self, who: &str, to: Ipv4Addr, port: u16) -> Result<(String, IpAddr), ErrorKind> {
        let to = SocketAddr::new(self.ip(to), port);
        self.space(who).run(move || connect(to)).map_err(|error| error.kind())
    }

    /// The same with one datagram.
    pub(super) fn send(&self, who: &str, to: Ipv4Addr, port: u16) -> Result<(String, IpAddr), ErrorKind> {
        let to = SocketAddr::new(self.ip(to), port);
        self.space(who).run(move || send(to)).map_err(|error| error.kind())
    }

    /// Everyone who answers in many tries, and whom they see.
    fn all(&self, who: &str, to: Ipv4Addr, port: u16) -> BTreeSet<(String, IpAddr)> {
        let answer = |i| self.connect(who, to, port).unwrap_or_else(|error| panic!("{who} to {} port {port}, {i}: {error}", self.ip(to)));
        (0..24).map(answer).collect()
    }

    fn seen<const N: usize>(&self, seen: [(&str, Ipv4Addr); N]) -> BTreeSet<(String, IpAddr)> {
        seen.into_iter().map(|(name, ip)| (name.to_owned(), self.ip(ip))).collect()
    }

    pub(super) fn table(&self, nft: Nft) -> NftTable {
        self.node.run(|| NftTable::open(nft)).expect("open")
    }

    pub(super) fn frontend(&self, protocol: Protocol) -> Frontend {
        Frontend { ip: self.ip(VIP), port: 80, protocol }
    }

    pub(super) fn backends(&self, ips: &[Ipv4Addr]) -> Vec<Address> {
        ips.iter().map(|ip| Address { ip: self.ip(*ip), port: PORT }).collect()
    }
}

/// The node's address in a network.
fn gateway(ip: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(ip) - 1)
}

fn of(family: Family, ip: Ipv4Addr) -> IpAddr {
    match family {
        Family::V4 => ip.into(),
        Family::V6 if ip.is_loopback() => Ipv6Addr::LOCALHOST.into(),
        Family::V6 => Ipv6Addr::from(0xfd00_u128 << 112 | u128::from(u32::from(ip))).into(),
    }
}

/// Answers with a name and the source that is seen, over TCP and UDP.
fn serve(name: &'static str, family: Family) {
    let any = SocketAddr::new(family.unspecified(), PORT);
    let (listener, socket) = (TcpListener::bind(any).expect("a port"), UdpSocket::bind(any).expect("a port"));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let Ok(peer) = stream.peer_addr() else { continue };
            let _ = stream.write_all(format!("{name} {}", peer.ip()).as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

fn connect(to: SocketAddr) -> std::io::Result<(String, IpAddr)> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    let mut text = String::new();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_to_string(&mut text)?;
    Ok(parsed(&text))
}

fn send(to: SocketAddr) -> std::io::Result<(String, IpAddr)> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let len = socket.recv(&mut buffer)?;
    Ok(parsed(&String::from_utf8_lossy(&buffer[..len])))
}

fn parsed(text: &str) -> (String, IpAddr) {
    let (name, ip) = text.split_once(' ').expect("name and source");
    (name.to_owned(), ip.parse().expect("an address"))
}

/// Runs a test in both families.
pub(super) fn on_a_node(test: impl Fn(&Net) + Send + 'static) {
    in_namespace(move || {
        if Command::new("ip").arg("-V").output().is_err() {
            assert!(std::env::var_os("PROXY_TEST_REQUIRED").is_none(), "no ip (iproute2)");
            eprintln!("skipped: no ip (iproute2)");
            return;
        }
        Family::ALL.into_iter().for_each(|family| {
            eprintln!("{family}");
            test(&Net::new(family));
        });
    });
}

fn pods(net: &Net) -> Key {
    let len = if net.family == Family::V4 { 16 } else { 112 };
    Key::PodCidr(Cidr::new(net.ip(A), len).expect("a range"))
}

#[test]
fn frontends_lead_to_backends_and_mask_who_they_must() {
    on_a_node(|net| {
        let mut table = net.table(default(net.family));
        let both = net.backends(&[A, B]);
        let mut objects = base();
        objects.insert(pods(net), Value::Present);
        objects.insert(Key::Hairpin(net.ip(A)), Value::Present);
        objects.insert(Key::Hairpin(net.ip(B)), Value::Present);
        objects.insert(Key::NodeAddress(net.ip(NODE)), Value::Present);
        objects.extend(served(net.frontend(Protocol::Tcp), "default/web", Masquerade::UnlessPod, &both));
        objects.extend(served(net.frontend(Protocol::Udp), "default/web", Masquerade::Never, &both[..1]));
        let node_port = Frontend::node_port(net.family, 30_080, Protocol::Tcp);
        objects.extend(served(node_port, "default/web", Masquerade::Always, &both));
        committed(&mut table, &adding(&objects));

        let masked = net.seen([("a", gateway(A)), ("b", gateway(B))]);
        // Pods are seen themselves, unless they meet themselves.
        assert_eq!(net.all("a", VIP, 80), net.seen([("a", gateway(A)), ("b", A)]));
        assert_eq!(net.all("client", VIP, 80), masked);
        assert_eq!(net.all("node", VIP, 80), masked);
        assert_eq!(net.send("client", VIP, 80), Ok(("a".into(), net.ip(CLIENT))));
        assert_eq!(net.send("a", VIP, 80), Ok(("a".into(), net.ip(gateway(A)))));
        // NodePorts are served on the node's addresses alone, whatever the port is elsewhere.
        for who in ["client", "a", "node"] {
            assert_eq!(net.all(who, NODE, 30_080), masked, "{who}");
        }
        assert_eq!(net.connect("client", gateway(A), 30_080), Err(ErrorKind::ConnectionRefused));
    });
}

#[test]
fn frontends_by_source_lead_where_the_sender_may_go() {
    on_a_node(|net| {
        // The other ways to tell a pod, and NodePorts on all addresses.
        let nft = Nft { pods: PodMatch::InterfacePrefix("to-b".into()), any_node_port: true, ..default(net.family) };
        let mut table = net.table(nft);
        let mut objects = base();
        objects.extend(by_source(net.frontend(Protocol::Tcp), "default/local", &net.backends(&[A, B]), &net.backends(&[A])));
        let node_port = Frontend::node_port(net.family, 30_080, Protocol::Tcp);
        objects.extend(by_source(node_port, "default/local", &net.backends(&[A, B]), &[]));
        committed(&mut table, &adding(&objects));

        assert_eq!(net.all("client", VIP, 80), net.seen([("a", CLIENT)]));
        assert_eq!(net.all("node", VIP, 80), net.seen([("a", gateway(A)), ("b", gateway(B))]));
        assert_eq!(net.send("client", VIP, 80), Err(ErrorKind::WouldBlock));
        // Without a local backend: those of elsewhere for pods and the node, nothing for others.
        for address in [NODE, gateway(A)] {
            assert_eq!(net.all("node", address, 30_080), net.seen([("a", gateway(A)), ("b", gateway(B))]));
            assert_eq!(net.connect("client", address, 30_080), Err(ErrorKind::TimedOut));
        }
        assert!((0..24).any(|_| net.connect("b", NODE, 30_080) == Ok(("a".into(), net.ip(B)))));
        assert_eq!(net.connect("node", Ipv4Addr::LOCALHOST, 30_080), Err(ErrorKind::ConnectionRefused));
    });
}

#[test]
fn what_has_no_backend_is_refused_or_dropped() {
    on_a_node(|net| {
        let mut table = net.table(default(net.family));
        let (tcp, udp) = (net.frontend(Protocol::Tcp), net.frontend(Protocol::Udp));
        let node_port = Frontend::node_port(net.family, 30_081, Protocol::Tcp);
        let other = Frontend { port: 81, ..tcp };
        let label = || Value::Label("default/none".into());
        let range = Cidr::new(net.ip(VIP), if net.family == Family::V4 { 24 } else { 120 }).expect("a range");
        let client = Cidr::host(net.ip(CLIENT));
        let restricted = Frontend { port: 82, ..tcp };
        let mut objects = base();
        objects.extend([(Key::Refused(tcp), label()), (Key::Refused(udp), label()), (Key::Dropped(other), label())]);
        objects.insert(Key::Refused(node_port), label());
        objects.extend([Key::NodeAddress(net.ip(NODE)), Key::ClusterIp(net.ip(VIP)), Key::ServiceCidr(range)].map(|k| (k, Value::Present)));
        objects.extend([Key::Restricted(restricted), Key::Source(restricted, client)].map(|k| (k, Value::Present)));
        objects.extend(served(restricted, "default/restricted", Masquerade::Never, &net.backends(&[A])));
        assert_eq!(net.connect("client", OTHER_VIP, PORT), Ok(("elsewhere".into(), net.ip(CLIENT))));
        committed(&mut table, &adding(&objects));

        for who in ["client", "a", "node"] {
            assert_eq!(net.connect(who, VIP, 80), Err(ErrorKind::ConnectionRefused), "{who}");
            // The kernel tells a sender of the node itself before the answer does.
            let refused = if who == "node" { ErrorKind::PermissionDenied } else { ErrorKind::ConnectionRefused };
            assert_eq!(net.send(who, VIP, 80), Err(refused), "{who}");
            assert_eq!(net.connect(who, VIP, 81), Err(ErrorKind::TimedOut), "{who}");
            assert_eq!(net.connect(who, VIP, 83), Err(ErrorKind::ConnectionRefused), "{who}: a port that nobody serves");
            assert_eq!(net.connect(who, OTHER_VIP, PORT), Err(ErrorKind::TimedOut), "{who}");
            assert_eq!(net.connect(who, NODE, 30_081), Err(ErrorKind::ConnectionRefused), "{who}");
            let outcome = if who == "client" { Ok(("a".into(), net.ip(CLIENT))) } else { Err(ErrorKind::TimedOut) };
            assert_eq!(net.connect(who, VIP, 82), outcome, "{who}");
        }
        // Ranges change into such that overlap, in one batch.
        let all = Cidr::new(net.ip(VIP), 0).expect("a range");
        let exchange = |before: Key, after: Key| [Step::Add(after, Value::Present), Step::Delete(before, Value::Present)];
        let steps = [
            exchange(Key::Source(restricted, client), Key::Source(restricted, all)),
            exchange(Key::ServiceCidr(range), Key::ServiceCidr(Cidr::host(net.ip(VIP)))),
        ];
        committed(&mut table, &steps.concat());
        assert_eq!(net.connect("b", VIP, 82), Ok(("a".into(), net.ip(B))));
        assert_eq!(net.connect("b", OTHER_VIP, PORT), Ok(("elsewhere".into(), net.ip(B))));
        table.remove().expect("remove");
    });
}

#[test]
fn clients_stay_with_their_backends() {
    on_a_node(|net| {
        let mut table = net.table(default(net.family));
        let both = net.backends(&[A, B]);
        let (tcp, node_port) = (net.frontend(Protocol::Tcp), Frontend::node_port(net.family, 30_080, Protocol::Tcp));
        let mut objects = base();
        objects.insert(Key::NodeAddress(net.ip(NODE)), Value::Present);
        objects.extend(sticky(tcp, "default/web", (7, 60), &both));
        objects.extend(sticky(node_port, "default/web", (7, 60), &both));
        committed(&mut table, &adding(&objects));

        // One backend for a client, whichever frontend it uses.
        let of = |who: &str| -> String {
            let answers: BTreeSet<_> =
                [net.all(who, VIP, 80), net.all(who, NODE, 30_080)].into_iter().flatten().map(|(name, _)| name).collect();
            assert_eq!(answers.len(), 1, "{who}: {answers:?}");
            answers.into_iter().next().expect("one")
        };
        let first = of("client");
        // It leaves the set, though it is there still: the other one, and no return when it comes back.
        let gone = if first == "a" { 700 } else { 701 };
        let left = Key::StickMember(7, Pool::Cluster, gone);
        let (slot, other) = (gone - 700, 701 - (gone - 700));
        let size = Key::StickSize(7, Pool::Cluster);
        let shrunk = [
            Step::Add(Key::StickPick(Pool::Cluster, 1), Value::Present),
            Step::Replace(Key::StickSlot(7, 0), Value::Number(other), Value::Number(700)),
            Step::Replace(size, Value::Count(1), Value::Count(2)),
            Step::Delete(left, Value::Present),
        ];
        committed(&mut table, &shrunk);
        let second = of("client");
        assert_ne!(second, first, "slot {slot}");
        committed(&mut table, &[Step::Add(left, Value::Present)]);
        assert_eq!(of("client"), second);
        // A frontend that leads those of elsewhere to the set of this node, whatever they have.
        let local = Frontend { port: 81, ..tcp };
        let target = Target { masquerade: Masquerade::Never, is_node_port: false, pool: Pool::Local, pick: Pick::Sticky(60) };
        let here = if second == "a" { 701 } else { 700 };
        let mut steps = vec![
            Step::Add(Key::Chain(target), Value::Present),
            Step::Add(Key::StickPick(Pool::Local, 1), Value::Present),
            Step::Replace(Key::StickSize(7, Pool::Local), Value::Count(1), Value::Count(2)),
            Step::Replace(Key::StickSlot(7, LOCAL_SLOTS), Value::Number(here), Value::Number(700)),
            Step::Delete(Key::StickMember(7, Pool::Local, 1401 - here), Value::Present),
            Step::Add(Key::Identity(local), Value::Number(7)),
            Step::Add(Key::BySource(local, Pool::Local), Value::Target(Some(target))),
        ];
        let class = Class::BySource { is_node_port: false };
        steps.push(Step::Add(Key::Service(local), Value::Service(class, "default/web".into())));
        committed(&mut table, &steps);
        let names: BTreeSet<_> = net.all("client", VIP, 81).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, BTreeSet::from([first.clone()]));
        // That one now holds everywhere.
        assert_eq!(of("client"), first);
        // Another timeout: other chains, the same pins.
        let mut after = objects.clone();
        after.retain(|key, _| !matches!(key, Key::Chain(_) | Key::Service(_)));
        after.extend(
            sticky(tcp, "default/web", (7, 90), &both).into_iter().filter(|(key, _)| matches!(key, Key::Chain(_) | Key::Service(_))),
        );
        let service = Key::Service(tcp);
        let steps: Vec<_> = after.iter().filter(|(key, _)| matches!(key, Key::Chain(_))).map(|(k, v)| Step::Add(*k, v.clone())).collect();
        committed(&mut table, &steps);
        committed(&mut table, &[Step::Replace(service, after[&service].clone(), objects[&service].clone())]);
        assert_eq!(of("client"), first);
    });
}
