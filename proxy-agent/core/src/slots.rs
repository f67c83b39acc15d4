//! Which backend sits in which slot of its Service port. Slots have history: a removed backend's slot goes to a new backend,
//! else to the last one, so that a change is a handful of objects whatever the number of backends.
//!
//! This is also all that is remembered of what a Service was given: what a dataplane holds for it follows from its [`Seat`]s.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use crate::lower::MAX_BACKENDS;
use crate::model::{Address, Frontend, ObjectName};
use crate::route::{Entry, Pool, PortKey, Route};

/// A port of a Service in one family, as it is programmed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seat {
    /// Whose it is.
    pub key: PortKey,
    /// The Service's ClusterIP.
    pub cluster_ip: IpAddr,
    /// The backend in each slot of the Cluster set.
    pub cluster: Box<[Address]>,
    /// The backend in each slot of the Local set.
    pub local: Box<[Address]>,
    /// The addresses of those that are on this node, sorted.
    pub here: Box<[IpAddr]>,
    /// Where clients stay with their backends.
    pub sticky: Option<Box<Sticky>>,
    /// All its flows pass where packets are translated and remembered.
    pub tracked: bool,
    /// Where it is served.
    pub places: Box<[Place]>,
}

/// A frontend of a [`Seat`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// What it does.
    pub entry: Entry,
    /// Its number in the kernel, 0 where frontends have none. A number that was given up is not soon given again. Were one shared
    /// by frontends, one that goes to another port or Service would meet the backends that its former number is given in the
    /// same change.
    pub number: u32,
}

/// What clients stay with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sticky {
    /// For so many seconds since their last new connection.
    pub seconds: u32,
    /// The port's number in the kernel, the same for all its frontends, never 0.
    pub identity: u32,
    /// The number of each backend, never 0, sorted by backend. Numbers are not soon given again, as what clients are pinned to
    /// outlives both.
    pub ids: Box<[(Address, u32)]>,
}

impl Seat {
    /// The backends of a set, in the order of slots.
    pub fn pool(&self, pool: Pool) -> &[Address] {
        match pool {
            Pool::Cluster => &self.cluster,
            Pool::Local => &self.local,
        }
    }
}

impl Sticky {
    /// The number of a backend.
    pub fn id(&self, backend: &Address) -> Option<u32> {
        self.ids.binary_search_by(|(address, _)| address.cmp(backend)).ok().map(|place| self.ids[place].1)
    }
}

/// What was observed in the kernel of one port of a Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    /// Its frontends with their numbers.
    pub numbers: BTreeMap<Frontend, u32>,
    /// The backends of the Cluster set, in the order of slots.
    pub cluster: Vec<Address>,
    /// The backends of the Local set, in the order of slots.
    pub local: Vec<Address>,
    /// Identity, and the numbers of backends, where clients stay with them.
    pub sticky: Option<(u32, BTreeMap<Address, u32>)>,
}

/// All slots.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Slots {
    services: HashMap<ObjectName, Box<[Seat]>>,
    /// What was observed in the kernel of Services that have not been asked about yet.
    found: HashMap<ObjectName, Vec<(PortKey, Observed)>>,
    /// Of frontends; none where frontends have none.
    numbers: Option<Numbers>,
    /// Of ports and backends where clients stay with their backends.
    identities: Numbers,
    ids: Numbers,
}

impl Slots {
    /// No slots yet. `is_numbered`: frontends have numbers.
    pub fn new(is_numbered: bool) -> Self {
        Self { numbers: is_numbered.then(Numbers::default), ..Self::default() }
    }

    /// Seats the backends of all ports of a Service, changed as little as possible from where they were. Ports that have no route
    /// are given up. Returns the seats that it had before.
    pub fn seat(&mut self, service: &ObjectName, routes: Vec<Route>) -> Box<[Seat]> {
        let before = self.services.remove(service).unwrap_or_default();
        let mut found = self.found.remove(service).unwrap_or_default();
        let mut seats = Vec::with_capacity(routes.len());
        for route in routes {
            // Few per Service: looked for one by one.
            let former = match before.iter().find(|seat| seat.key == route.key) {
                Some(seat) => Some(seat.into()),
                None => found.iter().position(|(key, _)| *key == route.key).map(|place| found.swap_remove(place).1),
            };
            seats.push(self.seat_port(route, former.unwrap_or_default()));
        }
        let given_up = before.iter().filter(|seat| seats.iter().all(|kept: &Seat| kept.key != seat.key)).map(Observed::from);
        for former in given_up.chain(found.into_iter().map(|(_, observed)| observed)) {
            self.give_up(former);
        }
        if !seats.is_empty() {
            self.services.insert(service.clone(), seats.into());
        }
        before
    }

