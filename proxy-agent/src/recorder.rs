//! Events, as `kubectl describe` shows them: whoever has something to tell the operator records it here, and the source that has an
//! API server posts it. Without one, the log alone has it.

use std::sync::Arc;

use proxy_core::model::ObjectName;
use tokio::sync::mpsc;

use crate::metrics::Metrics;

/// So many wait to be posted. What comes beyond is in the log alone: an API server that is away must not cost memory.
const WAITING: usize = 256;

/// What an event is about.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Regarding {
    /// The agent's own Node.
    Node,
    /// A Service.
    Service(ObjectName),
}

/// Whether something is wrong.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Severity {
    /// It is as it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

/// One thing to tell.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Notice {
    /// The object that it is shown with.
    pub regarding: Regarding,
    /// Whether something is wrong.
    pub severity: Severity,
    /// One word in CamelCase that names the cause; monitoring filters by it.
    pub reason: &'static str,
    /// What happened and the way out, for people.
    pub note: String,
}

/// The receiving end, for the source that posts.
pub type Notices = mpsc::Receiver<Notice>;

/// Where events are recorded. Copies lead to the same place; recording never waits.
#[derive(Clone)]
pub struct Recorder {
    notices: mpsc::Sender<Notice>,
    metrics: Arc<Metrics>,
}

impl Recorder {
    /// A recorder, and where its notices come out.
    pub fn new(metrics: Arc<Metrics>) -> (Self, Notices) {
        let (notices, receiver) = mpsc::channel(WAITING);
        (Self { notices, metrics }, receiver)
    }

    /// Records something about the agent's own Node.
    pub fn node(&self, severity: Severity, reason: &'static str, note: impl Into<String>) {
        self.record(Notice { regarding: Regarding::Node, severity, reason, note: note.into() });
    }

    /// Records something about a Service.
    pub fn service(&self, name: &ObjectName, severity: Severity, reason: &'static str, note: impl Into<String>) {
        self.record(Notice { regarding: Regarding::Service(name.clone()), severity, reason, note: note.into() });
    }

    /// Records a notice.
    pub fn record(&self, notice: Notice) {
        // Full, or nobody posts: whoever records it has logged it.
        if self.notices.try_send(notice).is_err() {
            self.metrics.client.event_dropped();
        }
    }
}
