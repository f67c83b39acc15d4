//! One run of the agent, from its configuration to its end: which parts there are and how they are joined.

use std::time::Duration;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tracing::{info, warn};

use crate::agent::Agent;
use crate::config::{Config, Source};
use crate::dataplane::Alarm;
use crate::host::Addresses;
use crate::recorder::{Recorder, Severity};
use crate::{coexist, lead, modes, source};

/// How long what has arrived may take to be in place when the agent is to stop.
const FLUSH: Duration = Duration::from_secs(10);

/// Serves until a signal ends it. What is programmed stays.
///
/// # Errors
///
/// This host, or this configuration, cannot work; with the way out.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let settings = config.settings;
    info!(version = env!("CARGO_PKG_VERSION"), mode = ?config.mode, node = %settings.node, "proxy-agent starts");
    let mut stop = Stop::new()?;
    let (recorder, notices) = Recorder::new();
    let node = settings.node.clone();
    if let Source::Kube(kube) = &config.source {
        tokio::spawn(source::kube::post(kube.clone(), node.clone(), notices));
    }
    // API-06
    recorder.node(Severity::Normal, "Starting", format!("proxy-agent {} starts", env!("CARGO_PKG_VERSION")));
    let _lead = tokio::select! {
        lead = lead::take(&recorder) => lead?,
        () = stop.asked() => return Ok(()),
    };
    // Roughly one chunk of a list: the sources wait while the kernel is written.
    let (sender, events) = mpsc::channel(4096);
    let mut host = tokio::spawn(Addresses::start(sender.clone()).await?.watch());
    let mut source = match config.source {
        Source::Manifests(dir) => tokio::spawn(source::manifests::watch(dir, node, sender)),
        Source::Kube(kube) => tokio::spawn(source::kube::watch(kube, node, sender)),
    };
    let alarm = Alarm::default();
    let bpf = config.bpf;
    let programmers = modes::programmers(config.mode, bpf.clone(), &settings, &alarm)?;
    let mut agent = Agent::new(settings, programmers, alarm);
    let found = tokio::task::spawn_blocking(coexist::look).await.context("looking for a kube-proxy")?;
    let remove = config.remove_kube_proxy_rules;
    found.report(remove);
    let (filled, is_filled) = oneshot::channel();
    agent.once_filled(move || {
        let _ = filled.send(());
    });
    // What is of no use any more goes once everything of ours is in place.
    let migration = async {
        let _ = is_filled.await;
        tokio::join!(coexist::migrate(found, remove), modes::retire_others(config.mode, &bpf));
        std::future::pending::<()>().await
    };
    let mut agent = tokio::spawn(agent.run(events));
    tokio::select! {
        () = stop.asked() => {}
        () = migration => {}
        ended = &mut source => {
            ended.context("the source of Services stopped")??;
        }
        ended = &mut host => ended.context("the watch of the host's addresses stopped")?,
        ended = &mut agent => return ended.context("the agent's loop stopped"),
    }
    // Without sources the loop ends, once what has arrived is in place.
    source.abort();
    host.abort();
    match timeout(FLUSH, agent).await {
        Ok(ended) => ended.context("the agent's loop stopped")?,
        Err(_) => warn!("what has changed last is not in place after {FLUSH:?}; the next agent sees to it"),
    }
    info!("proxy-agent stops; what is programmed stays (`proxy-agent cleanup` removes it)");
    Ok(())
}

/// The signals that end a run.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn new() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt()).context("SIGINT")? })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
