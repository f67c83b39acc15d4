//! Services, EndpointSlices, Nodes and ServiceCIDRs as Kubernetes writes them, with just the fields that are used: decoding skips the rest, which
//! is most of an object. Every field may be absent or null; [`convert_service`](super::convert_service) and
//! [`convert_endpoint_slice`](super::convert_endpoint_slice) decide what that means.
//!
//! Follows `k8s.io/api/core/v1`, `k8s.io/api/discovery/v1` and `k8s.io/api/networking/v1`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// Absent and null are both "not set".
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(d).map(Option::unwrap_or_default)
}

/// As [`nullable`], and a null in a list is an empty item: the items around it keep their numbers and are used.
fn list<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<Vec<T>, D::Error> {
    let items: Vec<Option<T>> = nullable(d)?;
    Ok(items.into_iter().map(Option::unwrap_or_default).collect())
}

/// `metadata` of either object.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Metadata {
    /// Name within the namespace.
    pub name: Option<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Labels.
    #[serde(default, deserialize_with = "nullable")]
    pub labels: BTreeMap<String, Option<String>>,
    /// When the object was asked to go; what is there stays until its finalizers are done.
    #[serde(rename = "deletionTimestamp")]
    pub deletion_timestamp: Option<String>,
    /// Annotations.
    #[serde(default, deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, Option<String>>,
}

/// A `v1` Service.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Service {
    /// Name, namespace, labels.
    #[serde(default, deserialize_with = "nullable")]
    pub metadata: Metadata,
    /// What is to be served.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: ServiceSpec,
    /// What load balancers there are.
    #[serde(default, deserialize_with = "nullable")]
    pub status: ServiceStatus,
}

/// `spec` of a [`Service`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec {
    /// ClusterIP, NodePort, LoadBalancer or ExternalName.
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// The first of `cluster_ips`, `None` or empty.
    #[serde(rename = "clusterIP")]
    pub cluster_ip: Option<String>,
    /// One address per entry of `ip_families`.
    #[serde(rename = "clusterIPs", default, deserialize_with = "list")]
    pub cluster_ips: Vec<String>,
    /// IPv4, IPv6.
    #[serde(default, deserialize_with = "list")]
    pub ip_families: Vec<String>,
    /// Ports.
    #[serde(default, deserialize_with = "list")]
    pub ports: Vec<ServicePort>,
    /// More addresses, which something else routes to the nodes.
    #[serde(rename = "externalIPs", default, deserialize_with = "list")]
    pub external_ips: Vec<String>,
    /// Cluster if absent, or Local.
    pub external_traffic_policy: Option<String>,
    /// Cluster if absent, or Local.
    pub internal_traffic_policy: Option<String>,
    /// None if absent, or ClientIP.
    pub session_affinity: Option<String>,
    /// How long affinity lasts.
    #[serde(default, deserialize_with = "nullable")]
    pub session_affinity_config: SessionAffinityConfig,
    /// Who may use the addresses of load balancers.
    #[serde(default, deserialize_with = "list")]
    pub load_balancer_source_ranges: Vec<String>,
    /// Where load balancers ask whether this node has endpoints; absent or 0: nowhere.
    pub health_check_node_port: Option<i64>,
}

/// `spec.sessionAffinityConfig` of a [`Service`].
#[derive(Clone, Debug, Default, Deserialize)]
pub struct SessionAffinityConfig {
    /// The settings of ClientIP.
    #[serde(rename = "clientIP", default, deserialize_with = "nullable")]
    pub client_ip: ClientIpConfig,
}

/// `spec.sessionAffinityConfig.clientIP` of a [`Service`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClientIpConfig {
    /// 10800 if absent.
    pub timeout_seconds: Option<i64>,
}

/// `status` of a [`Service`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// The load balancer.
    #[serde(default, deserialize_with = "nullable")]
    pub load_balancer: LoadBalancerStatus,
}

/// `status.loadBalancer` of a [`Service`].
#[derive(Clone, Debug, Default, Deserialize)]
pub struct LoadBalancerStatus {
    /// Its addresses.
    #[serde(default, deserialize_with = "list")]
    pub ingress: Vec<LoadBalancerIngress>,
}

/// One of `status.loadBalancer.ingress` of a [`Service`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerIngress {
    /// Absent where there is a host name instead.
    pub ip: Option<String>,
    /// VIP if absent; anything else leaves the address to the load balancer.
    pub ip_mode: Option<String>,
}

