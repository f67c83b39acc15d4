//! What others are told of the agent: its health and its metrics. Made once, written where things happen, read by servers.

use std::sync::Arc;
use std::time::Duration;

use crate::health::Health;
use crate::metrics::Metrics;

/// Copies lead to the same place.
#[derive(Clone)]
pub struct Telemetry {
    /// Whether this node serves.
    pub health: Arc<Health>,
    /// What is measured.
    pub metrics: Arc<Metrics>,
}

impl Telemetry {
    /// Of an agent that starts; see [`Health::new`].
    pub fn new(timeout: Duration, without_node: bool) -> Self {
        Self { health: Arc::new(Health::new(timeout, without_node)), metrics: Arc::default() }
    }
}
