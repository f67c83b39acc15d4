//! The resources that are watched: where they are, which of their objects are asked for, and what these say.

use std::sync::Arc;

use prost::Message;
use proxy_core::cluster::Kind;
use proxy_core::input::{Converted, convert_endpoint_slice, convert_node, convert_service, convert_service_cidr};
use proxy_core::model::ObjectName;

use super::proto::{self, Versioned};
use crate::source::{Trigger, node_name};

/// One of the resources that are watched.
pub(super) trait Resource: Send + 'static {
    /// Which list its events are about.
    const KIND: Kind;
    /// Plural name, as in RBAC rules.
    const PLURAL: &'static str;
    /// Path of its collection.
    const PATH: &'static str;
    /// Which objects the API server leaves out.
    const LABELS: Option<&'static str> = None;
    /// Where not every API server has it: since when, and what is not done without.
    const OPTIONAL: Option<&'static str> = None;
    /// The object as it is sent.
    type Object: Message + Default + Versioned;

    /// Which objects the API server leaves out.
    fn fields(&self) -> Option<String> {
        None
    }

    /// The name of the agent's own Node, where that is what is watched.
    fn node(&self) -> Option<&ObjectName> {
        None
    }

    /// What an object says.
    fn convert(&self, object: Self::Object) -> Converted;

    /// When what led to it was changed, where that is known.
    fn trigger(&self, _: &Self::Object) -> Option<Trigger> {
        None
    }
}

/// Services that have a ClusterIP and are not another proxy's (SVC-01).
pub(super) struct Services;

impl Resource for Services {
    const KIND: Kind = Kind::Service;
    const PLURAL: &'static str = "services";
    const PATH: &'static str = "/api/v1/services";
    const LABELS: Option<&'static str> = Some("!service.kubernetes.io/service-proxy-name");
    type Object = proto::Service;

    fn fields(&self) -> Option<String> {
        Some("spec.clusterIP!=None".to_owned())
    }

    fn convert(&self, object: proto::Service) -> Converted {
        convert_service(&object.into())
    }
}

/// EndpointSlices of Services that are not headless (EP-01).
pub(super) struct EndpointSlices {
    /// The name of the agent's own Node.
    pub(super) node: Arc<str>,
}

impl Resource for EndpointSlices {
    const KIND: Kind = Kind::Slice;
    const PLURAL: &'static str = "endpointslices";
    const PATH: &'static str = "/apis/discovery.k8s.io/v1/endpointslices";
    const LABELS: Option<&'static str> = Some("!service.kubernetes.io/headless");
    type Object = proto::EndpointSlice;

    fn convert(&self, object: proto::EndpointSlice) -> Converted {
        convert_endpoint_slice(&object.into(), &self.node)
    }

    fn trigger(&self, object: &proto::EndpointSlice) -> Option<Trigger> {
        object.trigger()
    }
}

/// The agent's own Node (API-01).
pub(super) struct OwnNode(ObjectName);

impl OwnNode {
    pub(super) fn new(node: &str) -> Self {
        Self(node_name(node))
    }
}

impl Resource for OwnNode {
    const KIND: Kind = Kind::Node;
    const PLURAL: &'static str = "nodes";
    const PATH: &'static str = "/api/v1/nodes";
    type Object = proto::Node;

    fn fields(&self) -> Option<String> {
        Some(format!("metadata.name={}", self.0.name))
    }

    fn node(&self) -> Option<&ObjectName> {
        Some(&self.0)
    }

    fn convert(&self, object: proto::Node) -> Converted {
        convert_node(&object.into())
    }
}

/// The ranges from which ClusterIPs are taken.
pub(super) struct ServiceCidrs;

impl Resource for ServiceCidrs {
    const KIND: Kind = Kind::ServiceCidr;
    const PLURAL: &'static str = "servicecidrs";
    const PATH: &'static str = "/apis/networking.k8s.io/v1/servicecidrs";
    const OPTIONAL: Option<&'static str> = Some("Kubernetes 1.33; without it, packets to ClusterIPs that no Service has are not dropped");
    type Object = proto::ServiceCidr;

    fn convert(&self, object: proto::ServiceCidr) -> Converted {
        convert_service_cidr(&object.into())
    }
}
