//! Which flows have gone stale (CT): connection tracking sends every packet of a flow where its first one was sent, also when nobody
//! is there any more, or nobody was then.
//!
//! [`Tracker`] follows Services and says what to look for when flows may have gone stale, as [`Stale`]: frontends with what may go on
//! there. Looking takes a while, during which Services change again: so it [hears](Stale::hear) of what may go on elsewhere now too.
//! A flow to any other destination is not ours and never stale.
//!
//! | `removed-endpoints` | TCP | UDP, SCTP |
//! |---|---|---|
//! | not said | goes on | goes on while the endpoint serves |
//! | `keep` | goes on | goes on |
//! | `drain` | goes on while the endpoint serves | the same |
//! | `reset` | goes on while the endpoint is in a set that is in use | the same |
//!
//! Where the frontend itself is gone, `keep` leaves all flows alone, and otherwise TCP alone goes on. TCP is cut only where whoever
//! sends is told so: not where what is new is dropped without a word.
//!
//! A flow that was never translated goes on nowhere: its destination was not served when it began (CT-04).

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::forward::Forwarding;
use crate::model::{Address, Family, Frontend, ObjectName, Protocol, RemovedEndpoints};
use crate::route::{Route, Treatment};

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
    /// Whatever there is.
    Everything,
}

impl Keep {
    fn keeps(&self, flow: &Flow) -> bool {
        match self {
            Keep::To(endpoints) => endpoints.binary_search(&flow.answered_by).is_ok(),
            Keep::Translated => flow.answered_by != Address { ip: flow.to.ip, port: flow.to.port },
            Keep::Everything => true,
        }
    }

    /// Whether there may be a flow that could go on before and cannot now.
    fn is_stricter(&self, before: &Keep) -> bool {
        match (before, self) {
            (Keep::To(before), Keep::To(now)) => before.iter().any(|endpoint| now.binary_search(endpoint).is_err()),
            (Keep::To(_), Keep::Translated) => false,
            (Keep::Translated | Keep::Everything, Keep::To(_)) | (Keep::Everything, Keep::Translated) => true,
            (Keep::Translated, Keep::Translated) | (_, Keep::Everything) => false,
        }
    }
}

/// Where flows may have gone stale: frontends with what may go on there. NodePorts are there by address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Stale {
    rules: HashMap<Frontend, Rule>,
    /// How often there has been news.
    heard: u64,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Rule {
    keep: Keep,
    /// With which news it came.
    since: u64,
}

impl Stale {
    /// Whether a flow is ours and must end.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        self.rules.get(&flow.to).is_some_and(|rule| !rule.keep.keeps(flow))
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// How many frontends are looked at.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Takes in what has changed since.
    pub fn hear(&mut self, news: News) {
        self.heard += 1;
        for (frontend, keep) in news.eased {
            self.rules.entry(frontend).and_modify(|rule| rule.keep = keep);
        }
        let since = self.heard;
        self.rules.extend(news.stale.rules.into_iter().map(|(frontend, rule)| (frontend, Rule { since, ..rule })));
    }

    /// How often there has been news, for [`done`](Self::done).
    pub fn heard(&self) -> u64 {
        self.heard
    }

    /// All flows of this family and protocol have been looked at since so much had been heard.
    pub fn done(&mut self, family: Family, protocol: Protocol, heard: u64) {
        self.rules.retain(|frontend, rule| frontend.family() != family || frontend.protocol != protocol || rule.since > heard);
    }

    /// The families and protocols of the frontends, each with the address that all of its frontends have, if it is one.
    pub fn kinds(&self) -> BTreeMap<(Family, Protocol), Option<IpAddr>> {
        let mut kinds = BTreeMap::new();
        for frontend in self.rules.keys() {
            let common = kinds.entry((frontend.family(), frontend.protocol)).or_insert(Some(frontend.ip));
            *common = common.filter(|ip| *ip == frontend.ip);
        }
        kinds
    }
}

/// What a change means to flows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct News {
    /// Where they may have gone stale.
    pub stale: Stale,
    /// What may go on at other frontends now, where nothing has gone stale: of use to who is still looking there.
    eased: HashMap<Frontend, Keep>,
}

impl News {
    /// Whether nothing has changed for flows.
    pub fn is_empty(&self) -> bool {
        self.stale.is_empty() && self.eased.is_empty()
    }
}

