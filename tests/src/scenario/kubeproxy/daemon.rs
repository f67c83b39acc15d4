//! The program itself, on node1.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::agent::DEADLINE;
use crate::controlplane::ControlPlane;
use crate::controlplane::process::{Netns, free_ports};
use crate::lab::{Lab, Program, Seen};
use crate::scenario::object::NODE;
use crate::scenario::{Config, KubeProxyMode};

/// kube-proxy with a configuration; it need not run.
pub(super) struct Daemon {
    mode: KubeProxyMode,
    config: Config,
    /// Where it says how it is, and what it has done.
    ports: [u16; 2],
    running: Option<Program>,
}

impl Daemon {
    /// Not started yet.
    pub(super) fn new(mode: KubeProxyMode, lab: &Lab) -> Result<Self> {
        let ports = free_ports(&Netns::open(lab.node(1).netns())?)?;
        Ok(Self { mode, config: Config::default(), ports, running: None })
    }

    /// Its configuration.
    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// Whether it has been started and not been stopped.
    pub(super) fn runs(&self) -> bool {
        self.running.is_some()
    }

    /// Gives it the configuration that it is to start with.
    pub(super) fn configure(&mut self, config: Config) {
        self.config = config;
    }

    /// Starts it.
    pub(super) fn start(&mut self, lab: &Lab, plane: &ControlPlane) -> Result<()> {
        ensure!(self.running.is_none(), "kube-proxy runs already");
        let mut config = plane.kube_proxy_config(&self.mode.to_string(), NODE, &self.config.cluster_cidr, self.ports);
        self.config.add_to(&mut config, self.mode);
        let file = plane.path().join("kube-proxy.json");
        fs::write(&file, config.to_string()).with_context(|| file.display().to_string())?;
        let mut command = Command::new(&plane.binaries().kube_proxy);
        command.arg("--config").arg(file);
        self.running = Some(lab.spawn_on_node(1, command)?);
        Ok(())
    }

    /// Ends it by asking it to, or (`killed`) as a crash would.
    pub(super) fn stop(&mut self, killed: bool) -> Result<()> {
        let program = self.running.take().context("kube-proxy does not run")?;
        // It does not catch the signal, so its status is no success.
        if killed { program.kill() } else { program.stop(DEADLINE).map(drop) }
    }

    /// Waits until it ends by itself.
    pub(super) fn wait_for_end(&mut self) -> Result<()> {
        let mut program = self.running.take().context("kube-proxy does not run")?;
        let status = program.wait(DEADLINE).context("kube-proxy ends when its Node is another")?;
        ensure!(status.code() == Some(1), "kube-proxy ended with {status}\n{}", program.tail());
        Ok(())
    }

    /// Fails, with the end of its log, if it has ended.
    pub(super) fn alive(&mut self) -> Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        match running.ended()? {
            None => Ok(()),
            Some(status) => bail!("kube-proxy ended by itself ({status})\n{}", running.tail()),
        }
    }

    /// What it has said.
    pub(super) fn tail(&self) -> String {
        self.running.as_ref().map_or_else(|| "kube-proxy does not run".into(), Program::tail)
    }

    /// How often it has brought everything up to date, in each family that it serves.
    pub(super) fn full_syncs(&self, lab: &Lab) -> Result<Vec<u64>> {
        full_syncs(lab, self.ports[1])
    }

    /// Waits until it has done so in every family since it had done so this often.
    pub(super) fn wait_for_full_sync(&mut self, lab: &Lab, before: &[u64]) -> Result<()> {
        let port = self.ports[1];
        self.wait(lab, "kube-proxy to bring everything up to date", || {
            let now = full_syncs(lab, port)?;
            let all = now.len() == before.len() && now.iter().zip(before).all(|(now, before)| now > before);
            Ok(if all { Seen::Done(()) } else { Seen::not_yet(format!("{now:?} after {before:?}")) })
        })
    }

    /// Waits until something holds that it has to see to; an error if it ends before.
    pub(super) fn wait<T>(&mut self, lab: &Lab, what: &str, mut observe: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
        let done = lab.wait::<Result<T>, Seen<Result<T>>>(DEADLINE, what, || {
            if let Err(ended) = self.alive() {
                return Ok(Seen::Done(Err(ended)));
            }
            Ok(match observe()? {
                Seen::Done(value) => Seen::Done(Ok(value)),
                Seen::NotYet(seen) => Seen::NotYet(seen),
            })
        });
        done.with_context(|| self.tail())?
    }
}

fn full_syncs(lab: &Lab, port: u16) -> Result<Vec<u64>> {
    const METRIC: &str = "kubeproxy_sync_full_proxy_rules_duration_seconds_count";
    let text = lab.http_get(NODE, port, "/metrics")?;
    let counts = text.lines().filter(|line| line.starts_with(METRIC)).map(|line| {
        let count = line.rsplit_once(' ').and_then(|(_, count)| count.parse().ok());
        count.with_context(|| format!("{line:?}: no count"))
    });
    let counts = counts.collect::<Result<Vec<u64>>>()?;
    ensure!(!counts.is_empty(), "kube-proxy has no {METRIC}");
    Ok(counts)
}
