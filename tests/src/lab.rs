//! A lab of network namespaces: two nodes with pods and an outside client, dual stack, with real processes and control groups.
//!
//! ```text
//!   a1 10.1.1.2 ──┐                                                     ┌── a2 10.1.2.2
//!   b1 10.1.1.3 ──┴─ node1 10.0.0.1 ──┬── fabric ──┬── node2 10.0.0.2 ──┴── b2 10.1.2.3
//!                                     │            └── everything else is lost, and counted
//!                    client 10.0.0.100, behind node1
//! ```
//!
//! IPv6 addresses follow by [`to_v6`]: 10.1.1.2 is fd00:10:1::1:2. Nothing outside the lab's own namespaces is touched. What a
//! process leaves behind that ends without cleaning up is removed by the next [`Lab::new`] of any process, or by [`clean`].
//!
//! ```no_run
//! use proxy_tests::lab::{Lab, LabOptions, Proto};
//! # fn main() -> anyhow::Result<()> {
//! let lab = Lab::new(LabOptions::default())?;
//! let answer = lab.pod("a1").connect("10.1.2.2:8080".parse()?, Proto::Tcp)?.into_answer()?;
//! assert_eq!((answer.name.as_str(), answer.seen_source.ip()), ("a2", lab.pod("a1").v4().into()));
//! # Ok(())
//! # }
//! ```

pub mod address;
mod cgroup;
mod exec;
mod netns;
mod network;
mod owner;
mod peer;
mod program;
mod sys;
#[cfg(test)]
mod tests;
mod wait;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{env, fmt, fs};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::socket::SockFlag;

pub use crate::pod::{Answer, Connect, Counts, Failure, Mode, Outcome, Proto, Report, Storm, Stormed, Target, Watch};
pub use address::{to_mapped, to_v4, to_v6, to_v6_socket};
pub use cgroup::Group;
pub use peer::{Flowing, Held, Peer, Raging};
pub use program::Program;
pub use wait::{Seen, patience, wait};

use crate::probe::new_socket;
use exec::Place;
use network::Plan;

/// A port that nobody listens on: discard.
const CLOSED_PORT: u16 = 9;

/// What a lab has.
#[derive(Clone, Debug)]
pub struct LabOptions {
    /// How many nodes.
    pub nodes: u8,
    /// The pods to begin with.
    pub pods: Vec<PodSpec>,
    /// Where each of these pods echoes, in both families. [`Peer::listen`] opens more, on nodes and client too.
    pub listen: Vec<(Proto, u16)>,
    /// The nodes' `rp_filter`. Strict (1) is the hardest to live with, and what many distributions have.
    pub rp_filter: u8,
    /// Whether pods send packets whose checksums are still to be computed, as pods on a veth pair do. What arrives anywhere over
    /// the fabric, or in a pod, has a real checksum either way, so that a wrong one shows.
    pub pod_offload: bool,
}

impl Default for LabOptions {
    /// Two nodes with two pods each: a1 10.1.1.2, b1 10.1.1.3, a2 10.1.2.2, b2 10.1.2.3. All echo on 8080, TCP and UDP.
    fn default() -> Self {
        let pods = [("a1", 1, 2), ("b1", 1, 3), ("a2", 2, 2), ("b2", 2, 3)];
        Self {
            nodes: 2,
            pods: pods.map(|(name, node, host)| PodSpec::new(name, node, host)).to_vec(),
            listen: vec![(Proto::Tcp, 8080), (Proto::Udp, 8080)],
            rp_filter: 1,
            pod_offload: true,
        }
    }
}

/// A pod to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodSpec {
    /// Its name, at most 11 letters: devices are named after it.
    pub name: String,
    /// The node it is on.
    pub node: u8,
    /// The last octet of its address.
    pub host: u8,
}