/// A port of a Service in one family whose flows may go stale.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Port {
    frontends: Box<[Frontend]>,
    keep: Keep,
    /// Nobody is there to translate to: what is addressed to it is not.
    is_deserted: bool,
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
    /// the first time that they are followed. `looking`: somebody has not done yet with what was found earlier, and has to hear of
    /// flows that go on whatever happens as well.
    pub fn follow(&mut self, forwarding: &Forwarding, services: &BTreeSet<ObjectName>, looking: bool) -> News {
        let mut found = Finder { forwarding, addresses: HashMap::new(), news: News::default() };
        for frontend in std::mem::take(&mut self.programmed) {
            found.gone(frontend);
        }
        for name in services {
            let now = ports(forwarding, name);
            let before = self.known.remove(name).unwrap_or_default();
            found.changed(&before, &now);
            if looking {
                found.lasting(name, &now);
            }
            if !now.is_empty() {
                self.known.insert(name.clone(), now.into());
            }
        }
        found.news
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
    let mut routes = forwarding.routes(name);
    for route in &mut routes {
        let (protocol, lacks_local) = (route.key.protocol, route.local.is_empty());
        route.entries.retain(|entry| is_tracked(protocol) && (protocol != Protocol::Tcp || tells(entry.treatment, lacks_local)));
    }
    let routes = routes.into_iter().filter(|route| !route.entries.is_empty());
    routes
        .map(|route| Port {
            keep: match service.removed {
                RemovedEndpoints::Keep => Keep::Translated,
                RemovedEndpoints::Reset => Keep::To(in_use(&route).into()),
                RemovedEndpoints::AsUsual | RemovedEndpoints::Drain => Keep::To(serving(&route).into()),
            },
            is_deserted: route.cluster.is_empty() && route.local.is_empty(),
            frontends: route.entries.iter().map(|entry| entry.frontend).collect(),
        })
        .collect()
}

/// Whether everybody whose TCP connection is cut is told so: by an endpoint that does not know it, or because it is refused.
fn tells(treatment: Treatment, lacks_local: bool) -> bool {
    match treatment {
        Treatment::To(..) | Treatment::Rejected => true,
        Treatment::BySource => !lacks_local,
        Treatment::Dropped => false,
    }
}

fn in_use(route: &Route) -> Vec<Address> {
    route.cluster.iter().chain(&route.local).copied().collect::<BTreeSet<_>>().into_iter().collect()
}

/// Collects what has changed.
struct Finder<'a> {
    forwarding: &'a Forwarding,
    /// Addresses that serve NodePorts.
    addresses: HashMap<Family, BTreeSet<IpAddr>>,
    news: News,
}

impl Finder<'_> {
    fn changed(&mut self, before: &[Port], now: &[Port]) {
        for (port, frontend) in each(now) {
            match with(frontend, before) {
                Some(before) if !port.keep.is_stricter(&before.keep) && port.is_deserted >= before.is_deserted => {
                    if port.keep != before.keep {
                        self.ease(*frontend, &port.keep);
                    }
                }
                _ => self.look(*frontend, &port.keep),
            }
        }
        for (port, frontend) in each(before).filter(|(_, frontend)| with(frontend, now).is_none()) {
            if port.keep != Keep::Translated {
                self.gone(*frontend);
            }
        }
    }

    /// The frontends of a Service whose flows go on whatever happens.
    fn lasting(&mut self, name: &ObjectName, now: &[Port]) {
        for entry in self.forwarding.routes(name).into_iter().flat_map(|route| route.entries) {
            if with(&entry.frontend, now).is_none() {
                self.ease(entry.frontend, &Keep::Everything);
            }
        }
    }

    /// Nothing goes on at a frontend that is nobody's but TCP, of which nobody would tell the client that it has been cut. What has
    /// become another Service's is looked at with that.
    fn gone(&mut self, frontend: Frontend) {
        if frontend.protocol != Protocol::Tcp && self.forwarding.owner(&frontend).is_none() {
            self.look(frontend, &Keep::To([].into()));
        }
    }

    fn look(&mut self, frontend: Frontend, keep: &Keep) {
        let rule = || Rule { keep: keep.clone(), since: 0 };
        for at in self.places(frontend) {
            if at == frontend {
                self.news.stale.rules.insert(at, rule());
            } else {
                self.news.stale.rules.entry(at).or_insert_with(rule);
            }
        }
    }

    /// What has gone stale counts, whichever Service is looked at first.
    fn ease(&mut self, frontend: Frontend, keep: &Keep) {
        for at in self.places(frontend) {
            self.news.eased.insert(at, keep.clone());
        }
    }

    /// The frontend; a NodePort at each of its addresses.
    fn places(&mut self, frontend: Frontend) -> Vec<Frontend> {
        if !frontend.is_node_port() {
            return vec![frontend];
        }
        let (forwarding, family) = (self.forwarding, frontend.family());
        let addresses = self.addresses.entry(family).or_insert_with(|| forwarding.surroundings().node_port_addresses(family));
        // TP-10: what a Service has at that very address is no NodePort.
        addresses.iter().map(|ip| Frontend { ip: *ip, ..frontend }).filter(|at| forwarding.owner(at).is_none()).collect()
    }
}

fn each(ports: &[Port]) -> impl Iterator<Item = (&Port, &Frontend)> {
    ports.iter().flat_map(|port| port.frontends.iter().map(move |frontend| (port, frontend)))
}

fn with<'a>(frontend: &Frontend, ports: &'a [Port]) -> Option<&'a Port> {
    ports.iter().find(|port| port.frontends.contains(frontend))
}
