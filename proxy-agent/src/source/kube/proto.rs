//! Kubernetes objects in protobuf, with just the fields that are used: the rest is skipped unread, which is most of an object.
//!
//! Tags follow `generated.proto` of `k8s.io/api` (core/v1, discovery/v1, networking/v1) and `k8s.io/apimachinery` (meta/v1, runtime).

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use proxy_core::input::object;
use proxy_core::model::Family;

use crate::source::Trigger;

/// What the keys of the annotations that are ours begin with.
const OURS: &str = "proxy-agent.io/";
/// The annotation of an EndpointSlice.
const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A frame of a watch.
#[derive(Message)]
pub(super) struct WatchEvent {
    /// ADDED, MODIFIED, DELETED, BOOKMARK or ERROR.
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(message, optional, tag = "2")]
    pub(super) object: Option<RawExtension>,
}

/// An object in its [`Unknown`] wrapping.
#[derive(Message)]
pub(super) struct RawExtension {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) raw: Bytes,
}

/// What wraps every object that stands by itself, after four bytes of magic.
#[derive(Message)]
pub(super) struct Unknown {
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) raw: Bytes,
}

/// Any object, as far as it takes to go on.
#[derive(Message)]
pub(super) struct Head {
    #[prost(message, optional, tag = "1")]
    pub(super) metadata: Option<HeadMetadata>,
}

#[derive(Message)]
pub(super) struct HeadMetadata {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "3")]
    pub(super) namespace: String,
    #[prost(string, tag = "6")]
    pub(super) resource_version: String,
}

/// The head of a list.
#[derive(Message)]
pub(super) struct ListMetadata {
    #[prost(string, tag = "2")]
    pub(super) resource_version: String,
}

/// Why a request was refused.
#[derive(Message)]
pub(super) struct Status {
    #[prost(string, tag = "3")]
    pub(super) message: String,
    #[prost(int32, tag = "6")]
    pub(super) code: i32,
}

#[derive(Message)]
pub(super) struct Metadata {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "3")]
    namespace: Option<String>,
    #[prost(string, tag = "6")]
    resource_version: String,
    #[prost(message, optional, tag = "9")]
    deletion_timestamp: Option<Time>,
    #[prost(btree_map = "string, string", tag = "11")]
    labels: BTreeMap<String, String>,
    /// Not decoded: they may be long, and few are of interest.
    #[prost(bytes = "bytes", repeated, tag = "12")]
    annotations: Vec<Bytes>,
}

/// One label or annotation.
#[derive(Message)]
struct Pair {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[derive(Message)]
struct Time {
    #[prost(int64, optional, tag = "1")]
    seconds: Option<i64>,
}

#[derive(Message)]
pub(super) struct Service {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    spec: Option<ServiceSpec>,
    #[prost(message, optional, tag = "3")]
    status: Option<ServiceStatus>,
}

#[derive(Message)]
struct ServiceSpec {
    #[prost(message, repeated, tag = "1")]
    ports: Vec<Port>,
    #[prost(string, optional, tag = "3")]
    cluster_ip: Option<String>,
    #[prost(string, optional, tag = "4")]
    kind: Option<String>,
    #[prost(string, repeated, tag = "5")]
    external_ips: Vec<String>,
    #[prost(string, optional, tag = "7")]
    session_affinity: Option<String>,
    #[prost(string, repeated, tag = "9")]
    load_balancer_source_ranges: Vec<String>,
    #[prost(string, optional, tag = "11")]
    external_traffic_policy: Option<String>,
    #[prost(int32, optional, tag = "12")]
    health_check_node_port: Option<i32>,
    #[prost(message, optional, tag = "14")]
    session_affinity_config: Option<SessionAffinityConfig>,
    #[prost(string, repeated, tag = "18")]
    cluster_ips: Vec<String>,
    #[prost(string, repeated, tag = "19")]
    ip_families: Vec<String>,
    #[prost(string, optional, tag = "22")]
    internal_traffic_policy: Option<String>,
}

#[derive(Message)]
struct SessionAffinityConfig {
    #[prost(message, optional, tag = "1")]
    client_ip: Option<ClientIpConfig>,
}

#[derive(Message)]
struct ClientIpConfig {
    #[prost(int32, optional, tag = "1")]
    timeout_seconds: Option<i32>,
}

#[derive(Message)]
struct ServiceStatus {
    #[prost(message, optional, tag = "1")]
    load_balancer: Option<LoadBalancerStatus>,
}

#[derive(Message)]
struct LoadBalancerStatus {
    #[prost(message, repeated, tag = "1")]
    ingress: Vec<LoadBalancerIngress>,
}

#[derive(Message)]
struct LoadBalancerIngress {
    #[prost(string, optional, tag = "1")]
    ip: Option<String>,
    #[prost(string, optional, tag = "3")]
    ip_mode: Option<String>,
}

/// A ServicePort or an EndpointPort: what they have in common has the same tags.
#[derive(Message)]
struct Port {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    protocol: Option<String>,
    #[prost(int32, optional, tag = "3")]
    port: Option<i32>,
    /// A ServicePort only: an EndpointPort has nothing there.
    #[prost(int32, optional, tag = "5")]
    node_port: Option<i32>,
}

#[derive(Message)]
pub(super) struct EndpointSlice {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, repeated, tag = "2")]
    endpoints: Vec<Endpoint>,
    #[prost(message, repeated, tag = "3")]
    ports: Vec<Port>,
    #[prost(string, optional, tag = "4")]
    address_type: Option<String>,
}

