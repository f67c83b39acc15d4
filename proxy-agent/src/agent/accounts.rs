//! What the loop tells of itself: to health, to metrics, and to who asks about a Service.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use proxy_core::cluster::Kind;
use proxy_core::forward::{Forwarding, Shortage};
use proxy_core::model::{Change, Family, ObjectName};

use crate::metrics::Changed;
use crate::programmed::Versions;
use crate::source::Trigger;
use crate::telemetry::Telemetry;

/// The accounts of the loop.
pub(super) struct Accounts {
    pub(super) telemetry: Telemetry,
    pub(super) versions: Versions,
    started: SystemTime,
    /// Something of the family is not programmed yet.
    open: [bool; 2],
    /// When what is not programmed yet was changed.
    triggers: [Vec<SystemTime>; 2],
    /// Services that lack a backend on this node, in either family: few have a policy that demands one.
    short: HashMap<ObjectName, [Shortage; 2]>,
    shortage: [Shortage; 2],
}

/// The place of a family in the arrays here.
const fn place(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

impl Accounts {
    pub(super) fn new(telemetry: Telemetry) -> Self {
        Self {
            telemetry,
            versions: Versions::default(),
            started: SystemTime::now(),
            open: [false; 2],
            triggers: Default::default(),
            short: HashMap::new(),
            shortage: Default::default(),
        }
    }

    /// A change says something new.
    pub(super) fn changed(&self, what: Option<Changed>) {
        if let Some(what) = what {
            self.telemetry.metrics.syncs.changed(what);
        }
    }

    /// MET-06: what was changed before the agent's start has waited for that, not for the agent.
    pub(super) fn triggered(&mut self, Trigger { family, at }: Trigger) {
        if at > self.started {
            self.triggers[place(family)].push(at);
        }
    }

    /// A sync begins, of what these Services want now.
    pub(super) fn begin(&mut self, forwarding: &Forwarding, touched: &BTreeSet<ObjectName>) {
        for family in Family::ALL {
            self.wait(family);
            self.telemetry.metrics.syncs.queued(family);
        }
        touched.iter().for_each(|name| self.recount(forwarding, name));
        for family in Family::ALL {
            self.telemetry.metrics.syncs.shortage(family, self.shortage[place(family)]);
        }
        self.telemetry.metrics.dataplanes.to_serve(forwarding.counts(), forwarding.frontend_count());
    }

    /// MET-07
    fn recount(&mut self, forwarding: &Forwarding, name: &ObjectName) {
        let before = self.short.remove(name).unwrap_or_default();
        let after = Family::ALL.map(|family| forwarding.shortage(name, family));
        for (sum, (before, after)) in self.shortage.iter_mut().zip(before.into_iter().zip(after)) {
            sum.internal = sum.internal + after.internal - before.internal;
            sum.external = sum.external + after.external - before.external;
        }
        if after != <[Shortage; 2]>::default() {
            self.short.insert(name.clone(), after);
        }
    }

    /// Something of a family is not programmed.
    fn wait(&mut self, family: Family) {
        self.open[place(family)] = true;
        self.telemetry.health.waits(family);
    }

    /// Dataplanes have taken so long for each family, of which `is_full` were to be written in full.
    pub(super) fn took(&self, durations: [Duration; 2], is_full: bool) {
        for family in Family::ALL {
            let duration = durations[place(family)];
            if !duration.is_zero() {
                self.telemetry.metrics.syncs.took(family, duration, is_full);
            }
        }
    }

    /// A round of the loop has ended. `is_down`: whether a dataplane of the family has not written what is wanted.
    pub(super) fn settle(&mut self, forwarding: &Forwarding, is_down: impl Fn(Family) -> bool) {
        self.telemetry.health.node(forwarding.surroundings().node());
        let down = Family::ALL.map(is_down);
        for family in Family::ALL {
            if down[place(family)] {
                self.wait(family);
            } else if std::mem::take(&mut self.open[place(family)]) {
                self.telemetry.health.synced(family);
                self.telemetry.metrics.syncs.synced(family);
                for changed in std::mem::take(&mut self.triggers[place(family)]) {
                    self.telemetry.metrics.syncs.programmed(family, changed);
                }
            }
        }
        if down == [false; 2] {
            self.telemetry.metrics.syncs.nothing_pending();
            self.versions.settle();
        }
    }

    /// Everything of a kind has been taken in up to this version.
    pub(super) fn reached(&mut self, kind: Kind, version: String) {
        self.versions.take(kind, version);
    }
}

/// What is counted of a change, if anything is.
pub(super) fn counted(change: &Change) -> Option<Changed> {
    match change {
        Change::Service(..) => Some(Changed::Service),
        Change::Slice(..) => Some(Changed::Endpoints),
        Change::Node(_) | Change::ServiceCidr(..) | Change::HostAddresses(_) => None,
    }
}
