//! What becomes of a packet: frontends, the routes behind them, and [`Forwarding::decide`], the meaning of the product that
//! every dataplane is held to.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use crate::cluster::{Cluster, Kind};
use crate::model::{Address, Change, EndpointState, Family, Frontend, ObjectName, Protocol, ServicePort, ServicePortName};

/// Everything that a packet to a frontend needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// The Service port that the frontend belongs to.
    pub port: ServicePortName,
    /// Usable backends, sorted. Empty: connections are rejected (ERR-01).
    pub backends: Vec<Address>,
}

/// A new connection, or a datagram of no known flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Who sends it.
    pub source: IpAddr,
    /// What it is addressed to.
    pub destination: SocketAddr,
    /// Its protocol.
    pub protocol: Protocol,
}

impl Flow {
    /// The frontend that the flow is addressed to, if there is one.
    pub fn frontend(&self) -> Frontend {
        Frontend { ip: self.destination.ip(), port: self.destination.port(), protocol: self.protocol }
    }
}

/// What must become of a [`Flow`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// No Service: the packet passes as it is.
    Untouched,
    /// To one of these backends, each equally likely (EP-18), the source kept.
    Backends(BTreeSet<SocketAddr>),
    /// Refused at once (ERR-01).
    Rejected,
}

/// The Services that claim a frontend, sorted. Nearly always one.
#[derive(Debug)]
enum Claims {
    One(ObjectName),
    Many(Vec<ObjectName>),
}

impl Claims {
    fn names(&self) -> &[ObjectName] {
        match self {
            Claims::One(name) => std::slice::from_ref(name),
            Claims::Many(names) => names,
        }
    }
}

/// All frontends with their routes, kept current change by change.
#[derive(Debug, Default)]
pub struct Forwarding {
    cluster: Cluster,
    /// The Services that claim each frontend. More than one is a conflict, which the first by name wins, whatever the order of
    /// arrival.
    claims: HashMap<Frontend, Claims>,
    touched: BTreeSet<ObjectName>,
}

impl Forwarding {
    /// Takes a change in. Which Services it affects shows in [`take_touched`](Self::take_touched).
    pub fn apply(&mut self, change: Change) {
        let Change::Service(name, _) = &change else { return self.cluster.apply(change, &mut self.touched) };
        let name = name.clone();
        let before = self.claimed_by(&name);
        self.cluster.apply(change, &mut self.touched);
        let name = self.cluster.known(name);
        let after = self.claimed_by(&name);
        for frontend in before.difference(&after) {
            self.unclaim(frontend, &name);
        }
        for frontend in after.difference(&before) {
            self.claim(*frontend, &name);
        }
    }

    /// Takes a complete list in: what is not in it is gone.
    pub fn retain_listed(&mut self, kind: Kind, listed: &HashSet<ObjectName>) {
        for change in self.cluster.missing_from(kind, listed) {
            self.apply(change);
        }
    }

    /// The Services whose routes may differ from what they were when this was called last (SVC-14: whatever happened in between).
    pub fn take_touched(&mut self) -> BTreeSet<ObjectName> {
        std::mem::take(&mut self.touched)
    }