#[derive(Message)]
struct Endpoint {
    #[prost(string, repeated, tag = "1")]
    addresses: Vec<String>,
    #[prost(message, optional, tag = "2")]
    conditions: Option<EndpointConditions>,
    #[prost(string, optional, tag = "6")]
    node_name: Option<String>,
    #[prost(message, optional, tag = "8")]
    hints: Option<EndpointHints>,
}

#[derive(Message)]
struct EndpointHints {
    #[prost(message, repeated, tag = "1")]
    for_zones: Vec<Named>,
    #[prost(message, repeated, tag = "2")]
    for_nodes: Vec<Named>,
}

/// A ForZone or a ForNode.
#[derive(Message)]
struct Named {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
}

#[derive(Message)]
struct EndpointConditions {
    #[prost(bool, optional, tag = "1")]
    ready: Option<bool>,
    #[prost(bool, optional, tag = "2")]
    serving: Option<bool>,
    #[prost(bool, optional, tag = "3")]
    terminating: Option<bool>,
}

#[derive(Message)]
pub(super) struct Node {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    spec: Option<NodeSpec>,
    #[prost(message, optional, tag = "3")]
    status: Option<NodeStatus>,
}

#[derive(Message)]
struct NodeSpec {
    #[prost(message, repeated, tag = "5")]
    taints: Vec<Taint>,
    #[prost(string, repeated, tag = "7")]
    pod_cidrs: Vec<String>,
}

#[derive(Message)]
struct Taint {
    #[prost(string, optional, tag = "1")]
    key: Option<String>,
}

#[derive(Message)]
struct NodeStatus {
    #[prost(message, repeated, tag = "5")]
    addresses: Vec<NodeAddress>,
}

#[derive(Message)]
struct NodeAddress {
    #[prost(string, optional, tag = "1")]
    kind: Option<String>,
    #[prost(string, optional, tag = "2")]
    address: Option<String>,
}

#[derive(Message)]
pub(super) struct ServiceCidr {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    spec: Option<ServiceCidrSpec>,
}

#[derive(Message)]
struct ServiceCidrSpec {
    #[prost(string, repeated, tag = "1")]
    cidrs: Vec<String>,
}

/// An object that has a version.
pub(super) trait Versioned {
    /// What every object has.
    fn metadata(&self) -> Option<&Metadata>;

    /// Its resourceVersion.
    fn version(&self) -> &str {
        self.metadata().map_or("", |metadata| &metadata.resource_version)
    }
}

impl Versioned for Service {
    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
}

impl Versioned for EndpointSlice {
    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
}

impl Versioned for Node {
    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
}

impl Versioned for ServiceCidr {
    fn metadata(&self) -> Option<&Metadata> {
        self.metadata.as_ref()
    }
}

impl From<Metadata> for object::Metadata {
    fn from(Metadata { name, namespace, labels, deletion_timestamp, annotations, .. }: Metadata) -> Self {
        let labels = labels.into_iter().map(|(key, value)| (key, Some(value))).collect();
        // When does not matter.
        let deletion_timestamp = deletion_timestamp.map(|time| time.seconds.unwrap_or_default().to_string());
        let ours = annotations.into_iter().filter(|pair| contains(pair, OURS)).filter_map(|pair| Pair::decode(pair).ok());
        let annotations = ours.map(|pair| (pair.key, Some(pair.value))).collect();
        Self { name, namespace, labels, deletion_timestamp, annotations }
    }
}

impl EndpointSlice {
    /// When what led to it was changed, if it says so.
    pub(super) fn trigger(&self) -> Option<Trigger> {
        let pairs = self.metadata.iter().flat_map(|metadata| &metadata.annotations);
        let pair =
            pairs.filter(|pair| contains(pair, TRIGGER)).filter_map(|pair| Pair::decode(pair.clone()).ok()).find(|p| p.key == TRIGGER)?;
        let family = match self.address_type.as_deref()? {
            "IPv4" => Family::V4,
            "IPv6" => Family::V6,
            _ => return None,
        };
        Some(Trigger { family, at: pair.value.parse::<jiff::Timestamp>().ok()?.into() })
    }
}

