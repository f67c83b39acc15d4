//! How many connections each Service port has led to an endpoint: from counts of frontends, as the kernel has them, to counters of
//! Service ports, no more of them than are wanted.
//!
//! The kernel counts by frontend, in several places: whoever reads it hands in all counts ([`Connections::take_in`]), of which the
//! growth since the last reading goes to the Service port that has the frontend. What the kernel has counted before the first reading
//! is taken over, so that a restart goes on from it.
//!
//! A frontend that a Service port gives up has its last growth counted, and is named to be forgotten: whoever has the address next
//! begins anew.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::forward::Forwarding;
use crate::model::{Family, Frontend, ObjectName, Protocol};

/// A Service port in one family: what is counted together.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Port {
    /// The Service.
    pub service: ObjectName,
    /// The number of the port, as clients of the ClusterIP use it.
    pub number: u16,
    /// Its protocol.
    pub protocol: Protocol,
    /// The family of the frontends.
    pub family: Family,
}

/// A count in the kernel: the number of what has counted it, and the frontend.
pub type Place = (usize, Frontend);

/// The frontends of a Service, with their ports.
type Served = Box<[(Frontend, Arc<Port>)]>;

/// The counters of all Service ports.
#[derive(Debug)]
pub struct Connections {
    /// So many Service ports have a series at most.
    most: usize,
    accounts: HashMap<Arc<Port>, Account>,
    /// How many accounts have had a connection, and keep their series for that.
    used: usize,
    /// Connections of Service ports without a series, since the start.
    others: u64,
    owners: HashMap<Frontend, Arc<Port>>,
    services: HashMap<ObjectName, Served>,
    /// Frontends that have been given up since they were last forgotten, and by whom.
    given_up: HashMap<Frontend, Arc<Port>>,
    /// What was last read.
    last: HashMap<Place, u64>,
    /// Services have been followed: it is known what nobody has.
    is_followed: bool,
    is_read: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    total: u64,
    /// It has had a connection while there was room for one series more.
    has_series: bool,
}

impl Connections {
    /// Nothing is counted yet. So many Service ports have a series at most.
    pub fn new(most: usize) -> Self {
        Self {
            most,
            accounts: HashMap::new(),
            used: 0,
            others: 0,
            owners: HashMap::new(),
            services: HashMap::new(),
            given_up: HashMap::new(),
            last: HashMap::new(),
            is_followed: false,
            is_read: false,
        }
    }

    /// Takes in who has which frontends now, of Services that may have changed; at first, of all. Whether a frontend has been given
    /// up, so that there may be something to forget.
    pub fn follow(&mut self, forwarding: &Forwarding, services: &BTreeSet<ObjectName>) -> bool {
        let is_first = !std::mem::replace(&mut self.is_followed, true);
        for name in services {
            self.seat(name, forwarding);
        }
        is_first || !self.given_up.is_empty()
    }

    fn seat(&mut self, name: &ObjectName, forwarding: &Forwarding) {
        let served = forwarding.served_at(name);
        let known = self.services.get(name).into_iter().flatten().map(|(frontend, port)| (*frontend, port.number));
        if known.eq(served.iter().copied()) {
            // As after most changes, which are of endpoints.
            return;
        }
        let now: Served = served
            .into_iter()
            .map(|(frontend, number)| {
                let port = Port { service: name.clone(), number, protocol: frontend.protocol, family: frontend.family() };
                (frontend, self.open(port))
            })
            .collect();
        let former = self.services.remove(name).unwrap_or_default();
        for (frontend, port) in &former {
            // Another Service may have it already.
            let is_given_up = self.owners.get(frontend) == Some(port) && now.iter().all(|(kept, _)| kept != frontend);
            if is_given_up {
                self.owners.remove(frontend);
                self.given_up.entry(*frontend).or_insert_with(|| Arc::clone(port));
            }
        }
        for (frontend, port) in &now {
            if let Some(owner) = self.owners.insert(*frontend, Arc::clone(port)).filter(|owner| owner != port) {
                self.given_up.entry(*frontend).or_insert(owner);
            }
        }
        for (_, port) in former.iter().filter(|(_, port)| now.iter().all(|(_, kept)| kept != port)) {
            self.close(port);
        }
        if !now.is_empty() {
            self.services.insert(name.clone(), now);
        }
    }

