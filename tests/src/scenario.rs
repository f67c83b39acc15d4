//! Scenarios: what becomes of packets, written down once and carried out by every [`Executor`].
//!
//! A scenario is a file `tests/scenarios/NAME.txt`:
//!
//! ```text
//! # What this shows, in a sentence or two.
//! ids: SVC-03 EP-07
//! --- apply
//! apiVersion: v1
//! kind: Service
//! ...
//! --- expect
//! a1 -> 10.96.0.10:80/tcp => 10.1.1.2:8080 | 10.1.2.2:8080, source kept
//! a1, node1 -> 10.96.0.11:80/tcp => refused
//! a1 -> 10.96.0.99:80/tcp => untouched
//! --- delete
//! service default/web
//! --- restart
//! ```
//!
//! | section | what it does |
//! |---|---|
//! | `apply` | adds or alters the objects of its YAML documents, which lines of exactly `---` separate |
//! | `delete` | deletes objects: `service NS/NAME`, `endpointslice NS/NAME`, `node NAME` or `servicecidr NAME`, one per line |
//! | `address` | gives node1 an address more, on `lo`, or takes it away: `add 10.0.0.7`, `remove 10.0.0.7` |
//! | `wait 4s` | lets that much time pass, where time passes by itself |
//! | `restart` | ends the agent and starts it again |
//! | `kill` | ends the agent as a crash would; what is expected and applied until `start` meets no agent |
//! | `start` | starts the agent again |
//! | `expect` | what becomes of new connections and datagrams |
//!
//! Every scenario begins with a Node `node1` (10.0.0.1, pods in 10.1.1.0/24, no zone), on which the agent runs, and with ServiceCIDR
//! `kubernetes` (10.96.0.0/16), in both families. A Node of a scenario keeps the addresses and pod CIDRs that it does not name.
//!
//! An expectation names who sends (hosts of the [lab](crate::lab)), to what (`10.96.0.10/icmp` for an echo request), and what becomes
//! of it:
//!
//! | outcome | what becomes of a packet |
//! |---|---|
//! | `untouched` | no Service has that address and port: it passes as it is |
//! | `refused` | whoever sent it is told at once |
//! | `dropped` | nothing: whoever sent it waits for an answer (`sendto` of a host's own UDP may fail with EPERM, ERR-01) |
//! | `A \| B` | to one of these backends, each equally likely, any other never |
//! | `one of A \| B as NAME` | the same, but all connections of a sender go to the same one; which one is remembered for each sender |
//! | `pinned NAME` | to the one of that name, for all connections of the sender |
//!
//! Behind backends, `source kept` adds that they see the sender's own address, `masqueraded` that they see one of node1's and not the
//! sender's (what node1 sends is either); `evenly` asks executors with real packets for as many as it takes to see that each backend
//! gets its share.
//!
//! Expectations are about new connections and datagrams, unless there is a port behind who sends, as in `client from 20001 -> ...`:
//! all lines with that port and destination are about one UDP or SCTP flow, which stays with its backend until it is ended. Executors
//! with real packets wait for what is expected, so that a flow that is to stay where it is has to be looked at after a `wait`. Each
//! scenario has ports of its own.
//!
//! The proxy under test is configured as [`Config::default`](config::Config) says: local pods are told by 10.1.0.0/16, NodePorts are
//! served where its mode has them by itself. A line above the first section names what is to be different, in the words of
//! KubeProxyConfiguration: `config: {detectLocalMode: NodeCIDR, nodePortAddresses: [10.0.0.0/24]}`.
//!
//! Real kube-proxy is an executor too. Where it does something else, and that is on purpose, a line below the expectation says what
//! it does, in one of its modes or in both, and why:
//!
//! ```text
//! a1 -> 10.96.0.10:81/tcp => untouched
//!   kube-proxy nftables => refused because REASON
//! a1 -> 10.96.0.12:80/tcp => untouched
//!   kube-proxy => refused because REASON
//! ```
//!
//! `nftables => untouched because REASON` says the same of our own nftables mode, where packets cannot do what sockets can.
//!
//! kube-proxy must then do that, and not what is expected of the others: a difference that is gone is an error. For scenarios with
//! objects that the API server refuses there is a line above the first section:
//!
//! | line | what it means |
//! |---|---|
//! | `kube-proxy: objects past the API server because REASON` | what it refuses is written into its storage, as an older release may have left it; kube-proxy gets it from the API server like the rest |
//! | `kube-proxy: not run because REASON` | kube-proxy is not tried |
//!
//! `docs/datapath.md` lists every REASON in the same words.
//!
//! Scenarios are written in IPv4 and carried out in either family: see [`family`]. `families: v4` is for what has a meaning in
//! IPv4 only, `families: both` for what is dual-stack itself.

