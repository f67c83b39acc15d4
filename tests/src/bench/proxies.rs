//! How each proxy is started on node1, asked what its commits took, stopped, and removed without a trace.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::NamedTempFile;

use super::plan::Proxy;
use super::results::Commit;
use super::rig::{NODE, Rig, quiet};
use crate::agent::{Agent, Source};
use crate::controlplane::User;
use crate::lab::{Group, Lab, Program};

/// The agent says of each commit how long it took, and nothing else of what it does: a line per object would be measured too.
const AGENT_LOG: &str = "info,proxy_agent::programmer[{micros}]=debug";
/// Where kube-proxy says how it is, in the node's namespace.
const HEALTHZ_PORT: u16 = 10256;
/// Its metrics.
const METRICS_PORT: u16 = 10249;
/// How long a process may take to end: a transaction of kube-proxy's with many chains holds it in the kernel.
const END: Duration = Duration::from_secs(240);
/// How often memory is looked at.
const MEMORY_EVERY: Duration = Duration::from_millis(20);

/// A proxy that runs.
pub(super) struct Running {
    proxy: Proxy,
    program: Program,
    group: Group,
    memory: Memory,
    /// Read by kube-proxy.
    _config: Option<NamedTempFile>,
}

impl Running {
    /// Starts a proxy that is to serve node1.
    pub(super) fn start(rig: &Rig, proxy: Proxy) -> Result<Self> {
        let (command, config) = match (proxy.ours(), proxy.kube_proxy()) {
            (Some(mode), _) => {
                let agent = Agent::new(1, mode, Source::Kubeconfig(rig.plane.kubeconfig(User::KubeProxy)))?;
                let mut command = agent.command_to_run(&rig.lab, AGENT_LOG);
                command.args(["--log-format", "json"]);
                (command, None)
            }
            (None, Some(mode)) => {
                let config = kube_proxy_config(rig, mode)?;
                let mut command = Command::new(&rig.plane.binaries().kube_proxy);
                command.arg("--config").arg(config.path());
                (command, Some(config))
            }
            (None, None) => bail!("{proxy} is not to be started"),
        };
        let (program, group) = rig.lab.spawn_in_group(1, "proxy", command)?;
        let memory = Memory::watch(group.clone());
        Ok(Self { proxy, program, group, memory, _config: config })
    }

    /// CPU time that it has used, its children included.
    pub(super) fn cpu(&self) -> Result<Duration> {
        self.group.cpu_time()
    }

    /// Waits until it has nothing to do.
    pub(super) fn settle(&self) -> Result<()> {
        quiet(Duration::from_secs(20), || self.cpu())
    }

    /// Fails, with the end of its log, if it has ended.
    pub(super) fn alive(&mut self) -> Result<()> {
        match self.program.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself ({status})\n{}", self.proxy, self.program.tail()),
        }
    }

    /// What it has said so far about its commits.
    pub(super) fn commits(&self, lab: &Lab) -> Result<Said> {
        if self.proxy.ours().is_some() { Ok(Said::Log(self.program.log().len())) } else { Ok(Said::Metric(sync_metric(lab)?)) }
    }

    /// The first commit that the agent has logged since; none for others.
    pub(super) fn first_commit_since(&self, before: &Said) -> Option<f64> {
        let Said::Log(length) = before else { return None };
        self.program.log().get(*length..)?.lines().find_map(committed)
    }

    /// Microseconds of all commits so far together; none for others.
    pub(super) fn committed_in_all(&self) -> Option<f64> {
        self.proxy.ours().map(|_| self.program.log().lines().filter_map(committed).sum())
    }

    /// The commits since: those that were collected one by one, or kube-proxy's mean.
    pub(super) fn commit_since(&self, lab: &Lab, before: &Said, each: Vec<f64>) -> Result<Option<Commit>> {
        Ok(match before {
            Said::Log(_) => Some(Commit::Each(each)),
            Said::Metric((sum, count)) => {
                let (sum_now, count_now) = sync_metric(lab)?;
                let count = count_now - count;
                (count > 0.0).then(|| Commit::Mean { count, micros: (sum_now - sum) / count * 1e6 })
            }
        })
    }

    /// Ends it with all its children. The most memory that they had at once.
    pub(super) fn stop(self) -> Result<u64> {
        let pid = self.program.pid();
        let high = high_water(pid);
        let peak = self.memory.peak().max(high);
        if self.proxy.ours().is_some() {
            let status = self.program.stop(END)?;
            ensure!(status.success(), "the agent ended with {status}");
        } else {
            // It has nothing to put in order at its end. All at once, its children first of all: one that is within a transaction
            // of minutes holds up the kernel, so that nothing would end that is waited for, and gives up when it is killed itself.
            self.group.kill()?;
            self.program.kill()?;
        }
        self.group.end(END).context("what the proxy has left running")?;
        Ok(peak)
    }
}

