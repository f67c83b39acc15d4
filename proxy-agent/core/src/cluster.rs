//! All Services and EndpointSlices that are known, indexed by what belongs together.

use std::collections::hash_map::Entry as MapEntry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::model::{Change, ObjectName, Service, Slice};

/// Which list an event is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// Services.
    Service,
    /// EndpointSlices.
    Slice,
    /// The agent's own Node.
    Node,
    /// ServiceCIDRs.
    ServiceCidr,
}

/// The Services with their slices. Either may come first (EP-10).
#[derive(Debug, Default)]
pub struct Cluster {
    entries: HashMap<ObjectName, Entry>,
    /// The Service that each slice belongs to: a slice may move to another.
    owners: HashMap<ObjectName, ObjectName>,
    words: Words,
    counts: Counts,
}

/// How many objects there are.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// Services that are served.
    pub services: usize,
    /// EndpointSlices that are used, of whatever Service.
    pub slices: usize,
    /// The endpoints in them.
    pub endpoints: usize,
}

/// What is known of one Service.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Service>,
    /// Few per Service; in the order of arrival, which decides nothing.
    slices: Vec<(ObjectName, Slice)>,
}

impl Cluster {
    /// The Service of this name, if it is to be served.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.entries.get(name)?.service.as_ref()
    }

    /// The slices of this Service.
    pub fn slices(&self, name: &ObjectName) -> impl Iterator<Item = &Slice> {
        self.entries.get(name).into_iter().flat_map(|entry| entry.slices.iter().map(|(_, slice)| slice))
    }

    /// All Services that are to be served, in no order.
    pub fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.entries.iter().filter(|(_, entry)| entry.service.is_some()).map(|(name, _)| name)
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes a change in and adds the Services that it can affect to `touched`. Whether it says anything new: else it touches none.
    pub fn apply(&mut self, mut change: Change, touched: &mut BTreeSet<ObjectName>) -> bool {
        self.words.share(&mut change);
        match change {
            Change::Service(name, service) => {
                let name = self.known(name);
                let entry = self.entries.entry(name.clone()).or_default();
                let is_new = entry.service != service;
                if is_new {
                    self.counts.services += usize::from(service.is_some());
                    self.counts.services -= usize::from(entry.service.is_some());
                    entry.service = service;
                    touched.insert(name.clone());
                }
                self.tidy(&name);
                is_new
            }
            Change::Slice(name, slice) => self.apply_slice(name, slice, touched),
            // What is around the Services is not the cluster's.
            Change::Node(_) | Change::ServiceCidr(..) | Change::HostAddresses(_) => false,
        }
    }

    fn apply_slice(&mut self, name: ObjectName, slice: Option<Slice>, touched: &mut BTreeSet<ObjectName>) -> bool {
        let mut is_new = false;
        let owner = slice.as_ref().map(|s| self.known(s.service.clone()));
        if let Some(former) = self.owners.get(&name).cloned().filter(|former| Some(former) != owner.as_ref()) {
            if let Some(entry) = self.entries.get_mut(&former) {
                let gone = entry.slices.extract_if(.., |(n, _)| *n == name).map(|(_, slice)| slice.endpoints.len());
                self.counts.endpoints -= gone.sum::<usize>();
            }
            is_new = true;
            self.owners.remove(&name);
            self.tidy(&former);
            touched.insert(former);
        }
        let (Some(mut slice), Some(owner)) = (slice, owner) else {
            self.counts.slices = self.owners.len();
            return is_new;
        };
        let endpoints = slice.endpoints.len();
        slice.service = owner.clone();
        let slices = &mut self.entries.entry(owner.clone()).or_default().slices;
        match slices.iter_mut().find(|(n, _)| *n == name) {
            Some((_, known)) if *known == slice => return is_new,
            Some((_, known)) => {
                self.counts.endpoints -= known.endpoints.len();
                *known = slice;
            }
            None => {
                // Most Services have one, and a vector that grows by itself begins with four.
                slices.reserve_exact(1);
                slices.push((name.clone(), slice));
            }
        }
        self.counts.endpoints += endpoints;
        self.owners.insert(name, owner.clone());
        self.counts.slices = self.owners.len();
        touched.insert(owner);
        true
    }

    /// A Service's name in the copy that is kept already: the name comes with the Service and with each of its slices.
    pub fn known(&self, name: ObjectName) -> ObjectName {
        self.entries.get_key_value(&name).map_or(name, |(known, _)| known.clone())
    }

    /// The changes that a complete list implies: everything of `kind` that is not in `listed` is gone.
    pub fn missing_from(&self, kind: Kind, listed: &HashSet<ObjectName>) -> Vec<Change> {
        match kind {
            Kind::Service => {
                let gone = self.services().filter(|name| !listed.contains(*name));
                gone.map(|name| Change::Service(name.clone(), None)).collect()
            }
            Kind::Slice => {
                let gone = self.owners.keys().filter(|name| !listed.contains(*name));
                gone.map(|name| Change::Slice(name.clone(), None)).collect()
            }
            Kind::Node | Kind::ServiceCidr => Vec::new(),
        }
    }

    /// Forgets a name of which nothing is left.
    fn tidy(&mut self, name: &ObjectName) {
        if let MapEntry::Occupied(entry) = self.entries.entry(name.clone())
            && entry.get().service.is_none()
            && entry.get().slices.is_empty()
        {
            entry.remove();
        }
    }
}

/// Words that objects have in common, each held once: namespaces, names of ports, zones.
#[derive(Debug, Default)]
struct Words {
    known: HashSet<Arc<str>>,
    /// When there are so many, those that no object has any more are forgotten.
    limit: usize,
}

impl Words {
    fn share(&mut self, change: &mut Change) {
        match change {
            Change::Service(name, service) => {
                self.word(&mut name.namespace);
                service.iter_mut().flat_map(|s| s.ports.iter_mut()).for_each(|port| self.word(&mut port.name));
            }
            Change::Slice(name, slice) => {
                self.word(&mut name.namespace);
                let Some(slice) = slice else { return };
                self.word(&mut slice.service.namespace);
                slice.ports.iter_mut().for_each(|port| self.word(&mut port.name));
                slice.zones.iter_mut().flatten().for_each(|zone| self.word(zone));
            }
            Change::Node(_) | Change::ServiceCidr(..) | Change::HostAddresses(_) => {}
        }
    }

    fn word(&mut self, word: &mut Arc<str>) {
        if let Some(known) = self.known.get(word) {
            *word = known.clone();
            return;
        }
        if self.known.len() >= self.limit {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.limit = (2 * self.known.len()).max(64);
        }
        self.known.insert(word.clone());
    }
}