impl PodSpec {
    /// A pod of this name with address `10.1.<node>.<host>`.
    pub fn new(name: impl Into<String>, node: u8, host: u8) -> Self {
        Self { name: name.into(), node, host }
    }

    /// Its IPv4 address.
    pub fn address(&self) -> Ipv4Addr {
        address::pod(self.node, self.host)
    }

    /// The name of the node's end of its device pair.
    pub fn device(&self) -> String {
        format!("pod-{}", self.name)
    }
}

/// A node of a lab.
pub struct Node {
    /// The peer that stands for processes of the host.
    host: Peer,
    cgroup: PathBuf,
    bpffs: PathBuf,
}

impl Node {
    /// The name of its network namespace, as `ip netns` has it.
    pub fn netns(&self) -> &str {
        self.host.netns()
    }

    /// Its control group: that of its pods and of its host's processes are within.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A directory of its own in the lab's bpffs.
    pub fn bpffs(&self) -> &Path {
        &self.bpffs
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.host.v4()
    }

    /// Both its addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.host.addresses()
    }
}

/// A lab; dropping it removes everything.
pub struct Lab {
    name: String,
    options: LabOptions,
    program: PathBuf,
    root: PathBuf,
    nodes: Vec<Node>,
    client: Option<Peer>,
    pods: BTreeMap<String, Peer>,
    logs: AtomicU32,
}

impl Lab {
    /// Makes a lab, and removes what labs of ended processes have left behind.
    pub fn new(options: LabOptions) -> Result<Self> {
        usable()?;
        let program = program()?;
        clean()?;
        let name = owner::claim()?;
        let root = cgroup::mount()?.join(&name);
        // From here on, failing drops it, which removes what was made.
        let (nodes, client, pods) = (Vec::new(), None, BTreeMap::new());
        let mut lab = Self { name, options, program, root, nodes, client, pods, logs: AtomicU32::new(0) };
        lab.build().with_context(|| format!("lab {}", lab.name))?;
        Ok(lab)
    }

    fn build(&mut self) -> Result<()> {
        let (nodes, pods) = (self.options.nodes, self.options.pods.clone());
        let mut plan = Plan::new(&self.name);
        plan.fabric();
        (1..=nodes).for_each(|index| plan.node(index, nodes));
        plan.client();
        plan.route_client(1, nodes);
        for pod in &pods {
            self.check(pod)?;
            plan.pod(pod, &self.options);
        }
        plan.run(&self.options)?;

        let bpffs = owner::bpffs(&self.name);
        fs::create_dir(&bpffs).with_context(|| format!("cannot make {}", bpffs.display()))?;
        mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount a bpffs at {}", bpffs.display()))?;
        for index in 1..=nodes {
            let (name, v4) = (format!("node{index}"), address::node(index));
            let (cgroup, bpffs) = (self.root.join(&name), bpffs.join(&name));
            fs::create_dir(&bpffs).with_context(|| format!("cannot make {}", bpffs.display()))?;
            let host = self.start(&name, v4, cgroup.join("host"))?;
            self.nodes.push(Node { host, cgroup, bpffs });
        }
        self.client = Some(self.start("client", address::CLIENT, self.root.join("client"))?);
        for pod in &pods {
            let peer = self.start_pod(pod)?;
            self.pods.insert(pod.name.clone(), peer);
        }
        // All have been started by now, so none is waited for longer than the slowest.
        self.nodes.iter().map(|node| &node.host).chain(&self.client).try_for_each(|peer| peer.ready(&[]))?;
        self.pods.values().try_for_each(|pod| pod.ready(&self.options.listen))?;
        self.nodes.iter().map(|node| &node.host).chain(&self.client).try_for_each(|peer| connected(peer, address::GATEWAY))?;
        pods.iter().try_for_each(|pod| connected(self.pod(&pod.name), address::node(pod.node)))
    }

