//! What is not ours is not touched: packets of others, marks, connections, and where other tables' rules see what. Other tables in
//! the namespaces of the lab count the packets.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sockopt};
use proxy_tests::agent::{DEADLINE, Mode};
use proxy_tests::expect;
use proxy_tests::lab::{self, Connect, Lab, Proto, Seen, to_v6};
use serde_json::{Value, json};

use super::node::Rig;

/// Our bit of the mark.
const MARK: u32 = 0x4000;
/// Bits of others.
const OTHERS: u32 = 0x8001;

fn on_nftables(test: impl Fn(&Rig) -> Result<()>) {
    if lab::available() {
        Rig::new(Mode::Nftables).and_then(|rig| test(&rig)).unwrap_or_else(|error| panic!("{error:?}"));
    }
}

/// A chain of another table: where it is, and what it counts under which name.
struct Chain {
    hook: &'static str,
    priority: i32,
    counts: Vec<(String, String)>,
}

fn chain(hook: &'static str, priority: i32, counts: &[(&str, &str)]) -> Chain {
    let counts = counts.iter().map(|(name, of)| ((*name).to_owned(), (*of).to_owned())).collect();
    Chain { hook, priority, counts }
}

/// Adds a table with these chains in a namespace of the lab, beside ours; `first` is rules that come before all others there.
fn watch(lab: &Lab, place: &str, first: &str, chains: &[Chain]) -> Result<()> {
    let mut table = format!("table inet others {{\nchain first {{ type filter hook prerouting priority -250; {first}\n}}\n");
    for (i, Chain { hook, priority, counts }) in chains.iter().enumerate() {
        for (name, _) in counts {
            table += &format!("counter {name} {{ }}\n");
        }
        table += &format!("chain c{i} {{ type filter hook {hook} priority {priority};\n");
        for (name, of) in counts {
            table += &format!("{of} counter name {name}\n");
        }
        table += "}\n";
    }
    lab.nft(place, &(table + "}"))
}

/// How many packets each counter has seen.
fn counted(lab: &Lab, place: &str) -> Result<BTreeMap<String, u64>> {
    let mut nft = Command::new("nft");
    nft.args(["-j", "list", "counters"]);
    let output = lab.output_at(lab.find(place)?, nft)?;
    let listed: Value = serde_json::from_slice(&output.stdout).context("nft -j list counters")?;
    let counters = listed["nftables"].as_array().into_iter().flatten().filter_map(|object| object.get("counter"));
    let counters = counters.map(|c| Some((c["name"].as_str()?.to_owned(), c["packets"].as_u64()?)));
    counters.collect::<Option<_>>().with_context(|| listed.to_string())
}

/// Waits until each of these has seen at least a packet.
fn all_seen(lab: &Lab, place: &str, names: &[String]) -> Result<()> {
    lab.wait(DEADLINE, "other tables to see all packets as they were sent", || {
        let counted = counted(lab, place)?;
        let unseen: Vec<&String> = names.iter().filter(|name| counted.get(*name).is_none_or(|packets| *packets == 0)).collect();
        Ok(if unseen.is_empty() { Seen::Done(()) } else { Seen::not_yet(format!("{unseen:?} of {counted:?}")) })
    })
}

/// How a socket marks what it sends.
#[derive(Clone, Copy)]
struct Dress {
    priority: u32,
    mark: u32,
    dscp: u8,
}

/// One of each kind, numbered. None has our bit of the mark, which is ours wherever it comes from.
fn dresses() -> Vec<(u16, Dress)> {
    let priorities = (0..=7).chain([0x7000_0001, 0x0001_0003]);
    let by_priority = priorities.map(|priority| Dress { priority, mark: OTHERS, dscp: 0 });
    let by_mark = [0, 1, 0x8000, !MARK].map(|mark| Dress { priority: 6, mark, dscp: 0x2e });
    (9000..).zip(by_priority.chain(by_mark)).collect()
}

/// What a packet of such a socket looks like, by its destination's port.
fn look(port: u16, dress: Dress, address: IpAddr) -> String {
    let Dress { priority, mark, dscp } = dress;
    let (major, minor) = (priority >> 16, priority & 0xffff);
    let ip = if address.is_ipv4() { "ip" } else { "ip6" };
    // nft's word for 0.
    let priority = if priority == 0 { "none".to_owned() } else { format!("{major:x}:{minor:x}") };
    format!("{ip} daddr {address} udp dport {port} meta priority {priority} meta mark {mark:#x} {ip} dscp {dscp}")
}

