//! One run of the agent, from its configuration to its end: which parts there are and how they are joined.

mod servers;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::info;

use crate::agent::Agent;
use crate::config::{Config, Source};
use crate::dataplane::Alarm;
use crate::health::ServiceHealth;
use crate::host::Addresses;
use crate::programmed::Questions;
use crate::recorder::Recorder;
use crate::telemetry::Telemetry;
use crate::{coexist, modes, source};
use servers::Servers;

/// Serves until a signal ends it. What is programmed stays.
///
/// # Errors
///
/// This host, or this configuration, cannot work; with the way out.
pub async fn run(config: Config) -> anyhow::Result<()> {
    info!(version = env!("CARGO_PKG_VERSION"), mode = ?config.mode, node = %config.settings.node, "proxy-agent starts");
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    // HC-01, HC-02: files may name no Node, and nobody takes it away then.
    let telemetry = Telemetry::new(config.sync_period * 2, matches!(config.source, Source::Manifests(_)));
    let (recorder, _notices) = Recorder::new(telemetry.metrics.clone());
    let (questions, asked) = Questions::new();
    let servers = tokio::spawn(Servers::new(&config, &telemetry, &recorder, questions).run());
    let settings = config.settings;
    // Roughly one chunk of a list: the sources wait while the kernel is written.
    let (sender, events) = mpsc::channel(4096);
    let host = tokio::spawn(Addresses::start(sender.clone()).await?.watch());
    let (node, metrics) = (settings.node.clone(), telemetry.metrics.clone());
    let source = match config.source {
        Source::Manifests(dir) => tokio::spawn(source::manifests::watch(dir, node, sender)),
        Source::Kube(kube) => tokio::spawn(async move { source::kube::watch(kube, node, sender, &metrics.client).await }),
    };
    let alarm = Alarm::default();
    let programmers = modes::programmers(config.mode, config.bpf, &settings, &alarm)?;
    let mut agent = Agent::new(settings, programmers, alarm, telemetry.clone());
    agent.asked_by(asked);
    agent.followed_by(ServiceHealth::new(telemetry.health, recorder));
    let found = tokio::task::spawn_blocking(coexist::look).await.context("looking for a kube-proxy")?;
    let remove = config.remove_kube_proxy_rules;
    found.report(remove);
    agent.once_filled(move || drop(tokio::spawn(coexist::migrate(found, remove))));
    let agent = tokio::spawn(agent.run(events));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = source => {
            ended.context("the source of Services stopped")??;
        }
        ended = host => ended.context("the watch of the host's addresses stopped")?,
        ended = agent => ended.context("the agent's loop stopped")?,
        ended = servers => ended.context("the servers of health and metrics stopped")??,
    }
    info!("proxy-agent stops; what is programmed stays (`proxy-agent cleanup` removes it)");
    Ok(())
}