pub mod behaviours;
pub mod config;
pub mod family;
mod flows;
pub mod kubeproxy;
pub mod object;
pub mod outcome;
pub mod packets;
mod parse;
mod parse_expect;
mod probing;
pub mod run;
pub mod simulated;
#[cfg(test)]
mod tests;

use std::env;
use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_core::forward::Flow;
use proxy_core::model::{Family, ObjectName, Protocol};
use proxy_core::surroundings::Origin;

pub use config::Config;
pub use object::{Manifest, Object, ObjectKind};
pub use outcome::{Choice, Observed, Outcome, Pins, Seen, Source};
pub use run::{Executor, Probe, run};

use crate::lab::address;

/// One file, for one family or both at once.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The file's name without `.txt`.
    pub name: String,
    /// The family it is carried out in; none where it is dual-stack itself.
    pub family: Option<Family>,
    /// The behaviours that it shows, by their [IDs](behaviours).
    pub ids: Vec<String>,
    /// How kube-proxy is run on it.
    pub kube_proxy: KubeProxy,
    /// How the proxy under test is configured.
    pub config: Config,
    /// What it does, in order.
    pub steps: Vec<Step>,
}

/// How real kube-proxy is run on a scenario.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KubeProxy {
    /// From objects that the API server takes.
    Run,
    /// From objects of which the API server refuses some, for this reason: those are written into its storage.
    PastApiServer(String),
    /// Not at all, for this reason.
    NotRun(String),
}

/// A mode of kube-proxy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum KubeProxyMode {
    /// iptables.
    Iptables,
    /// nftables.
    Nftables,
}

impl KubeProxyMode {
    /// All that run here.
    pub const ALL: [KubeProxyMode; 2] = [KubeProxyMode::Iptables, KubeProxyMode::Nftables];
}

impl fmt::Display for KubeProxyMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KubeProxyMode::Iptables => "iptables",
            KubeProxyMode::Nftables => "nftables",
        })
    }
}

/// A proxy under test that may differ from the others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Tested {
    /// Real kube-proxy.
    KubeProxy(KubeProxyMode),
    /// Our nftables mode, without sockets that are translated.
    Nftables,
}

impl fmt::Display for Tested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tested::KubeProxy(mode) => mode.fmt(f),
            Tested::Nftables => f.write_str("ours"),
        }
    }
}

/// One section of a file.
#[derive(Clone, Debug)]
pub struct Step {
    /// The line of its header, from 1.
    pub line: usize,
    /// What it does.
    pub action: Action,
}

/// What a section does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Adds or alters objects.
    Apply(Vec<Manifest>),
    /// Deletes objects.
    Delete(Vec<(ObjectKind, ObjectName)>),
    /// Gives node1 addresses, or takes them away.
    Address(Vec<AddressChange>),
    /// Lets time pass.
    Wait(Duration),
    /// Ends the agent and starts it again.
    Restart,
    /// Ends the agent as a crash would.
    Kill,
    /// Starts the agent.
    Start,
    /// Looks at what becomes of packets.
    Expect(Vec<Expectation>),
}

/// An address of node1's `lo` that comes or goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressChange {
    /// The address.
    pub ip: IpAddr,
    /// Whether it comes.
    pub added: bool,
}

/// One line of an `expect` section.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// Its line, from 1.
    pub line: usize,
    /// Who sends.
    pub sources: Vec<Host>,
    /// From which port, where it is about one flow.
    pub source_port: Option<u16>,
    /// To what; port 0 where there are no ports.
    pub destination: SocketAddr,
    /// With which protocol; none for an ICMP echo request.
    pub protocol: Option<Protocol>,
    /// What becomes of it.
    pub outcome: Outcome,
    /// Where kube-proxy, or our nftables mode, differs on purpose: at most one for each.
    pub differences: Vec<Difference>,
}

/// What one of them does instead.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Of these.
    pub of: Vec<Tested>,
    /// What becomes of the packets.
    pub outcome: Outcome,
    /// Why that is not what is wanted.
    pub reason: String,
}

/// Who sends: a host of the [lab](crate::lab).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Host {
    /// Its name in the lab.
    pub name: &'static str,
    v4: std::net::Ipv4Addr,
}