fn send(to: SocketAddr, dress: Dress) -> Result<()> {
    let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    let traffic_class = i32::from(dress.dscp) << 2;
    // Before the priority, which it sets too.
    if to.is_ipv4() {
        socket::setsockopt(&socket, sockopt::Ipv4Tos, &traffic_class)?;
    } else {
        socket::setsockopt(&socket, sockopt::Ipv6TClass, &traffic_class)?;
    }
    socket::setsockopt(&socket, sockopt::Priority, &dress.priority.cast_signed())?;
    socket::setsockopt(&socket, sockopt::Mark, &dress.mark)?;
    socket.send_to(b"x", to)?;
    Ok(())
}

/// An address that no Service has: a pod on the other node, in both families.
fn foreign() -> [IpAddr; 2] {
    let pod = Ipv4Addr::new(10, 1, 2, 2);
    [pod.into(), to_v6(pod).into()]
}

#[test]
fn priority_tos_class_and_mark_of_what_goes_to_no_service_are_left_alone() {
    on_nftables(|rig| {
        let mut names = Vec::new();
        let mut of_node = Vec::new();
        for address in foreign() {
            for (port, dress) in dresses() {
                let family = if address.is_ipv4() { "v4" } else { "v6" };
                of_node.push((format!("sent_{family}_{port}"), look(port, dress, address)));
            }
        }
        names.extend(of_node.iter().map(|(name, _)| name.clone()));
        let chains = [Chain { hook: "postrouting", priority: 300, counts: of_node }];
        watch(&rig.lab, "node1", "", &chains)?;
        rig.lab.inside("node1", || {
            foreign()
                .into_iter()
                .try_for_each(|address| dresses().into_iter().try_for_each(|(port, dress)| send((address, port).into(), dress)))
        })?;
        all_seen(&rig.lab, "node1", &names)
    });
}

/// What is forwarded is given mark and priority before our chains, and looked at after those of each hook.
#[test]
fn priority_tos_class_and_mark_of_what_is_forwarded_to_no_service_are_left_alone() {
    on_nftables(|rig| {
        let (mut set, mut early, mut late) = (String::new(), Vec::new(), Vec::new());
        for address in foreign() {
            let (ip, family) = if address.is_ipv4() { ("ip", "v4") } else { ("ip6", "v6") };
            for (port, Dress { priority, mark, dscp }) in dresses() {
                let class = format!("{:x}:{:x}", priority >> 16, priority & 0xffff);
                let class = if priority == 0 { "none" } else { &class };
                set += &format!("{ip} daddr {address} udp dport {port} meta priority set {class} meta mark set {mark:#x}\n");
                early.push((format!("early_{family}_{port}"), look(port, Dress { priority, mark, dscp }, address)));
                // The kernel itself makes a forwarded packet's priority from its TOS.
                let kept = format!("{ip} daddr {address} udp dport {port} meta mark {mark:#x} {ip} dscp {dscp}");
                late.push((format!("late_{family}_{port}"), kept));
            }
        }
        let names: Vec<String> = early.iter().chain(&late).map(|(name, _)| name.clone()).collect();
        let chains =
            [Chain { hook: "prerouting", priority: -50, counts: early }, Chain { hook: "postrouting", priority: 300, counts: late }];
        watch(&rig.lab, "node1", &set, &chains)?;
        rig.lab.inside("a1", || {
            foreign()
                .into_iter()
                .try_for_each(|address| dresses().into_iter().try_for_each(|(port, dress)| send((address, port).into(), dress)))
        })?;
        all_seen(&rig.lab, "node1", &names)
    });
}

/// `web` at a load balancer's address and a NodePort too, where everything is masqueraded.
fn masqueraded(rig: &Rig, endpoints: &[(&str, bool)]) -> Result<()> {
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "web"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": "10.96.0.10",
            "ports": [{"name": "main", "port": 80, "nodePort": 30080, "protocol": "TCP"}],
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "10.97.0.1"}]}},
    });
    rig.write("web.json", &service.to_string())?;
    rig.write("web-1.json", &proxy_tests::manifest::slice("web", "TCP", endpoints))
}

