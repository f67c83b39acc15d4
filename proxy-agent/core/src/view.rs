//! What a dataplane holds, in the words of Kubernetes: one shape for all of them, for people and for comparison with what
//! [`Forwarding`] wants.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use serde::{Serialize, Serializer};

use crate::forward::Forwarding;
use crate::lower::Lowering;
use crate::model::{Address, Frontend, ServicePortName};
use crate::route::{Route, Treatment};

/// One port of a Service in one family, as it is programmed.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct ServiceView {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub service: String,
    /// Name of the port, empty for the only one.
    pub port: String,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// How it is served.
    #[serde(flatten)]
    pub view: PortView,
}

/// How one port of a Service is served in one family.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize)]
pub struct PortView {
    /// Where, sorted.
    pub frontends: Vec<FrontendView>,
    /// Backends of traffic policy Cluster, sorted.
    pub backends: Vec<Address>,
    /// Backends of traffic policy Local, sorted.
    pub local: Vec<Address>,
    /// Seconds since its last new connection for which a client stays with its backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<u32>,
}

/// One place where a port is served.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
pub struct FrontendView {
    /// Virtual address; unspecified for a NodePort.
    pub ip: IpAddr,
    /// Port number.
    pub port: u16,
    /// To which backends packets go, and whose are masqueraded.
    pub to: To,
    /// Whom it is for; none: everyone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sources: Option<Vec<String>>,
}

/// What becomes of what is sent to a frontend.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum To {
    /// Packets are treated like this.
    Packets(Treatment),
    /// Sockets connect to a backend.
    Sockets,
    /// Sockets are refused.
    SocketsRefused,
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            To::Packets(treatment) => treatment.fmt(f),
            To::Sockets => f.write_str("by socket"),
            To::SocketsRefused => f.write_str("rejected by socket"),
        }
    }
}

impl Serialize for To {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FrontendView {
    /// A frontend for everyone.
    pub(crate) fn new(frontend: &Frontend, to: To) -> Self {
        Self { ip: frontend.ip, port: frontend.port, to, sources: None }
    }
}

/// What a dataplane holds whatever the Services. Sorted.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AroundView {
    /// Addresses on which NodePorts are served; none also where that is whatever address the host has.
    pub node_port_addresses: Vec<IpAddr>,
    /// Ranges of pods.
    pub pod_ranges: Vec<String>,
    /// Ranges of ClusterIPs.
    pub service_ranges: Vec<String>,
}

impl AroundView {
    /// Adds what another table holds.
    pub fn extend(&mut self, other: Self) {
        self.node_port_addresses.extend(other.node_port_addresses);
        self.pod_ranges.extend(other.pod_ranges);
        self.service_ranges.extend(other.service_ranges);
    }
}

/// Collects what is known of each Service port and family.
#[derive(Default)]
pub(crate) struct Views(BTreeMap<(ServicePortName, bool), PortView>);

impl Views {
    /// The view of a port and family, to be filled.
    pub(crate) fn of(&mut self, port: ServicePortName, frontend: &Frontend) -> &mut PortView {
        self.0.entry((port, frontend.ip.is_ipv6())).or_default()
    }

    pub(crate) fn finish(self) -> Vec<ServiceView> {
        let views = self.0.into_iter().map(|((port, _), mut view)| {
            view.sort();
            ServiceView {
                namespace: port.service.namespace.to_string(),
                service: port.service.name.to_string(),
                port: port.port.to_string(),
                protocol: port.protocol.to_string(),
                view,
            }
        });
        let mut views: Vec<_> = views.collect();
        views.sort();
        views
    }
}

impl PortView {
    fn sort(&mut self) {
        self.frontends.sort();
        for backends in [&mut self.backends, &mut self.local] {
            backends.sort_unstable();
            backends.dedup();
        }
    }
}

impl Route {
    /// All that the route says.
    pub(crate) fn show(&self) -> PortView {
        let frontends = self.entries.iter().map(|entry| FrontendView {
            sources: entry.sources.as_ref().map(|sources| sources.iter().map(ToString::to_string).collect()),
            ..FrontendView::new(&entry.frontend, To::Packets(entry.treatment))
        });
        let is_used = self.entries.iter().any(|entry| !matches!(entry.treatment, Treatment::Rejected | Treatment::Dropped));
        PortView {
            frontends: frontends.collect(),
            backends: self.cluster.clone(),
            local: self.local.clone(),
            affinity: self.affinity.filter(|_| is_used),
        }
    }
}

impl Forwarding {
    /// What a dataplane should hold.
    pub fn view<L: Lowering>(&self, lowering: &L) -> Vec<ServiceView> {
        let mut views = Views::default();
        for name in self.services() {
            for mut route in self.routes(name) {
                route.affinity = route.affinity.filter(|_| lowering.is_sticky());
                let (Some(first), true) = (route.entries.first(), lowering.serves(route.key.family)) else { continue };
                let port = ServicePortName { service: name.clone(), port: route.key.name.clone(), protocol: route.key.protocol };
                if let Some(view) = lowering.show(&route) {
                    *views.of(port, &first.frontend) = view;
                }
            }
        }
        views.finish()
    }
}
