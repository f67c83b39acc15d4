//! What was measured: the form of `benchmarks.json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::plan::{Plan, Proxy};

/// A whole run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// The machine, and the versions of everything that takes part.
    pub facts: BTreeMap<String, String>,
    /// What was asked for.
    pub plan: Plan,
    /// One for each proxy, size and round, in the order in which they were done.
    pub runs: Vec<Run>,
}

impl Results {
    pub(super) fn new(facts: BTreeMap<String, String>, plan: Plan) -> Self {
        Self { facts, plan, runs: Vec::new() }
    }

    /// Whether a proxy has failed to converge at this size or a smaller one.
    pub(super) fn gave_up(&self, proxy: Proxy, services: usize) -> bool {
        self.runs.iter().any(|run| run.proxy == proxy && run.services <= services && run.gave_up())
    }

    /// The runs of a proxy at a size.
    pub(super) fn of(&self, proxy: Proxy, services: usize) -> impl Iterator<Item = &Run> {
        self.runs.iter().filter(move |run| run.proxy == proxy && run.services == services)
    }
}

/// One proxy's turn.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Who.
    pub proxy: Proxy,
    /// The number of Services.
    pub services: usize,
    /// Counted from 0.
    pub round: usize,
    /// The machine's load average of the last minute when the turn began: how quiet it was.
    pub load_before: f64,
    /// From the proxy's start on; none for no proxy.
    pub start: Option<Start>,
    /// Changes, by kind; none where the start did not succeed.
    pub changes: Vec<Series>,
    /// More EndpointSlices changed, hardly watched: how long commits take alone.
    pub alone: Option<Series>,
    /// How long connecting took.
    pub connect: Option<Connect>,
    /// The most memory that the proxy and its children had resident at once, in bytes.
    pub peak_memory: Option<u64>,
}

impl Run {
    fn gave_up(&self) -> bool {
        self.start.as_ref().is_some_and(|start| start.last.is_none()) || self.changes.iter().any(|series| series.gave_up)
    }

    /// The series of a kind.
    pub(super) fn series(&self, kind: Kind) -> Option<&Series> {
        self.changes.iter().find(|series| series.kind == kind)
    }
}

/// A start with nothing programmed before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    /// Seconds until the first Service answered; none if it did not within the limit.
    pub first: Option<f64>,
    /// Seconds until all of the sample had answered.
    pub last: Option<f64>,
    /// How many Services the sample has.
    pub sample: usize,
    /// The CPU time used by then, children included, in seconds.
    pub cpu: f64,
    /// The CPU time of the probes meanwhile, at both ends, in seconds.
    pub probing: f64,
    /// How long all commits until then took together, in microseconds, where the proxy says it.
    pub commit: Option<f64>,
}

/// What is changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The only endpoint of a Service is replaced by another.
    EndpointSlice,
    /// A Service begins to be this proxy's.
    Service,
    /// The port of a Service becomes another.
    Port,
    /// The internal traffic policy of a Service without endpoints on the node becomes Cluster.
    Policy,
    /// As an EndpointSlice, just after a change by which ten thousand UDP flows went stale.
    StaleFlows,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 5] = [Kind::EndpointSlice, Kind::Service, Kind::Port, Kind::Policy, Kind::StaleFlows];
}

/// Changes of one kind, one after the other.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Series {
    /// What was changed.
    pub kind: Kind,
    /// From just before the write to the first connection that shows it, in microseconds, by change.
    pub latency: Vec<f64>,
    /// How long the API server took for the write itself, in microseconds, by change.
    pub write: Vec<f64>,
    /// From just before the write until a bare watch saw it, in microseconds, by change: no proxy can know of it before.
    pub seen: Vec<f64>,
    /// How many writes there were: a Service that is to come back has to be taken away first.
    pub writes: usize,
    /// CPU time from before the first to after the last, in seconds.
    pub cpu: f64,
    /// The CPU time of the probes meanwhile, at both ends, in seconds.
    pub probing: f64,
    /// How long the proxy itself says that writing to the kernel took.
    pub commit: Option<Commit>,
    /// A change had no effect within the limit: the series ends there.
    pub gave_up: bool,
}

impl Series {
    pub(super) fn new(kind: Kind) -> Self {
        let (latency, write, seen) = (Vec::new(), Vec::new(), Vec::new());
        Self { kind, latency, write, seen, writes: 0, cpu: 0.0, probing: 0.0, commit: None, gave_up: false }
    }

    /// From when a watch saw a change to its effect, by change. Negative where the proxy's own watch was the faster one.
    pub(super) fn beyond(&self) -> Vec<f64> {
        self.latency.iter().zip(&self.seen).map(|(latency, seen)| latency - seen).collect()
    }
}

/// How long commits took, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Commit {
    /// Each one, from the agent's log.
    Each(Vec<f64>),
    /// Their number and mean, from kube-proxy's metric of its syncs.
    Mean {
        /// How many.
        count: f64,
        /// The mean.
        micros: f64,
    },
}

/// Connection times in microseconds, of two series that were interleaved one by one.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Connect {
    /// To an endpoint.
    pub direct: Vec<f64>,
    /// To the virtual IP; with no proxy to the endpoint again.
    pub other: Vec<f64>,
}
