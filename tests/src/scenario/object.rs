//! The objects of a cluster, as scenarios apply and delete them.

use std::fmt;

use proxy_core::input::{convert_endpoint_slice, convert_node, convert_service, convert_service_cidr, object};
use proxy_core::model::{Change, ObjectName};
use serde_json::{Value, json};

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
    Service(Box<object::Service>),
    /// An EndpointSlice.
    Slice(object::EndpointSlice),
    /// A Node.
    Node(Value),
    /// A ServiceCIDR.
    ServiceCidr(Value),
}

/// Which kind of object. Those of a cluster come before those of namespaces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ObjectKind {
    /// A Node.
    Node,
    /// A ServiceCIDR.
    ServiceCidr,
    /// A Service.
    Service,
    /// An EndpointSlice.
    Slice,
}

/// The Node that the proxy under test runs on.
pub const NODE: &str = "node1";
/// The ServiceCIDR that the API server makes by itself.
pub const DEFAULT_SERVICE_CIDR: &str = "kubernetes";
/// All that scenarios may give to Services unless they add to it: 10.96.a.b, and fd00:10:96::a:b for it.
pub const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/96"];

impl ObjectKind {
    /// All of them, with the words by which a scenario deletes them.
    pub const ALL: [(&str, ObjectKind); 4] = [
        ("service", ObjectKind::Service),
        ("endpointslice", ObjectKind::Slice),
        ("node", ObjectKind::Node),
        ("servicecidr", ObjectKind::ServiceCidr),
    ];

    /// Whether its objects are in namespaces.
    pub fn is_namespaced(self) -> bool {
        matches!(self, ObjectKind::Service | ObjectKind::Slice)
    }

    /// What it means to the agent on [`NODE`] that an object is gone.
    pub fn removal(self, name: &ObjectName) -> Option<Change> {
        match self {
            ObjectKind::Service => Some(Change::Service(name.clone(), None)),
            ObjectKind::Slice => Some(Change::Slice(name.clone(), None)),
            ObjectKind::Node => (*name.name == *NODE).then_some(Change::Node(None)),
            ObjectKind::ServiceCidr => Some(Change::ServiceCidr(name.clone(), None)),
        }
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = ObjectKind::ALL.into_iter().find(|(_, kind)| kind == self);
        f.write_str(word.map_or("object", |(word, _)| word))
    }
}

impl Object {
    /// Which kind it is of.
    pub fn kind(&self) -> ObjectKind {
        match self {
            Object::Service(_) => ObjectKind::Service,
            Object::Slice(_) => ObjectKind::Slice,
            Object::Node(_) => ObjectKind::Node,
            Object::ServiceCidr(_) => ObjectKind::ServiceCidr,
        }
    }

    /// Its namespace (of a cluster's own objects: an empty one) and name; none without a name.
    pub fn name(&self) -> Option<ObjectName> {
        match self {
            Object::Service(service) => namespaced(&service.metadata),
            Object::Slice(slice) => namespaced(&slice.metadata),
            Object::Node(value) | Object::ServiceCidr(value) => Some(ObjectName::new("", value.pointer("/metadata/name")?.as_str()?)),
        }
    }

    /// What it means to the agent on [`NODE`]; nothing if it has no name, or where the agent does not look at it.
    pub fn change(&self) -> Option<Change> {
        match self {
            Object::Service(service) => convert_service(service).change,
            Object::Slice(slice) => convert_endpoint_slice(slice, NODE).change,
            Object::Node(value) => {
                let node: object::Node = serde_json::from_value(value.clone()).ok()?;
                convert_node(&node).change.filter(|_| node.metadata.name.as_deref() == Some(NODE))
            }
            Object::ServiceCidr(value) => convert_service_cidr(&serde_json::from_value(value.clone()).ok()?).change,
        }
    }
}

fn namespaced(metadata: &object::Metadata) -> Option<ObjectName> {
    Some(ObjectName::new(metadata.namespace.as_deref().unwrap_or("default"), metadata.name.as_deref()?))
}

/// What every scenario begins with: the Node, in both families and without a zone, and the ServiceCIDR.
pub fn defaults() -> [Manifest; 2] {
    let node = complete_node(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}));
    let cidr = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
        "metadata": {"name": DEFAULT_SERVICE_CIDR}, "spec": {"cidrs": SERVICE_RANGES},
    });
    let manifest = |object: fn(Value) -> Object, value: Value| Manifest { text: value.to_string(), object: object(value) };
    [manifest(Object::Node, node), manifest(Object::ServiceCidr, cidr)]
}

/// Adds to a Node what its kubelet and its controllers would have written, where a scenario does not say it.
pub(super) fn complete_node(mut node: Value) -> Value {
    let mut missing = |parent: &str, key: &str, value: Value| {
        if let Some(parent) = node.as_object_mut().map(|node| node.entry(parent).or_insert_with(|| json!({})))
            && let Some(parent) = parent.as_object_mut()
        {
            parent.entry(key).or_insert(value);
        }
    };
    missing("spec", "podCIDRs", json!(["10.1.1.0/24", "fd00:10:1::1:0/112"]));
    let address = |address: &str| json!({"type": "InternalIP", "address": address});
    missing("status", "addresses", json!([address("10.0.0.1"), address("fd00:10::1")]));
    node
}
