//! The watch of one resource: a complete list, then what changes, for ever.
//!
//! The list is one answer, decoded as it arrives. Without a version in the request it is consistent, and a server of 1.31 or later
//! gives it from its cache; it costs the server a third of what a list as the beginning of a watch does (`sendInitialEvents`), which
//! sends every object through its watch machinery.
//!
//! The frames of a watch are read here rather than by `kube::runtime::watcher`: it hides when a connection works again, takes an
//! object that does not decode for a broken watch, and starts a new list at a version that may be older than what is known.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use ::kube::Client;
use ::kube::api::{ListParams, WatchParams};
use ::kube::client::Body;
use ::kube::core::Request;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::failure::{Backoff, Failure, Journal, Kind, random};
use super::list::List;
use super::resource::Resource;
use super::wire::{ACCEPT, ACCEPT_WATCH, Frame, Garbled, frame, refusal, take_frame};
use super::{KubeConfig, Link};
use crate::metrics::{Client as Metrics, Watched};
use crate::source::{Closed, Event, Sender, send};

/// How long an answer may take to begin, and a list to go on. The server gives up on a list after 60 s.
const ANSWER: Duration = Duration::from_secs(70);
/// A watch has a bookmark every minute: one that is silent for longer has lost its server.
const SILENCE: Duration = Duration::from_secs(100);
/// A watch that has been open for so long works, even if it has had nothing to say.
const SETTLED: Duration = Duration::from_secs(5);

/// When to look again for what the server does not have: it may be upgraded.
const LATER: Duration = Duration::from_secs(600);

/// Why a watch is not read any further.
enum Stop {
    Closed,
    Failed(Failure),
}

impl From<Closed> for Stop {
    fn from(_: Closed) -> Self {
        Stop::Closed
    }
}

impl<F: Into<Failure>> From<F> for Stop {
    fn from(failure: F) -> Self {
        Stop::Failed(failure.into())
    }
}

/// The watch of one resource.
pub(super) struct Watch<R> {
    config: KubeConfig,
    client: Client,
    events: Sender,
    journal: Journal,
    backoff: Backoff,
    /// Where to go on; `None` before the first complete list and after the server has forgotten that version.
    version: Option<String>,
    resource: R,
    metrics: Watched,
    /// Dropped once the server has answered.
    unanswered: Option<oneshot::Sender<()>>,
}

impl<R: Resource> Watch<R> {
    pub(super) fn new(resource: R, config: KubeConfig, Link { client, server }: Link, events: Sender, metrics: &Metrics) -> Self {
        let metrics = metrics.watched(R::PLURAL);
        let journal = Journal::new(R::PLURAL, R::OPTIONAL, server);
        Self { config, client, events, journal, backoff: Backoff::default(), version: None, resource, metrics, unanswered: None }
    }

    /// Ends when the first list has been sent, or refused; not while there is no server.
    pub(super) fn answered(&mut self) -> impl Future<Output = ()> + use<R> {
        let (unanswered, answered) = oneshot::channel();
        self.unanswered = Some(unanswered);
        async move { drop(answered.await) }
    }

    /// Watches until nobody listens.
    pub(super) async fn run(mut self) {
        let events = self.events.clone();
        tokio::select! {
            () = events.closed() => {}
            () = self.sessions() => {}
        }
    }

    async fn sessions(&mut self) {
        loop {
            let start = Instant::now();
            match self.session().await {
                Err(Stop::Closed) => return,
                // The server ends every watch after some minutes; one that ends at once must not be asked for again at once.
                Ok(()) if start.elapsed() > SETTLED => {}
                Ok(()) => tokio::time::sleep(self.backoff.next()).await,
                Err(Stop::Failed(failure)) => {
                    self.metrics.restarted();
                    self.journal.failed(&failure);
                    if failure.kind != Kind::Unreachable {
                        self.unanswered = None;
                    }
                    if failure.kind == Kind::Expired {
                        // The server is there, and gives a new list.
                        self.backoff.reset();
                    }
                    tokio::time::sleep(self.pause(failure.kind)).await;
                    self.renew(failure.kind).await;
                }
            }
        }
    }

    /// A server that starts may say for a while that it does not have what it has.
    fn pause(&mut self, kind: Kind) -> Duration {
        let is_absent = R::OPTIONAL.is_some() && matches!(kind, Kind::Absent | Kind::Forbidden);
        if is_absent && self.backoff.is_longest() { LATER } else { self.backoff.next() }
    }

    /// A token, certificate or CA may have been exchanged, and a connection in the pool may be dead: start from the files again.
    async fn renew(&mut self, kind: Kind) {
        if matches!(kind, Kind::Unauthorized | Kind::Unreachable) {
            match self.config.link().await {
                Ok(Link { client, server }) => {
                    self.client = client;
                    self.journal.is_at(server);
                }
                Err(error) => tracing::debug!("watch of {}: {error:#}", R::PLURAL),
            }
        }
    }

    /// One list, if needed, and one watch.
    async fn session(&mut self) -> Result<(), Stop> {
        if self.version.is_none() {
            self.list().await?;
        }
        self.follow().await
    }

