//! What others are told of the agent: its health, its metrics, and events. Made once, written where things happen, read by servers and
//! by the source that posts.

use std::sync::Arc;
use std::time::Duration;

use crate::health::Health;
use crate::metrics::Metrics;
use crate::recorder::{Notices, Recorder};

/// Copies lead to the same place.
#[derive(Clone)]
pub struct Telemetry {
    /// Whether this node serves.
    pub health: Arc<Health>,
    /// What is measured.
    pub metrics: Arc<Metrics>,
    /// What operators should see.
    pub recorder: Recorder,
}

impl Telemetry {
    /// Of an agent that starts, and where what is recorded comes out; see [`Health::new`].
    pub fn new(timeout: Duration, without_node: bool) -> (Self, Notices) {
        let metrics: Arc<Metrics> = Arc::default();
        let (recorder, notices) = Recorder::new(metrics.clone());
        (Self { health: Arc::new(Health::new(timeout, without_node)), metrics, recorder }, notices)
    }
}
