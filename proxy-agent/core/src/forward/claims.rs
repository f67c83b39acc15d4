//! Which Service has a frontend. Nearly always one claims it; of several the first by name wins, whatever the order of arrival.

use std::collections::{BTreeSet, HashMap};

use crate::model::{Frontend, ObjectName};

/// The Services that claim each frontend.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<Frontend, Claimants>);

/// Sorted.
#[derive(Debug)]
enum Claimants {
    One(ObjectName),
    Many(Vec<ObjectName>),
}

impl Claimants {
    fn names(&self) -> &[ObjectName] {
        match self {
            Claimants::One(name) => std::slice::from_ref(name),
            Claimants::Many(names) => names,
        }
    }
}

impl Claims {
    /// How many frontends are claimed.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whose it is.
    pub(super) fn winner(&self, frontend: &Frontend) -> Option<&ObjectName> {
        self.0.get(frontend)?.names().first()
    }

    /// Only who wins matters to routes: however many Services claim a frontend, at most two are touched.
    pub(super) fn take(&mut self, frontend: Frontend, name: &ObjectName, touched: &mut BTreeSet<ObjectName>) {
        let mut names = self.0.remove(&frontend).map_or_else(Vec::new, |claims| claims.names().to_vec());
        if let Err(place) = names.binary_search(name) {
            names.insert(place, name.clone());
            if place == 0 {
                touched.extend(names.iter().take(2).cloned());
            }
        }
        self.put(frontend, names);
    }

    /// The next one, if there is one, has it now.
    pub(super) fn give_up(&mut self, frontend: &Frontend, name: &ObjectName, touched: &mut BTreeSet<ObjectName>) {
        let Some(claims) = self.0.remove(frontend) else { return };
        let mut names = claims.names().to_vec();
        if let Ok(place) = names.binary_search(name) {
            names.remove(place);
            if place == 0 {
                touched.extend(names.first().cloned());
            }
        }
        self.put(*frontend, names);
    }

    fn put(&mut self, frontend: Frontend, mut names: Vec<ObjectName>) {
        let claims = match names.len() {
            0 => return,
            1 => Claimants::One(names.remove(0)),
            _ => Claimants::Many(names),
        };
        self.0.insert(frontend, claims);
    }
}
