//! The goals, and whether a run meets them.

use super::metric::{Metric, digits};
use super::plan::Proxy;
use super::results::{Kind, Results};
use super::stats::ratio;

/// Where the goals hold unless they say otherwise.
const SERVICES: usize = 10_000;
const FEW: usize = 1_000;
const MANY: usize = 50_000;
const OURS: [Proxy; 2] = [Proxy::Ebpf, Proxy::Nftables];
const RIVAL: Proxy = Proxy::KubeProxyNftables;
/// What counts as the same, for a figure that must not depend on the number of Services.
const SAME: f64 = 1.3;

/// A row of the table of goals.
pub(super) struct Goal {
    pub(super) what: &'static str,
    pub(super) proxy: Proxy,
    /// What kube-proxy takes.
    pub(super) rival: Option<String>,
    pub(super) goal: &'static str,
    pub(super) measured: Option<String>,
    /// None where a figure that it needs was not measured.
    pub(super) met: Option<bool>,
}

/// All goals with what was measured.
pub(super) fn goals(results: &Results) -> Vec<Goal> {
    let latency = |percent| Metric::Latency(Kind::EndpointSlice, percent);
    let mut goals = Vec::new();
    for proxy in OURS {
        let row = Row { results, proxy };
        goals.push(row.faster("start to last working Service", Metric::Last, 20.0, 1.2, "20x faster, under 1.2 s"));
        goals.push(row.faster("EndpointSlice write to effect, p50", latency(50.0), 100.0, 5e3, "100x faster, under 5 ms"));
        goals.push(row.below("EndpointSlice write to effect, p99", latency(99.0), SERVICES, 15e3, "under 15 ms"));
        goals.push(row.undisturbed());
        goals.push(row.grows("EndpointSlice write to effect, p50, 50,000 against 1,000 Services", latency(50.0), FEW, "at most 1.3x"));
        if proxy == Proxy::Nftables {
            goals.push(row.below("commit of one endpoint", Metric::Commit, SERVICES, 100.0, "under 0.1 ms"));
            goals.push(row.grows("commit of one endpoint, 50,000 against 1,000 Services", Metric::Commit, FEW, "the same"));
            goals.push(row.below("commit of everything at the start", Metric::StartCommit, SERVICES, 500e3, "under 0.5 s"));
            goals.push(row.below("commit of everything at the start, 50,000 Services", Metric::StartCommit, MANY, 3e6, "under 3 s"));
        }
        goals.push(row.below("peak memory", Metric::Memory, SERVICES, 60e6, "under 60 MB"));
        goals.push(row.below("peak memory at 50,000 Services", Metric::Memory, MANY, 250e6, "under 250 MB"));
        goals.push(row.faster("CPU for an EndpointSlice change", Metric::Cpu(Kind::EndpointSlice), 50.0, f64::MAX, "1/50"));
        goals.push(row.connect());
    }
    goals
}

/// One proxy's goals.
struct Row<'a> {
    results: &'a Results,
    proxy: Proxy,
}

impl Row<'_> {
    fn value(&self, metric: Metric, services: usize) -> Option<f64> {
        metric.of(self.results, self.proxy, services)
    }

    fn rival(&self, metric: Metric, services: usize) -> Option<f64> {
        metric.of(self.results, RIVAL, services)
    }

    fn goal(&self, what: &'static str, goal: &'static str, rival: Option<String>, measured: Option<String>, met: Option<bool>) -> Goal {
        Goal { what, proxy: self.proxy, rival, goal, measured, met }
    }

    /// So many times less than kube-proxy, and below a limit.
    fn faster(&self, what: &'static str, metric: Metric, times: f64, limit: f64, goal: &'static str) -> Goal {
        let (value, rival) = (self.value(metric, SERVICES), self.rival(metric, SERVICES));
        let factor = ratio(rival, value);
        let measured = value.map(|value| {
            let factor = factor.map_or_else(String::new, |factor| format!(", {}x less", digits(factor)));
            format!("{}{factor}", metric.show(value))
        });
        let met = factor.zip(value).map(|(factor, value)| factor >= times && value < limit);
        self.goal(what, goal, rival.map(|value| metric.show(value)), measured, met)
    }

    fn below(&self, what: &'static str, metric: Metric, services: usize, limit: f64, goal: &'static str) -> Goal {
        let (value, rival) = (self.value(metric, services), self.rival(metric, services));
        let show = |value: Option<f64>| value.map(|value| metric.show(value));
        self.goal(what, goal, show(rival), show(value), value.map(|value| value < limit))
    }

    /// Hardly more with many Services than with few.
    fn grows(&self, what: &'static str, metric: Metric, few: usize, goal: &'static str) -> Goal {
        let factor = ratio(self.value(metric, MANY), self.value(metric, few));
        let rival = ratio(self.rival(metric, MANY), self.rival(metric, few));
        let show = |factor: Option<f64>| factor.map(|factor| format!("{}x", digits(factor)));
        self.goal(what, goal, show(rival), show(factor), factor.map(|factor| factor <= SAME))
    }

    /// What is cleaned up does not hold up what changes.
    fn undisturbed(&self) -> Goal {
        let metrics = [Kind::StaleFlows, Kind::EndpointSlice].map(|kind| Metric::Latency(kind, 99.0));
        let show = |proxy| metrics[0].of(self.results, proxy, SERVICES).map(|value| metrics[0].show(value));
        let [meanwhile, usual] = metrics.map(|metric| self.value(metric, SERVICES));
        let met = meanwhile.zip(usual).map(|(meanwhile, usual)| meanwhile <= usual * SAME);
        let what = "EndpointSlice write to effect while 10,000 stale flows are ended, p99";
        self.goal(what, "as usual", show(RIVAL), show(self.proxy), met)
    }

    fn connect(&self) -> Goal {
        let metric = Metric::ConnectRatio;
        let (value, rival) = (self.value(metric, SERVICES), self.rival(metric, SERVICES));
        let show = |value: Option<f64>| value.map(|value| metric.show(value));
        let (goal, met) = if self.proxy == Proxy::Ebpf {
            ("at most 1.05", value.map(|value| value <= 1.05))
        } else {
            ("not above kube-proxy", value.zip(rival).map(|(value, rival)| value <= rival))
        };
        self.goal("connect through a virtual IP against direct, p50", goal, show(rival), show(value), met)
    }
}
