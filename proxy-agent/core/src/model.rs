//! The vocabulary: Services, EndpointSlices and their parts, reduced to what decides about packets.

use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use crate::cidr::Cidr;

/// Namespace and name of an object; the namespace of a Node or ServiceCIDR is empty. Ordered by namespace, then name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Name within the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The name of an object in a namespace.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

impl fmt::Debug for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// IP family. Each family of a Service is served on its own (SVC-05).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, in the order in which they are shown.
    pub const ALL: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// 127.0.0.1 or ::1.
    pub fn loopback(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        }
    }

    /// 0.0.0.0 or ::.
    pub fn unspecified(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
            Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// Transport protocol of a Service port.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
    /// SCTP, IP protocol 132.
    Sctp,
}

impl Protocol {
    /// The IP protocol number (IANA).
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// The protocol of an IP protocol number, if it is one that Services know.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Protocol::Tcp),
            17 => Some(Protocol::Udp),
            132 => Some(Protocol::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

impl std::str::FromStr for Protocol {
    type Err = ();

    /// Upper case as in Kubernetes objects, lower case as people type it.
    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "TCP" | "tcp" => Ok(Protocol::Tcp),
            "UDP" | "udp" => Ok(Protocol::Udp),
            "SCTP" | "sctp" => Ok(Protocol::Sctp),
            _ => Err(()),
        }
    }
}

/// Identity of a Service port (SVC-04): what endpoints are matched to and what the kernel's objects are named after.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectName,
    /// Name of the port; empty for the only port of a Service.
    pub port: Arc<str>,
    /// Protocol of the port.
    pub protocol: Protocol,
}

impl ServicePortName {
    /// `namespace/name:port`, or `namespace/name` for a port without a name: the form that is stored in the kernel.
    pub fn label(&self) -> String {
        label(&self.service, &self.port)
    }

    /// The inverse of [`label`](Self::label); the protocol is told by the frontend beside it.
    pub fn from_label(label: &str, protocol: Protocol) -> Option<Self> {
        let (namespace, rest) = label.split_once('/')?;
        let (name, port) = rest.split_once(':').unwrap_or((rest, ""));
        Some(Self { service: ObjectName::new(namespace, name), port: port.into(), protocol })
    }
}

/// See [`ServicePortName::label`].
pub(crate) fn label(service: &ObjectName, port: &str) -> String {
    let ObjectName { namespace, name } = service;
    if port.is_empty() { [namespace, "/", name].concat() } else { [namespace, "/", name, ":", port].concat() }
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.label(), self.protocol)
    }
}

impl fmt::Debug for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A Service that is to be served: what of its object decides about packets (SVC-15). A Service that is not to be served
/// (headless, ExternalName, another proxy's) has no such value.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Service {
    /// ClusterIPs, at most one per family, IPv4 first.
    pub cluster_ips: Box<[IpAddr]>,
    /// `spec.externalIPs`, each once.
    pub external_ips: Box<[IpAddr]>,
    /// Addresses of load balancers that the node serves itself (SVC-08, SVC-09), each once.
    pub load_balancer_ips: Box<[IpAddr]>,
    /// Ports in the order of the object.
    pub ports: Box<[ServicePort]>,
    /// What ClusterIPs lead to (`internalTrafficPolicy`).
    pub internal: TrafficPolicy,
    /// What all other frontends lead to (`externalTrafficPolicy`, SVC-10).
    pub external: TrafficPolicy,
    /// Seconds since its last new connection for which a client stays with its backend (`sessionAffinity: ClientIP`).
    pub affinity: Option<u32>,
    /// Who may use the addresses of load balancers, where not everyone may (`loadBalancerSourceRanges`), without what cannot be
    /// used. Both families in one list.
    pub source_ranges: Option<Box<[Cidr]>>,
    /// The port on which the node says whether it has endpoints, to who balances the load; 0 where it does not (SVC-11).
    pub health_check_port: u16,
    /// What becomes of flows to endpoints that are removed.
    pub removed: RemovedEndpoints,
}

/// What becomes of the flows to an endpoint that is removed while its Service goes on (annotation `proxy-agent.io/removed-endpoints`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum RemovedEndpoints {
    /// As kube-proxy: TCP goes on (EP-20), UDP until the endpoint no longer serves (CT-05), and SCTP as UDP (W-03).
    #[default]
    AsUsual,
    /// They are left alone.
    Keep,
    /// They go on while the endpoint serves, terminating or not.
    Drain,
    /// They are cut as soon as the endpoint is in no set that is in use.
    Reset,
}

impl RemovedEndpoints {
    /// Whether flows are cut that kube-proxy leaves alone.
    pub fn cuts(self) -> bool {
        matches!(self, RemovedEndpoints::Drain | RemovedEndpoints::Reset)
    }

    /// Whether all flows have to pass where packets are translated and remembered: what a socket does cannot be cut later, and a
    /// socket that sends datagrams moves on by itself.
    pub fn tracks(self, protocol: Protocol) -> bool {
        self.cuts() || (self == RemovedEndpoints::Keep && protocol == Protocol::Udp)
    }
}

/// Which backends a frontend leads to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum TrafficPolicy {
    /// To those of all nodes.
    #[default]
    Cluster,
    /// To those of this node.
    Local,
}

/// One port of a [`Service`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServicePort {
    /// Empty for the only port of a Service.
    pub name: Arc<str>,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port number of the frontends.
    pub port: u16,
    /// Port number on the node's own addresses; 0 where there is none (SVC-12).
    pub node_port: u16,
}

