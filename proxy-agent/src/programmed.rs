//! Whether this node has programmed a Service: asked over HTTP, answered by the loop.

use std::collections::BTreeMap;

use proxy_core::cluster::Kind;
use proxy_core::model::ObjectName;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

/// So many questions wait for the loop.
const WAITING: usize = 16;

/// A question about one Service.
#[derive(Debug)]
pub struct Question {
    service: ObjectName,
    answer: oneshot::Sender<ServiceStatus>,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ServiceStatus {
    /// Whether there is a Service of this name that is served here.
    pub known: bool,
    /// Whether every dataplane has what it wants now.
    pub programmed: bool,
    /// Services are programmed as of this resourceVersion at least; absent where there are no versions.
    pub services_resource_version: Option<String>,
    /// The same of EndpointSlices.
    pub slices_resource_version: Option<String>,
    /// Objects of it that the kernel refuses.
    pub refused: Vec<String>,
}

/// Where questions are asked.
#[derive(Clone, Debug)]
pub struct Questions(mpsc::Sender<Question>);

/// Where they come out.
pub type Asked = mpsc::Receiver<Question>;

impl Questions {
    /// Where they are asked, and where they come out.
    pub fn new() -> (Self, Asked) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Asks about a Service; no answer if the loop has ended.
    pub async fn ask(&self, service: ObjectName) -> Option<ServiceStatus> {
        let (answer, answered) = oneshot::channel();
        self.0.send(Question { service, answer }).await.ok()?;
        answered.await.ok()
    }
}

impl Question {
    /// What is asked about.
    pub fn service(&self) -> &ObjectName {
        &self.service
    }

    /// Answers it. Whoever has gone away does not mind.
    pub fn answer(self, answer: ServiceStatus) {
        let _ = self.answer.send(answer);
    }
}

/// The resourceVersions up to which everything has been taken in, and those of which it has been programmed.
#[derive(Debug, Default)]
pub struct Versions {
    taken: BTreeMap<Kind, String>,
    programmed: BTreeMap<Kind, String>,
}

impl Versions {
    /// Everything of a kind has been taken in up to this version.
    pub fn take(&mut self, kind: Kind, version: String) {
        self.taken.insert(kind, version);
    }

    /// What has been taken in is programmed.
    pub fn settle(&mut self) {
        self.programmed.append(&mut self.taken);
    }

    /// Up to where a kind is programmed.
    pub fn programmed(&self, kind: Kind) -> Option<&String> {
        self.programmed.get(&kind)
    }
}