    fn start(&self, name: &str, v4: Ipv4Addr, cgroup: PathBuf) -> Result<Peer> {
        cgroup::create(&cgroup)?;
        Peer::start(name, v4, Place { netns: format!("{}-{name}", self.name), cgroup }, &self.program)
    }

    fn start_pod(&self, pod: &PodSpec) -> Result<Peer> {
        self.start(&pod.name, pod.address(), self.root.join(format!("node{}", pod.node)).join(&pod.name))
    }

    fn check(&self, pod: &PodSpec) -> Result<()> {
        ensure!((1..=self.options.nodes).contains(&pod.node), "pod {}: there is no node {}", pod.name, pod.node);
        ensure!(pod.device().len() < 16, "pod {}: a name of at most 11 letters is wanted", pod.name);
        let reserved = pod.name.starts_with("node") || matches!(&*pod.name, "host" | "client" | "fabric");
        ensure!(!reserved && !self.pods.contains_key(&pod.name), "pod {}: the name is taken", pod.name);
        Ok(())
    }

    /// Its name, which the names of its namespaces begin with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A node, counted from 1. Panics if there is no such node.
    pub fn node(&self, index: u8) -> &Node {
        let node = usize::from(index).checked_sub(1).and_then(|index| self.nodes.get(index));
        node.unwrap_or_else(|| panic!("there is no node {index}: {self}"))
    }

    /// The peer that stands for processes of a node's host. Panics if there is no such node.
    pub fn host(&self, index: u8) -> &Peer {
        &self.node(index).host
    }

    /// A pod by name. Panics if there is none.
    pub fn pod(&self, name: &str) -> &Peer {
        self.pods.get(name).unwrap_or_else(|| panic!("there is no pod {name}: {self}"))
    }

    /// The outside client.
    pub fn client(&self) -> &Peer {
        self.client.as_ref().unwrap_or_else(|| panic!("the lab is not complete"))
    }

