//! What cannot be used in objects, for operators.

use std::collections::HashMap;

use proxy_core::forward::Forwarding;
use proxy_core::input::Problem;
use proxy_core::model::{Change, ObjectName};
use tracing::{info, warn};

use crate::recorder::{Recorder, Severity};

/// Says what cannot be used in an object, once for as long as it stays.
pub(super) struct Reporter {
    /// What the agent's own Node is called in problems.
    node: String,
    recorder: Recorder,
    known: HashMap<String, Vec<Problem>>,
    conflicts: HashMap<ObjectName, Vec<String>>,
}

impl Reporter {
    pub(super) fn new(node: &str, recorder: Recorder) -> Self {
        Self { node: format!("node {node}"), recorder, known: HashMap::new(), conflicts: HashMap::new() }
    }

    pub(super) fn report(&mut self, change: Option<&Change>, problems: Vec<Problem>) {
        let Some(object) = problems.first().map(|problem| problem.object.clone()) else {
            if self.known.is_empty() {
                return;
            }
            let object = match change {
                Some(Change::Service(name, _)) => format!("service {name}"),
                Some(Change::Slice(name, _)) => format!("endpointslice {name}"),
                Some(Change::Node(_)) => self.node.clone(),
                Some(Change::ServiceCidr(name, _)) => format!("servicecidr {name}"),
                Some(Change::HostAddresses(_)) | None => return,
            };
            if self.known.remove(&object).is_some() {
                info!("{object}: can be used in full again, or is gone");
            }
            return;
        };
        let known = self.known.entry(object).or_default();
        for problem in problems.iter().filter(|problem| !known.contains(problem)) {
            warn!("{problem}");
            if let Some(Change::Service(name, _)) = change {
                self.recorder.service(name, Severity::Warning, "InvalidService", problem.text.clone());
            }
        }
        *known = problems;
    }

    pub(super) fn conflicts(&mut self, name: &ObjectName, forwarding: &Forwarding) {
        let conflicts = forwarding.conflicts(name).into_iter();
        let found: Vec<String> = conflicts.map(|(frontend, winner)| format!("{frontend} is served for service {winner}")).collect();
        let known = self.conflicts.remove(name).unwrap_or_default();
        for text in found.iter().filter(|text| !known.contains(text)) {
            warn!("service {name}: {text}; change one of the two");
            self.recorder.service(name, Severity::Warning, "FrontendConflict", format!("{text}; change one of the two"));
        }
        if !found.is_empty() {
            self.conflicts.insert(name.clone(), found);
        }
    }
}
