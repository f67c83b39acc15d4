//! What a dataplane holds, in the words of Kubernetes: one shape for all of them, for people and for comparison with what
//! [`Forwarding`] wants.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::forward::Forwarding;
use crate::model::{Address, Frontend, ServicePortName};

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
    /// Virtual addresses, sorted.
    pub frontends: Vec<Address>,
    /// Backends, sorted. None: connections are refused.
    pub backends: Vec<Address>,
}

/// Collects what is known of each Service port and family.
#[derive(Default)]
pub(crate) struct Views(BTreeMap<(ServicePortName, bool), (Vec<Address>, Vec<Address>)>);

impl Views {
    /// Adds a frontend with its backends. Frontends of one port and family have the same backends.
    pub(crate) fn add(&mut self, port: ServicePortName, frontend: &Frontend, backends: impl Iterator<Item = Address>) {
        let (frontends, known) = self.0.entry((port, frontend.ip.is_ipv6())).or_default();
        frontends.push(Address { ip: frontend.ip, port: frontend.port });
        known.extend(backends);
    }

    pub(crate) fn finish(self) -> Vec<ServiceView> {
        let views = self.0.into_iter().map(|((port, _), (mut frontends, mut backends))| {
            frontends.sort_unstable();
            backends.sort_unstable();
            backends.dedup();
            ServiceView {
                namespace: port.service.namespace.to_string(),
                service: port.service.name.to_string(),
                port: port.port.to_string(),
                protocol: port.protocol.to_string(),
                frontends,
                backends,
            }
        });
        let mut views: Vec<_> = views.collect();
        views.sort();
        views
    }
}

impl Forwarding {
    /// What every dataplane should hold.
    pub fn view(&self) -> Vec<ServiceView> {
        let mut views = Views::default();
        for name in self.services() {
            for (frontend, route) in self.routes(name) {
                views.add(route.port, &frontend, route.backends.iter().copied());
            }
        }
        views.finish()
    }
}