    /// A complete list.
    async fn list(&mut self) -> Result<(), Stop> {
        self.metrics.listed();
        let (start, mut list, mut listed) = (Instant::now(), List::default(), HashSet::new());
        let params =
            ListParams { label_selector: R::LABELS.map(str::to_owned), field_selector: self.resource.fields(), ..ListParams::default() };
        let request = Request::new(R::PATH).list(&params).map_err(::kube::Error::BuildRequest)?;
        let mut body = timeout(ANSWER, self.ask(request, ACCEPT, "LIST")).await.map_err(|_| no_answer(ANSWER))??;
        let mut size = 0;
        while let Some(data) = timeout(ANSWER, data(&mut body)).await.map_err(|_| no_answer(ANSWER))?? {
            size += data.len();
            list.push(&data);
            while let Some(seen) = list.next(&self.resource)? {
                listed.extend(seen.name.clone());
                send(&self.events, seen.event()).await?;
            }
        }
        let version = list.end()?;
        self.metrics.received(self.journal.host(), size);
        self.works();
        tracing::info!("{}: {} listed in {:.1?}", R::PLURAL, listed.len(), start.elapsed());
        send(&self.events, Event::Listed(R::KIND, listed)).await?;
        self.reached(version).await?;
        self.unanswered = None;
        Ok(())
    }

    /// The body of an answer, if the server does not refuse.
    async fn ask(&self, mut request: http::Request<Vec<u8>>, accept: &'static str, verb: &str) -> Result<Body, Failure> {
        request.headers_mut().insert(http::header::ACCEPT, http::HeaderValue::from_static(accept));
        let start = Instant::now();
        let answer = self.client.send(request.map(Body::from)).await;
        let code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
        self.metrics.requested(self.journal.host(), verb, code, start.elapsed());
        let answer = answer?;
        let status = answer.status();
        if status.is_client_error() || status.is_server_error() {
            return Err(refusal(status.as_u16(), collected(answer.into_body()).await?).into());
        }
        Ok(answer.into_body())
    }

    /// One watch from the version that has been reached, until its connection ends.
    async fn follow(&mut self) -> Result<(), Stop> {
        let mut frames = Frames { body: self.open().await?, read: BytesMut::new() };
        loop {
            let bytes = match self.next(&mut frames).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Ok(()),
                // A broken connection costs nothing if the next one works; if not, that one has the better story.
                Err(failure) => {
                    tracing::debug!("watch of {}: {}", R::PLURAL, failure.text);
                    return Ok(());
                }
            };
            match frame(&self.resource, bytes).map_err(|garbled| self.garbled(garbled))? {
                Frame::Object(seen, version) | Frame::Gone(seen, version) => {
                    send(&self.events, seen.event()).await?;
                    self.reached(version).await?;
                }
                Frame::Bookmark(version) => self.reached(version).await?,
                Frame::Failed(status) => return Err(self.refused(status.into()).into()),
                Frame::Unknown => {}
            }
            self.works();
        }
    }

    async fn open(&mut self) -> Result<Body, Failure> {
        let params = WatchParams {
            label_selector: R::LABELS.map(str::to_owned),
            field_selector: self.resource.fields(),
            // Not the same for all nodes, or they would all come back together.
            timeout: Some(300 + (300.0 * random()) as u32),
            bookmarks: true,
            ..WatchParams::default()
        };
        let version = self.version.as_deref().unwrap_or_default();
        let request = Request::new(R::PATH).watch(&params, version).map_err(::kube::Error::BuildRequest)?;
        let answer = timeout(ANSWER, self.ask(request, ACCEPT_WATCH, "WATCH")).await.map_err(|_| no_answer(ANSWER))?;
        answer.map_err(|failure| self.refused(failure))
    }

    /// The next frame; `None` at the end, and where the server is silent for too long.
    async fn next(&mut self, frames: &mut Frames) -> Result<Option<Bytes>, Failure> {
        if let Ok(read) = timeout(SETTLED, frames.next()).await {
            return read;
        }
        self.works();
        match timeout(SILENCE - SETTLED, frames.next()).await {
            Ok(read) => read,
            Err(_) => {
                tracing::debug!("watch of {}: silent for {SILENCE:?}, starting it again", R::PLURAL);
                Ok(None)
            }
        }
    }

    async fn reached(&mut self, version: String) -> Result<(), Closed> {
        self.metrics.heard();
        if version.is_empty() {
            return Ok(());
        }
        self.version = Some(version.clone());
        send(&self.events, Event::Version(R::KIND, version)).await
    }

    fn refused(&mut self, failure: Failure) -> Failure {
        if matches!(failure.kind, Kind::Expired | Kind::Refused) {
            // The version is too old, or of another cluster.
            self.version = None;
        }
        failure
    }

    /// Going on from the same version would give the same frame again.
    fn garbled(&mut self, garbled: Garbled) -> Failure {
        self.version = None;
        garbled.into()
    }

    fn works(&mut self) {
        self.journal.works();
        self.backoff.reset();
    }
}

fn no_answer(within: Duration) -> Failure {
    Failure::new(Kind::Unreachable, format!("no answer within {within:?}"))
}

/// All of an answer.
async fn collected(body: Body) -> Result<Bytes, Failure> {
    Ok(body.collect().await?.to_bytes())
}

/// The next piece of an answer; `None` at its end.
async fn data(body: &mut Body) -> Result<Option<Bytes>, Failure> {
    while let Some(part) = body.frame().await {
        if let Ok(data) = part?.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Frames of a watch.
struct Frames {
    body: Body,
    /// What has been read and not been taken.
    read: BytesMut,
}

impl Frames {
    /// The next frame; `None` at the end. What has been read when the future is dropped stays, so that it can be called again.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(frame) = take_frame(&mut self.read)? {
                return Ok(Some(frame));
            }
            match data(&mut self.body).await? {
                // A frame without its end was cut off.
                None => return Ok(None),
                Some(data) => self.read.extend_from_slice(&data),
            }
        }
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
