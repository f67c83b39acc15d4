//! The API server, as we meet it: requests, watches, what could not be told to it.

use std::time::Duration;

use prometheus::{GaugeVec, HistogramVec, IntCounter, IntCounterVec};

use super::catalogue::Catalogue;
use super::sync::now;

/// kube-proxy's buckets of sizes.
const SIZES: [f64; 11] = [64.0, 256.0, 512.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0];

/// Requests and watches. Copies count in the same place.
#[derive(Clone)]
pub struct Client {
    requests: IntCounterVec,
    duration: HistogramVec,
    request_size: HistogramVec,
    response_size: HistogramVec,
    restarts: IntCounterVec,
    lists: IntCounterVec,
    last_event: GaugeVec,
    unposted: IntCounter,
}

/// The watch of one resource.
#[derive(Clone)]
pub struct Watched {
    client: Client,
    resource: &'static str,
}

impl Client {
    pub(super) fn new(main: &mut Catalogue) -> Self {
        let buckets = vec![0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0];
        let (resource, labels) = (&["resource"], &["host", "verb"]);
        let sizes = || SIZES.to_vec();
        Self {
            requests: main.counters(
                "rest_client_requests_total",
                "Requests to the API server, by their status code or <error>",
                &["code", "host", "method"],
            ),
            duration: main.histograms(
                "rest_client_request_duration_seconds",
                "From a request to the API server to the beginning of its answer",
                labels,
                buckets,
            ),
            request_size: main.histograms(
                "rest_client_request_size_bytes",
                "Size of requests: those of an agent have no body",
                labels,
                sizes(),
            ),
            response_size: main.histograms("rest_client_response_size_bytes", "Size of the answers to lists", labels, sizes()),
            restarts: main.counters("proxy_agent_watch_restarts_total", "Watches that were begun again after they failed", resource),
            lists: main.counters("proxy_agent_lists_total", "Complete lists that were asked for", resource),
            last_event: main.readings(
                "proxy_agent_watch_last_event_timestamp_seconds",
                "When the API server last said something; bookmarks come every minute",
                resource,
            ),
            unposted: main.counter("proxy_agent_events_dropped_total", "Kubernetes Events that were not posted, because too many waited"),
        }
    }

    /// The watch of one resource.
    pub fn watched(&self, resource: &'static str) -> Watched {
        self.restarts.with_label_values(&[resource]);
        Watched { client: self.clone(), resource }
    }

    /// A request was answered with this status code, or not at all.
    pub fn requested(&self, host: &str, (method, verb): (&str, &str), code: Option<u16>, duration: Duration) {
        let code = code.map_or_else(|| "<error>".to_owned(), |code| code.to_string());
        self.requests.with_label_values(&[&*code, host, method]).inc();
        self.duration.with_label_values(&[host, verb]).observe(duration.as_secs_f64());
        self.request_size.with_label_values(&[host, verb]).observe(0.0);
    }

    /// An Event is lost.
    pub fn event_dropped(&self) {
        self.unposted.inc();
    }
}

impl Watched {
    /// The server has said something.
    pub fn heard(&self) {
        self.client.last_event.with_label_values(&[self.resource]).set(now());
    }

    /// A watch has failed and is begun again.
    pub fn restarted(&self) {
        self.client.restarts.with_label_values(&[self.resource]).inc();
    }

    /// A list is complete, and was so long.
    pub fn received(&self, host: &str, bytes: usize) {
        self.client.response_size.with_label_values(&[host, "LIST"]).observe(bytes as f64);
    }

    /// A complete list has been asked for.
    pub fn listed(&self) {
        self.client.lists.with_label_values(&[self.resource]).inc();
    }

    /// See [`Client::requested`]. All requests here are made with GET.
    pub fn requested(&self, host: &str, verb: &str, code: Option<u16>, duration: Duration) {
        self.client.requested(host, ("GET", verb), code, duration);
    }
}
