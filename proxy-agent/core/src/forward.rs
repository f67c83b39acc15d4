//! What becomes of a packet: frontends, the routes behind them, and [`Forwarding::decide`], the meaning of the product that
//! every dataplane is held to.

mod claims;
mod local;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use crate::cidr::Cidr;
use crate::cluster::{Cluster, Counts, Kind};
use crate::model::{Address, Change, Family, Frontend, ObjectName, Protocol, Service, ServicePort};
use crate::route::{Case, Entry, EntryKind, Pool, PortKey, Route, Way};
use crate::select::{Candidate, Usable, ZoneHint, serving};
use crate::settings::Settings;
use crate::surroundings::{NodePortScope, Origin, Surroundings};
use claims::Claims;
pub use local::{HealthCheck, Shortage};

/// A new connection, or a datagram of no known flow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Who sends it.
    pub source: IpAddr,
    /// From where it reaches the node.
    pub origin: Origin,
    /// What it is addressed to; its port is 0 where the protocol has none.
    pub destination: SocketAddr,
    /// Whether that is one of the host's own addresses.
    pub is_to_host: bool,
    /// Its protocol; none for one that no Service can have, such as ICMP.
    pub protocol: Option<Protocol>,
}

impl Flow {
    /// The frontend that has exactly this destination.
    pub fn frontend(&self) -> Option<Frontend> {
        Some(Frontend { ip: self.destination.ip(), port: self.destination.port(), protocol: self.protocol? })
    }

    /// The NodePort that the destination is if its address serves NodePorts.
    pub fn node_port(&self) -> Option<Frontend> {
        Some(Frontend::node_port(self.family(), self.destination.port(), self.protocol?))
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(self.destination.ip())
    }

    /// Whether it comes from elsewhere to a loopback address: that is nobody's on the wire.
    pub fn is_to_loopback_of_another(&self) -> bool {
        self.destination.ip().is_loopback() && self.origin != Origin::Host
    }
}

/// What must become of a [`Flow`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// No Service: the packet passes as it is.
    Untouched,
    /// To one of these backends.
    Backends {
        /// Each equally likely (EP-18), unless a client stays with one.
        backends: BTreeSet<SocketAddr>,
        /// What they see of who sends.
        source: SourceSeen,
        /// A client stays with its backend (AFF).
        is_sticky: bool,
    },
    /// Refused at once (ERR-01, ERR-06).
    Rejected,
    /// Lost without a word (ERR-02, ERR-03, ERR-07).
    Dropped,
}

/// Whose address a backend sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceSeen {
    /// The sender's own.
    Kept,
    /// One of the node's.
    Masqueraded,
    /// It depends on the backend (a sender that is one itself needs masquerading, NAT-06), or on what translates.
    Either,
}

/// All frontends with their routes, kept current change by change.
#[derive(Debug, Default)]
pub struct Forwarding {
    cluster: Cluster,
    surroundings: Surroundings,
    /// Counts changes of the surroundings.
    epoch: u64,
    /// Which Service has each frontend.
    claims: Claims,
    touched: BTreeSet<ObjectName>,
    /// How many Services with ports have each ClusterIP: nearly always one.
    cluster_ips: HashMap<IpAddr, u32>,
}

impl Forwarding {
    /// Nothing to serve yet.
    pub fn new(settings: Settings) -> Self {
        Self { surroundings: Surroundings::new(settings), ..Self::default() }
    }

    /// Takes a change in. Which Services it affects shows in [`take_touched`](Self::take_touched). Whether it says anything new.
    pub fn apply(&mut self, change: Change) -> bool {
        match change {
            Change::Service(name, service) => self.apply_service(name, service),
            Change::Slice(..) => self.cluster.apply(change, &mut self.touched),
            Change::Node(node) => self.change_surroundings(|around| around.set_node(node)),
            Change::ServiceCidr(name, cidrs) => self.change_surroundings(|around| around.set_service_cidr(name, cidrs)),
            Change::HostAddresses(addresses) => self.change_surroundings(|around| around.set_host(addresses)),
        }
    }

    fn apply_service(&mut self, name: ObjectName, service: Option<Service>) -> bool {
        let before = self.claimed_by(&name);
        let ips_before = self.cluster_ips_of(&name);
        let is_new = self.cluster.apply(Change::Service(name.clone(), service), &mut self.touched);
        let name = self.cluster.known(name);
        let after = self.claimed_by(&name);
        for frontend in before.difference(&after) {
            self.claims.give_up(frontend, &name, &mut self.touched);
        }
        for frontend in after.difference(&before) {
            self.claims.take(*frontend, &name, &mut self.touched);
        }
        for ip in self.cluster_ips_of(&name) {
            *self.cluster_ips.entry(ip).or_default() += 1;
        }
        for ip in ips_before {
            if let Some(count) = self.cluster_ips.get_mut(&ip) {
                *count -= 1;
                if *count == 0 {
                    self.cluster_ips.remove(&ip);
                }
            }
        }
        is_new
    }

