//! What this node has of a Service: what load balancers are told, and what policy Local leaves without a backend.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Forwarding;
use crate::model::{Family, ObjectName, TrafficPolicy};
use crate::select::Usable;

/// What load balancers ask about a Service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HealthCheck {
    /// The port on which they ask.
    pub port: u16,
    /// How many ready endpoints this node has in IPv4, if the Service is served there.
    pub v4: Option<usize>,
    /// The same in IPv6.
    pub v6: Option<usize>,
}

impl HealthCheck {
    /// How many there are in a family, if the Service is served there.
    pub fn of(&self, family: Family) -> Option<usize> {
        match family {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// Ports of a Service whose packets are dropped for want of a backend on this node (ERR-02), by policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shortage {
    /// Under the internal policy.
    pub internal: usize,
    /// Under the external policy.
    pub external: usize,
}

impl Forwarding {
    /// What load balancers are told about a Service; nothing where they do not ask (SVC-11).
    pub fn health_check(&self, name: &ObjectName) -> Option<HealthCheck> {
        let service = self.cluster.service(name).filter(|service| service.health_check_port != 0 && !service.ports.is_empty())?;
        let count = |family| {
            let is_served = service.cluster_ips.iter().any(|ip| Family::of(*ip) == family);
            is_served.then(|| self.ready_here(name, family).len())
        };
        Some(HealthCheck { port: service.health_check_port, v4: count(Family::V4), v6: count(Family::V6) })
    }

    /// HC-09: the addresses of a Service's ready endpoints on this node, each once, whatever ports it has.
    fn ready_here(&self, name: &ObjectName, family: Family) -> BTreeSet<IpAddr> {
        let Some(service) = self.cluster.service(name) else { return BTreeSet::new() };
        let local = service.ports.iter().flat_map(|port| Usable::ready_here(self.candidates(name, port, family)));
        local.map(|address| address.ip).collect()
    }

    /// How many ports of a Service lack a backend on this node that their policy demands, in a family.
    pub fn shortage(&self, name: &ObjectName, family: Family) -> Shortage {
        let mut shortage = Shortage::default();
        let Some(service) = self.cluster.service(name) else { return shortage };
        let (internal, external) = (service.internal == TrafficPolicy::Local, service.external == TrafficPolicy::Local);
        // Nearly all Services are done here.
        if !(internal || external) || !service.cluster_ips.iter().any(|ip| Family::of(*ip) == family) {
            return shortage;
        }
        for port in &service.ports {
            let usable = Usable::select(self.candidates(name, port, family));
            if !usable.cluster.is_empty() && usable.local.is_empty() {
                shortage.internal += usize::from(internal);
                shortage.external += usize::from(external);
            }
        }
        shortage
    }
}
