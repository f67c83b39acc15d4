//! Which flows have gone stale (CT): connection tracking sends every packet of a flow where its first one was sent, also when nobody
//! is there any more, or nobody was then.
//!
//! [`Tracker`] follows Services and says what to look for when flows may have gone stale, as [`Stale`]: frontends with what may go on
//! there. A flow to any other destination is not ours and never stale.
//!
//! | `removed-endpoints` | TCP | UDP, SCTP |
//! |---|---|---|
//! | not said | goes on | goes on while the endpoint serves |
//! | `keep` | goes on | goes on |
//! | `drain` | goes on while the endpoint serves | the same |
//! | `reset` | goes on while the endpoint is in a set that is in use | the same |
//!
//! A flow that was never translated goes on nowhere: its destination was not served when it began (CT-04).

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::forward::Forwarding;
use crate::model::{Address, Family, Frontend, ObjectName, Protocol, RemovedEndpoints};
use crate::route::Route;

/// A flow as connection tracking remembers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Flow {
    /// What it was addressed to at first.
    pub to: Frontend,
    /// Who answers.
    pub answered_by: Address,
}

/// What may go on at a frontend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Keep {
    /// What one of these answers; sorted.
    To(Arc<[Address]>),
    /// Whatever was translated.
    Translated,
}

impl Keep {
    fn keeps(&self, flow: &Flow) -> bool {
        match self {
            Keep::To(endpoints) => endpoints.binary_search(&flow.answered_by).is_ok(),
            Keep::Translated => flow.answered_by != Address { ip: flow.to.ip, port: flow.to.port },
        }
    }

    /// Whether a flow that could go on before may be stale now, or one to nobody may be served now.
    fn follows(&self, before: &Keep) -> bool {
        match (before, self) {
            (Keep::To(before), Keep::To(now)) => {
                let all_stay = || before.iter().all(|endpoint| now.binary_search(endpoint).is_ok());
                before != now && (before.is_empty() || !all_stay())
            }
            (Keep::Translated, Keep::To(_)) => true,
            (Keep::To(before), Keep::Translated) => before.is_empty(),
            (Keep::Translated, Keep::Translated) => false,
        }
    }
}

/// Where flows may have gone stale: frontends with what may go on there. NodePorts are there by address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stale(HashMap<Frontend, Keep>);

impl Stale {
    /// Whether a flow is ours and must end.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        self.0.get(&flow.to).is_some_and(|keep| !keep.keeps(flow))
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many frontends are looked at.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What was found later counts.
    pub fn merge(&mut self, later: Self) {
        self.0.extend(later.0);
    }

    /// The families and protocols of the frontends, each with the address that all of its frontends have, if it is one.
    pub fn kinds(&self) -> BTreeMap<(Family, Protocol), Option<IpAddr>> {
        let mut kinds = BTreeMap::new();
        for frontend in self.0.keys() {
            let common = kinds.entry((frontend.family(), frontend.protocol)).or_insert(Some(frontend.ip));
            *common = common.filter(|ip| *ip == frontend.ip);
        }
        kinds
    }

    /// What of it is of this family and protocol.
    pub fn of(&self, family: Family, protocol: Protocol) -> Self {
        let of_kind = self.0.iter().filter(|(frontend, _)| frontend.family() == family && frontend.protocol == protocol);
        Self(of_kind.map(|(frontend, keep)| (*frontend, keep.clone())).collect())
    }
}

/// A port of a Service in one family whose flows may go stale.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Port {
    frontends: Box<[Frontend]>,
    keep: Keep,
}

/// Remembers what the Services were, as far as it takes to tell which flows a change may have made stale (CT-02): nothing of those
/// whose flows go on whatever happens.
#[derive(Debug, Default)]
pub struct Tracker {
    known: HashMap<ObjectName, Box<[Port]>>,
    /// Frontends that an agent before has programmed, until Services are followed for the first time.
    programmed: Vec<Frontend>,
}

impl Tracker {
    /// Nothing is known but the frontends that an agent before has left: of those that are nobody's any more the flows are stale.
    pub fn new(programmed: Vec<Frontend>) -> Self {
        Self { known: HashMap::new(), programmed }
    }

