//! One run of the agent, from its configuration to its end: which parts there are and how they are joined.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::info;

use crate::agent::Agent;
use crate::cli::Mode;
use crate::config::{Changes, Config, Loaded, Source};
use crate::dataplane::Alarm;
use crate::host::Addresses;
use crate::recorder::Recorder;
use crate::{coexist, modes, source};

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
pub async fn run(config: Config, changes: Changes) -> anyhow::Result<Ending> {
    let settings = config.settings;
    let mode = config.mode.unwrap_or_else(|| Mode::auto(&config.bpf));
    info!(version = env!("CARGO_PKG_VERSION"), %mode, node = %settings.node, "proxy-agent starts");
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    // Roughly one chunk of a list: the sources wait while the kernel is written.
    let (sender, events) = mpsc::channel(4096);
    let host = tokio::spawn(Addresses::start(sender.clone()).await?.watch());
    let (recorder, _notices) = Recorder::new();
    config.notices.into_iter().for_each(|notice| recorder.record(notice));
    let node = settings.node.clone();
    let source = match config.source {
        Source::Manifests(dir) => tokio::spawn(source::manifests::watch(dir, node, sender)),
        Source::Kube(kube) => tokio::spawn(source::kube::watch(kube, node, sender)),
    };
    let alarm = Alarm::default();
    let programmers = modes::programmers(mode, config.bpf, &settings, &alarm)?;
    let mut agent = Agent::new(settings, programmers, alarm);
    let found = tokio::task::spawn_blocking(coexist::look).await.context("looking for a kube-proxy")?;
    let remove = config.remove_kube_proxy_rules;
    found.report(remove);
    agent.once_filled(move || drop(tokio::spawn(coexist::migrate(found, remove))));
    let agent = tokio::spawn(agent.run(events));
    let ending = tokio::select! {
        _ = terminate.recv() => Ending::Stopped,
        _ = interrupt.recv() => Ending::Stopped,
        next = changes.next(recorder) => Ending::Changed(Box::new(next)),
        ended = source => {
            ended.context("the source of Services stopped")??;
            Ending::Stopped
        }
        ended = host => {
            ended.context("the watch of the host's addresses stopped")?;
            Ending::Stopped
        }
        ended = agent => {
            ended.context("the agent's loop stopped")?;
            Ending::Stopped
        }
    };
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
    if config.remove_kube_proxy_rules {
        tokio::task::spawn_blocking(coexist::remove).await.context("removing the rules of kube-proxy")??;
    }
    info!("everything is prepared");
    Ok(())
}