/// An EndpointSlice, reduced to what decides about packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slice {
    /// The Service that the slice belongs to (EP-02).
    pub service: ObjectName,
    /// Ports; the endpoints listen on all of them.
    pub ports: Box<[SlicePort]>,
    /// Endpoints, their addresses all of one family (EP-03).
    pub endpoints: Box<[Endpoint]>,
    /// The zones for which each endpoint is (`hints.forZones`), in the order of `endpoints`. Empty where no endpoint has any.
    pub zones: Box<[Box<[Arc<str>]>]>,
}

/// One port of a [`Slice`] (EP-04: it has a number).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlicePort {
    /// Matches [`ServicePort::name`].
    pub name: Arc<str>,
    /// Matches [`ServicePort::protocol`].
    pub protocol: Protocol,
    /// Port number of the backends.
    pub port: u16,
}

/// One endpoint of a [`Slice`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// The first address of the object's endpoint (EP-06).
    pub ip: IpAddr,
    /// Its conditions, defaults applied.
    pub state: EndpointState,
    /// Whether it is on this node (EP-08).
    pub is_local: bool,
    /// The nodes for which it is (`hints.forNodes`).
    pub nodes: NodeHint,
}

/// What an endpoint says about the nodes for which it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum NodeHint {
    /// Nothing.
    #[default]
    None,
    /// This node is not among them.
    Others,
    /// This node is among them.
    This,
}

/// Conditions of an endpoint (EP-07). The order settles which of several copies of one address counts (EP-09): a pod that has
/// inherited the address of a terminating one speaks for it, ready or not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum EndpointState {
    /// Terminating and no longer serving: never used (EP-14).
    Gone,
    /// Serving while terminating: used when nothing is ready (EP-12).
    Draining,
    /// Ready and terminating, as `publishNotReadyAddresses` has it (EP-11): used as any that is ready.
    ReadyLeaving,
    /// Running, neither ready nor serving: not used (EP-20).
    NotServing,
    /// Running and serving, but not ready: not used either, and flows to it go on (CT-05).
    NotReady,
    /// Ready.
    Ready,
}

impl EndpointState {
    /// Whether the object says that it is ready.
    pub fn is_ready(self) -> bool {
        matches!(self, EndpointState::Ready | EndpointState::ReadyLeaving)
    }

    /// Whether flows to it may go on (CT-05): it serves, or is used all the same, as `publishNotReadyAddresses` has it.
    pub fn serves(self) -> bool {
        !matches!(self, EndpointState::Gone | EndpointState::NotServing)
    }
}

/// An address and port, without the flow label and scope that [`SocketAddr`] has: there are hundreds of thousands of them.
/// Ordered by address, then port.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The port number.
    pub port: u16,
}

impl Ord for Address {
    fn cmp(&self, other: &Self) -> Ordering {
        (rank(self.ip), self.port).cmp(&(rank(other.ip), other.port))
    }
}

impl PartialOrd for Address {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// In the order of addresses, IPv4 first, as numbers: much is sorted, and comparing byte by byte is what that would cost.
fn rank(ip: IpAddr) -> (bool, u128) {
    match ip {
        IpAddr::V4(ip) => (false, u128::from(u32::from(ip))),
        IpAddr::V6(ip) => (true, ip.into()),
    }
}

impl From<SocketAddr> for Address {
    fn from(addr: SocketAddr) -> Self {
        Self { ip: addr.ip(), port: addr.port() }
    }
}

impl From<Address> for SocketAddr {
    fn from(addr: Address) -> Self {
        SocketAddr::new(addr.ip, addr.port)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&SocketAddr::from(*self), f)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address, port and protocol that is served. Ordered by address, then port, then protocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Frontend {
    /// Virtual IP. The unspecified address of a family stands for all addresses on which the node serves NodePorts.
    pub ip: IpAddr,
    /// Port number.
    pub port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl Frontend {
    /// A NodePort: the port of all addresses on which the node serves NodePorts.
    pub fn node_port(family: Family, port: u16, protocol: Protocol) -> Self {
        Self { ip: family.unspecified(), port, protocol }
    }

    /// Whether it is a NodePort.
    pub fn is_node_port(&self) -> bool {
        self.ip.is_unspecified()
    }

    /// The family of its address.
    pub fn family(&self) -> Family {
        Family::of(self.ip)
    }
}

impl Ord for Frontend {
    fn cmp(&self, other: &Self) -> Ordering {
        (rank(self.ip), self.port, self.protocol).cmp(&(rank(other.ip), other.port, other.protocol))
    }
}

impl PartialOrd for Frontend {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.ip, self.port), self.protocol)
    }
}

impl fmt::Debug for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One object that was added, altered (`Some`) or is gone (`None`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// A Service; `None` also for one that is not to be served.
    Service(ObjectName, Option<Service>),
    /// An EndpointSlice; `None` also for one that is not to be used.
    Slice(ObjectName, Option<Slice>),
    /// This agent's own Node.
    Node(Option<Node>),
    /// A ServiceCIDR: the ranges from which ClusterIPs are taken.
    ServiceCidr(ObjectName, Option<Box<[Cidr]>>),
    /// All addresses of the host's interfaces, as the kernel has them, loopback included.
    HostAddresses(Box<[IpAddr]>),
}

/// What of the agent's own Node decides about packets, and about whether any should be sent here.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// The node's addresses: at most one per family, the first one the primary (API-02).
    pub ips: Box<[IpAddr]>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Box<[Cidr]>,
    /// It is about to go: load balancers are to leave it (HC-02).
    pub is_leaving: bool,
}
