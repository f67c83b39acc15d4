//! Where Services, EndpointSlices, the agent's own Node and ServiceCIDRs come from: a Kubernetes API server ([`kube`]) or a folder
//! of manifests ([`manifests`]). Both say it in [`Event`]s, so that what reads them does not know which one it has.

pub mod kube;
pub mod manifests;

use std::collections::HashSet;
use std::time::SystemTime;

use proxy_core::cluster::Kind;
use proxy_core::input::{Converted, Problem};
use proxy_core::model::{Change, Family, ObjectName};

/// What a source says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// An object was added, altered or is gone; with what in it could not be used.
    Object(Converted),
    /// The same of an EndpointSlice of which it is known when what it says was changed.
    Endpoints(Converted, Trigger),
    /// A complete list of one kind has ended: what is not named is gone.
    Listed(Kind, HashSet<ObjectName>),
    /// Everything of one kind up to this resourceVersion has been said.
    Version(Kind, String),
}

/// When a pod or a Service was changed, which led to a change of an EndpointSlice (`endpoints.kubernetes.io/last-change-trigger-time`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trigger {
    /// The family of the slice.
    pub family: Family,
    /// The other machine's time.
    pub at: SystemTime,
}

/// Where a source sends its events. A full channel makes the source wait; a closed one ends it.
pub type Sender = tokio::sync::mpsc::Sender<Event>;

/// Nobody listens any more: a source ends, without an error.
#[derive(Debug)]
pub(crate) struct Closed;

pub(crate) async fn send(events: &Sender, event: Event) -> Result<(), Closed> {
    events.send(event).await.map_err(|_| Closed)
}

/// The object of this name is gone.
fn removal(kind: Kind, name: ObjectName) -> Converted {
    let change = match kind {
        Kind::Service => Change::Service(name, None),
        Kind::Slice => Change::Slice(name, None),
        Kind::Node => Change::Node(None),
        Kind::ServiceCidr => Change::ServiceCidr(name, None),
    };
    Converted { change: Some(change), problems: Vec::new() }
}

/// What a conversion is about, if its object has a name. `node`: what the agent's own Node is called, the only one that counts.
fn subject<'a>(converted: &'a Converted, node: Option<&'a ObjectName>) -> Option<(Kind, &'a ObjectName)> {
    match converted.change.as_ref()? {
        Change::Service(name, _) => Some((Kind::Service, name)),
        Change::Slice(name, _) => Some((Kind::Slice, name)),
        Change::Node(_) => Some((Kind::Node, node?)),
        Change::ServiceCidr(name, _) => Some((Kind::ServiceCidr, name)),
        Change::HostAddresses(_) => None,
    }
}

/// The name of a Node, which is in no namespace.
fn node_name(node: &str) -> ObjectName {
    ObjectName::new("", node)
}

/// Nothing to apply, one thing to report.
fn report(object: String, text: String) -> Converted {
    Converted { change: None, problems: vec![Problem { object, text }] }
}

/// What [`Problem`]s and log lines call an object of this kind.
fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Service => "service",
        Kind::Slice => "endpointslice",
        Kind::Node => "node",
        Kind::ServiceCidr => "servicecidr",
    }
}
