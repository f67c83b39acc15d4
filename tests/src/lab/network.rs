//! The lab's network: namespaces, devices, addresses and routes, by iproute2 in batches.
//!
//! A bridge in the fabric's namespace joins nodes and client. A pod hangs on its node by a routed veth pair: it has one address
//! per family without a subnet, and its gateway is a link-local address that every node's end of a pair answers for. The nodes'
//! default route leads to the fabric, which forwards into a device that loses everything: so packets to virtual IPs meet routing
//! and the hooks behind it as on a real node, and one that nobody translates is lost and counted.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{ErrorKind, Write as _};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};

use super::address::{self, CLIENT, GATEWAY, to_v6};
use super::sys::compute_checksums;
use super::{LabOptions, PodSpec, netns};

/// Hardware address of every node's end of a pod's veth pair.
const NODE_END: &str = "ee:ee:ee:ee:ee:ee";

/// Gateways in a pod.
const POD_GATEWAY: &str = "169.254.1.1";
const POD_GATEWAY_V6: &str = "fe80::1";

/// What a namespace does with packets that are not its own.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It drops them.
    End,
    /// It forwards them and looks at where they came from, as [`LabOptions::rp_filter`] says.
    Node,
    /// It forwards them, wherever they came from.
    Fabric,
}

/// What is still to be made. Several parts are made at once faster than one after the other.
pub(super) struct Plan<'a> {
    lab: &'a str,
    /// Namespaces to make.
    new: Vec<(String, Role)>,
    /// Device pairs to make, as lines for ip.
    links: String,
    /// Lines for ip within each namespace.
    inside: BTreeMap<String, String>,
    /// Devices, with their namespace, that packets leave with real checksums.
    wires: Vec<(String, String)>,
}

impl<'a> Plan<'a> {
    pub(super) fn new(lab: &'a str) -> Self {
        Self { lab, new: Vec::new(), links: String::new(), inside: BTreeMap::new(), wires: Vec::new() }
    }

    /// The bridge and where the lost packets go. It comes before what is joined to it, and a node before its pods: lines for one
    /// namespace are run in the order in which they were planned.
    pub(super) fn fabric(&mut self) {
        let lines = [
            "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0".to_owned(),
            "link add sink type veth peer name sink-end".to_owned(),
            "link set sink up".to_owned(),
            "link set sink-end up".to_owned(),
            "link set br0 up".to_owned(),
            // Two neighbours that do not exist take everything.
            "neigh add 169.254.0.1 lladdr 02:00:00:00:00:01 dev sink nud permanent".to_owned(),
            "neigh add fe80::2 lladdr 02:00:00:00:00:01 dev sink nud permanent".to_owned(),
            "route add default via 169.254.0.1 dev sink onlink".to_owned(),
            "route add default via fe80::2 dev sink".to_owned(),
            format!("address add {GATEWAY}/24 dev br0"),
            format!("address add {}/64 dev br0 nodad", to_v6(GATEWAY)),
        ];
        self.namespace("fabric", Role::Fabric, &lines);
    }

    /// A node without pods, with routes to the pods of the others.
    pub(super) fn node(&mut self, index: u8, nodes: u8) {
        let (name, v4) = (format!("node{index}"), address::node(index));
        self.joined(&name, v4);
        let mut lines = vec![
            "link set eth0 up".to_owned(),
            format!("address add {v4}/24 dev eth0"),
            format!("address add {}/64 dev eth0 nodad", to_v6(v4)),
            format!("route add default via {GATEWAY}"),
            format!("route add default via {}", to_v6(GATEWAY)),
        ];
        for other in (1..=nodes).filter(|&other| other != index) {
            let (net, via) = (address::pod(other, 0), address::node(other));
            lines.push(format!("route add {net}/24 via {via}"));
            lines.push(format!("route add {}/112 via {}", to_v6(net), to_v6(via)));
        }
        self.namespace(&name, Role::Node, &lines);
    }

    /// The outside client. Its routes are [`route_client`](Self::route_client)'s.
    pub(super) fn client(&mut self) {
        self.joined("client", CLIENT);
        let addresses = [format!("address add {CLIENT}/32 dev eth0"), format!("address add {}/128 dev eth0 nodad", to_v6(CLIENT))];
        self.namespace("client", Role::End, &[&["link set eth0 up".to_owned()], &addresses[..]].concat());
    }

