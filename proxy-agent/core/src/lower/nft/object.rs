//! What the table of one family holds.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::sync::Arc;

use crate::cidr::Cidr;
use crate::model::{Address, Frontend, Protocol};
use crate::route::{Masquerade, Pool};

/// The first slot of the Local set: those below are the Cluster set's.
pub const LOCAL_SLOTS: u32 = 32_768;

/// An object in the table. Ordered so that what is pointed at comes before what points there. Where a frontend is a NodePort, the
/// element is one of the set of the same name with `node-` before it, whose keys have no address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// The table with its base chains, their rules, and the empty sets.
    Base,
    /// The chain that picks among so many ids of sticky backends of a set, and its element in `stick-classes`.
    StickPick(Pool, u16),
    /// A chain that picks a backend, or marks and goes to one that does, and what leads there.
    Chain(Target),
    /// Element of set `pods`: a range of pods' addresses.
    PodCidr(Cidr),
    /// Element of set `node-addresses`: serves NodePorts.
    NodeAddress(IpAddr),
    /// Element of set `service-cidrs`: a range of ClusterIPs.
    ServiceCidr(Cidr),
    /// Element of set `hairpins`: a backend on this node, which may be its own client.
    Hairpin(IpAddr),
    /// Element of set `endpoints`: where replies come from.
    Endpoint(Address, Protocol),
    /// Element of map `slots`: the backend in a slot.
    Slot(Frontend, u32),
    /// Element of map `stick-endpoints`: the backend of an id.
    StickEndpoint(u32),
    /// Element of map `stick-slots`: the id in a slot of an identity.
    StickSlot(u32, u32),
    /// Element of set `stick-members` or `stick-members-local`: an id that an identity's set has.
    StickMember(u32, Pool, u32),
    /// Element of map `stick-sizes` or `stick-sizes-local`: how many there are in an identity's set.
    StickSize(u32, Pool),
    /// Element of map `identities`: the identity of the Service port.
    Identity(Frontend),
    /// Element of map `by-source-cluster` or `by-source-local`: where packets to a frontend go by who sends them.
    BySource(Frontend, Pool),
    /// Element of set `sources`: a range that is let in.
    Source(Frontend, Cidr),
    /// Element of set `restricted`: not everyone is let in.
    Restricted(Frontend),
    /// Element of map `services`.
    Service(Frontend),
    /// Element of set `refused`.
    Refused(Frontend),
    /// Element of set `dropped`: packets that have not found a backend are dropped. Of ClusterIPs alone: others look at who sends.
    Dropped(Frontend),
    /// Element of set `cluster-ips`: ports that nobody serves are refused.
    ClusterIp(IpAddr),
    /// A chain that is always there and has other rules than it must: nobody wants that, and to delete it is to fill the chain anew.
    Damage(&'static str),
}

/// What the object is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// The layout's version.
    Base(u32),
    /// All follows from the key: chains, elements of sets.
    Present,
    /// The backend.
    Backend(Address),
    /// An id or identity, never 0.
    Number(u32),
    /// How many, from 1.
    Count(u16),
    /// Where packets go; nowhere: the static chain `no-backend`, which counts and drops. An element says so rather than be missing, since
    /// it may be looked for a while after it went out of use.
    Target(Option<Target>),
    /// Where packets to a frontend go, and the [label](crate::model::ServicePortName::label), which is the element's comment.
    Service(Class, Arc<str>),
    /// The label, which is the element's comment.
    Label(Arc<str>),
}

/// Where packets to a frontend go first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Class {
    /// To one chain, whoever sends them.
    Target(Target),
    /// To the chain that looks at who sends them.
    BySource {
        /// The frontend is a NodePort.
        is_node_port: bool,
    },
}

