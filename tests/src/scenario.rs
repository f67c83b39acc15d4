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
//! | `delete` | deletes objects, one `service NS/NAME` or `endpointslice NS/NAME` per line |
//! | `restart` | ends the agent and starts it again |
//! | `kill` | ends the agent as a crash would; what is expected and applied until `start` meets no agent |
//! | `start` | starts the agent again |
//! | `expect` | what becomes of new connections and datagrams |
//!
//! An expectation names who sends (hosts of the [lab](crate::lab)), to what, and what becomes of it: `refused`, `untouched` (no
//! Service has that address and port), or the backends, each equally likely, any other never. `source kept` adds that the backend
//! sees the sender's own address; `evenly` asks executors with real packets for as many as it takes to see that each backend gets
//! its share.
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
pub mod family;
pub mod kubeproxy;
pub mod packets;
mod parse;
mod probing;
pub mod run;
pub mod simulated;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use proxy_core::cluster::Kind;
use proxy_core::forward::Flow;
use proxy_core::input::{Converted, convert_endpoint_slice, convert_service, object};
use proxy_core::model::{Family, ObjectName, Protocol};

pub use run::{Executor, Observed, Probe, run};

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
    Delete(Vec<(Kind, ObjectName)>),
    /// Ends the agent and starts it again.
    Restart,
    /// Ends the agent as a crash would.
    Kill,
    /// Starts the agent.
    Start,
    /// Looks at what becomes of packets.
    Expect(Vec<Expectation>),
}

/// An object to apply.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Its YAML.
    pub text: String,
    /// What it says.
    pub object: Object,
}

/// An object as Kubernetes writes it.
#[derive(Clone, Debug)]
pub enum Object {
    /// A Service.
    Service(object::Service),
    /// An EndpointSlice.
    Slice(object::EndpointSlice),
}

impl Object {
    /// Which of the two.
    pub fn kind(&self) -> Kind {
        match self {
            Object::Service(_) => Kind::Service,
            Object::Slice(_) => Kind::Slice,
        }
    }

    /// Its namespace and name; none without a name.
    pub fn name(&self) -> Option<ObjectName> {
        let (Object::Service(object::Service { metadata, .. }) | Object::Slice(object::EndpointSlice { metadata, .. })) = self;
        Some(ObjectName::new(metadata.namespace.as_deref().unwrap_or("default"), metadata.name.as_deref()?))
    }

    /// What it means.
    pub fn convert(&self) -> Converted {
        match self {
            Object::Service(service) => convert_service(service),
            Object::Slice(slice) => convert_endpoint_slice(slice),
        }
    }
}

/// One line of an `expect` section.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// Its line, from 1.
    pub line: usize,
    /// Who sends.
    pub sources: Vec<Host>,
    /// To what.
    pub destination: SocketAddr,
    /// With which protocol.
    pub protocol: Protocol,
    /// What becomes of it.
    pub outcome: Outcome,
    /// Where kube-proxy differs on purpose: at most one for each of its modes.
    pub differences: Vec<Difference>,
}

/// What kube-proxy does instead.
#[derive(Clone, Debug)]
pub struct Difference {
    /// In these modes.
    pub modes: Vec<KubeProxyMode>,
    /// What becomes of the packets.
    pub outcome: Outcome,
    /// Why that is not what is wanted.
    pub reason: String,
}

/// What an expectation wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// No Service: the packet passes as it is.
    Untouched,
    /// Refused at once.
    Refused,
    /// To these backends.
    Backends {
        /// Each of them, no other.
        backends: BTreeSet<SocketAddr>,
        /// The backend sees the sender's own address.
        source_kept: bool,
        /// Each gets its share.
        evenly: bool,
    },
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

    /// Its address.
    pub fn address(&self, family: Family) -> IpAddr {
        match family {
            Family::V4 => self.v4.into(),
            Family::V6 => address::to_v6(self.v4).into(),
        }
    }
}

impl Expectation {
    /// A flow from one of its sources.
    pub fn flow(&self, source: Host) -> Flow {
        let source = source.address(Family::of(self.destination.ip()));
        Flow { source, destination: self.destination, protocol: self.protocol }
    }

    /// Where kube-proxy differs, if the proxy under test is kube-proxy.
    pub fn difference(&self, kube_proxy: Option<KubeProxyMode>) -> Option<&Difference> {
        self.differences.iter().find(|difference| kube_proxy.is_some_and(|mode| difference.modes.contains(&mode)))
    }

    /// What is expected of the proxy under test.
    pub fn wanted(&self, kube_proxy: Option<KubeProxyMode>) -> &Outcome {
        self.difference(kube_proxy).map_or(&self.outcome, |difference| &difference.outcome)
    }

    /// Whether this is what is expected of the proxy under test. A difference that is gone must not stay on paper.
    pub fn holds(&self, observed: &Observed, kube_proxy: Option<KubeProxyMode>) -> bool {
        let differs = self.difference(kube_proxy).is_none() || !observed.satisfies(&self.outcome);
        differs && observed.satisfies(self.wanted(kube_proxy))
    }
}

impl Outcome {
    /// The backends that it names.
    pub fn backends(&self) -> impl Iterator<Item = &SocketAddr> {
        let backends = match self {
            Outcome::Backends { backends, .. } => Some(backends),
            Outcome::Untouched | Outcome::Refused => None,
        };
        backends.into_iter().flatten()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Untouched => f.write_str("untouched"),
            Outcome::Refused => f.write_str("refused"),
            Outcome::Backends { backends, source_kept, .. } => {
                f.write_str(&backends.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | "))?;
                f.write_str(if *source_kept { ", source kept" } else { "" })
            }
        }
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
    let dir = directory();
    let mut paths = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
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
