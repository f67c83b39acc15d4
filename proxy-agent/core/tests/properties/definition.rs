//! What must become of a packet, straight from the objects and the slow way.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use proxy_core::cidr::Cidr;
use proxy_core::forward::{Flow, SourceSeen, Verdict};
use proxy_core::model::{Change, EndpointState, Family, Node, NodeHint, ObjectName, Service, ServicePort, TrafficPolicy};
use proxy_core::settings::{LocalDetection, Settings};
use proxy_core::surroundings::Origin;

/// All objects, the last state of each.
pub(crate) struct Definition<'a> {
    settings: &'a Settings,
    objects: Vec<Change>,
}

/// How a Service has an address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum As {
    Cluster,
    Balanced,
    Other,
}

/// One endpoint: its state, whether it is local, its hints.
type Best = (EndpointState, bool, NodeHint, Option<bool>);

impl<'a> Definition<'a> {
    pub(crate) fn new(settings: &'a Settings, objects: Vec<Change>) -> Self {
        Self { settings, objects }
    }

    fn node(&self) -> Option<&Node> {
        self.objects.iter().find_map(|object| if let Change::Node(node) = object { node.as_ref() } else { None })
    }

    fn host(&self) -> &[IpAddr] {
        self.objects.iter().find_map(|object| if let Change::HostAddresses(ips) = object { Some(&**ips) } else { None }).unwrap_or(&[])
    }

    fn node_ip(&self, family: Family) -> Option<IpAddr> {
        let of = |ips: &[IpAddr]| ips.iter().copied().find(|ip| Family::of(*ip) == family && !ip.is_loopback());
        match self.node() {
            Some(node) => node.ips.iter().copied().find(|ip| Family::of(*ip) == family),
            None => of(self.host()),
        }
    }

    fn pods(&self, flow: &Flow) -> Option<bool> {
        let first = |cidrs: &[Cidr]| cidrs.iter().find(|c| c.family() == flow.family()).map(|c| c.contains(flow.source));
        let came_by = |is: &dyn Fn(&str) -> bool| Some(matches!(&flow.origin, Origin::Interface(name) if is(name)));
        match &self.settings.local {
            LocalDetection::ClusterCidrs(cidrs) => first(cidrs),
            LocalDetection::NodeCidrs => first(&self.node()?.pod_cidrs),
            LocalDetection::Bridge(bridge) => came_by(&|name| name == &**bridge),
            LocalDetection::InterfacePrefix(prefix) => came_by(&|name| name.starts_with(&**prefix)),
        }
    }

    fn is_node_port_address(&self, flow: &Flow) -> bool {
        let (ip, family, addresses) = (flow.destination.ip(), flow.family(), &self.settings.node_ports);
        let mut cidrs: Vec<Cidr> = addresses.cidrs.iter().filter(|c| c.family() == family).copied().collect();
        if cidrs.iter().any(|c| c.prefix_len() == 0) {
            return flow.is_to_host && !ip.is_loopback();
        }
        if ip.is_loopback() {
            // NP-07
            let is_there = ip == family.loopback() || self.host().contains(&ip);
            return [ip, family.loopback()].iter().all(|ip| cidrs.iter().any(|c| c.contains(*ip)))
                && is_there
                && flow.origin == Origin::Host;
        }
        let own = self.node_ip(family).filter(|ip| addresses.primary && !ip.is_loopback());
        cidrs.extend(own.map(Cidr::host));
        let named = cidrs.iter().any(|c| c.contains(ip)) || (cidrs.is_empty() && self.settings.open_unnamed_families);
        named && self.host().contains(&ip)
    }

    fn services(&self) -> impl Iterator<Item = (&ObjectName, &Service)> {
        self.objects.iter().filter_map(|o| if let Change::Service(name, Some(service)) = o { Some((name, service)) } else { None })
    }

    /// The Service port that is served there: of the Service that is first by name.
    fn served(&self, flow: &Flow) -> Option<(&ObjectName, &Service, &ServicePort, As)> {
        let (ip, port) = (flow.destination.ip(), flow.destination.port());
        let of_protocol = |p: &&ServicePort| Some(p.protocol) == flow.protocol;
        let has_family = |s: &Service| s.cluster_ips.iter().any(|ip| Family::of(*ip) == flow.family());
        let exact = self.services().filter(|(_, s)| has_family(s)).filter_map(|(name, service)| {
            let how = if service.cluster_ips.contains(&ip) {
                As::Cluster
            } else if service.load_balancer_ips.contains(&ip) {
                As::Balanced
            } else if service.external_ips.contains(&ip) {
                As::Other
            } else {
                return None;
            };
            let port = service.ports.iter().filter(of_protocol).find(|p| p.port == port)?;
            Some((name, service, port, how))
        });
        exact.min_by_key(|(name, ..)| *name).or_else(|| {
            let by_port =
                self.services().filter(|(_, s)| has_family(s) && self.is_node_port_address(flow)).filter_map(|(name, service)| {
                    let port = service.ports.iter().filter(of_protocol).find(|p| p.node_port == port && port != 0)?;
                    Some((name, service, port, As::Other))
                });
            by_port.min_by_key(|(name, ..)| *name)
        })
    }

