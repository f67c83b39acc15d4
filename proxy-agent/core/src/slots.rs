//! Which backend sits in which slot of its Service port. Slots have history: a removed backend's slot goes to a new backend,
//! else to the last one, so that a change is a handful of objects whatever the number of backends.
//!
//! This is also all that is remembered of what a Service was given: what a dataplane holds for it follows from its [`Seat`]s.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::model::{Address, Frontend, ObjectName};

/// A frontend of a port of a Service. Were a number shared by frontends, one that goes to another number or Service would meet
/// the backends that its former number is given in the same change.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PortKey {
    /// Name of the port.
    pub name: Arc<str>,
    /// The frontend.
    pub frontend: Frontend,
}

/// The slots of one frontend of a Service port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seat {
    /// Whose they are.
    pub key: PortKey,
    /// The number of this Service port and frontend in the kernel, never 0. A number that was given up is not soon given again.
    pub id: u32,
    /// The backend in each slot.
    pub slots: Box<[Address]>,
}

/// All slots.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Slots {
    services: HashMap<ObjectName, Box<[Seat]>>,
    /// Seats that were observed in the kernel and that their Service has not been asked about yet.
    found: HashMap<ObjectName, Vec<Seat>>,
    ids: HashSet<u32>,
    last_id: u32,
}

/// What was observed in the kernel of one Service port: its number and the backend in each slot.
pub type Observed = (u32, BTreeMap<u32, Address>);

impl Slots {
    /// Seats the backends (sorted, each once) of all ports of a Service, changed as little as possible from where they were. The
    /// seats come in the order of `ports`; those of other ports of the Service are given up. Returns the seats that it had before.
    pub fn seat(&mut self, service: &ObjectName, ports: Vec<(PortKey, Vec<Address>)>) -> Box<[Seat]> {
        let before = self.services.remove(service).unwrap_or_default();
        let found = self.found.remove(service).unwrap_or_default();
        let former = || before.iter().chain(&found);
        let mut seats = Vec::with_capacity(ports.len());
        for (key, backends) in ports {
            // Few per Service: looked for one by one.
            seats.push(match former().find(|seat| seat.key == key) {
                Some(Seat { id, slots, .. }) => Seat { key, id: *id, slots: reseat(slots, backends) },
                None => Seat { key, id: self.new_id(), slots: backends.into() },
            });
        }
        for seat in former() {
            if seats.iter().all(|kept| kept.id != seat.id) {
                self.ids.remove(&seat.id);
            }
        }
        if !seats.is_empty() {
            self.services.insert(service.clone(), seats.into());
        }
        before
    }

    /// The seats of a Service.
    pub fn of(&self, service: &ObjectName) -> &[Seat] {
        self.services.get(service).map_or(&[], |seats| seats)
    }

    /// All Services that have seats, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (&ObjectName, &[Seat])> {
        self.services.iter().map(|(service, seats)| (service, &**seats))
    }

    /// Takes over what was observed in the kernel. Gaps close; a number that was observed twice stays with the first.
    pub fn restore(&mut self, observed: BTreeMap<(ObjectName, PortKey), Observed>) {
        for ((service, key), (id, slots)) in observed {
            self.last_id = self.last_id.max(id);
            if id != 0 && self.ids.insert(id) {
                let mut seen = HashSet::new();
                let slots = slots.into_values().filter(|backend| seen.insert(*backend)).collect();
                self.found.entry(service).or_default().push(Seat { key, id, slots });
            }
        }
    }

    /// 0 stays free so that a zeroed record names no Service. Numbers in use are passed over: whatever was observed, the highest
    /// number included, two Services never share one.
    fn new_id(&mut self) -> u32 {
        loop {
            self.last_id = self.last_id.checked_add(1).unwrap_or(1);
            if self.ids.insert(self.last_id) {
                return self.last_id;
            }
        }
    }
}

/// The backends (sorted, each once), each in the slot that it has in `slots` if it has one.
fn reseat(slots: &[Address], backends: Vec<Address>) -> Box<[Address]> {
    let mut seated = vec![false; backends.len()];
    let mut stays = Vec::with_capacity(slots.len());
    for slot in slots {
        let place = backends.binary_search(slot).ok();
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