    /// A Service port is served. It is in memory once.
    fn open(&mut self, port: Port) -> Arc<Port> {
        if let Some((known, _)) = self.accounts.get_key_value(&port) {
            return Arc::clone(known);
        }
        let port = Arc::new(port);
        self.accounts.insert(Arc::clone(&port), Account::default());
        port
    }

    /// A Service port is not served any more; its series is another's.
    fn close(&mut self, port: &Port) {
        if self.accounts.remove(port).is_some_and(|account| account.has_series) {
            self.used -= 1;
        }
    }

    /// Takes in what has been read, as far as it could be read. Before Services have been followed nothing is. Returns what nobody
    /// has, to be forgotten.
    pub fn take_in(&mut self, read: impl IntoIterator<Item = (Place, u64)>) -> Vec<Place> {
        if !self.is_followed {
            return Vec::new();
        }
        let (mut forget, mut growth) = (Vec::new(), HashMap::<&Arc<Port>, u64>::new());
        for (place, count) in read {
            let last = self.last.insert(place, count).unwrap_or(0);
            // One that is smaller has begun anew.
            let more = if count < last { count } else { count - last };
            let owner = match self.given_up.get(&place.1) {
                None => self.owners.get(&place.1),
                former => former,
            };
            if owner.is_none() || self.given_up.contains_key(&place.1) {
                forget.push(place);
            }
            if let Some(owner) = owner.filter(|_| more > 0) {
                *growth.entry(owner).or_default() += more;
            }
        }
        let mut growth: Vec<(Arc<Port>, u64)> = growth.into_iter().map(|(port, more)| (Arc::clone(port), more)).collect();
        // Where there is no room for all, those that have had most come first.
        growth.sort_unstable_by(|(a, more_a), (b, more_b)| more_b.cmp(more_a).then_with(|| a.cmp(b)));
        growth.into_iter().for_each(|(port, more)| self.add(&port, more));
        self.is_read = true;
        let forgotten: BTreeSet<Frontend> = forget.iter().map(|(_, frontend)| *frontend).collect();
        self.given_up.retain(|frontend, _| forgotten.contains(frontend));
        let owners = &self.owners;
        self.last.retain(|(_, frontend), _| owners.contains_key(frontend) || forgotten.contains(frontend));
        forget
    }

    fn add(&mut self, port: &Port, more: u64) {
        // A port that has gone since has no use for it.
        let Some(account) = self.accounts.get_mut(port) else { return };
        if !account.has_series && self.used < self.most {
            account.has_series = true;
            self.used += 1;
        }
        if account.has_series {
            account.total += more;
        } else if self.is_read {
            // What there was at the start may have been in a series of its own then: the sum begins with 0, as a counter may.
            self.others += more;
        }
    }

    /// These are forgotten: what is read there next has begun with 0.
    pub fn forgotten(&mut self, places: &[Place]) {
        for place in places {
            self.last.remove(place);
            self.given_up.remove(&place.1);
        }
    }

    /// The series, in order: all Service ports, if there are no more than may have one, else those that have had a connection while
    /// there was room. Those keep it for as long as they are served.
    pub fn series(&self) -> BTreeMap<&Port, u64> {
        let all = self.accounts.len() <= self.most;
        self.accounts.iter().filter(|(_, account)| all || account.has_series).map(|(port, account)| (&**port, account.total)).collect()
    }

    /// The connections of all other Service ports, if there are any or have been.
    pub fn others(&self) -> Option<u64> {
        (self.accounts.len() > self.most || self.others > 0).then_some(self.others)
    }
}