    /// Puts the client behind a node: all its packets go through that node, and all packets to it come through that node. So a
    /// connection to a virtual IP passes the node that translates it in both directions, whichever node the backend is on.
    pub(super) fn route_client(&mut self, via: u8, nodes: u8) {
        let (v4, v6) = (address::node(via), to_v6(address::node(via)));
        let default = [v4.to_string(), v6.to_string()].map(|node| format!("route replace default via {node} dev eth0 onlink"));
        self.inside(self.netns("client"), &default);
        let client_v6 = to_v6(CLIENT);
        for node in 1..=nodes {
            let [via4, via6] = if node == via { [String::new(), String::new()] } else { [format!("via {v4}"), format!("via {v6}")] };
            let lines = [format!("route replace {CLIENT}/32 {via4} dev eth0"), format!("route replace {client_v6}/128 {via6} dev eth0")];
            self.inside(self.netns(&format!("node{node}")), &lines);
        }
    }

    /// A pod on its node, which is there or planned.
    pub(super) fn pod(&mut self, pod: &PodSpec, options: &LabOptions) {
        let (v4, node) = (pod.address(), self.netns(&format!("node{}", pod.node)));
        let (v6, device, hardware) = (to_v6(v4), pod.device(), hardware_address(v4));
        let netns = self.netns(&pod.name);
        let pair = format!("link add {device} netns {node} address {NODE_END} type veth");
        self.link(format_args!("{pair} peer name eth0 netns {netns} address {hardware}"));
        // What reaches a pod has a real checksum, and a wrong one shows. What a pod sends has none yet, as on a real node.
        self.wires.push((node.clone(), device.clone()));
        if !options.pod_offload {
            self.wires.push((netns.clone(), "eth0".to_owned()));
        }
        self.namespace(
            &pod.name,
            Role::End,
            &[
                "link set eth0 up".to_owned(),
                format!("address add {v4}/32 dev eth0"),
                format!("address add {v6}/128 dev eth0 nodad"),
                format!("neigh add {POD_GATEWAY} lladdr {NODE_END} dev eth0 nud permanent"),
                format!("neigh add {POD_GATEWAY_V6} lladdr {NODE_END} dev eth0 nud permanent"),
                format!("route add {POD_GATEWAY} dev eth0 scope link"),
                format!("route add default via {POD_GATEWAY} dev eth0"),
                format!("route add default via {POD_GATEWAY_V6} dev eth0"),
            ],
        );
        self.inside(
            node,
            &[
                format!("link set {device} up"),
                format!("neigh add {v4} lladdr {hardware} dev {device} nud permanent"),
                format!("neigh add {v6} lladdr {hardware} dev {device} nud permanent"),
                format!("route add {v4}/32 dev {device}"),
                format!("route add {v6}/128 dev {device}"),
            ],
        );
    }

    /// Makes it all.
    pub(super) fn run(self, options: &LabOptions) -> Result<()> {
        let namespaces = self.new.iter().fold(String::new(), |text, (name, _)| text + "netns add " + name + "\n");
        ip_batch(None, &namespaces)?;
        for (name, role) in &self.new {
            // Before there are devices: a new device takes the defaults.
            netns::inside(name, || set_sysctls(*role, options.rp_filter))?;
        }
        ip_batch(None, &self.links)?;
        for (netns, device) in &self.wires {
            netns::inside(netns, || compute_checksums(device))?;
        }
        // No namespace's lines need another's to have been run.
        thread::scope(|scope| {
            let batches = self.inside.iter().map(|(name, lines)| scope.spawn(move || ip_batch(Some(name), lines)));
            batches.collect::<Vec<_>>().into_iter().try_for_each(|t| t.join().map_err(|_| anyhow!("panicked"))?)
        })
    }

    /// A device pair that joins a namespace to the bridge.
    fn joined(&mut self, name: &str, v4: Ipv4Addr) {
        let (netns, fabric) = (self.netns(name), self.netns("fabric"));
        let hardware = hardware_address(v4);
        self.link(format_args!("link add eth0 netns {netns} address {hardware} type veth peer name {name} netns {fabric}"));
        self.inside(fabric, &[format!("link set {name} master br0 up")]);
        self.wires.push((netns, "eth0".to_owned()));
    }

    fn namespace(&mut self, name: &str, role: Role, lines: &[String]) {
        let netns = self.netns(name);
        self.new.push((netns.clone(), role));
        self.inside(netns.clone(), &["link set lo up".to_owned()]);
        self.inside(netns, lines);
    }

    fn inside(&mut self, netns: String, lines: &[String]) {
        let text = self.inside.entry(netns).or_default();
        lines.iter().for_each(|line| *text = std::mem::take(text) + line + "\n");
    }

    fn link(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a string does not fail.
        let _ = writeln!(self.links, "{line}");
    }

    fn netns(&self, name: &str) -> String {
        format!("{}-{name}", self.lab)
    }
}

/// 02:00:0a:01:01:02 for 10.1.1.2.
fn hardware_address(v4: Ipv4Addr) -> String {
    let [a, b, c, d] = v4.octets();
    format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
}

/// Removes namespaces, with the devices in them.
pub(super) fn delete(netns: &[String]) -> Result<()> {
    ip_batch(None, &netns.iter().fold(String::new(), |text, name| text + "netns delete " + name + "\n"))
}