    fn cluster_ips_of(&self, name: &ObjectName) -> Vec<IpAddr> {
        let service = self.cluster.service(name).filter(|service| !service.ports.is_empty());
        service.map_or_else(Vec::new, |service| service.cluster_ips.to_vec())
    }

    /// Changes what is around, and touches the Services whose routes depend on what has changed.
    fn change_surroundings(&mut self, change: impl FnOnce(&mut Surroundings)) -> bool {
        let before = self.surroundings.clone();
        change(&mut self.surroundings);
        let after = &self.surroundings;
        if before == *after {
            return false;
        }
        self.epoch += 1;
        let detects = |around: &Surroundings| Family::ALL.map(|family| around.detection(family).is_some());
        let ips = |around: &Surroundings| Family::ALL.map(|family| around.node_ip(family));
        let (detection, zone, node) = (detects(&before) != detects(after), before.zone() != after.zone(), ips(&before) != ips(after));
        if !(detection || zone || node) {
            return true;
        }
        let cluster = &self.cluster;
        let depends = |name: &&ObjectName| {
            let hinted = || cluster.slices(name).any(|slice| !slice.zones.is_empty());
            let restricted = || cluster.service(name).is_some_and(|service| service.source_ranges.is_some());
            detection || (zone && hinted()) || (node && restricted())
        };
        self.touched.extend(cluster.services().filter(depends).cloned());
        true
    }

    /// Takes a complete list in: what is not in it is gone.
    pub fn retain_listed(&mut self, kind: Kind, listed: &HashSet<ObjectName>) {
        match kind {
            Kind::Service | Kind::Slice => {
                for change in self.cluster.missing_from(kind, listed) {
                    self.apply(change);
                }
            }
            Kind::ServiceCidr => drop(self.change_surroundings(|around| around.retain_service_cidrs(listed))),
            Kind::Node if listed.is_empty() => drop(self.apply(Change::Node(None))),
            Kind::Node => {}
        }
    }

    /// How much there is to serve.
    pub fn counts(&self) -> Counts {
        self.cluster.counts()
    }

    /// How many frontends Services claim.
    pub fn frontend_count(&self) -> usize {
        self.claims.len()
    }

    /// Whether there is a Service of this name that is to be served.
    pub fn serves(&self, name: &ObjectName) -> bool {
        self.cluster.service(name).is_some()
    }

    /// The Services whose routes may differ from what they were when this was called last (SVC-14: whatever happened in between).
    pub fn take_touched(&mut self) -> BTreeSet<ObjectName> {
        std::mem::take(&mut self.touched)
    }