impl Host {
    /// All that take part. The agent under test runs on node1.
    pub const ALL: [Host; 7] = [
        Host { name: "node1", v4: std::net::Ipv4Addr::new(10, 0, 0, 1) },
        Host { name: "node2", v4: std::net::Ipv4Addr::new(10, 0, 0, 2) },
        Host { name: "client", v4: address::CLIENT },
        Host { name: "a1", v4: std::net::Ipv4Addr::new(10, 1, 1, 2) },
        Host { name: "b1", v4: std::net::Ipv4Addr::new(10, 1, 1, 3) },
        Host { name: "a2", v4: std::net::Ipv4Addr::new(10, 1, 2, 2) },
        Host { name: "b2", v4: std::net::Ipv4Addr::new(10, 1, 2, 3) },
    ];

    /// Whether it is a node itself, and no pod.
    pub fn is_node(&self) -> bool {
        self.name.starts_with("node")
    }

    /// From where its packets reach node1.
    pub fn origin(&self) -> Origin {
        match self.name {
            object::NODE => Origin::Host,
            "a1" | "b1" => Origin::Interface(format!("pod-{}", self.name).into()),
            _ => Origin::Interface("eth0".into()),
        }
    }

    /// Its address.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => address::to_v6(self.v4).into(),
        }
    }
}

impl Expectation {
    /// The address that one of its sources sends from: what a host sends to itself by loopback comes from there too.
    pub fn source_address(&self, source: Host) -> IpAddr {
        match self.destination.ip() {
            IpAddr::V4(to) if to.is_loopback() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(to) if to.is_loopback() => Ipv6Addr::LOCALHOST.into(),
            to => source.address(Family::of(to)),
        }
    }

    /// A flow from one of its sources, where node1 has these addresses.
    pub fn flow(&self, source: Host, node1: &[IpAddr]) -> Flow {
        let is_to_host = node1.contains(&self.destination.ip());
        let (source, origin) = (self.source_address(source), source.origin());
        Flow { source, origin, destination: self.destination, is_to_host, protocol: self.protocol }
    }

    /// The destination as a scenario writes it, with the source port if it is about one flow.
    pub fn target(&self) -> String {
        match self.protocol {
            Some(protocol) => {
                let from = self.source_port.map_or_else(String::new, |port| format!(" from {port}"));
                format!("{}/{}{from}", self.destination, protocol.to_string().to_lowercase())
            }
            None => format!("{}/icmp", self.destination.ip()),
        }
    }

    /// Where the proxy under test differs, if it is one that may.
    pub fn difference(&self, tested: Option<Tested>) -> Option<&Difference> {
        self.differences.iter().find(|difference| tested.is_some_and(|one| difference.of.contains(&one)))
    }

    /// What is expected of the proxy under test.
    pub fn wanted(&self, tested: Option<Tested>) -> &Outcome {
        self.difference(tested).map_or(&self.outcome, |difference| &difference.outcome)
    }

    /// Whether this is what is expected of the proxy under test. A difference that is gone must not stay on paper.
    pub fn holds(&self, source: Host, observed: &Observed, tested: Option<Tested>, pins: &Pins) -> bool {
        if *observed == Observed::NotTried {
            return true;
        }
        let differs = self.difference(tested).is_none() || !observed.satisfies(&self.outcome, source, pins);
        differs && observed.satisfies(self.wanted(tested), source, pins)
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.family {
            Some(family) => write!(f, "{} {family}", self.name),
            None => write!(f, "{} dual-stack", self.name),
        }
    }
}

/// Where the files are.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

/// All scenarios in all their families, by name. A file that cannot be read is an error that names its line.
pub fn load() -> Result<Vec<Scenario>> {
    load_from(&directory())
}

/// The same from a folder of one's own choice.
pub fn load_from(dir: &Path) -> Result<Vec<Scenario>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        paths.push(entry?.path());
    }
    paths.sort();
    let mut scenarios = Vec::new();
    for path in paths {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let name = file.strip_suffix(".txt").with_context(|| format!("{}: a scenario's name ends in .txt", path.display()))?;
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        scenarios.extend(parse::scenarios(name, &text)?);
    }
    ensure!(!scenarios.is_empty(), "{}: no scenarios", dir.display());
    Ok(scenarios)
}

/// Those of [`load`] that `PROXY_SCENARIOS` from the environment names, with commas between; all where it is not set.
pub fn chosen() -> Result<Vec<Scenario>> {
    let mut scenarios = load()?;
    if let Ok(names) = env::var("PROXY_SCENARIOS") {
        scenarios.retain(|scenario| names.split(',').any(|name| name == scenario.name));
        ensure!(!scenarios.is_empty(), "PROXY_SCENARIOS={names}: no such scenario");
    }
    Ok(scenarios)
}
