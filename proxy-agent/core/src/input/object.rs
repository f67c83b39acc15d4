//! Services and EndpointSlices as Kubernetes writes them, with just the fields that are used: decoding skips the rest, which
//! is most of an object. Every field may be absent or null; [`convert_service`](super::convert_service) and
//! [`convert_endpoint_slice`](super::convert_endpoint_slice) decide what that means.
//!
//! Follows `k8s.io/api/core/v1` and `k8s.io/api/discovery/v1`.

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
pub struct Endpoint {
    /// Only the first counts.
    #[serde(default, deserialize_with = "list")]
    pub addresses: Vec<String>,
    /// Conditions.
    #[serde(default, deserialize_with = "nullable")]
    pub conditions: EndpointConditions,
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