#[test]
fn the_decision_to_masquerade_is_one_bit_of_the_mark_and_gone_when_the_packet_leaves() {
    on_nftables(|rig| {
        masqueraded(rig, &[("10.1.2.2", true)])?;
        expect::reaches(&rig.lab, "client", "10.97.0.1:80/tcp", &["a2"])?;
        let to_backend = "ip daddr 10.1.2.2 tcp dport 8080 tcp flags syn / syn,ack";
        let (ours, others) = (OTHERS | MARK, OTHERS);
        let first = format!("ip saddr {{ 10.0.0.100, 10.1.1.2 }} meta mark set {others:#x}");
        let chains = [
            chain("forward", 10, &[("forwarded", &format!("{to_backend} meta mark {ours:#x}"))]),
            chain("output", -50, &[("sent", &format!("{to_backend} meta mark {ours:#x}"))]),
            chain(
                "postrouting",
                300,
                &[
                    ("left", &format!("{to_backend} meta mark {others:#x} ct original ip daddr 10.97.0.1 ip saddr 10.0.0.1")),
                    ("left_unmarked", &format!("{to_backend} meta mark {others:#x} ct original ip daddr 10.96.0.10 ip saddr 10.1.1.2")),
                    ("left_with_ours", &format!("{to_backend} meta mark & {MARK:#x} != 0")),
                ],
            ),
        ];
        watch(&rig.lab, "node1", &first, &chains)?;
        for (from, to) in [("client", "10.97.0.1:80"), ("a1", "10.96.0.10:80")] {
            rig.lab.find(from)?.connect(to.parse()?, Proto::Tcp)?.into_answer()?;
        }
        rig.lab.inside("node1", || {
            let flags = SockFlag::SOCK_CLOEXEC;
            let fd = socket::socket(AddressFamily::Inet, SockType::Stream, flags, SockProtocol::Tcp)?;
            socket::setsockopt(&fd, sockopt::Mark, &OTHERS)?;
            let to: SocketAddr = "10.97.0.1:80".parse()?;
            socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).context("from the node")
        })?;
        let counted = counted(&rig.lab, "node1")?;
        let wanted = [("forwarded", 1), ("sent", 1), ("left", 2), ("left_unmarked", 1), ("left_with_ours", 0)];
        let wanted = wanted.map(|(name, packets)| (name.to_owned(), packets)).into_iter().collect();
        ensure!(counted == wanted, "expected {wanted:?}, counted {counted:?}");
        Ok(())
    });
}

#[test]
fn masqueraded_connections_have_random_ports_and_the_address_they_leave_by() {
    on_nftables(|rig| {
        masqueraded(rig, &[("10.1.1.3", true), ("10.1.2.2", true)])?;
        expect::reaches(&rig.lab, "client", "10.0.0.1:30080/tcp", &["b1", "a2"])?;
        let client = rig.lab.client();
        let mut ports = Vec::new();
        for port in 40_000..40_030_u16 {
            let probe = Connect::new("10.0.0.1:30080".parse()?, Proto::Tcp).from((client.v4(), port).into());
            let answer = client.probe(probe)?.into_answer()?;
            ensure!(answer.seen_source.ip() == rig.lab.node(1).v4(), "{answer:?}");
            ports.push((port, answer.seen_source.port()));
        }
        // Of 60,000 or so, each as likely: one in a thousand times one is kept, and never are all near each other or in order.
        let kept = ports.iter().filter(|(own, seen)| own == seen).count();
        let spread = ports.iter().map(|(_, seen)| seen / 10_000).collect::<std::collections::BTreeSet<_>>().len();
        let is_rising = ports.is_sorted_by_key(|(_, seen)| *seen);
        ensure!(kept <= 1 && spread >= 3 && !is_rising, "own port, port that the backend saw: {ports:?}");
        Ok(())
    });
}

#[test]
fn rules_of_others_see_virtual_addresses_before_and_backends_after() {
    on_nftables(|rig| {
        masqueraded(rig, &[("10.1.2.2", true)])?;
        let paths = [("client", "10.97.0.1"), ("a1", "10.96.0.10"), ("node1", "10.96.0.10")];
        for (from, ip) in paths {
            expect::reaches(&rig.lab, from, &format!("{ip}:80/tcp"), &["a2"])?;
        }
        let syn = "tcp flags syn / syn,ack";
        let (outside, pod) = (format!("ip daddr 10.97.0.1 tcp dport 80 {syn}"), format!("ip daddr 10.96.0.10 tcp dport 80 {syn}"));
        let backend = format!("ip daddr 10.1.2.2 tcp dport 8080 {syn}");
        let chains = [
            chain("prerouting", -105, &[("before_outside", &outside), ("before_pod", &pod)]),
            chain("prerouting", -95, &[("after", &backend), ("not_after", "tcp dport 80")]),
            chain("output", -105, &[("before_output", &pod)]),
            chain("output", -95, &[("after_output", &backend), ("not_after_output", "tcp dport 80")]),
            chain("forward", 0, &[("in_forward", &backend), ("not_in_forward", "tcp dport 80")]),
            chain("postrouting", 95, &[("own", &format!("{backend} ip saddr 10.0.0.100"))]),
            chain("postrouting", 105, &[("masqueraded", &format!("{backend} ip saddr 10.0.0.1 ct original ip daddr 10.97.0.1"))]),
        ];
        watch(&rig.lab, "node1", "", &chains)?;
        for (from, ip) in paths {
            rig.lab.find(from)?.connect(SocketAddr::new(ip.parse()?, 80), Proto::Tcp)?.into_answer()?;
        }
        let seen = counted(&rig.lab, "node1")?;
        let wanted = [
            ("before_outside", 1),
            ("before_pod", 1),
            ("after", 2),
            ("not_after", 0),
            ("before_output", 1),
            ("after_output", 1),
            ("not_after_output", 0),
            ("in_forward", 2),
            ("not_in_forward", 0),
            ("own", 1),
            ("masqueraded", 1),
        ];
        let wanted: BTreeMap<String, u64> = wanted.map(|(name, packets)| (name.to_owned(), packets)).into_iter().collect();
        ensure!(seen == wanted, "expected {wanted:?}, counted {seen:?}");
        // A NetworkPolicy that keeps the pod from others.
        rig.lab.nft("node1", "add chain inet others deny { type filter hook forward priority 0; }")?;
        rig.lab.nft("node1", "add rule inet others deny ip saddr 10.1.1.2 ip daddr 10.1.2.2 tcp dport 8080 drop")?;
        expect::untouched(&rig.lab, "a1", "10.96.0.10:80/tcp").context("denied by another table")?;
        expect::reaches(&rig.lab, "client", "10.97.0.1:80/tcp", &["a2"]).context("not denied")
    });
}