    /// All Services that are to be served, in no order.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.cluster.services()
    }

    /// The frontends that are this Service's, with their routes: those that it claims, less those that another Service wins.
    pub fn routes(&self, name: &ObjectName) -> Vec<(Frontend, Route)> {
        let Some(service) = self.cluster.service(name) else { return Vec::new() };
        let mut routes = Vec::with_capacity(service.ports.len() * service.cluster_ips.len());
        for port in service.ports.iter().filter(|port| is_served(port)) {
            for &ip in &*service.cluster_ips {
                let frontend = Frontend { ip, port: port.port, protocol: port.protocol };
                if self.winner(&frontend) == Some(name) {
                    routes.push((frontend, self.route(name, port, Family::of(ip))));
                }
            }
        }
        routes
    }

    /// Frontends that more than one Service claims: the frontend, the winner, and those that are not served there.
    pub fn conflicts(&self, name: &ObjectName) -> Vec<(Frontend, &ObjectName)> {
        let lost = self.claimed_by(name).into_iter();
        lost.filter_map(|frontend| self.winner(&frontend).filter(|w| *w != name).map(|w| (frontend, w))).collect()
    }

    /// What must become of `flow`.
    pub fn decide(&self, flow: &Flow) -> Verdict {
        let frontend = flow.frontend();
        let Some(name) = self.winner(&frontend) else { return Verdict::Untouched };
        let mut ports = self.cluster.service(name).into_iter().flat_map(|service| service.ports.iter());
        let port = ports.find(|port| port.port == frontend.port && port.protocol == frontend.protocol);
        let backends = port.map(|port| usable(self.endpoints(name, port, Family::of(frontend.ip))));
        backends.map_or(Verdict::Untouched, |backends| Verdict::to(backends.into_iter().map(SocketAddr::from)))
    }

    fn route(&self, name: &ObjectName, port: &ServicePort, family: Family) -> Route {
        let port_name = ServicePortName { service: name.clone(), port: port.name.clone(), protocol: port.protocol };
        Route { backends: usable(self.endpoints(name, port, family)), port: port_name }
    }

    /// The endpoints of a Service port (EP-04, EP-05), as often as slices have them.
    fn endpoints(&self, name: &ObjectName, port: &ServicePort, family: Family) -> impl Iterator<Item = (Address, EndpointState)> {
        self.cluster.slices(name).flat_map(move |slice| {
            let ports = slice.ports.iter().filter(|p| p.name == port.name && p.protocol == port.protocol);
            ports.flat_map(move |p| {
                let endpoints = slice.endpoints.iter().filter(move |e| Family::of(e.ip) == family);
                endpoints.map(move |e| (Address { ip: e.ip, port: p.port }, e.state))
            })
        })
    }

    fn winner(&self, frontend: &Frontend) -> Option<&ObjectName> {
        self.claims.get(frontend)?.names().first()
    }

    fn claimed_by(&self, name: &ObjectName) -> BTreeSet<Frontend> {
        let Some(service) = self.cluster.service(name) else { return BTreeSet::new() };
        let ports = service.ports.iter().filter(|port| is_served(port));
        let claims = ports.flat_map(|p| service.cluster_ips.iter().map(|&ip| Frontend { ip, port: p.port, protocol: p.protocol }));
        claims.collect()
    }

    /// Only who wins matters to routes: however many Services claim a frontend, at most two are touched.
    fn claim(&mut self, frontend: Frontend, name: &ObjectName) {
        let mut names = self.claims.remove(&frontend).map_or_else(Vec::new, |claims| claims.names().to_vec());
        if let Err(place) = names.binary_search(name) {
            names.insert(place, name.clone());
            if place == 0 {
                self.touched.extend(names.iter().take(2).cloned());
            }
        }
        self.put_claims(frontend, names);
    }

    fn unclaim(&mut self, frontend: &Frontend, name: &ObjectName) {
        let Some(claims) = self.claims.remove(frontend) else { return };
        let mut names = claims.names().to_vec();
        if let Ok(place) = names.binary_search(name) {
            names.remove(place);
            if place == 0 {
                self.touched.extend(names.first().cloned());
            }
        }
        self.put_claims(*frontend, names);
    }

    fn put_claims(&mut self, frontend: Frontend, mut names: Vec<ObjectName>) {
        let claims = match names.len() {
            0 => return,
            1 => Claims::One(names.remove(0)),
            _ => Claims::Many(names),
        };
        self.claims.insert(frontend, claims);
    }
}

impl Verdict {
    /// The verdict for a frontend with these backends.
    pub fn to(backends: impl IntoIterator<Item = SocketAddr>) -> Self {
        let backends: BTreeSet<SocketAddr> = backends.into_iter().collect();
        if backends.is_empty() { Verdict::Rejected } else { Verdict::Backends(backends) }
    }
}

/// No dataplane serves SCTP yet, so none may claim to.
fn is_served(port: &ServicePort) -> bool {
    port.protocol != Protocol::Sctp
}

/// The usable ones among the copies of endpoints, sorted and each once (EP-09, EP-12, EP-14, EP-15, EP-16).
fn usable(endpoints: impl Iterator<Item = (Address, EndpointState)>) -> Vec<Address> {
    let mut states: Vec<(Address, EndpointState)> = endpoints.collect();
    // Of several copies the greatest state counts: it comes first.
    states.sort_unstable_by(|(a, s), (b, t)| a.cmp(b).then(t.cmp(s)));
    states.dedup_by_key(|(address, _)| *address);
    let any_ready = states.iter().any(|(_, state)| state.is_ready());
    let wanted = |state: EndpointState| if any_ready { state.is_ready() } else { state == EndpointState::Draining };
    states.into_iter().filter(|(_, state)| wanted(*state)).map(|(address, _)| address).collect()
}
