//! Against a server on loopback that answers as it is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proxy_core::cluster::Kind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::channel;
use tokio::time::timeout;

use super::super::resource::ServiceCidrs;
use super::super::{KubeConfig, failure, watch};
use super::*;

const DEADLINE: Duration = Duration::from_secs(30);

/// An empty list, of version 7: `Unknown { 2: List { 1: ListMeta { 2: "7" } } }`.
const EMPTY: &[u8] = b"k8s\0\x12\x05\x0a\x03\x12\x017";

/// What has been asked for, in that order, and what is answered to lists of each resource: an HTTP status and, if that is not yet to
/// be, no answer.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    asked: Vec<String>,
    /// Not there: 200.
    answers: BTreeMap<&'static str, Option<u16>>,
}

impl Server {
    /// Listens and returns how it is reached.
    async fn start(&self) -> KubeConfig {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port of loopback");
        let server = format!("http://{}", listener.local_addr().expect("an address"));
        let state = self.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                tokio::spawn(state.clone().serve(connection));
            }
        });
        KubeConfig { kubeconfig: None, server: Some(server) }
    }

    fn answer(&self, resource: &'static str, status: Option<u16>) {
        self.0.lock().expect("not poisoned").answers.insert(resource, status);
    }

    fn asked(&self) -> Vec<String> {
        self.0.lock().expect("not poisoned").asked.clone()
    }

    /// One request.
    async fn serve(self, mut connection: TcpStream) {
        let (mut request, mut buffer) = (Vec::new(), [0; 4096]);
        while !request.ends_with(b"\r\n\r\n") {
            match connection.read(&mut buffer).await {
                Ok(read) if read > 0 => request.extend_from_slice(&buffer[..read]),
                _ => return,
            }
        }
        let request = String::from_utf8_lossy(&request).into_owned();
        let url = request.split_whitespace().nth(1).expect("a request line").to_owned();
        let resource = url.split('?').next().and_then(|path| path.rsplit('/').next()).expect("a path").to_owned();
        let is_watch = url.contains("watch=true");
        if !is_watch {
            self.0.lock().expect("not poisoned").asked.push(url);
        }
        let status = || self.0.lock().expect("not poisoned").answers.get(&*resource).copied().unwrap_or(Some(200));
        while is_watch || status().is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let status = status().unwrap_or(200);
        let body = if status == 200 { EMPTY } else { b"no" };
        let head = format!("HTTP/1.1 {status} ?\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        // Whoever has asked may have gone.
        let _ = connection.write_all(&[head.as_bytes(), body].concat()).await;
    }
}

async fn next(events: &mut tokio::sync::mpsc::Receiver<Event>) -> Kind {
    loop {
        match timeout(DEADLINE, events.recv()).await.expect("an event in time").expect("the watches go on") {
            Event::Listed(kind, _) => return kind,
            Event::Version(..) => {}
            Event::Object(object) | Event::Endpoints(object, _) => panic!("{object:?}"),
        }
    }
}

/// Until the condition holds.
async fn wait(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn what_is_around_the_services_comes_before_them() {
    let server = Server::default();
    server.answer("nodes", None);
    let (sender, mut events) = channel(16);
    let config = server.start().await;
    tokio::spawn(async move { watch(config, "node1".into(), sender, &crate::metrics::Metrics::default().client).await });
    assert_eq!(next(&mut events).await, Kind::ServiceCidr);
    wait("the own Node is asked for", || server.asked().iter().any(|url| url.contains("metadata.name%3Dnode1"))).await;
    assert_eq!(server.asked().len(), 2, "{:?}", server.asked());
    server.answer("nodes", Some(200));
    assert_eq!(next(&mut events).await, Kind::Node);
    let mut served = [next(&mut events).await, next(&mut events).await];
    served.sort();
    assert_eq!(served, [Kind::Service, Kind::Slice]);
}

#[tokio::test]
async fn a_list_is_followed_by_its_version_and_counted() {
    let server = Server::default();
    let (sender, mut events) = channel(16);
    let (config, metrics) = (server.start().await, std::sync::Arc::new(crate::metrics::Metrics::default()));
    let counted = std::sync::Arc::clone(&metrics);
    tokio::spawn(async move { watch(config, "node1".into(), sender, &counted.client).await });
    let mut said = Vec::new();
    while said.len() < 8 {
        said.push(timeout(DEADLINE, events.recv()).await.expect("an event in time").expect("the watches go on"));
    }
    for kind in [Kind::Node, Kind::ServiceCidr, Kind::Service, Kind::Slice] {
        let place = |event: &Event| said.iter().position(|said| said == event);
        let (listed, version) = (place(&Event::Listed(kind, HashSet::new())), place(&Event::Version(kind, "7".into())));
        assert!(listed.is_some() && listed < version, "{kind:?}: {said:?}");
    }
    let text = metrics.text();
    for line in [
        "proxy_agent_lists_total{resource=\"services\"} 1",
        "verb=\"LIST\"} 44\n",
        "rest_client_requests_total{code=\"200\",host=\"127.0.0.1:",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
}

#[tokio::test]
async fn a_server_without_servicecidrs_or_that_shows_no_nodes_is_good_enough() {
    let server = Server::default();
    server.answer("servicecidrs", Some(404));
    server.answer("nodes", Some(403));
    let (sender, mut events) = channel(16);
    let config = server.start().await;
    tokio::spawn(async move { watch(config, "node1".into(), sender, &crate::metrics::Metrics::default().client).await });
    let mut served = [next(&mut events).await, next(&mut events).await];
    served.sort();
    assert_eq!(served, [Kind::Service, Kind::Slice]);
    // Both are asked for again: rights may be given, and a server that starts says anything.
    server.answer("servicecidrs", Some(200));
    server.answer("nodes", Some(200));
    let mut around = [next(&mut events).await, next(&mut events).await];
    around.sort();
    assert_eq!(around, [Kind::Node, Kind::ServiceCidr]);
}

#[tokio::test]
async fn what_a_server_does_not_have_is_asked_for_less_and_less_often() {
    let (sender, _events) = channel(1);
    let link = KubeConfig { kubeconfig: None, server: Some("http://127.0.0.1:9".into()) };
    let mut cidrs =
        Watch::new(ServiceCidrs, link.clone(), link.link().await.expect("a client"), sender, &crate::metrics::Metrics::default().client);
    let pauses: Vec<Duration> = (0..9).map(|_| cidrs.pause(failure::Kind::Absent)).collect();
    assert!(pauses[..6].iter().all(|pause| *pause <= Duration::from_secs(16)), "{pauses:?}");
    assert_eq!(pauses[6..], [LATER; 3]);
    assert!(cidrs.pause(failure::Kind::Unreachable) <= Duration::from_secs(30), "a server that is away comes back sooner");
}