/// A chain that packets are sent to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Target {
    /// Who is masqueraded. What marks for that goes to the chain that does not.
    pub masquerade: Masquerade,
    /// For frontends that are NodePorts.
    pub is_node_port: bool,
    /// The set of backends.
    pub pool: Pool,
    /// How one is picked.
    pub pick: Pick,
}

/// How a backend is picked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Pick {
    /// One of so many, each equally likely.
    Even(u16),
    /// The one that the client had less than so many seconds ago, else any.
    Sticky(u32),
}

impl Target {
    /// The chain that picks.
    pub fn unmasqueraded(self) -> Self {
        Self { masquerade: Masquerade::Never, ..self }
    }
}

impl fmt::Display for Target {
    /// The name of the chain: `pick-3`, `node-masquerade-pick-local-3`, `stick-10800`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_node_port { "node-" } else { "" })?;
        f.write_str(match self.masquerade {
            Masquerade::Never => "",
            Masquerade::UnlessPod => "unless-pod-",
            Masquerade::Always => "masquerade-",
        })?;
        let local = if self.pool == Pool::Local { "local-" } else { "" };
        match self.pick {
            Pick::Even(count) => write!(f, "pick-{local}{count}"),
            Pick::Sticky(seconds) => write!(f, "stick-{local}{seconds}"),
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Class::Target(target) => write!(f, "{target}"),
            Class::BySource { is_node_port: false } => f.write_str("by-source"),
            Class::BySource { is_node_port: true } => f.write_str("node-by-source"),
        }
    }
}

impl FromStr for Target {
    type Err = ();

    /// The inverse of its display.
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let cut = |name, prefix| str::strip_prefix(name, prefix).map_or((false, name), |rest| (true, rest));
        let (is_node_port, rest) = cut(name, "node-");
        let (unless_pod, rest) = cut(rest, "unless-pod-");
        let (always, rest) = cut(rest, "masquerade-");
        let masquerade = match (unless_pod, always) {
            (false, false) => Masquerade::Never,
            (true, _) => Masquerade::UnlessPod,
            (false, true) => Masquerade::Always,
        };
        let (is_sticky, rest) = cut(rest, "stick-");
        let (is_local, number) = cut(if is_sticky { rest } else { rest.strip_prefix("pick-").ok_or(())? }, "local-");
        let pick = if is_sticky { number.parse().map(Pick::Sticky) } else { number.parse().map(Pick::Even) };
        let pool = if is_local { Pool::Local } else { Pool::Cluster };
        let target = Target { masquerade, is_node_port, pool, pick: pick.map_err(drop)? };
        // Whatever else a name is made of, it is not ours.
        if target.to_string() == name { Ok(target) } else { Err(()) }
    }
}

/// The name of the chain of a [`Key::StickPick`].
pub fn stick_pick(pool: Pool, count: u16) -> String {
    if pool == Pool::Local { format!("stick-pick-local-{count}") } else { format!("stick-pick-{count}") }
}

impl Key {
    /// The chain of this name, if it is one that comes and goes.
    pub fn of_chain(name: &str) -> Option<Self> {
        let Some(rest) = name.strip_prefix("stick-pick-") else { return name.parse().map(Key::Chain).ok() };
        let (pool, count) = rest.strip_prefix("local-").map_or((Pool::Cluster, rest), |count| (Pool::Local, count));
        let count = count.parse().ok()?;
        (stick_pick(pool, count) == name).then_some(Key::StickPick(pool, count))
    }

