//! What load balancers are told and what policy Local lacks, against the objects themselves; and how many there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use proptest::prelude::*;
use proxy_core::cluster::Counts;
use proxy_core::forward::{HealthCheck, Shortage};
use proxy_core::model::{Change, Endpoint, EndpointState, Family, ObjectName, Service, ServicePort, Slice, TrafficPolicy};

use super::world::{changes, config, forwarding, last, service_names, settings};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn local_endpoints_are_counted(around in settings(), changes in changes()) {
        let model = forwarding(&around, changes.clone());
        let world = World(last(&changes));
        for name in service_names() {
            prop_assert_eq!(model.health_check(&name), world.health_check(&name), "{}", name);
            for family in Family::ALL {
                prop_assert_eq!(model.shortage(&name, family), world.shortage(&name, family), "{} {}", name, family);
            }
            prop_assert_eq!(model.serves(&name), world.service(&name).is_some());
        }
        prop_assert_eq!(model.counts(), world.counts());
    }

    /// A change that was taken in already says nothing new.
    #[test]
    fn only_what_is_new_counts_as_a_change(around in settings(), changes in changes()) {
        let mut model = forwarding(&around, changes.clone());
        let _ = model.take_touched();
        for change in last(&changes) {
            prop_assert!(!model.apply(change.clone()), "{:?}", change);
        }
        prop_assert!(model.take_touched().is_empty());
    }
}

/// The last state of each object.
struct World(Vec<Change>);

impl World {
    fn service(&self, wanted: &ObjectName) -> Option<&Service> {
        self.0.iter().find_map(|change| match change {
            Change::Service(name, service) if name == wanted => service.as_ref(),
            _ => None,
        })
    }

    fn slices(&self) -> impl Iterator<Item = &Slice> {
        self.0.iter().filter_map(|change| if let Change::Slice(_, slice) = change { slice.as_ref() } else { None })
    }

    /// The endpoints of a Service port, by address and port, each as the copy with the greatest state has it.
    fn endpoints(&self, name: &ObjectName, port: &ServicePort, family: Family) -> Vec<(IpAddr, EndpointState, bool)> {
        let mut best: BTreeMap<(IpAddr, u16), Endpoint> = BTreeMap::new();
        for slice in self.slices().filter(|slice| slice.service == *name) {
            for number in slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol).map(|p| p.port) {
                for endpoint in slice.endpoints.iter().filter(|endpoint| Family::of(endpoint.ip) == family) {
                    let known = best.entry((endpoint.ip, number)).or_insert(*endpoint);
                    if (known.state, known.is_local) < (endpoint.state, endpoint.is_local) {
                        *known = *endpoint;
                    }
                }
            }
        }
        best.into_iter().map(|((ip, _), endpoint)| (ip, endpoint.state, endpoint.is_local)).collect()
    }

    fn health_check(&self, name: &ObjectName) -> Option<HealthCheck> {
        let service = self.service(name)?;
        let count = |family| {
            let of_port = |port| self.endpoints(name, port, family);
            let ready = service.ports.iter().flat_map(of_port).filter(|(_, state, is_local)| *is_local && state.is_ready());
            let ready: BTreeSet<IpAddr> = ready.map(|(ip, ..)| ip).collect();
            service.cluster_ips.iter().any(|ip| Family::of(*ip) == family).then_some(ready.len())
        };
        let asks = service.health_check_port != 0 && !service.ports.is_empty();
        asks.then(|| HealthCheck { port: service.health_check_port, v4: count(Family::V4), v6: count(Family::V6) })
    }

    fn shortage(&self, name: &ObjectName, family: Family) -> Shortage {
        let mut shortage = Shortage::default();
        let Some(service) = self.service(name).filter(|s| s.cluster_ips.iter().any(|ip| Family::of(*ip) == family)) else {
            return shortage;
        };
        for port in &service.ports {
            let serves = |state: EndpointState| state.is_ready() || state == EndpointState::Draining;
            let serving = self.endpoints(name, port, family).into_iter().filter(|(_, state, _)| serves(*state)).collect::<Vec<_>>();
            if !serving.is_empty() && !serving.iter().any(|(.., is_local)| *is_local) {
                shortage.internal += usize::from(service.internal == TrafficPolicy::Local);
                shortage.external += usize::from(service.external == TrafficPolicy::Local);
            }
        }
        shortage
    }

    fn counts(&self) -> Counts {
        let services = self.0.iter().filter(|change| matches!(change, Change::Service(_, Some(_)))).count();
        let endpoints = self.slices().map(|slice| slice.endpoints.len()).sum();
        Counts { services, slices: self.slices().count(), endpoints }
    }
}
