//! What is measured: kube-proxy's metrics with its names, labels and buckets (MET), and our own, which begin with `proxy_agent_`.
//!
//! Whoever does something counts it as it is done. A scrape reads what has been counted, and of the process what the kernel tells.

mod catalogue;
mod client;
mod connections;
mod conntrack;
mod dataplanes;
mod process;
mod site;
mod sync;
#[cfg(test)]
mod tests;

use prometheus::{Encoder, IntCounterVec, IntGaugeVec, TextEncoder};

use catalogue::Catalogue;
pub use catalogue::Entry;
pub use client::{Client, Watched};
pub use connections::Connections;
pub use conntrack::Conntrack;
pub use dataplanes::{Dataplanes, Measured};
use process::Process;
pub use site::MetricsSite;
pub use sync::{Changed, Syncs};

/// The type of what is answered.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// kube-proxy's feature gates that bear on what is done here, with what they come to here.
const FEATURES: [(&str, &str, i64); 3] =
    [("AllAlpha", "ALPHA", 0), ("AllBeta", "BETA", 0), ("KubeProxyNFTablesLocalhostNodePorts", "ALPHA", 0)];

/// All metrics.
pub struct Metrics {
    /// Syncs and what they bring about.
    pub syncs: Syncs,
    /// Answers of the health server.
    pub probes: Probes,
    /// The cleaning of the kernel's connection tracking.
    pub conntrack: Conntrack,
    /// The API server, as we meet it.
    pub client: Client,
    /// What is programmed, and how long that takes.
    pub dataplanes: Dataplanes,
    /// Connections by Service port.
    pub connections: Connections,
    process: Process,
    main: Catalogue,
    slis: Catalogue,
    healthcheck: IntGaugeVec,
    healthchecks: IntCounterVec,
}

impl Default for Metrics {
    fn default() -> Self {
        let (mut main, mut slis) = (Catalogue::default(), Catalogue::default());
        let labels = &["build_date", "compiler", "git_commit", "git_tree_state", "git_version", "go_version", "major", "minor", "platform"];
        let build = main.gauges("kubernetes_build_info", "A metric with a constant '1' value that says what this program is", labels);
        let version = format!("v{}", env!("CARGO_PKG_VERSION"));
        let (major, minor) = (env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"));
        let platform = format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH);
        build.with_label_values(&["", "rustc", "", "", &*version, "", major, minor, &*platform]).set(1);
        let features = main.gauges("kubernetes_feature_enabled", "Whether a feature gate is on", &["name", "stage"]);
        for (name, stage, on) in FEATURES {
            features.with_label_values(&[name, stage]).set(on);
        }
        let labels = &["name", "type"];
        let healthcheck = slis.gauges("kubernetes_healthcheck", "The result of the last healthcheck: 1 for success", labels);
        let labels = &["name", "status", "type"];
        let healthchecks = slis.counters("kubernetes_healthchecks_total", "The results of all healthchecks", labels);
        Self {
            syncs: Syncs::new(&mut main),
            probes: Probes::new(&mut main),
            conntrack: Conntrack::new(&mut main),
            client: Client::new(&mut main),
            dataplanes: Dataplanes::new(&mut main),
            connections: Connections::new(&mut main),
            process: Process::new(&mut main),
            main,
            slis,
            healthcheck,
            healthchecks,
        }
    }
}

impl Metrics {
    /// What a scrape gets.
    pub fn text(&self) -> String {
        self.process.read();
        encoded(&self.main)
    }

    /// The same of `/metrics/slis`.
    pub fn slis_text(&self) -> String {
        encoded(&self.slis)
    }

    /// What is counted for `/metrics/slis` begins anew.
    pub fn reset_slis(&self) {
        self.healthcheck.reset();
        self.healthchecks.reset();
    }

    /// `/healthz` of the metrics server has been asked, and was able to answer.
    pub fn pinged(&self) {
        self.healthcheck.with_label_values(&["ping", "healthz"]).set(1);
        self.healthchecks.with_label_values(&["ping", "success", "healthz"]).inc();
    }

    /// Every metric that there can be, by name.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = [&*self.main.entries, &*self.slis.entries].concat();
        entries.sort();
        entries
    }
}

fn encoded(catalogue: &Catalogue) -> String {
    let mut text = Vec::new();
    // Writing to memory does not fail, and the names are valid.
    let _ = TextEncoder::new().encode(&catalogue.registry.gather(), &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Answers of the health server (MET-09).
pub struct Probes {
    healthz: IntCounterVec,
    livez: IntCounterVec,
}

impl Probes {
    fn new(main: &mut Catalogue) -> Self {
        Self {
            healthz: main.counters("kubeproxy_proxy_healthz_total", "Answers of /healthz", &["code"]),
            livez: main.counters("kubeproxy_proxy_livez_total", "Answers of /livez", &["code"]),
        }
    }

    /// Counts an answer.
    pub fn answered(&self, is_healthz: bool, code: u16) {
        let counter = if is_healthz { &self.healthz } else { &self.livez };
        counter.with_label_values(&[&*code.to_string()]).inc();
    }
}
