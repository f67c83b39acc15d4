//! What connection tracking remembers, as far as scenarios look at a flow again.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use proxy_core::forward::Forwarding;
use proxy_core::model::{Frontend, ObjectName};
use proxy_core::stale::{Flow, Stale, Tracker};

use super::run::Probe;
use super::{Observed, Seen};

/// The flows that there have been.
#[derive(Debug, Default)]
pub(super) struct Flows {
    tracker: Tracker,
    /// All Services that there have been.
    pub(super) services: BTreeSet<ObjectName>,
    /// The frontends of those that there are.
    served: Vec<Frontend>,
    /// By who sends, from which port, and to what.
    known: BTreeMap<(&'static str, u16, Frontend), Known>,
}

/// Where a flow may be, and whom it is seen to come from.
#[derive(Debug)]
struct Known {
    answered_by: BTreeSet<SocketAddr>,
    seen: Seen,
}

impl Flows {
    /// An agent starts: it finds what the one before has served.
    pub(super) fn restart(&mut self) {
        self.tracker = Tracker::new(std::mem::take(&mut self.served));
    }

    /// Ends what has gone stale.
    pub(super) fn follow(&mut self, forwarding: &Forwarding) {
        let mut stale = Stale::default();
        stale.hear(self.tracker.follow(forwarding, &self.services, false));
        for ((_, _, to), known) in &mut self.known {
            known.answered_by.retain(|server| !stale.is_stale(&Flow { to: *to, answered_by: (*server).into() }));
        }
        self.known.retain(|_, known| !known.answered_by.is_empty());
        let entries = self.services.iter().flat_map(|name| forwarding.routes(name)).flat_map(|route| route.entries);
        self.served = entries.map(|entry| entry.frontend).collect();
    }

    /// What becomes of the next packet of a flow: `decide` says so of a new one.
    pub(super) fn observe(&mut self, (source, expectation): &Probe, decide: impl FnOnce() -> Observed) -> Observed {
        let (Some(port), Some(protocol)) = (expectation.source_port, expectation.protocol) else { return decide() };
        let destination = expectation.destination;
        let to = Frontend { ip: destination.ip(), port: destination.port(), protocol };
        let key = (source.name, port, to);
        let known = match self.known.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let (answered_by, seen) = match decide() {
                    Observed::Backends { backends, seen, .. } => (backends, seen),
                    Observed::Untouched => (BTreeSet::from([destination]), Seen::Own),
                    // Nothing remembers a packet that is stopped.
                    other => return other,
                };
                new.insert(Known { answered_by, seen })
            }
        };
        match known {
            Known { answered_by, .. } if answered_by.contains(&destination) => Observed::Untouched,
            Known { answered_by, seen } => Observed::Backends { backends: answered_by.clone(), evenly: true, sticky: true, seen: *seen },
        }
    }
}
