//! Makes metrics and remembers what each is, also of those that have no value yet: documentation is held to it.

use prometheus::core::Collector;
use prometheus::{Counter, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

/// One metric.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// counter, gauge or histogram.
    pub kind: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What it is, in a few words.
    pub help: &'static str,
}

/// The metrics that have been made.
#[derive(Default)]
pub(super) struct Catalogue {
    pub(super) registry: Registry,
    pub(super) entries: Vec<Entry>,
}

/// Names, labels and buckets are constants here: each is checked by the tests, which make all metrics.
pub(super) const VALID: &str = "a valid name that is used once";

macro_rules! simple {
    ($method:ident, $type:ty, $kind:literal) => {
        pub(super) fn $method(&mut self, name: &'static str, help: &'static str) -> $type {
            let metric = <$type>::new(name, help).expect(VALID);
            self.add(Entry { name, kind: $kind, labels: &[], help }, metric)
        }
    };
}

macro_rules! labelled {
    ($method:ident, $type:ty, $kind:literal) => {
        pub(super) fn $method(&mut self, name: &'static str, help: &'static str, labels: &'static [&'static str]) -> $type {
            let metric = <$type>::new(Opts::new(name, help), labels).expect(VALID);
            self.add(Entry { name, kind: $kind, labels, help }, metric)
        }
    };
}

impl Catalogue {
    simple!(counter, IntCounter, "counter");
    simple!(seconds, Counter, "counter");
    simple!(gauge, IntGauge, "gauge");
    simple!(reading, Gauge, "gauge");
    labelled!(counters, IntCounterVec, "counter");
    labelled!(gauges, IntGaugeVec, "gauge");
    labelled!(readings, GaugeVec, "gauge");

    pub(super) fn histograms(
        &mut self,
        name: &'static str,
        help: &'static str,
        labels: &'static [&'static str],
        buckets: Vec<f64>,
    ) -> HistogramVec {
        let metric = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels).expect(VALID);
        self.add(Entry { name, kind: "histogram", labels, help }, metric)
    }

    pub(super) fn add<M: Collector + Clone + 'static>(&mut self, entry: Entry, metric: M) -> M {
        self.registry.register(Box::new(metric.clone())).expect(VALID);
        self.entries.push(entry);
        metric
    }
}

/// So many buckets, each so many times as large as the one before.
pub(super) fn exponential(start: f64, factor: f64, count: i32) -> Vec<f64> {
    (0..count).map(|i| start * factor.powi(i)).collect()
}

/// Those of network programming: 0.25 s to 5 minutes.
pub(super) fn network_programming() -> Vec<f64> {
    let linear = |start: f64, width: f64, count: i32| (0..count).map(move |i| start + width * f64::from(i));
    linear(0.25, 0.25, 2).chain(linear(1.0, 1.0, 59)).chain(linear(60.0, 5.0, 12)).chain(linear(120.0, 30.0, 7)).collect()
}
