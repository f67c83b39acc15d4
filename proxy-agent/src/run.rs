//! One run of the agent, from its configuration to its end: which parts there are and how they are joined.

use anyhow::Context;
use proxy_core::model::Frontend;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::agent::Agent;
use crate::config::{Config, ConntrackSettings, Source};
use crate::conntrack::Cleaner;
use crate::dataplane::Alarm;
use crate::host::Addresses;
use crate::recorder::{Recorder, Severity};
use crate::{coexist, modes, source, sysctl};

/// Serves until a signal ends it. What is programmed stays.
///
/// # Errors
///
/// This host, or this configuration, cannot work; with the way out.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let settings = config.settings;
    info!(version = env!("CARGO_PKG_VERSION"), mode = ?config.mode, node = %settings.node, "proxy-agent starts");
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    // Roughly one chunk of a list: the sources wait while the kernel is written.
    let (sender, events) = mpsc::channel(4096);
    let host = tokio::spawn(Addresses::start(sender.clone()).await?.watch());
    let (recorder, _notices) = Recorder::new();
    let node = settings.node.clone();
    let source = match config.source {
        Source::Manifests(dir) => tokio::spawn(source::manifests::watch(dir, node, sender)),
        Source::Kube(kube) => tokio::spawn(source::kube::watch(kube, node, sender)),
    };
    set_kernel(&config.conntrack, config.oom_score_adj, &recorder)?;
    let alarm = Alarm::default();
    let programmers = modes::programmers(config.mode, config.bpf, &settings, &alarm)?;
    let mut agent = Agent::new(settings, programmers, alarm);
    agent.followed_by(Cleaner::start(left_behind(), |_| {})?);
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
    }
    info!("proxy-agent stops; what is programmed stays (`proxy-agent cleanup` removes it)");
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