    /// The name of the set or map that it is an element of.
    pub fn set(&self) -> Option<&'static str> {
        let of_kind = |frontend: &Frontend, address, node| Some(if frontend.is_node_port() { node } else { address });
        match self {
            Key::Base | Key::Chain(_) | Key::StickPick(..) | Key::Damage(_) => None,
            Key::PodCidr(_) => Some("pods"),
            Key::NodeAddress(_) => Some("node-addresses"),
            Key::ServiceCidr(_) => Some("service-cidrs"),
            Key::Hairpin(_) => Some("hairpins"),
            Key::Endpoint(..) => Some("endpoints"),
            Key::Slot(frontend, _) => of_kind(frontend, "slots", "node-slots"),
            Key::StickEndpoint(_) => Some("stick-endpoints"),
            Key::StickSlot(..) => Some("stick-slots"),
            Key::StickMember(_, Pool::Cluster, _) => Some("stick-members"),
            Key::StickMember(_, Pool::Local, _) => Some("stick-members-local"),
            Key::StickSize(_, Pool::Cluster) => Some("stick-sizes"),
            Key::StickSize(_, Pool::Local) => Some("stick-sizes-local"),
            Key::Identity(frontend) => of_kind(frontend, "identities", "node-identities"),
            Key::BySource(frontend, Pool::Cluster) => of_kind(frontend, "by-source-cluster", "node-by-source-cluster"),
            Key::BySource(frontend, Pool::Local) => of_kind(frontend, "by-source-local", "node-by-source-local"),
            Key::Source(..) => Some("sources"),
            Key::Restricted(_) => Some("restricted"),
            Key::Service(frontend) => of_kind(frontend, "services", "node-services"),
            Key::Refused(frontend) => of_kind(frontend, "refused", "node-refused"),
            Key::Dropped(_) => Some("dropped"),
            Key::ClusterIp(_) => Some("cluster-ips"),
        }
    }
}

/// A frontend as nftables writes it: without an address where it is a NodePort.
struct Written<'a>(&'a Frontend);

impl fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Frontend { ip, port, protocol } = self.0;
        if !self.0.is_node_port() {
            write!(f, "{ip} . ")?;
        }
        write!(f, "{} . {port}", protocol.to_string().to_lowercase())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Base => return f.write_str("base"),
            Key::Chain(target) => return write!(f, "{target}"),
            Key::StickPick(pool, count) => return f.write_str(&stick_pick(*pool, *count)),
            Key::Damage(chain) => return f.write_str(chain),
            _ => write!(f, "{} {{ ", self.set().unwrap_or_default())?,
        }
        match self {
            Key::Base | Key::Chain(_) | Key::StickPick(..) | Key::Damage(_) => Ok(()),
            Key::PodCidr(cidr) | Key::ServiceCidr(cidr) => write!(f, "{cidr}"),
            Key::NodeAddress(ip) | Key::ClusterIp(ip) => write!(f, "{ip}"),
            Key::Hairpin(ip) => write!(f, "{ip} . {ip}"),
            Key::Endpoint(Address { ip, port }, protocol) => write!(f, "{ip} . {} . {port}", protocol.to_string().to_lowercase()),
            Key::Slot(frontend, slot) => write!(f, "{} . {slot}", Written(frontend)),
            Key::StickEndpoint(number) | Key::StickSize(number, _) => write!(f, "{number}"),
            Key::StickSlot(identity, number) | Key::StickMember(identity, _, number) => write!(f, "{identity} . {number}"),
            Key::Source(frontend, cidr) => write!(f, "{} . {cidr}", Written(frontend)),
            Key::Identity(frontend)
            | Key::BySource(frontend, _)
            | Key::Restricted(frontend)
            | Key::Service(frontend)
            | Key::Refused(frontend)
            | Key::Dropped(frontend) => write!(f, "{}", Written(frontend)),
        }?;
        f.write_str(" }")
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Base(layout) => write!(f, "layout {layout}"),
            Value::Present => f.write_str("present"),
            Value::Backend(backend) => write!(f, "{} . {}", backend.ip, backend.port),
            Value::Number(number) => write!(f, "{number}"),
            Value::Count(count) => write!(f, "{count}"),
            Value::Target(Some(target)) => write!(f, "{target}"),
            Value::Target(None) => f.write_str("drop"),
            Value::Service(class, label) => write!(f, "{class} ({label})"),
            Value::Label(label) => write!(f, "({label})"),
        }
    }
}
