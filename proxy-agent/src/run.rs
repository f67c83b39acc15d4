//! One run of the agent, from its configuration to its end: which parts there are and how they are joined.

mod servers;
mod stop;

use std::time::Duration;

use anyhow::Context;
use proxy_core::model::Frontend;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::agent::Agent;
use crate::config::{Changes, Config, ConntrackSettings, Loaded, Source};
use crate::connections::Counter;
use crate::conntrack::{Cleaned, Cleaner};
use crate::dataplane::Alarm;
use crate::health::ServiceHealth;
use crate::host::Addresses;
use crate::modes::Kernel;
use crate::programmed::Questions;
use crate::recorder::{Recorder, Severity};
use crate::telemetry::Telemetry;
use crate::{coexist, lead, memory, modes, source, sysctl};
use servers::Servers;
pub use stop::Stop;

/// How long what has arrived may take to be in place when the agent is to stop.
const FLUSH: Duration = Duration::from_secs(10);

/// Why a run has ended.
pub enum Ending {
    /// A signal asked for it.
    Stopped,
    /// There is another configuration, for the next run.
    Changed(Box<Loaded>),
}

/// Serves until a signal ends it, or the configuration is another. What is programmed stays.
///
/// # Errors
///
/// This host, or this configuration, cannot work; with the way out.
pub async fn run(config: Config, changes: Changes, mut stop: Stop) -> anyhow::Result<Ending> {
    info!(version = env!("CARGO_PKG_VERSION"), node = %config.settings.node, "proxy-agent starts");
    let (node, kube) = (config.settings.node.clone(), config.source.kube().cloned());
    // HC-01, HC-02: files may name no Node, and nobody takes it away then.
    let (telemetry, notices) = Telemetry::new(config.sync_period * 2, kube.is_none());
    let recorder = telemetry.recorder.clone();
    let mut parts = JoinSet::new();
    if let Some(kube) = kube {
        let node = node.clone();
        parts.spawn(async {
            source::kube::post(kube, node, notices).await;
            Ok(())
        });
    }
    // API-06
    recorder.node(Severity::Normal, "Starting", format!("proxy-agent {} starts", env!("CARGO_PKG_VERSION")));
    config.notices.iter().for_each(|notice| recorder.record(notice.clone()));
    let _lead = tokio::select! {
        lead = lead::take(&recorder) => lead?,
        () = stop.asked() => return Ok(Ending::Stopped),
    };
    let mode = config.mode.unwrap_or_else(|| modes::choose(&config.bpf, &recorder));
    info!(%mode, "serving");
    let (questions, asked) = Questions::new();
    let most = config.service_connection_series;
    let counter = (most > 0).then(|| Counter::new(most, telemetry.metrics.connections.clone()));
    parts.spawn(Servers::new(&config, mode, &telemetry, questions, counter.clone()).run());
    // Roughly one chunk of a list: the sources wait while the kernel is written.
    let (sender, events) = mpsc::channel(4096);
    let addresses = Addresses::start(sender.clone()).await?;
    parts.spawn(async {
        addresses.watch().await;
        Ok(())
    });
    let metrics = telemetry.metrics.clone();
    match config.source {
        Source::Manifests(dir) => parts.spawn(source::manifests::watch(dir, node, sender)),
        Source::Kube(kube) => parts.spawn(async move { source::kube::watch(kube, node, sender, &metrics.client).await }),
    };
    set_kernel(&config.conntrack, config.oom_score_adj, &recorder)?;
    let alarm = Alarm::default();
    let Kernel { programmers, meters } = modes::kernel(mode, config.bpf.clone(), &config.settings, &alarm)?;
    let mut agent = Agent::new(config.settings, programmers, alarm, telemetry.clone());
    agent.asked_by(asked);
    agent.paced(config.min_sync_period);
    agent.followed_by(ServiceHealth::new(telemetry.health, recorder.clone()));
    let metrics = telemetry.metrics;
    let report = move |Cleaned { family, deleted, duration }| metrics.conntrack.observe(duration, family, deleted);
    agent.followed_by(Cleaner::start(left_behind(), report)?);
    if let Some(counter) = counter {
        counter.has(meters);
        agent.followed_by(counter.clone());
        parts.spawn(async move {
            counter.clean().await;
            Ok(())
        });
    }
    parts.spawn(async { memory::give_back().await });
    let found = tokio::task::spawn_blocking(coexist::look).await.context("looking for a kube-proxy")?;
    let remove = config.remove_kube_proxy_rules;
    found.report(remove);
    let (filled, is_filled) = oneshot::channel();
    agent.once_filled(move || {
        let _ = filled.send(());
    });
    // What is of no use any more goes once everything of ours is in place.
    parts.spawn(async move {
        let _ = is_filled.await;
        tokio::join!(coexist::migrate(found, remove), modes::retire_others(mode, &config.bpf));
        std::future::pending().await
    });
    let mut agent = tokio::spawn(agent.run(events));
    let ending = tokio::select! {
        () = stop.asked() => Ending::Stopped,
        next = changes.next(recorder) => Ending::Changed(Box::new(next)),
        ended = parts.join_next() => {
            ended.context("no part of the agent runs")?.context("a part of the agent stopped")??;
            Ending::Stopped
        }
        ended = &mut agent => return ended.context("the agent's loop stopped").map(|()| Ending::Stopped),
    };
    // Without sources the loop ends, once what has arrived is in place.
    parts.abort_all();
    match timeout(FLUSH, agent).await {
        Ok(ended) => ended.context("the agent's loop stopped")?,
        Err(_) => warn!("what has changed last is not in place after {FLUSH:?}; the next start sees to it"),
    }
    if matches!(ending, Ending::Stopped) {
        info!("proxy-agent stops; what is programmed stays (`proxy-agent cleanup` removes it)");
    }
    Ok(ending)
}

/// Does what needs more rights than serving does (CLI-05): what may be done once, in an init container.
///
/// # Errors
///
/// The API server has not answered, or a step has failed.
pub async fn init(config: &Config) -> anyhow::Result<()> {
    if let Source::Kube(kube) = &config.source {
        source::kube::reach(kube, &config.settings.node).await?;
    }
    for left in sysctl::set(&config.conntrack)? {
        warn!("{}", left.note);
    }
    info!("everything is prepared");
    Ok(())
}

/// Sets what of the kernel is not a dataplane's (CT-11, CFG-09).
fn set_kernel(conntrack: &ConntrackSettings, oom_score: Option<i32>, recorder: &Recorder) -> anyhow::Result<()> {
    if let Some(score) = oom_score {
        sysctl::set_oom_score(score);
    }
    for left in sysctl::set(conntrack)? {
        if left.is_wrong {
            warn!("{}", left.note);
            recorder.node(Severity::Warning, "ConntrackNotSet", left.note);
        } else {
            info!("{}", left.note);
        }
    }
    Ok(())
}

/// What an agent before this one has served.
fn left_behind() -> Vec<Frontend> {
    modes::frontends().unwrap_or_else(|reason| {
        warn!("flows of Services that went while no agent ran stay until they are idle: {reason:#}");
        Vec::new()
    })
}
