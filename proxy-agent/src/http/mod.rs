//! HTTP servers of the agent: health, metrics, and the health checks of Services. They answer from what is known already, and never
//! keep the loop waiting.

mod answer;
mod listen;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::debug;

pub use answer::Answer;
pub use listen::{Keeping, keep, listen, listen_on};

/// Who connects and says nothing is not waited for any longer than this.
const PATIENCE: Duration = Duration::from_secs(30);
/// So many connections of one server are served at once; others wait.
const AT_ONCE: usize = 256;
/// The longest body that is read.
const LONGEST: usize = 64 << 10;
/// After a connection could not be taken: there are no file descriptors left, or no memory.
const BREATHE: Duration = Duration::from_millis(100);

/// A request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asked {
    /// GET, PUT, ...
    pub method: Method,
    /// Where, without what follows a `?`.
    pub path: String,
    /// What follows it.
    pub query: String,
    /// What is sent with it.
    pub body: String,
}

impl Asked {
    /// The first value of this name in the query, decoded.
    pub fn parameter(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| decoded(value))
    }
}

/// `%2F` and `+` as what they stand for.
fn decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::with_capacity(text.len()), text.bytes());
    while let Some(byte) = rest.next() {
        let mut ahead = rest.clone();
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        match (byte, digit(ahead.next()), digit(ahead.next())) {
            (b'+', ..) => bytes.push(b' '),
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = ahead;
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a server answers.
pub trait Site: Send + Sync + 'static {
    /// The answer to one request.
    fn answer(&self, asked: Asked) -> impl Future<Output = Answer> + Send;
}

/// Serves until it is dropped; its connections end with it.
pub async fn serve<S: Site>(listeners: Vec<TcpListener>, site: Arc<S>) {
    let mut servers = JoinSet::new();
    for listener in listeners {
        servers.spawn(accept(listener, Arc::clone(&site)));
    }
    while servers.join_next().await.is_some() {}
}

async fn accept<S: Site>(listener: TcpListener, site: Arc<S>) {
    let (mut connections, room) = (JoinSet::new(), Arc::new(Semaphore::new(AT_ONCE)));
    while let Ok(place) = Arc::clone(&room).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let site = Arc::clone(&site);
                connections.spawn(async move {
                    talk(stream, site).await;
                    drop(place);
                });
            }
            Err(error) => {
                debug!("a connection could not be taken: {error}");
                tokio::time::sleep(BREATHE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn talk<S: Site>(stream: TcpStream, site: Arc<S>) {
    let service = service_fn(move |request| {
        let site = Arc::clone(&site);
        async move { Ok::<_, hyper::Error>(respond(request, &*site).await) }
    });
    let mut server = hyper::server::conn::http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(PATIENCE).title_case_headers(true);
    // Whoever breaks off does no harm.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn respond<S: Site>(request: Request<Incoming>, site: &S) -> Response<Full<bytes::Bytes>> {
    let (head, body) = request.into_parts();
    let body = match tokio::time::timeout(PATIENCE, Limited::new(body, LONGEST).collect()).await {
        Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Ok(Err(error)) => return Answer::plain(400, format!("the body cannot be read: {error}")).into(),
        Err(_) => return Answer::plain(408, format!("the body did not come within {PATIENCE:?}")).into(),
    };
    let query = head.uri.query().unwrap_or_default().to_owned();
    site.answer(Asked { method: head.method, path: head.uri.path().to_owned(), query, body }).await.into()
}
