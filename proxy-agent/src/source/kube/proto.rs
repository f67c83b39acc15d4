//! Kubernetes objects in protobuf, with just the fields that are used: the rest is skipped unread, which is most of an object.
//!
//! Tags follow `generated.proto` of `k8s.io/api` (core/v1, discovery/v1) and `k8s.io/apimachinery` (meta/v1, runtime).

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use proxy_core::input::object;

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
    #[prost(btree_map = "string, string", tag = "11")]
    labels: BTreeMap<String, String>,
}

#[derive(Message)]
pub(super) struct Service {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(message, optional, tag = "2")]
    spec: Option<ServiceSpec>,
}

#[derive(Message)]
struct ServiceSpec {
    #[prost(message, repeated, tag = "1")]
    ports: Vec<Port>,
    #[prost(string, optional, tag = "3")]
    cluster_ip: Option<String>,
    #[prost(string, optional, tag = "4")]
    kind: Option<String>,
    #[prost(string, repeated, tag = "18")]
    cluster_ips: Vec<String>,
    #[prost(string, repeated, tag = "19")]
    ip_families: Vec<String>,
}

/// A ServicePort or an EndpointPort: what is used of them has the same tags.
#[derive(Message)]
struct Port {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(string, optional, tag = "2")]
    protocol: Option<String>,
    #[prost(int32, optional, tag = "3")]
    port: Option<i32>,
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

/// An object that has a version.
pub(super) trait Versioned {
    /// Its resourceVersion.
    fn version(&self) -> &str;
}

impl Versioned for Service {
    fn version(&self) -> &str {
        self.metadata.as_ref().map_or("", |metadata| &metadata.resource_version)
    }
}

impl Versioned for EndpointSlice {
    fn version(&self) -> &str {
        self.metadata.as_ref().map_or("", |metadata| &metadata.resource_version)
    }
}

impl From<Metadata> for object::Metadata {
    fn from(Metadata { name, namespace, labels, .. }: Metadata) -> Self {
        Self { name, namespace, labels: labels.into_iter().map(|(key, value)| (key, Some(value))).collect() }
    }
}

impl From<Service> for object::Service {
    fn from(Service { metadata, spec }: Service) -> Self {
        Self { metadata: metadata.unwrap_or_default().into(), spec: spec.unwrap_or_default().into() }
    }
}

impl From<ServiceSpec> for object::ServiceSpec {
    fn from(ServiceSpec { ports, cluster_ip, kind: type_, cluster_ips, ip_families }: ServiceSpec) -> Self {
        let port = |Port { name, protocol, port }| object::ServicePort { name, protocol, port: port.map(i64::from) };
        Self { type_, cluster_ip, cluster_ips, ip_families, ports: ports.into_iter().map(port).collect() }
    }
}

impl From<EndpointSlice> for object::EndpointSlice {
    fn from(EndpointSlice { metadata, endpoints, ports, address_type }: EndpointSlice) -> Self {
        let port = |Port { name, protocol, port }| object::EndpointPort { name, protocol, port: port.map(i64::from) };
        Self {
            metadata: metadata.unwrap_or_default().into(),
            address_type,
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            ports: ports.into_iter().map(port).collect(),
        }
    }
}

impl From<Endpoint> for object::Endpoint {
    fn from(Endpoint { addresses, conditions }: Endpoint) -> Self {
        let EndpointConditions { ready, serving, terminating } = conditions.unwrap_or_default();
        Self { addresses, conditions: object::EndpointConditions { ready, serving, terminating } }
    }
}
