//! Syncs (MET-03..07, MET-10, MET-12).

use std::time::{Duration, SystemTime};

use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};
use proxy_core::forward::Shortage;
use proxy_core::model::Family;

use super::catalogue::{Catalogue, exponential, network_programming};

const FAMILY: &[&str] = &["ip_family"];

/// Syncs and what they bring about.
pub struct Syncs {
    all: HistogramVec,
    full: HistogramVec,
    partial: HistogramVec,
    last: GaugeVec,
    last_queued: GaugeVec,
    endpoint_changes: Changes,
    service_changes: Changes,
    network_programming: HistogramVec,
    no_local_endpoints: IntGaugeVec,
    sync_failures: IntCounterVec,
    cleanup_failures: IntCounterVec,
}

struct Changes {
    total: IntCounter,
    pending: IntGauge,
}

/// What changes are changes of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Changed {
    /// A Service.
    Service,
    /// The endpoints of one.
    Endpoints,
}

impl Syncs {
    pub(super) fn new(main: &mut Catalogue) -> Self {
        let buckets = || exponential(0.001, 2.0, 15);
        let syncs = Self {
            all: main.histograms("kubeproxy_sync_proxy_rules_duration_seconds", "How long syncs take", FAMILY, buckets()),
            full: main.histograms(
                "kubeproxy_sync_full_proxy_rules_duration_seconds",
                "How long syncs of everything take: at the start and after a failure",
                FAMILY,
                buckets(),
            ),
            partial: main.histograms(
                "kubeproxy_sync_partial_proxy_rules_duration_seconds",
                "How long syncs of what has changed take",
                FAMILY,
                buckets(),
            ),
            last: main.readings("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When a sync last succeeded", FAMILY),
            last_queued: main.readings(
                "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
                "When a sync was last asked for; much later than the last success: something hangs",
                FAMILY,
            ),
            endpoint_changes: Changes {
                total: main.counter("kubeproxy_sync_proxy_rules_endpoint_changes_total", "EndpointSlices that came, changed or went"),
                pending: main
                    .gauge("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "Changes of endpoints that are not programmed yet"),
            },
            service_changes: Changes {
                total: main.counter("kubeproxy_sync_proxy_rules_service_changes_total", "Services that came, changed or went"),
                pending: main
                    .gauge("kubeproxy_sync_proxy_rules_service_changes_pending", "Changes of Services that are not programmed yet"),
            },
            network_programming: main.histograms(
                "kubeproxy_network_programming_duration_seconds",
                "From the change of a pod or Service, as the EndpointSlice's annotation has it, until it is programmed",
                FAMILY,
                network_programming(),
            ),
            no_local_endpoints: main.gauges(
                "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
                "Service ports with policy Local and endpoints, none of which is on this node",
                &["ip_family", "traffic_policy"],
            ),
            sync_failures: main.counters("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "Syncs that failed", FAMILY),
            cleanup_failures: main.counters(
                "kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total",
                "Deletions of what went out of use that failed",
                FAMILY,
            ),
        };
        iptables(main);
        syncs.start();
        syncs
    }

    /// kube-proxy says these of each family from the start.
    fn start(&self) {
        for family in Family::ALL {
            let family = family.to_string();
            self.sync_failures.with_label_values(&[&family]);
            self.cleanup_failures.with_label_values(&[&family]);
            self.all.with_label_values(&[&family]);
            self.full.with_label_values(&[&family]);
            self.partial.with_label_values(&[&family]);
        }
    }

    /// A sync is asked for.
    pub fn queued(&self, family: Family) {
        self.last_queued.with_label_values(&[&family.to_string()]).set(now());
    }

    /// A sync has ended, well or not.
    pub fn took(&self, family: Family, duration: Duration, is_full: bool) {
        let (family, seconds) = (family.to_string(), duration.as_secs_f64());
        self.all.with_label_values(&[&family]).observe(seconds);
        let kind = if is_full { &self.full } else { &self.partial };
        kind.with_label_values(&[&family]).observe(seconds);
    }

    /// All of a family is programmed.
    pub fn synced(&self, family: Family) {
        self.last.with_label_values(&[&family.to_string()]).set(now());
    }

    /// A sync has failed.
    pub fn failed(&self, family: Family) {
        self.sync_failures.with_label_values(&[&family.to_string()]).inc();
    }

    /// What went out of use could not be deleted.
    pub fn cleanup_failed(&self, family: Family) {
        self.cleanup_failures.with_label_values(&[&family.to_string()]).inc();
    }

    /// Something has changed and waits to be programmed.
    pub fn changed(&self, what: Changed) {
        let changes = if what == Changed::Service { &self.service_changes } else { &self.endpoint_changes };
        changes.total.inc();
        changes.pending.inc();
    }

    /// Nothing waits any more.
    pub fn nothing_pending(&self) {
        self.service_changes.pending.set(0);
        self.endpoint_changes.pending.set(0);
    }

    /// What was changed at this time is programmed.
    pub fn programmed(&self, family: Family, changed: SystemTime) {
        // A clock that is behind the other's says nothing.
        let Ok(latency) = changed.elapsed() else { return };
        self.network_programming.with_label_values(&[&family.to_string()]).observe(latency.as_secs_f64());
    }

    /// How many ports there are in want of a backend on this node.
    pub fn shortage(&self, family: Family, Shortage { internal, external }: Shortage) {
        let family = family.to_string();
        self.no_local_endpoints.with_label_values(&[&*family, "internal"]).set(internal as i64);
        self.no_local_endpoints.with_label_values(&[&*family, "external"]).set(external as i64);
    }
}

/// What kube-proxy says of its iptables mode. There are no such rules here, so that dashboards show none (MET-10).
fn iptables(main: &mut Catalogue) {
    let counters = [
        ("kubeproxy_sync_proxy_rules_iptables_restore_failures_total", "Always 0: there are no rules of iptables"),
        ("kubeproxy_sync_proxy_rules_iptables_partial_restore_failures_total", "Always 0: there are no rules of iptables"),
    ];
    for (name, help) in counters {
        let counter = main.counters(name, help, FAMILY);
        for family in Family::ALL {
            counter.with_label_values(&[&family.to_string()]);
        }
    }
    let gauges = [
        ("kubeproxy_sync_proxy_rules_iptables_total", "Always 0: there are no rules of iptables"),
        ("kubeproxy_sync_proxy_rules_iptables_last", "Always 0: there are no rules of iptables"),
    ];
    for (name, help) in gauges {
        let gauge = main.gauges(name, help, &["ip_family", "table"]);
        for (family, table) in Family::ALL.into_iter().flat_map(|family| [(family, "filter"), (family, "nat")]) {
            gauge.with_label_values(&[&*family.to_string(), table]).set(0);
        }
    }
}

/// As Prometheus counts time.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
