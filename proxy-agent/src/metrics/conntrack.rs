//! The cleaning of the kernel's connection tracking (MET-08): filled by whoever cleans.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec};
use proxy_core::model::Family;

use super::catalogue::{Catalogue, exponential};

/// What it takes to clean, and what has been deleted.
#[derive(Clone)]
pub struct Conntrack {
    duration: HistogramVec,
    deleted: IntCounterVec,
}

impl Conntrack {
    pub(super) fn new(main: &mut Catalogue) -> Self {
        let labels = &["ip_family"];
        let this = Self {
            duration: main.histograms(
                "kubeproxy_conntrack_reconciler_sync_duration_seconds",
                "How long it takes to look for flows that lead nowhere any more",
                labels,
                exponential(0.001, 2.0, 15),
            ),
            deleted: main.counters("kubeproxy_conntrack_reconciler_deleted_entries_total", "Flows that have been deleted", labels),
        };
        for family in Family::ALL {
            this.duration.with_label_values(&[&family.to_string()]);
            this.deleted.with_label_values(&[&family.to_string()]);
        }
        this
    }

    /// One look at the flows of a family has taken so long, and so many have been deleted.
    pub fn observe(&self, duration: Duration, family: Family, deleted: u64) {
        let family = family.to_string();
        self.duration.with_label_values(&[&family]).observe(duration.as_secs_f64());
        self.deleted.with_label_values(&[&family]).inc_by(deleted);
    }
}