    pub(crate) fn decide(&self, flow: &Flow) -> Verdict {
        let ip = flow.destination.ip();
        let Some((name, service, port, how)) = self.served(flow) else {
            let allocated = |o: &Change| matches!(o, Change::ServiceCidr(_, Some(cidrs)) if cidrs.iter().any(|c| c.contains(ip)));
            return if self.services().any(|(_, s)| s.cluster_ips.contains(&ip) && !s.ports.is_empty()) {
                Verdict::Rejected
            } else if self.objects.iter().any(allocated) {
                Verdict::Dropped
            } else {
                Verdict::Untouched
            };
        };
        if how == As::Balanced && !self.lets_in(service, flow) {
            return Verdict::Dropped;
        }
        let endpoints = self.endpoints(name, port, flow.family());
        let usable = |local: bool| {
            let of = |wanted: &dyn Fn(EndpointState) -> bool| -> Vec<(SocketAddr, Best)> {
                let found = endpoints.iter().filter(|(_, best)| (best.1 || !local) && wanted(best.0));
                found.map(|(address, best)| (*address, *best)).collect()
            };
            let ready = of(&|state| state.is_ready());
            let used = if ready.is_empty() { of(&|state| state == EndpointState::Draining) } else { ready };
            if local || !used.iter().any(|(_, best)| best.0.is_ready()) { used } else { nearest(used) }
        };
        let (cluster, local, is_pod) = (usable(false), usable(true), self.pods(flow));
        if cluster.is_empty() {
            return Verdict::Rejected;
        }
        let host = flow.origin == Origin::Host;
        let policy = if how == As::Cluster { service.internal } else { service.external };
        let (set, masqueraded) = match (how, policy) {
            (As::Cluster, policy) => {
                let set = if policy == TrafficPolicy::Local { local } else { cluster };
                (set, self.settings.masquerade_all || is_pod == Some(false))
            }
            (_, TrafficPolicy::Cluster) => (cluster, true),
            (_, TrafficPolicy::Local) if is_pod == Some(true) => (cluster, false),
            (_, TrafficPolicy::Local) if host => (cluster, true),
            (_, TrafficPolicy::Local) => (local, false),
        };
        if set.is_empty() {
            return Verdict::Dropped;
        }
        let is_self = |(address, best): &&(SocketAddr, Best)| best.1 && address.ip() == flow.source;
        let own = set.iter().filter(is_self).count();
        let source = match (masqueraded || own == set.len(), own) {
            (true, _) => SourceSeen::Masqueraded,
            (false, 0) => SourceSeen::Kept,
            (false, _) => SourceSeen::Either,
        };
        Verdict::Backends { backends: set.into_iter().map(|(a, _)| a).collect(), source, is_sticky: service.affinity.is_some() }
    }

    fn lets_in(&self, service: &Service, flow: &Flow) -> bool {
        let Some(ranges) = &service.source_ranges else { return true };
        let ranges: Vec<&Cidr> = ranges.iter().filter(|c| c.family() == flow.family()).collect();
        let own = self.node_ip(flow.family()).is_some_and(|ip| ranges.iter().any(|c| c.contains(ip)));
        (ranges.is_empty() && self.settings.open_unnamed_families)
            || ranges.iter().any(|c| c.contains(flow.source))
            || (own && service.load_balancer_ips.contains(&flow.source))
    }

    fn endpoints(&self, service: &ObjectName, port: &ServicePort, family: Family) -> BTreeMap<SocketAddr, Best> {
        let zone = self.node().and_then(|node| node.zone.as_deref());
        let mut best = BTreeMap::new();
        for object in &self.objects {
            let Change::Slice(_, Some(slice)) = object else { continue };
            for p in slice.ports.iter().filter(|p| slice.service == *service && p.name == port.name && p.protocol == port.protocol) {
                for (i, e) in slice.endpoints.iter().enumerate().filter(|(_, e)| Family::of(e.ip) == family) {
                    let zones = slice.zones.get(i).filter(|zones| !zones.is_empty());
                    let in_zone = zones.map(|zones| zones.iter().any(|z| Some(&**z) == zone));
                    let this = (e.state, e.is_local, e.nodes, in_zone);
                    let known = best.entry(SocketAddr::new(e.ip, p.port)).or_insert(this);
                    *known = this.max(*known);
                }
            }
        }
        best
    }
}

fn nearest(ready: Vec<(SocketAddr, Best)>) -> Vec<(SocketAddr, Best)> {
    let of = |wanted: &dyn Fn(&Best) -> bool| ready.iter().copied().filter(|(_, best)| wanted(best)).collect::<Vec<_>>();
    let for_node = of(&|best| best.2 == NodeHint::This);
    let for_zone = of(&|best| best.3 == Some(true));
    if !for_node.is_empty() && of(&|best| best.2 == NodeHint::None).is_empty() {
        for_node
    } else if !for_zone.is_empty() && of(&|best| best.3.is_none()).is_empty() {
        for_zone
    } else {
        ready
    }
}