    /// Takes in what these Services are now. Where their flows, or those of Services that are gone, may have gone stale; everywhere,
    /// the first time that they are followed.
    pub fn follow(&mut self, forwarding: &Forwarding, services: &BTreeSet<ObjectName>) -> Stale {
        let mut found = Finder { forwarding, addresses: HashMap::new(), stale: Stale::default() };
        for frontend in std::mem::take(&mut self.programmed) {
            if frontend.protocol != Protocol::Tcp {
                found.gone(frontend);
            }
        }
        for name in services {
            let now = ports(forwarding, name);
            let before = self.known.remove(name).unwrap_or_default();
            found.changed(&before, &now);
            if !now.is_empty() {
                self.known.insert(name.clone(), now.into());
            }
        }
        found.stale
    }
}

/// The ports of a Service whose flows may go stale.
fn ports(forwarding: &Forwarding, name: &ObjectName) -> Vec<Port> {
    let Some(service) = forwarding.service(name) else { return Vec::new() };
    let is_tracked = |protocol| service.removed.cuts() || protocol != Protocol::Tcp;
    if !service.ports.iter().any(|port| is_tracked(port.protocol)) {
        return Vec::new();
    }
    let serving = |route: &Route| {
        let port = service.ports.iter().find(|port| port.name == route.key.name && port.protocol == route.key.protocol);
        port.map_or_else(Vec::new, |port| forwarding.serving(name, port, route.key.family))
    };
    let routes = forwarding.routes(name).into_iter().filter(|route| is_tracked(route.key.protocol) && !route.entries.is_empty());
    routes
        .map(|route| Port {
            keep: match service.removed {
                RemovedEndpoints::Keep => Keep::Translated,
                RemovedEndpoints::Reset => Keep::To(in_use(&route).into()),
                RemovedEndpoints::AsUsual | RemovedEndpoints::Drain => Keep::To(serving(&route).into()),
            },
            frontends: route.entries.iter().map(|entry| entry.frontend).collect(),
        })
        .collect()
}

fn in_use(route: &Route) -> Vec<Address> {
    route.cluster.iter().chain(&route.local).copied().collect::<BTreeSet<_>>().into_iter().collect()
}

/// Collects where to look.
struct Finder<'a> {
    forwarding: &'a Forwarding,
    /// Addresses that serve NodePorts.
    addresses: HashMap<Family, BTreeSet<IpAddr>>,
    stale: Stale,
}

impl Finder<'_> {
    fn changed(&mut self, before: &[Port], now: &[Port]) {
        let known = |frontend: &Frontend, ports: &[Port]| -> Option<Keep> {
            ports.iter().find(|port| port.frontends.contains(frontend)).map(|port| port.keep.clone())
        };
        for (port, frontend) in each(now) {
            if known(frontend, before).is_none_or(|before| port.keep.follows(&before)) {
                self.look(*frontend, &port.keep);
            }
        }
        for (port, frontend) in each(before) {
            if port.keep != Keep::Translated && known(frontend, now).is_none() {
                self.gone(*frontend);
            }
        }
    }

    /// Nothing goes on at a frontend that is nobody's. What has become another Service's is looked at with that.
    fn gone(&mut self, frontend: Frontend) {
        if self.forwarding.owner(&frontend).is_none() {
            self.look(frontend, &Keep::To([].into()));
        }
    }

    fn look(&mut self, frontend: Frontend, keep: &Keep) {
        if !frontend.is_node_port() {
            self.stale.0.insert(frontend, keep.clone());
            return;
        }
        let (forwarding, family) = (self.forwarding, frontend.family());
        let addresses = self.addresses.entry(family).or_insert_with(|| forwarding.surroundings().node_port_addresses(family));
        for ip in addresses.iter() {
            let at = Frontend { ip: *ip, ..frontend };
            // TP-10: what a Service has at that very address is no NodePort.
            if forwarding.owner(&at).is_none() {
                self.stale.0.entry(at).or_insert_with(|| keep.clone());
            }
        }
    }
}

fn each(ports: &[Port]) -> impl Iterator<Item = (&Port, &Frontend)> {
    ports.iter().flat_map(|port| port.frontends.iter().map(move |frontend| (port, frontend)))
}
