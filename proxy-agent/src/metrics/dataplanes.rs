//! What is programmed, and how long that takes.

use std::collections::BTreeMap;
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use proxy_core::cluster::Counts;
use proxy_core::ledger::Step;

use super::catalogue::{Catalogue, exponential};

/// All dataplanes.
pub struct Dataplanes {
    commits: HistogramVec,
    steps: IntCounterVec,
    objects: IntGaugeVec,
    capacity: IntGaugeVec,
    refused: IntGaugeVec,
    down: IntGaugeVec,
    repairs: IntCounter,
    repaired: IntCounter,
    services: IntGauge,
    slices: IntGauge,
    endpoints: IntGauge,
    frontends: IntGauge,
    mode: IntGaugeVec,
}

/// One dataplane.
pub struct Measured {
    dataplane: String,
    commits: Histogram,
    added: IntCounter,
    replaced: IntCounter,
    deleted: IntCounter,
    objects: IntGaugeVec,
    capacity: IntGaugeVec,
    refused: IntGauge,
    /// The objects of each kind, as they are believed to be there.
    kinds: BTreeMap<&'static str, IntGauge>,
}

impl Dataplanes {
    pub(super) fn new(main: &mut Catalogue) -> Self {
        let (one, kind) = (&["dataplane"], &["dataplane", "kind"]);
        Self {
            commits: main.histograms(
                "proxy_agent_commit_duration_seconds",
                "How long the kernel takes for one change, of one object or many",
                one,
                exponential(0.000_016, 4.0, 12),
            ),
            steps: main.counters(
                "proxy_agent_steps_total",
                "Objects that were added, replaced or deleted in the kernel",
                &["dataplane", "operation"],
            ),
            objects: main.gauges("proxy_agent_objects", "Objects in the kernel, by the set, map or kind that they are in", kind),
            capacity: main.gauges("proxy_agent_map_capacity", "How many objects a map has room for; the others grow", kind),
            refused: main.gauges("proxy_agent_objects_refused", "Objects that the kernel refuses", one),
            down: main.gauges("proxy_agent_dataplane_down", "1 where the last sync failed as a whole and is tried again", one),
            repairs: main.counter("proxy_agent_drift_repairs_total", "How often what somebody else had changed was repaired"),
            repaired: main.counter("proxy_agent_drift_repaired_objects_total", "Objects that were repaired"),
            services: main.gauge("proxy_agent_services", "Services that are served"),
            slices: main.gauge("proxy_agent_endpoint_slices", "EndpointSlices that are used"),
            endpoints: main.gauge("proxy_agent_endpoints", "Endpoints in them, in whatever state"),
            frontends: main.gauge("proxy_agent_frontends", "Addresses and ports on which Services are served"),
            mode: main.gauges("proxy_agent_mode", "1 for the mode that the kernel is programmed in", &["mode"]),
        }
    }

    /// The mode is this.
    pub fn is_in(&self, mode: &str) {
        self.mode.with_label_values(&[mode]).set(1);
    }

    /// One dataplane.
    pub fn measured(&self, dataplane: &str) -> Measured {
        let steps = |operation| self.steps.with_label_values(&[dataplane, operation]);
        self.down(dataplane, false);
        Measured {
            dataplane: dataplane.to_owned(),
            commits: self.commits.with_label_values(&[dataplane]),
            added: steps("add"),
            replaced: steps("replace"),
            deleted: steps("delete"),
            objects: self.objects.clone(),
            capacity: self.capacity.clone(),
            refused: self.refused.with_label_values(&[dataplane]),
            kinds: BTreeMap::new(),
        }
    }

    /// Whether a dataplane's last sync failed as a whole.
    pub fn down(&self, dataplane: &str, is_down: bool) {
        self.down.with_label_values(&[dataplane]).set(is_down.into());
    }

    /// What somebody else had changed is repaired.
    pub fn repaired(&self, objects: usize) {
        if objects > 0 {
            self.repairs.inc();
            self.repaired.inc_by(objects as u64);
        }
    }

    /// How often what somebody else had changed was repaired, and how many objects.
    #[cfg(test)]
    pub fn repairs(&self) -> [u64; 2] {
        [self.repairs.get(), self.repaired.get()]
    }

    /// How much there is to serve.
    pub fn to_serve(&self, Counts { services, slices, endpoints }: Counts, frontends: usize) {
        self.services.set(services as i64);
        self.slices.set(slices as i64);
        self.endpoints.set(endpoints as i64);
        self.frontends.set(frontends as i64);
    }
}

impl Measured {
    /// The kernel has taken so long.
    pub fn committed(&self, duration: Duration) {
        self.commits.observe(duration.as_secs_f64());
    }

    /// A step that was carried out, of an object of this kind.
    pub fn did<K, V>(&mut self, step: &Step<K, V>, kind: &'static str) {
        match step {
            Step::Add(..) => {
                self.added.inc();
                self.kind(kind).inc();
            }
            Step::Replace(..) => self.replaced.inc(),
            Step::Delete(..) => {
                self.deleted.inc();
                self.kind(kind).dec();
            }
        }
    }

    /// The kernel holds these objects, by kind.
    pub fn holds(&mut self, kinds: impl Iterator<Item = &'static str>) {
        let mut counts: BTreeMap<&str, i64> = self.kinds.keys().map(|kind| (*kind, 0)).collect();
        kinds.for_each(|kind| *counts.entry(kind).or_default() += 1);
        counts.into_iter().for_each(|(kind, count)| self.kind(kind).set(count));
    }

    /// So many objects are refused.
    pub fn refused(&self, count: usize) {
        self.refused.set(count as i64);
    }

    /// There is room for so many objects of a kind.
    pub fn has_room(&self, kind: &str, capacity: u32) {
        self.capacity.with_label_values(&[&*self.dataplane, kind]).set(capacity.into());
    }

    fn kind(&mut self, kind: &'static str) -> &IntGauge {
        let (objects, dataplane) = (&self.objects, &self.dataplane);
        self.kinds.entry(kind).or_insert_with(|| objects.with_label_values(&[&**dataplane, kind]))
    }
}