    fn seat_port(&mut self, route: Route, mut former: Observed) -> Seat {
        let Route { key, cluster_ip, mut cluster, mut local, here, affinity, tracked, entries } = route;
        cluster.truncate(MAX_BACKENDS);
        local.truncate(MAX_BACKENDS);
        let sticky = affinity.map(|seconds| Box::new(self.sticky(seconds, &cluster, &local, &mut former)));
        let mut place = |entry: Entry| {
            let number = former.numbers.remove(&entry.frontend);
            Place { number: number.or_else(|| Some(self.numbers.as_mut()?.take())).unwrap_or(0), entry }
        };
        let places = entries.into_iter().map(&mut place).collect();
        let (cluster, local) = (reseat(&former.cluster, cluster), reseat(&former.local, local));
        self.give_up(former);
        Seat { key, cluster_ip, cluster, local, here: here.into(), sticky, tracked, places }
    }

    fn sticky(&mut self, seconds: u32, cluster: &[Address], local: &[Address], former: &mut Observed) -> Sticky {
        let (identity, mut known) = former.sticky.take().unwrap_or_else(|| (self.identities.take(), BTreeMap::new()));
        let mut backends: Vec<Address> = cluster.iter().chain(local).copied().collect();
        backends.sort_unstable();
        backends.dedup();
        let ids = &mut self.ids;
        let ids: Box<[_]> = backends.into_iter().map(|b| (b, known.remove(&b).unwrap_or_else(|| ids.take()))).collect();
        known.into_values().for_each(|id| self.ids.give_up(id));
        Sticky { seconds, identity, ids }
    }

    /// What is left of a port's numbers is nobody's.
    fn give_up(&mut self, former: Observed) {
        if let Some(numbers) = &mut self.numbers {
            former.numbers.into_values().for_each(|number| numbers.give_up(number));
        }
        if let Some((identity, ids)) = former.sticky {
            self.identities.give_up(identity);
            ids.into_values().for_each(|id| self.ids.give_up(id));
        }
    }

    /// The seats of a Service.
    pub fn of(&self, service: &ObjectName) -> &[Seat] {
        self.services.get(service).map_or(&[], |seats| seats)
    }

    /// All Services that have seats, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectName, &[Seat])> {
        self.services.iter().map(|(service, seats)| (service, &**seats))
    }

    /// Takes over what was observed in the kernel. A number that was observed twice stays with the first.
    pub fn restore(&mut self, observed: BTreeMap<(ObjectName, PortKey), Observed>) {
        for ((service, key), mut observed) in observed {
            observed.numbers.retain(|_, number| self.numbers.as_mut().is_some_and(|numbers| numbers.claim(*number)));
            let identities = &mut self.identities;
            observed.sticky = observed.sticky.filter(|(identity, _)| identities.claim(*identity));
            if let Some((_, ids)) = &mut observed.sticky {
                ids.retain(|_, id| self.ids.claim(*id));
            }
            self.found.entry(service).or_default().push((key, observed));
        }
    }
}

impl From<&Seat> for Observed {
    fn from(seat: &Seat) -> Self {
        Self {
            numbers: seat.places.iter().filter(|place| place.number != 0).map(|place| (place.entry.frontend, place.number)).collect(),
            cluster: seat.cluster.to_vec(),
            local: seat.local.to_vec(),
            sticky: seat.sticky.as_ref().map(|sticky| (sticky.identity, sticky.ids.iter().copied().collect())),
        }
    }
}

/// Numbers in use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Numbers {
    used: HashSet<u32>,
    last: u32,
}

impl Numbers {
    /// 0 stays free so that a zeroed record names nothing. Numbers in use are passed over: whatever was observed, the highest
    /// number included, two never share one.
    fn take(&mut self) -> u32 {
        loop {
            self.last = self.last.checked_add(1).unwrap_or(1);
            if self.used.insert(self.last) {
                return self.last;
            }
        }
    }

    /// Whether a number that was observed is free.
    fn claim(&mut self, number: u32) -> bool {
        self.last = self.last.max(number);
        number != 0 && self.used.insert(number)
    }

    fn give_up(&mut self, number: u32) {
        self.used.remove(&number);
    }
}

/// The backends (sorted, each once), each in the slot that it has in `slots` if it has one.
fn reseat(slots: &[Address], backends: Vec<Address>) -> Box<[Address]> {
    let mut seated = vec![false; backends.len()];
    let mut stays = Vec::with_capacity(slots.len());
    for slot in slots {
        // A backend that was observed twice stays in its first slot.
        let place = backends.binary_search(slot).ok().filter(|place| !seated[*place]);
        place.iter().for_each(|place| seated[*place] = true);
        stays.push(place.is_some());
    }
    let mut newcomers = backends.iter().zip(&seated).filter(|(_, seated)| !**seated).map(|(backend, _)| *backend);
    let mut slots = slots.to_vec();
    let mut i = 0;
    while i < slots.len() {
        if stays[i] {
            i += 1;
        } else if let Some(newcomer) = newcomers.next() {
            slots[i] = newcomer;
            i += 1;
        } else {
            // The one that moves in is looked at next: it may have to go as well.
            slots.swap_remove(i);
            stays.swap_remove(i);
        }
    }
    slots.extend(newcomers);
    slots.into()
}