/// Removes everything that any proxy has programmed on node1.
pub(super) fn clean(rig: &Rig) -> Result<()> {
    let lab = &rig.lab;
    for mode in crate::agent::Mode::ALL {
        Agent::new(1, mode, Source::Kubeconfig(rig.plane.kubeconfig(User::KubeProxy)))?.cleanup(lab)?;
    }
    // The node's namespace has no rules but a proxy's.
    lab.nft("node1", "flush ruleset")?;
    let mut list = Command::new("nft");
    list.args(["list", "tables"]);
    let left = lab.output_on_node(1, list)?;
    ensure!(left.status.success() && left.stdout.is_empty(), "cleaning node1 left {}", String::from_utf8_lossy(&left.stdout));
    Ok(())
}

/// kube-proxy's configuration in a file.
fn kube_proxy_config(rig: &Rig, mode: &str) -> Result<NamedTempFile> {
    let config = rig.plane.kube_proxy_config(mode, NODE, "10.1.0.0/16", [HEALTHZ_PORT, METRICS_PORT]);
    let file = NamedTempFile::new().context("a file for kube-proxy's configuration")?;
    fs::write(file.path(), config.to_string()).context("kube-proxy's configuration")?;
    Ok(file)
}

/// A moment in what a proxy says about its commits.
pub(super) enum Said {
    /// The length of the agent's log.
    Log(usize),
    /// Sum in seconds and count of kube-proxy's syncs.
    Metric((f64, f64)),
}

/// The microseconds of a log line about a commit that wrote something.
fn committed(line: &str) -> Option<f64> {
    let line: Value = serde_json::from_str(line).ok()?;
    (line["message"] == "committed" && line["steps"].as_u64()? > 0).then(|| line["micros"].as_f64())?
}

fn sync_metric(lab: &Lab) -> Result<(f64, f64)> {
    let text = lab.http_get(NODE, METRICS_PORT, "/metrics")?;
    parse_sync_metric(&text).context("kube-proxy has no kubeproxy_sync_proxy_rules_duration_seconds for IPv4")
}

/// Sum and count of the IPv4 syncs.
fn parse_sync_metric(text: &str) -> Option<(f64, f64)> {
    let value = |suffix: &str| {
        let name = format!("kubeproxy_sync_proxy_rules_duration_seconds_{suffix}");
        let line = text.lines().find(|line| line.strip_prefix(&name).is_some_and(|labels| !labels.contains("IPv6")))?;
        line.rsplit_once(' ')?.1.parse::<f64>().ok()
    };
    Some((value("sum")?, value("count")?))
}

/// The most memory that a process itself has had resident.
fn high_water(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

/// Looks at a group's memory until it is asked for the peak.
struct Memory {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Memory {
    fn watch(group: Group) -> Self {
        let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, highest) = (Arc::clone(&stop), Arc::clone(&peak));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                highest.fetch_max(group.resident().unwrap_or(0), Ordering::Relaxed);
                thread::sleep(MEMORY_EVERY);
            }
        });
        Self { stop, peak, thread: Some(thread) }
    }

    fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_read_from_the_agents_log() {
        let line =
            r#"{"timestamp":"2026-01-01T00:00:00Z","level":"DEBUG","dataplane":"nftables","steps":2,"micros":57,"message":"committed"}"#;
        assert_eq!(committed(line), Some(57.0));
        assert_eq!(committed(&line.replace(":2,", ":0,")), None);
        assert_eq!(committed(&line.replace("committed", "other")), None);
        assert_eq!(committed("not JSON"), None);
    }

    #[test]
    fn the_ipv4_syncs_are_read_from_kube_proxys_metrics() {
        let text = "# HELP x y\n\
            kubeproxy_sync_proxy_rules_duration_seconds_bucket{ip_family=\"IPv4\",le=\"0.001\"} 0\n\
            kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family=\"IPv6\"} 9\n\
            kubeproxy_sync_proxy_rules_duration_seconds_sum{ip_family=\"IPv4\"} 0.5\n\
            kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"} 9\n\
            kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 4\n";
        assert_eq!(parse_sync_metric(text), Some((0.5, 4.0)));
        assert_eq!(parse_sync_metric(""), None);
    }
}
