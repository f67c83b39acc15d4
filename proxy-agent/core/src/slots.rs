//! Which backend sits in which slot of its Service port. Slots have history: a removed backend's slot goes to a new backend,
//! else to the last one, so that a change is a handful of objects whatever the number of backends.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::model::{Frontend, ObjectName};

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
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seat {
    /// The number of this Service port and frontend in the kernel, never 0. A number that was given up is not soon given again.
    pub id: u32,
    /// The backend in each slot.
    pub slots: Vec<SocketAddr>,
}

/// All slots.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Slots {
    services: HashMap<ObjectName, Vec<(PortKey, Seat)>>,
    ids: HashSet<u32>,
    last_id: u32,
}

/// What was observed in the kernel of one Service port: its number and the backend in each slot.
pub type Observed = (u32, BTreeMap<u32, SocketAddr>);

impl Slots {
    /// Seats the backends (each once) of all ports of a Service, changed as little as possible from where they were. The seats
    /// come in the order of `ports`; those of other ports of the Service are given up.
    pub fn seat(&mut self, service: &ObjectName, ports: &[(PortKey, &[SocketAddr])]) -> &[(PortKey, Seat)] {
        let former = self.services.remove(service).unwrap_or_default();
        let mut former: HashMap<PortKey, Seat> = former.into_iter().collect();
        let mut seats = Vec::with_capacity(ports.len());
        for (key, backends) in ports {
            let mut seat = former.remove(key).unwrap_or_else(|| Seat { id: self.new_id(), slots: Vec::new() });
            reseat(&mut seat.slots, backends);
            seats.push((key.clone(), seat));
        }
        for seat in former.values() {
            self.ids.remove(&seat.id);
        }
        if seats.is_empty() {
            return &[];
        }
        self.services.entry(service.clone()).insert_entry(seats).into_mut()
    }

    /// Takes over what was observed in the kernel. Gaps close; a number that was observed twice stays with the first.
    pub fn restore(&mut self, observed: BTreeMap<(ObjectName, PortKey), Observed>) {
        for ((service, key), (id, slots)) in observed {
            self.last_id = self.last_id.max(id);
            if id != 0 && self.ids.insert(id) {
                let mut seen = HashSet::new();
                let slots = slots.into_values().filter(|backend| seen.insert(*backend)).collect();
                self.services.entry(service).or_default().push((key, Seat { id, slots }));
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

fn reseat(slots: &mut Vec<SocketAddr>, backends: &[SocketAddr]) {
    let wanted: HashSet<SocketAddr> = backends.iter().copied().collect();
    let seated: HashSet<SocketAddr> = slots.iter().copied().collect();
    let mut newcomers = backends.iter().copied().filter(|b| !seated.contains(b));
    let mut i = 0;
    while i < slots.len() {
        if wanted.contains(&slots[i]) {
            i += 1;
        } else if let Some(newcomer) = newcomers.next() {
            slots[i] = newcomer;
            i += 1;
        } else {
            // The one that moves in is looked at next: it may have to go as well.
            slots.swap_remove(i);
        }
    }
    slots.extend(newcomers);
}
