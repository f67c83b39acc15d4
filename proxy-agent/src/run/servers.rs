//! The servers of one run: health checks and metrics.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::cli::{self, Mode};
use crate::config::Config;
use crate::connections::Counter;
use crate::health::HealthSite;
use crate::http::{Keeping, Site, keep};
use crate::metrics::MetricsSite;
use crate::programmed::Questions;
use crate::recorder::{Recorder, Severity};
use crate::telemetry::Telemetry;

/// What is served, and where; nowhere where it is not to be (CLI-03, W-20).
pub(super) struct Servers {
    healthz: Option<(SocketAddr, Arc<HealthSite>)>,
    metrics: Option<(SocketAddr, Arc<MetricsSite>)>,
    hard_fail: bool,
    recorder: Recorder,
}

impl Servers {
    /// `connections`: what reads the kernel's counts before a scrape.
    pub(super) fn new(config: &Config, mode: Mode, telemetry: &Telemetry, questions: Questions, connections: Option<Arc<Counter>>) -> Self {
        let mode = mode.to_string();
        telemetry.metrics.dataplanes.is_in(&mode);
        let health = HealthSite { health: telemetry.health.clone(), metrics: telemetry.metrics.clone() };
        let configuration = configuration(config, &mode);
        let metrics = MetricsSite {
            metrics: telemetry.metrics.clone(),
            mode,
            config: Box::new(move || configuration.clone()),
            flags: cli::flags(std::env::args_os()),
            profiling: config.profiling,
            questions,
            connections,
            started: SystemTime::now(),
        };
        Self {
            healthz: config.healthz.map(|address| (address, Arc::new(health))),
            metrics: config.metrics.map(|address| (address, Arc::new(metrics))),
            hard_fail: config.bind_hard_fail,
            recorder: telemetry.recorder.clone(),
        }
    }

    /// Serves for ever.
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let healthz = self.kept("the health of this node", "FailedToStartProxierHealthcheck", &self.healthz);
        let metrics = self.kept("what is measured", "FailedToStartMetricServer", &self.metrics);
        tokio::try_join!(healthz, metrics).map(drop)
    }

    async fn kept<S: Site>(&self, what: &'static str, reason: &'static str, server: &Option<(SocketAddr, Arc<S>)>) -> anyhow::Result<()> {
        let Some((address, site)) = server else { return std::future::pending().await };
        let failed = |text: &str| self.recorder.node(Severity::Warning, reason, text);
        keep(Keeping { what, address: *address, hard_fail: self.hard_fail, failed }, Arc::clone(site)).await
    }
}

/// What `/configz` says.
fn configuration(config: &Config, mode: &str) -> Value {
    let address = |address: Option<SocketAddr>| address.map_or_else(String::new, |address| address.to_string());
    json!({"kubeproxy.config.k8s.io": {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "hostnameOverride": &*config.settings.node,
        "healthzBindAddress": address(config.healthz),
        "metricsBindAddress": address(config.metrics),
        "bindAddressHardFail": config.bind_hard_fail,
        "enableProfiling": config.profiling,
    }})
}