    /// All Services that are to be served, in no order.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.cluster.services()
    }

    /// What is around the Services.
    pub fn surroundings(&self) -> &Surroundings {
        &self.surroundings
    }

    /// A number that changes with the [surroundings](Self::surroundings).
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The routes of a Service's ports: with the frontends that it claims, less those that another Service wins.
    pub fn routes(&self, name: &ObjectName) -> Vec<Route> {
        let Some(service) = self.cluster.service(name) else { return Vec::new() };
        let mut seen = Vec::new();
        let mut routes = Vec::with_capacity(service.ports.len() * service.cluster_ips.len());
        for port in &service.ports {
            for &cluster_ip in &service.cluster_ips {
                let family = Family::of(cluster_ip);
                let mut entries = Vec::new();
                for (frontend, kind) in frontends(service, port, family) {
                    if self.claims.winner(&frontend) == Some(name) && !seen.contains(&frontend) {
                        seen.push(frontend);
                        entries.push((frontend, kind));
                    }
                }
                routes.push(self.route(name, service, (port, cluster_ip), entries));
            }
        }
        routes
    }

    fn route(
        &self,
        name: &ObjectName,
        service: &Service,
        (port, cluster_ip): (&ServicePort, IpAddr),
        entries: Vec<(Frontend, EntryKind)>,
    ) -> Route {
        let family = Family::of(cluster_ip);
        let mut usable = Usable::select(self.candidates(name, port, family));
        let case = self.case(service, &usable, family);
        let entry = |(frontend, kind)| {
            let sources = if kind == EntryKind::LoadBalancer { self.sources(service, family) } else { None };
            Entry { frontend, kind, treatment: case.treatment(kind), sources }
        };
        let entries: Vec<Entry> = entries.into_iter().map(entry).collect();
        for (pool, backends) in [(Pool::Cluster, &mut usable.cluster), (Pool::Local, &mut usable.local)] {
            if !entries.iter().any(|entry| entry.treatment.uses(pool)) {
                backends.clear();
            }
        }
        if usable.cluster.is_empty() && usable.local.is_empty() {
            usable.here.clear();
        }
        let key = PortKey { name: port.name.clone(), protocol: port.protocol, family };
        let Usable { cluster, local, here } = usable;
        let tracked = service.removed.tracks(port.protocol);
        Route { key, cluster_ip, cluster, local, here, affinity: service.affinity, tracked, entries }
    }

    fn case(&self, service: &Service, usable: &Usable, family: Family) -> Case {
        Case {
            internal: service.internal,
            external: service.external,
            is_deserted: usable.cluster.is_empty(),
            lacks_local: usable.local.is_empty(),
            detects_pods: self.surroundings.detection(family).is_some(),
            masquerade_all: self.surroundings.settings().masquerade_all,
        }
    }

    /// LBR-02, LBR-03, LBR-05: the ranges of a family that are let in; none where everyone is.
    fn sources(&self, service: &Service, family: Family) -> Option<std::sync::Arc<[Cidr]>> {
        let ranges = service.source_ranges.as_deref()?.iter().filter(|cidr| cidr.family() == family);
        let mut ranges: Vec<Cidr> = ranges.copied().collect();
        let open = ranges.is_empty() && self.surroundings.settings().open_unnamed_families;
        if open || ranges.iter().any(Cidr::is_all) {
            return None;
        }
        if self.surroundings.node_ip(family).is_some_and(|ip| ranges.iter().any(|cidr| cidr.contains(ip))) {
            // A host that sends to the address it has itself, as some load balancers give it.
            let own = service.load_balancer_ips.iter().filter(|ip| Family::of(**ip) == family);
            ranges.extend(own.map(|ip| Cidr::host(*ip)));
        }
        Some(Cidr::minimal(ranges).into())
    }

    /// A Service, if it is to be served.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.cluster.service(name)
    }

    /// The Service that has a frontend.
    pub fn owner(&self, frontend: &Frontend) -> Option<&ObjectName> {
        self.claims.winner(frontend)
    }

    /// Where a Service is served: the frontends that it claims, less those that another Service wins, each with the number of its port.
    pub fn served_at(&self, name: &ObjectName) -> Vec<(Frontend, u16)> {
        let Some(service) = self.cluster.service(name) else { return Vec::new() };
        let mut served: Vec<_> = claims(service).filter(|(frontend, _)| self.claims.winner(frontend) == Some(name)).collect();
        // An address may be there as more than one kind.
        let mut seen = HashSet::new();
        served.retain(|(frontend, _)| seen.insert(*frontend));
        served
    }

    /// The endpoints of a Service port in one family to which flows may go on (CT-05), sorted.
    pub fn serving(&self, name: &ObjectName, port: &ServicePort, family: Family) -> Vec<Address> {
        serving(self.candidates(name, port, family))
    }

    /// Frontends that more than one Service claims: the frontend, the winner, and those that are not served there.
    pub fn conflicts(&self, name: &ObjectName) -> Vec<(Frontend, &ObjectName)> {
        let lost = self.claimed_by(name).into_iter();
        lost.filter_map(|frontend| self.claims.winner(&frontend).filter(|w| *w != name).map(|w| (frontend, w))).collect()
    }

    /// What must become of `flow`.
    pub fn decide(&self, flow: &Flow) -> Verdict {
        let exact = flow.frontend().filter(|frontend| self.claims.winner(frontend).is_some());
        // TP-10
        let frontend = exact.or_else(|| flow.node_port().filter(|_| self.serves_node_ports(flow)));
        let name = frontend.and_then(|frontend| self.claims.winner(&frontend));
        let (Some(frontend), Some(name)) = (frontend, name) else { return self.decide_unserved(flow) };
        let mut routes = self.routes(name).into_iter();
        let found = routes.find_map(|route| route.entries.iter().position(|e| e.frontend == frontend).map(|i| (route, i)));
        let Some((route, index)) = found else { return Verdict::Untouched };
        let entry = &route.entries[index];
        if entry.sources.as_ref().is_some_and(|ranges| !ranges.iter().any(|cidr| cidr.contains(flow.source))) {
            return Verdict::Dropped;
        }
        let sender = self.surroundings.sender(flow.source, &flow.origin);
        match entry.treatment.way(sender, route.local.is_empty()) {
            Way::Rejected => Verdict::Rejected,
            Way::Dropped => Verdict::Dropped,
            Way::To(pool, masqueraded) => {
                let backends = if pool == Pool::Cluster { &route.cluster } else { &route.local };
                let backends = backends.iter().map(|backend| SocketAddr::from(*backend)).collect();
                let hairpin = route.here.contains(&flow.source);
                Verdict::to(backends, masqueraded, hairpin.then_some(flow.source), route.affinity.is_some())
            }
        }
    }

    /// ERR-06, ERR-07
    fn decide_unserved(&self, flow: &Flow) -> Verdict {
        let ip = flow.destination.ip();
        if self.cluster_ips.contains_key(&ip) {
            Verdict::Rejected
        } else if self.surroundings.service_cidrs(flow.family()).iter().any(|cidr| cidr.contains(ip)) {
            Verdict::Dropped
        } else {
            Verdict::Untouched
        }
    }

    fn serves_node_ports(&self, flow: &Flow) -> bool {
        match self.surroundings.node_ports(flow.family()) {
            NodePortScope::Any => flow.is_to_host && !flow.destination.ip().is_loopback(),
            NodePortScope::These(_) if flow.is_to_loopback_of_another() => false,
            NodePortScope::These(addresses) => addresses.contains(&flow.destination.ip()),
        }
    }

    /// The endpoints of a Service port (EP-04, EP-05), as often as slices have them.
    fn candidates(&self, name: &ObjectName, port: &ServicePort, family: Family) -> impl Iterator<Item = Candidate> {
        let zone = self.surroundings.zone();
        self.cluster.slices(name).flat_map(move |slice| {
            let ports = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            ports.flat_map(move |p| {
                let endpoints = slice.endpoints.iter().enumerate().filter(move |(_, e)| Family::of(e.ip) == family);
                endpoints.map(move |(i, endpoint)| {
                    let zones = match slice.zones.get(i) {
                        None => ZoneHint::None,
                        Some(zones) if zones.is_empty() => ZoneHint::None,
                        Some(zones) if zone.is_some_and(|zone| zones.iter().any(|z| **z == *zone)) => ZoneHint::This,
                        Some(_) => ZoneHint::Others,
                    };
                    Candidate::new(endpoint, p.port, zones)
                })
            })
        })
    }

    fn claimed_by(&self, name: &ObjectName) -> BTreeSet<Frontend> {
        let Some(service) = self.cluster.service(name) else { return BTreeSet::new() };
        claims(service).map(|(frontend, _)| frontend).collect()
    }
}

