//! Posts what is recorded as Events of `events.k8s.io/v1`. What recurs within minutes is one Event with a count.

use std::sync::Arc;
use std::time::Duration;

use ::kube::api::{Api, ListParams, ResourceExt};
use ::kube::runtime::events::{Event, EventType, Recorder, Reporter};
use ::kube::{Client, Error};
use k8s_openapi::api::core::v1::{ObjectReference, Service};
use proxy_core::model::ObjectName;
use tokio::time::sleep;

use super::KubeConfig;
use super::failure::{Backoff, Failure, Kind};
use crate::recorder::{Notice, Notices, Regarding, Severity};

/// What posts, as `kubectl describe` shows it.
const REPORTER: &str = "proxy-agent";
/// From one Event to the next: a storm of them costs the API server ten requests a second from a node.
const PACE: Duration = Duration::from_millis(100);
/// So often is one Event tried before it is left to the log alone.
const ATTEMPTS: u32 = 8;
/// The API server takes notes of at most 1 kB.
const LONGEST_NOTE: usize = 1024;

/// Posts notices until nobody records any more. That an Event cannot be posted is said once, until one can.
pub async fn post(config: KubeConfig, node: Arc<str>, mut notices: Notices) {
    let mut post = Post { config, node, recorder: None, failing: false };
    while let Some(notice) = notices.recv().await {
        post.post(&notice).await;
        sleep(PACE).await;
    }
}

struct Post {
    config: KubeConfig,
    node: Arc<str>,
    /// The client, and what knows the Events of the last minutes. Made anew from the files after a failure.
    recorder: Option<(Client, Recorder)>,
    failing: bool,
}

impl Post {
    async fn post(&mut self, notice: &Notice) {
        let mut backoff = Backoff::default();
        for _ in 0..ATTEMPTS {
            match self.try_post(notice).await {
                Ok(()) => {
                    if std::mem::take(&mut self.failing) {
                        tracing::info!("events: posted again");
                    }
                    return;
                }
                Err(failure) => self.failed(&failure),
            }
            sleep(backoff.next()).await;
        }
    }

    async fn try_post(&mut self, notice: &Notice) -> Result<(), Failure> {
        let (client, recorder) = match &self.recorder {
            Some(recorder) => recorder,
            None => {
                let link = self.config.link().await.map_err(|error| Failure::new(Kind::Unauthorized, format!("{error:#}")))?;
                let reporter = Reporter { controller: REPORTER.to_owned(), instance: Some(format!("{REPORTER}-{}", self.node)) };
                self.recorder.insert((link.client.clone(), Recorder::new(link.client, reporter)))
            }
        };
        let Some(reference) = reference(client, &self.node, &notice.regarding).await? else { return Ok(()) };
        Ok(recorder.publish(&event(notice), &reference).await?)
    }

    fn failed(&mut self, failure: &Failure) {
        if matches!(failure.kind, Kind::Unauthorized | Kind::Unreachable) {
            self.recorder = None;
        }
        if std::mem::replace(&mut self.failing, true) {
            tracing::debug!("events: {}", failure.text);
            return;
        }
        let way_out = match failure.kind {
            Kind::Forbidden => "the agent must be allowed to create and patch events in events.k8s.io, and to list services",
            _ => "trying again",
        };
        tracing::warn!("events cannot be posted: {}; {way_out}. The log has what they say", failure.text);
    }
}

fn event(notice: &Notice) -> Event {
    let type_ = match notice.severity {
        Severity::Normal => EventType::Normal,
        Severity::Warning => EventType::Warning,
    };
    let mut note = notice.note.clone();
    note.truncate(note.floor_char_boundary(LONGEST_NOTE));
    // The API wants an action; what is done is not told apart from why.
    Event { type_, reason: notice.reason.to_owned(), note: Some(note), action: notice.reason.to_owned(), secondary: None }
}

/// What an Event refers to; `None` if that is gone.
async fn reference(client: &Client, node: &str, regarding: &Regarding) -> Result<Option<ObjectReference>, Error> {
    match regarding {
        // As the kubelet and kube-proxy do: `kubectl describe node` asks for Events whose uid is the Node's name.
        Regarding::Node => Ok(Some(ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        })),
        Regarding::Service(name) => service(client, name).await,
    }
}

/// `kubectl describe service` asks for Events with the Service's uid, which nobody else needs. There is a right to list, not to get.
async fn service(client: &Client, name: &ObjectName) -> Result<Option<ObjectReference>, Error> {
    let services: Api<Service> = Api::namespaced(client.clone(), &name.namespace);
    let found = services.list_metadata(&ListParams::default().fields(&format!("metadata.name={}", name.name))).await?;
    Ok(found.items.into_iter().next().map(|service| ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Service".to_owned()),
        uid: service.uid(),
        namespace: Some(name.namespace.to_string()),
        name: Some(name.name.to_string()),
        ..ObjectReference::default()
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let note = "ä".repeat(LONGEST_NOTE);
        let notice = Notice { regarding: Regarding::Node, severity: Severity::Warning, reason: "Test", note };
        let event = event(&notice);
        assert_eq!(event.note.map(|note| note.len()), Some(LONGEST_NOTE));
        assert_eq!(event.type_, EventType::Warning);
    }
}