    /// Everyone who takes part in traffic.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.nodes.iter().map(|node| &node.host).chain(&self.client).chain(self.pods.values())
    }

    /// A peer by name (a pod's, `node1`, `client`) or by address of either family.
    pub fn find(&self, name_or_address: &str) -> Result<&Peer> {
        let address: Option<IpAddr> = name_or_address.parse().ok();
        let mut peers = self.peers();
        let found = peers.find(|peer| peer.name() == name_or_address || address.is_some_and(|a| peer.addresses().contains(&a)));
        found.with_context(|| format!("there is no {name_or_address} in {self}"))
    }

    /// Adds a pod while the lab runs, with listeners as [`LabOptions::listen`] has them.
    pub fn add_pod(&mut self, pod: &PodSpec) -> Result<&Peer> {
        self.check(pod)?;
        let mut plan = Plan::new(&self.name);
        plan.pod(pod, &self.options);
        plan.run(&self.options)?;
        let peer = self.start_pod(pod)?;
        peer.ready(&self.options.listen)?;
        connected(&peer, address::node(pod.node))?;
        Ok(self.pods.entry(pod.name.clone()).or_insert(peer))
    }

    /// Removes a pod: its process, its devices, its control group.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let peer = self.pods.remove(name).with_context(|| format!("there is no pod {name}"))?;
        cgroup::remove(peer.cgroup())?;
        network::delete(&[peer.netns().to_owned()])
    }

    /// Puts the outside client behind this node, which is node 1 to begin with: all its packets go through that node, and all
    /// packets to it come through that node. (Otherwise a backend on another node would answer it past the node that translated
    /// the virtual IP.)
    pub fn route_client(&self, via: u8) -> Result<()> {
        ensure!((1..=self.options.nodes).contains(&via), "there is no node {via}");
        let mut plan = Plan::new(&self.name);
        plan.route_client(via, self.options.nodes);
        plan.run(&self.options)
    }

    /// How many packets nobody was there for, in IPv4 and IPv6: those to a virtual IP that nobody translated among them.
    pub fn lost(&self) -> Result<[u64; 2]> {
        network::lost(&self.name)
    }

    /// Runs lines of `ip -batch` in the namespace of `node1`, `client`, a pod: more addresses, other routes.
    pub fn ip(&self, place: &str, lines: &str) -> Result<()> {
        network::ip_batch(Some(&format!("{}-{place}", self.name)), lines)
    }

    /// Has the nodes' connection tracking forget TCP connections a second after their end, not a minute or two: thousands of them
    /// would fill it, and one that comes from the port of an ended one would go where that went (a server that ended it first
    /// leaves it in TIME_WAIT, where a new SYN is not translated anew).
    pub fn forget_ended_soon(&self) -> Result<()> {
        for node in &self.nodes {
            for state in ["time_wait", "close", "close_wait", "last_ack", "fin_wait"] {
                let path = format!("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_{state}");
                netns::inside(node.netns(), || fs::write(&path, "1").with_context(|| path.clone()))?;
            }
        }
        Ok(())
    }

    /// Runs a ruleset through `nft -f` in such a namespace.
    pub fn nft(&self, place: &str, ruleset: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &format!("{}-{place}", self.name), "nft", "-f", "-"]);
        // nft wants the last line to end.
        network::feed(command, &format!("{ruleset}\n"))
    }

    /// Starts a program in a node's namespace and its host's control group, as a pod with hostNetwork would run: the agent.
    /// Its own connections to virtual IPs are translated as any other's.
    pub fn spawn_on_node(&self, index: u8, command: Command) -> Result<Program> {
        self.spawn_at(self.host(index), command)
    }

    /// Starts a program where a peer's process runs.
    pub fn spawn_at(&self, peer: &Peer, command: Command) -> Result<Program> {
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        let log = owner::directory(&self.name).join(format!("{}-{number}.log", peer.name()));
        Program::spawn(peer.place(), command, log)
    }

    /// Starts a program in a node's namespace and a control group of its own, by which [`Group`] tells what it and its children use.
    pub fn spawn_in_group(&self, index: u8, name: &str, command: Command) -> Result<(Program, Group)> {
        let path = self.node(index).cgroup().join(name);
        cgroup::create(&path)?;
        let number = self.logs.fetch_add(1, Ordering::Relaxed);
        let log = owner::directory(&self.name).join(format!("{name}-{number}.log"));
        let place = Place { netns: self.node(index).netns().to_owned(), cgroup: path.clone() };
        Ok((Program::spawn(&place, command, log)?, Group::new(path)))
    }

    /// Runs a function in the namespace of `node1`, `client`, a pod, in a thread of its own.
    pub fn inside<T: Send>(&self, place: &str, function: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        netns::inside(&format!("{}-{place}", self.name), function)
    }

    /// Sends a datagram from each of these UDP ports of such a namespace.
    pub fn send_from(&self, place: &str, ports: impl IntoIterator<Item = u16> + Send, to: SocketAddr) -> Result<()> {
        self.inside(place, || {
            ports.into_iter().try_for_each(|port| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).with_context(|| format!("UDP port {port}"))?;
                socket.send_to(b"x", to).with_context(|| format!("a datagram to {to}")).map(drop)
            })
        })
    }

    /// How many entries of this kind connection tracking has in such a namespace: of the words that `conntrack -L` would print.
    pub fn tracked(&self, place: &str, words: &[&str]) -> Result<usize> {
        const TABLE: &str = "/proc/thread-self/net/nf_conntrack";
        self.inside(place, || {
            let table = std::fs::read_to_string(TABLE).context(TABLE)?;
            Ok(table.lines().filter(|line| words.iter().all(|word| line.contains(word))).count())
        })
    }

    /// What a server at a port of loopback in such a namespace answers to a GET.
    pub fn http_get(&self, place: &str, port: u16, path: &str) -> Result<String> {
        self.inside(place, || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
            write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })
        .with_context(|| format!("http://127.0.0.1:{port}{path} on {place}"))
    }

    /// Runs a program to its end in a node's namespace and its host's control group.
    pub fn output_on_node(&self, index: u8, command: Command) -> Result<Output> {
        self.output_at(self.host(index), command)
    }

    /// Runs a program to its end where a peer's process runs.
    pub fn output_at(&self, peer: &Peer, mut command: Command) -> Result<Output> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let text = format!("{command:?}");
        peer.place().spawn(command)?.wait_with_output().context(text)
    }

    /// Waits for a condition: see [`wait()`].
    pub fn wait<T, S: Into<Seen<T>>>(&self, deadline: Duration, what: &str, observe: impl FnMut() -> Result<S>) -> Result<T> {
        wait(deadline, what, observe).with_context(|| format!("lab {}", self.name))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.pods.clear();
        self.nodes.clear();
        self.client = None;
        if let Err(error) = owner::tear_down(&self.name) {
            eprintln!("lab {} is left behind, the next one will remove it: {error:#}", self.name);
        }
    }
}