#[test]
fn invalid_packets_are_dropped_if_they_come_from_an_endpoint_and_only_then() {
    on_nftables(|rig| {
        let (pod, client) = (rig.lab.pod("b1"), rig.lab.client());
        let v6 = proxy_tests::manifest::slice("web6", "TCP", &[(&pod.v6().to_string(), true)]);
        rig.write("web6-1.json", &v6)?;
        rig.write("web6.json", &proxy_tests::manifest::service("web6", "fd00:10:96::a", 80, "TCP"))?;
        expect::reaches(&rig.lab, "a1", "[fd00:10:96::a]:80/tcp", &["b1"])?;
        let reset = |name: &str, port: u16| (name.to_owned(), format!("tcp sport {port} tcp flags rst"));
        // Ports 8080 serve, 9999 does not; 8081 sends what is valid.
        let counts = vec![reset("of_endpoint", 8080), reset("of_another", 9999)];
        let chains = [Chain { hook: "prerouting", priority: -200, counts: counts.clone() }];
        watch(&rig.lab, "client", "", &chains)?;
        let invalid = counts.iter().map(|(name, of)| (name.clone(), format!("ct state invalid {of}"))).collect();
        watch(&rig.lab, "node1", "", &[Chain { hook: "forward", priority: -50, counts: invalid }])?;
        let pairs = pod.addresses().into_iter().zip(client.addresses());
        rig.lab.inside("b1", || {
            pairs.clone().try_for_each(|(from, to)| {
                [8080, 9999].into_iter().try_for_each(|port| stray_reset((from, port).into(), (to, 5555).into()))
            })
        })?;
        // In that order, the same way.
        rig.lab.wait(DEADLINE, "the client to get the resets of who is no endpoint", || {
            let counted = counted(&rig.lab, "client")?;
            Ok(if counted["of_another"] == 2 { Seen::Done(()) } else { Seen::not_yet(format!("{counted:?}")) })
        })?;
        let (sent, got) = (counted(&rig.lab, "node1")?, counted(&rig.lab, "client")?);
        ensure!(sent["of_endpoint"] == 2 && sent["of_another"] == 2, "not all were INVALID: {sent:?}");
        ensure!(got["of_endpoint"] == 0, "INVALID packets of an endpoint were let out: {got:?}");
        Ok(())
    });
}

/// A TCP reset of a connection that nobody has, as a raw packet.
fn stray_reset(from: SocketAddr, to: SocketAddr) -> Result<()> {
    const RST: u8 = 4;
    let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket::socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
    let mut header = [0_u8; 20];
    header[..2].copy_from_slice(&from.port().to_be_bytes());
    header[2..4].copy_from_slice(&to.port().to_be_bytes());
    header[4..8].copy_from_slice(&1_000_000_u32.to_be_bytes());
    header[12] = 5 << 4;
    header[13] = RST;
    let sum = checksum(from.ip(), to.ip(), &header);
    header[16..18].copy_from_slice(&sum.to_be_bytes());
    // A raw IPv6 socket wants no port.
    let to = SocketAddr::new(to.ip(), 0);
    socket::sendto(fd.as_raw_fd(), &header, &SockaddrStorage::from(to), MsgFlags::empty()).context("a raw packet")?;
    Ok(())
}

/// TCP's checksum, with the pseudo header.
fn checksum(from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let length = u16::try_from(segment.len()).unwrap_or_default().to_be_bytes();
    let all = [octets(from), octets(to), vec![0, 6], length.to_vec(), segment.to_vec()].concat();
    let sum: u32 = all.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).copied().map_or(0, u32::from)).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default()
}
