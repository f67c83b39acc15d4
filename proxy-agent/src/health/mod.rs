//! Whether this node serves (HC): what load balancers, the kubelet and people ask on port 10256.
//!
//! A family is healthy as long as no change of it has waited too long for a dataplane. What the kernel refuses of some objects does not
//! count: it would take the node away from all the others.

mod services;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use proxy_core::model::{Family, Node};
use serde::Serialize;
use tokio::time::Instant;

use crate::http::{Answer, Asked, Site};
use crate::metrics::Metrics;
pub use services::ServiceHealth;

/// What is known of this node's health. Written by the loop, read by whoever asks.
#[derive(Debug)]
pub struct Health {
    /// How long a change may wait.
    timeout: Duration,
    /// Whether load balancers may send here as long as no Node is known.
    without_node: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    families: BTreeMap<Family, FamilyState>,
    /// HC-02: load balancers may send here.
    eligible: bool,
}

#[derive(Debug)]
struct FamilyState {
    last_synced: SystemTime,
    /// Since when the oldest change waits.
    waits_since: Option<Instant>,
}

/// What is said, but for the part that `/healthz` alone has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    last_updated: String,
    current_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: BTreeMap<String, FamilyReport>,
}

/// What is said of one family.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyReport {
    last_updated: String,
    healthy: bool,
}

impl Health {
    /// Of an agent that starts: healthy, until a change has waited for `timeout` (HC-01, HC-06). `without_node`:
    /// whether load balancers may send here as long as no Node is known.
    pub fn new(timeout: Duration, without_node: bool) -> Self {
        let now = SystemTime::now();
        let families = Family::ALL.map(|family| (family, FamilyState { last_synced: now, waits_since: None }));
        Self { timeout, without_node, state: Mutex::new(State { families: families.into(), eligible: without_node }) }
    }

    /// There is something to be written. The first of several counts.
    pub fn waits(&self, family: Family) {
        if let Some(state) = self.state().families.get_mut(&family) {
            state.waits_since.get_or_insert_with(Instant::now);
        }
    }

    /// All has been written, by every dataplane that has the family.
    pub fn synced(&self, family: Family) {
        if let Some(state) = self.state().families.get_mut(&family) {
            (state.last_synced, state.waits_since) = (SystemTime::now(), None);
        }
    }

    /// The agent's own Node is this (HC-02).
    pub fn node(&self, node: Option<&Node>) {
        self.state().eligible = node.map_or(self.without_node, |node| !node.is_leaving);
    }

    /// HC-03: whether the agent does its work.
    pub fn is_healthy(&self) -> bool {
        let state = self.state();
        state.families.values().all(|family| self.is_in_time(family))
    }

    /// HC-04, HC-05. `with_node`: as load balancers ask. Whether all is well, too.
    pub fn report(&self, with_node: bool) -> (bool, Report) {
        let state = self.state();
        let family = |(family, state): (&Family, &FamilyState)| {
            let report = FamilyReport { last_updated: rfc3339(state.last_synced), healthy: self.is_in_time(state) };
            (family.to_string(), report)
        };
        let status: BTreeMap<String, FamilyReport> = state.families.iter().map(family).collect();
        let healthy = status.values().all(|family| family.healthy);
        let all_well = healthy && (state.eligible || !with_node);
        let now = SystemTime::now();
        let newest = state.families.values().map(|family| family.last_synced).max().unwrap_or(now);
        let report = Report {
            last_updated: rfc3339(if all_well { now } else { newest }),
            current_time: rfc3339(now),
            node_eligible: with_node.then_some(state.eligible),
            healthy,
            status,
        };
        (all_well, report)
    }

    fn is_in_time(&self, state: &FamilyState) -> bool {
        state.waits_since.is_none_or(|since| since.elapsed() < self.timeout)
    }

    /// Nobody leaves it half changed.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As Go writes it: UTC, with as many digits as there are.
fn rfc3339(time: SystemTime) -> String {
    Timestamp::try_from(time).unwrap_or_default().to_string()
}

/// The server on port 10256.
pub struct HealthSite {
    /// What is said.
    pub health: Arc<Health>,
    /// Where answers are counted (MET-09).
    pub metrics: Arc<Metrics>,
}

impl Site for HealthSite {
    async fn answer(&self, asked: Asked) -> Answer {
        let with_node = match &*asked.path {
            "/healthz" => true,
            "/livez" => false,
            _ => return Answer::nothing_there(),
        };
        let (all_well, report) = self.health.report(with_node);
        let status = if all_well { 200 } else { 503 };
        self.metrics.probes.answered(with_node, status);
        // A report always can be written.
        Answer::json(status, serde_json::to_string(&report).unwrap_or_default())
    }
}