impl fmt::Display for Lab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "lab {}:", self.name)?;
        for peer in self.peers() {
            write!(f, "\n  {} {} {} netns {} cgroup {}", peer.name(), peer.v4(), peer.v6(), peer.netns(), peer.cgroup().display())?;
        }
        Ok(())
    }
}

/// Waits until packets get from a peer to this neighbour and back: the kernel puts a device to work some time after its other end
/// came up, and a first packet that is lost would cost a test a second. A closed port refuses them.
fn connected(peer: &Peer, neighbour: Ipv4Addr) -> Result<()> {
    for address in [IpAddr::from(neighbour), to_v6(neighbour).into()] {
        let probe = Connect::new(SocketAddr::new(address, CLOSED_PORT), Proto::Udp).timeout_ms(10);
        let refused = || match peer.probe(probe.clone())? {
            Outcome::Refused => Ok(Seen::Done(())),
            other => Ok(Seen::not_yet(other)),
        };
        wait(Duration::from_secs(5), &format!("{} to reach {address}", peer.name()), refused)?;
    }
    Ok(())
}

/// Removes what labs of ended processes have left behind, and returns their names.
pub fn clean() -> Result<Vec<String>> {
    owner::sweep()
}

/// Whether this kernel has sockets for a protocol. Asking loads the module that has them.
pub fn has_sockets(proto: Proto) -> bool {
    new_socket((Ipv4Addr::UNSPECIFIED, 0).into(), proto, SockFlag::empty()).is_ok()
}

/// Whether labs can be made here; the error says what is missing.
pub fn usable() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "a lab needs root");
    cgroup::mount()?;
    let ip = Command::new("ip").arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status();
    ensure!(ip.is_ok_and(|status| status.success()), "a lab needs ip, from iproute2");
    Ok(())
}

/// For the first line of a test: whether it can have a lab. If not, the reason is printed, or, with `PROXY_TEST_REQUIRED=1` in
/// the environment, the test fails.
pub fn available() -> bool {
    let Err(error) = usable() else { return true };
    assert!(env::var_os("PROXY_TEST_REQUIRED").is_none_or(|value| value != "1"), "required, but: {error:#}");
    eprintln!("skipped: {error:#}");
    false
}

/// The program that stands for pods, wherever Cargo has put it.
fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("PROXY_LAB").or_else(|| env::var_os("CARGO_BIN_EXE_proxy-lab")) {
        return Ok(path.into());
    }
    let this = env::current_exe().context("the path of this program")?;
    // Beside this program, or, for a test's program, in the directory above.
    let mut places = this.ancestors().skip(1).take(2).map(|directory| directory.join("proxy-lab"));
    match places.find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("there is no proxy-lab beside {}: `cargo build -p proxy-tests --bin proxy-lab`", this.display()),
    }
}