/// The packets that the fabric of a lab has forwarded to where everything is lost, since it was made: IPv4 and IPv6.
pub(super) fn lost(lab: &str) -> Result<[u64; 2]> {
    netns::inside(&format!("{lab}-fabric"), || {
        // "Ip:" twice: names of the columns, then their values.
        let snmp = fs::read_to_string("/proc/thread-self/net/snmp").context("/proc/thread-self/net/snmp")?;
        let mut rows = snmp.lines().filter(|line| line.starts_with("Ip:")).map(str::split_whitespace);
        let columns = rows.next().into_iter().flatten().zip(rows.next().into_iter().flatten());
        let v4 = columns.into_iter().find_map(|(name, value)| (name == "ForwDatagrams").then_some(value));
        let snmp6 = fs::read_to_string("/proc/thread-self/net/snmp6").context("/proc/thread-self/net/snmp6")?;
        let v6 = snmp6.lines().find_map(|line| line.strip_prefix("Ip6OutForwDatagrams")).map(str::trim);
        let parse = |value: Option<&str>| value.context("no such counter")?.parse::<u64>().context("a counter");
        Ok([parse(v4)?, parse(v6)?])
    })
}

/// Sets what every namespace of the lab has, whatever the machine's own settings are.
fn set_sysctls(role: Role, rp_filter: u8) -> Result<()> {
    let forward = if role == Role::End { "0" } else { "1" };
    let rp_filter = if role == Role::Node { rp_filter.to_string() } else { "0".to_owned() };
    let rp_filter = rp_filter.as_str();
    for (key, value) in [
        ("ipv4/ip_forward", forward),
        ("ipv6/conf/all/forwarding", forward),
        ("ipv6/conf/default/forwarding", forward),
        ("ipv4/conf/all/rp_filter", rp_filter),
        ("ipv4/conf/default/rp_filter", rp_filter),
        // An address can be used at once.
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/default/accept_ra", "0"),
        // A packet may leave by the device that it came from: the client's to virtual IPs do.
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/conf/all/accept_redirects", "0"),
        ("ipv4/conf/default/accept_redirects", "0"),
        ("ipv6/conf/all/accept_redirects", "0"),
        ("ipv6/conf/default/accept_redirects", "0"),
        // Every refusal is to be seen, not some per second.
        ("ipv4/icmp_ratelimit", "0"),
        ("ipv6/icmp/ratelimit", "0"),
        // Nor some per second of all together: no kind of message is limited in IPv4, and in IPv6 one that nobody sends.
        ("ipv4/icmp_ratemask", "0"),
        ("ipv6/icmp/ratemask", "127"),
        // Echo requests from sockets without a privilege.
        ("ipv4/ping_group_range", "0 2147483647"),
        // Thousands of connections to one address a minute.
        ("ipv4/tcp_tw_reuse", "1"),
        ("ipv4/tcp_early_demux", if mistakes_sockets()? { "0" } else { "1" }),
    ] {
        write_sysctl(key, value).with_context(|| format!("sysctl {key}={value}"))?;
    }
    // Not in every kernel, or not per namespace: the machine's own are left alone.
    for (key, value) in [("bridge/bridge-nf-call-iptables", "0"), ("bridge/bridge-nf-call-ip6tables", "0")] {
        match write_sysctl(key, value) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error).with_context(|| format!("sysctl {key}")),
            _ => {}
        }
    }
    Ok(())
}

/// Whether this kernel may give a reply to an IPv6 connection of a node's own that NAT has led to a pod to another socket, which has a
/// connection to that pod from the same port: those before 6.6 do, and the connection is not answered (docs/datapath.md).
fn mistakes_sockets() -> Result<bool> {
    let path = "/proc/sys/kernel/osrelease";
    let release = fs::read_to_string(path).context(path)?;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|number| number.parse::<u32>().ok());
    let [major, minor] = [numbers.next(), numbers.next()].map(|number| number.with_context(|| format!("{path}: {release:?}")));
    Ok((major?, minor?) < (6, 6))
}

fn write_sysctl(key: &str, value: &str) -> std::io::Result<()> {
    fs::write(format!("/proc/sys/net/{key}"), value)
}

/// Runs lines through ip, in a namespace or where we are.
pub(super) fn ip_batch(netns: Option<&str>, lines: &str) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    command.args(["-batch", "-"]);
    feed(command, lines)
}

/// Runs a command to its end with this on standard input.
pub(super) fn feed(mut command: Command, input: &str) -> Result<()> {
    let text = format!("{command:?}");
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {text}"))?;
    // A command that ends early says why on standard error.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().with_context(|| text.clone())?;
    if !output.status.success() {
        bail!("{text}: {}: {}\nits input was:\n{input}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