/// The families in which a Service is served: those of its ClusterIPs (SVC-05).
fn families(service: &Service) -> impl Iterator<Item = Family> {
    service.cluster_ips.iter().map(|ip| Family::of(*ip))
}

/// Where a Service is to be served, each with the number of its port; an address may be there as more than one kind.
fn claims(service: &Service) -> impl Iterator<Item = (Frontend, u16)> {
    let of_port = move |port| families(service).flat_map(move |family| frontends(service, port, family)).map(move |(f, _)| (f, port.port));
    service.ports.iter().flat_map(of_port)
}

/// Where a Service port is to be served. An address may be there as more than one kind: the first counts.
fn frontends<'a>(service: &'a Service, port: &'a ServicePort, family: Family) -> impl Iterator<Item = (Frontend, EntryKind)> + 'a {
    let ServicePort { protocol, port: number, node_port, .. } = *port;
    let kinds = [
        (&service.cluster_ips, EntryKind::ClusterIp),
        (&service.load_balancer_ips, EntryKind::LoadBalancer),
        (&service.external_ips, EntryKind::ExternalIp),
    ];
    let ips = kinds.into_iter().flat_map(|(ips, kind)| ips.iter().map(move |ip| (*ip, kind)));
    let ips = ips.filter(move |(ip, _)| Family::of(*ip) == family);
    let node_port = (node_port != 0).then(|| (Frontend::node_port(family, node_port, protocol), EntryKind::NodePort));
    ips.map(move |(ip, kind)| (Frontend { ip, port: number, protocol }, kind)).chain(node_port)
}

impl Verdict {
    /// To these backends. `hairpin`: the sender's address, where the sender is a backend on this node.
    pub fn to(backends: BTreeSet<SocketAddr>, masqueraded: bool, hairpin: Option<IpAddr>, is_sticky: bool) -> Self {
        if backends.is_empty() {
            return Verdict::Rejected;
        }
        let own = backends.iter().filter(|backend| hairpin == Some(backend.ip())).count();
        let source = match (masqueraded, own) {
            (true, _) => SourceSeen::Masqueraded,
            (false, 0) => SourceSeen::Kept,
            (false, own) if own == backends.len() => SourceSeen::Masqueraded,
            (false, _) => SourceSeen::Either,
        };
        Verdict::Backends { backends, source, is_sticky }
    }

    /// Whether a dataplane that says `self` does what `wanted` says.
    pub fn agrees(&self, wanted: &Verdict) -> bool {
        match (self, wanted) {
            (
                Verdict::Backends { backends, source: SourceSeen::Either, is_sticky },
                Verdict::Backends { backends: wanted, is_sticky: sticky, .. },
            ) => backends == wanted && is_sticky == sticky,
            _ => self == wanted,
        }
    }
}