/// One of `spec.ports` of a [`Service`].
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ServicePort {
    /// May be absent where the Service has one port.
    pub name: Option<String>,
    /// TCP if absent.
    pub protocol: Option<String>,
    /// Port number of the Service.
    pub port: Option<i64>,
    /// Port number on the node's own addresses; absent or 0: none.
    #[serde(rename = "nodePort")]
    pub node_port: Option<i64>,
}

/// A `discovery.k8s.io/v1` EndpointSlice.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice {
    /// Name, namespace, labels; one of the labels names the Service.
    #[serde(default, deserialize_with = "nullable")]
    pub metadata: Metadata,
    /// IPv4, IPv6 or FQDN.
    pub address_type: Option<String>,
    /// Endpoints.
    #[serde(default, deserialize_with = "list")]
    pub endpoints: Vec<Endpoint>,
    /// Ports.
    #[serde(default, deserialize_with = "list")]
    pub ports: Vec<EndpointPort>,
}

/// One of `endpoints` of an [`EndpointSlice`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// Only the first counts.
    #[serde(default, deserialize_with = "list")]
    pub addresses: Vec<String>,
    /// Conditions.
    #[serde(default, deserialize_with = "nullable")]
    pub conditions: EndpointConditions,
    /// The node that it is on.
    pub node_name: Option<String>,
    /// Whom it is for.
    #[serde(default, deserialize_with = "nullable")]
    pub hints: EndpointHints,
}

/// `hints` of an [`Endpoint`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointHints {
    /// The zones for which it is.
    #[serde(default, deserialize_with = "list")]
    pub for_zones: Vec<Named>,
    /// The nodes for which it is.
    #[serde(default, deserialize_with = "list")]
    pub for_nodes: Vec<Named>,
}

/// The name of a zone or node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Named {
    /// Its name.
    pub name: Option<String>,
}

/// `conditions` of an [`Endpoint`].
#[derive(Clone, Debug, Default, Deserialize)]
pub struct EndpointConditions {
    /// Absent means true.
    pub ready: Option<bool>,
    /// Absent means true.
    pub serving: Option<bool>,
    /// Absent means false.
    pub terminating: Option<bool>,
}

/// One of `ports` of an [`EndpointSlice`].
#[derive(Clone, Debug, Default, Deserialize)]
pub struct EndpointPort {
    /// Absent: the port is skipped.
    pub name: Option<String>,
    /// TCP if absent.
    pub protocol: Option<String>,
    /// Absent or 0: the port is skipped.
    pub port: Option<i64>,
}

/// A `v1` Node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Node {
    /// Name and labels.
    #[serde(default, deserialize_with = "nullable")]
    pub metadata: Metadata,
    /// Ranges of its pods.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: NodeSpec,
    /// Its addresses.
    #[serde(default, deserialize_with = "nullable")]
    pub status: NodeStatus,
}

/// `spec` of a [`Node`].
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NodeSpec {
    /// What keeps pods away.
    #[serde(default, deserialize_with = "list")]
    pub taints: Vec<Taint>,
    /// The ranges of its pods' addresses.
    #[serde(rename = "podCIDRs", default, deserialize_with = "list")]
    pub pod_cidrs: Vec<String>,
}

/// One of `spec.taints` of a [`Node`].
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Taint {
    /// Its key.
    pub key: Option<String>,
}

/// `status` of a [`Node`].
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NodeStatus {
    /// Its addresses, of several types.
    #[serde(default, deserialize_with = "list")]
    pub addresses: Vec<NodeAddress>,
}

/// One of `status.addresses` of a [`Node`].
#[derive(Clone, Debug, Default, Deserialize)]
pub struct NodeAddress {
    /// InternalIP, ExternalIP, Hostname, ...
    #[serde(rename = "type")]
    pub type_: Option<String>,
    /// The address.
    pub address: Option<String>,
}

/// A `networking.k8s.io/v1` ServiceCIDR.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ServiceCidr {
    /// Name.
    #[serde(default, deserialize_with = "nullable")]
    pub metadata: Metadata,
    /// Its ranges.
    #[serde(default, deserialize_with = "nullable")]
    pub spec: ServiceCidrSpec,
}

/// `spec` of a [`ServiceCidr`].
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ServiceCidrSpec {
    /// The ranges from which ClusterIPs are taken, at most one per family.
    #[serde(default, deserialize_with = "list")]
    pub cidrs: Vec<String>,
}