/// Behind the tag and the length of the key.
fn contains(pair: &Bytes, key: &str) -> bool {
    pair.get(2..).is_some_and(|rest| rest.starts_with(key.as_bytes()))
}

impl From<Service> for object::Service {
    fn from(Service { metadata, spec, status }: Service) -> Self {
        Self {
            metadata: metadata.unwrap_or_default().into(),
            spec: spec.unwrap_or_default().into(),
            status: status.unwrap_or_default().into(),
        }
    }
}

impl From<ServiceSpec> for object::ServiceSpec {
    fn from(spec: ServiceSpec) -> Self {
        Self {
            type_: spec.kind,
            cluster_ip: spec.cluster_ip,
            cluster_ips: spec.cluster_ips,
            ip_families: spec.ip_families,
            ports: spec.ports.into_iter().map(Into::into).collect(),
            external_ips: spec.external_ips,
            external_traffic_policy: spec.external_traffic_policy,
            internal_traffic_policy: spec.internal_traffic_policy,
            session_affinity: spec.session_affinity,
            session_affinity_config: spec.session_affinity_config.unwrap_or_default().into(),
            load_balancer_source_ranges: spec.load_balancer_source_ranges,
            health_check_node_port: spec.health_check_node_port.map(i64::from),
        }
    }
}

impl From<Port> for object::ServicePort {
    fn from(Port { name, protocol, port, node_port }: Port) -> Self {
        Self { name, protocol, port: port.map(i64::from), node_port: node_port.map(i64::from) }
    }
}

impl From<SessionAffinityConfig> for object::SessionAffinityConfig {
    fn from(SessionAffinityConfig { client_ip }: SessionAffinityConfig) -> Self {
        let seconds = client_ip.and_then(|client_ip| client_ip.timeout_seconds);
        Self { client_ip: object::ClientIpConfig { timeout_seconds: seconds.map(i64::from) } }
    }
}

impl From<ServiceStatus> for object::ServiceStatus {
    fn from(ServiceStatus { load_balancer }: ServiceStatus) -> Self {
        let ingress = load_balancer.unwrap_or_default().ingress.into_iter();
        let ingress = ingress.map(|LoadBalancerIngress { ip, ip_mode }| object::LoadBalancerIngress { ip, ip_mode });
        Self { load_balancer: object::LoadBalancerStatus { ingress: ingress.collect() } }
    }
}

impl From<EndpointSlice> for object::EndpointSlice {
    fn from(EndpointSlice { metadata, endpoints, ports, address_type }: EndpointSlice) -> Self {
        let port = |Port { name, protocol, port, .. }| object::EndpointPort { name, protocol, port: port.map(i64::from) };
        Self {
            metadata: metadata.unwrap_or_default().into(),
            address_type,
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            ports: ports.into_iter().map(port).collect(),
        }
    }
}

impl From<Endpoint> for object::Endpoint {
    fn from(Endpoint { addresses, conditions, node_name, hints }: Endpoint) -> Self {
        let EndpointConditions { ready, serving, terminating } = conditions.unwrap_or_default();
        let conditions = object::EndpointConditions { ready, serving, terminating };
        Self { addresses, conditions, node_name, hints: hints.unwrap_or_default().into() }
    }
}

impl From<EndpointHints> for object::EndpointHints {
    fn from(EndpointHints { for_zones, for_nodes }: EndpointHints) -> Self {
        let named = |Named { name }| object::Named { name };
        Self { for_zones: for_zones.into_iter().map(named).collect(), for_nodes: for_nodes.into_iter().map(named).collect() }
    }
}

impl From<Node> for object::Node {
    fn from(Node { metadata, spec, status }: Node) -> Self {
        let addresses = status.unwrap_or_default().addresses.into_iter();
        let addresses = addresses.map(|NodeAddress { kind: type_, address }| object::NodeAddress { type_, address });
        let NodeSpec { taints, pod_cidrs } = spec.unwrap_or_default();
        let taints = taints.into_iter().map(|Taint { key }| object::Taint { key }).collect();
        Self {
            metadata: metadata.unwrap_or_default().into(),
            spec: object::NodeSpec { taints, pod_cidrs },
            status: object::NodeStatus { addresses: addresses.collect() },
        }
    }
}

impl From<ServiceCidr> for object::ServiceCidr {
    fn from(ServiceCidr { metadata, spec }: ServiceCidr) -> Self {
        let spec = object::ServiceCidrSpec { cidrs: spec.unwrap_or_default().cidrs };
        Self { metadata: metadata.unwrap_or_default().into(), spec }
    }
}
