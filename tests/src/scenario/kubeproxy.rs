//! The executor that is kube-proxy itself: the real program on node1 of a [lab](crate::lab), objects in a real API server, real
//! connections. What it answers is what a cluster's users have today.

mod cluster;
mod daemon;
mod marker;
mod ranges;

use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_core::model::ObjectName;

use cluster::{Cluster, NodeFacts};
use daemon::Daemon;
use marker::Marker;

use super::object::SERVICE_RANGES;
use super::probing::Probing;
use super::run::{Probe, run};
use super::{AddressChange, Executor, KubeProxy, KubeProxyMode, Manifest, ObjectKind, Observed, Scenario, Tested};
use crate::controlplane::{ControlPlane, Options};
use crate::lab::{Connect, Outcome, Proto, Seen};

/// How long a control plane may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);

/// kube-proxy with a control plane of its own: one for many scenarios, one after the other.
pub struct Reference {
    // Fields are dropped in this order.
    daemon: Daemon,
    cluster: Cluster,
    plane: ControlPlane,
    probing: Probing,
    mode: KubeProxyMode,
    marker: Marker,
    /// Whether the scenario has ended kube-proxy.
    stopped: bool,
    /// Whether kube-proxy, or the scenario, has only begun.
    pending: bool,
    /// The ranges of Services' addresses that it has heeded.
    ranges: Vec<String>,
}

impl Reference {
    /// A lab, a control plane on its node1, and kube-proxy there.
    pub fn new(mode: KubeProxyMode) -> Result<Self> {
        let probing = Probing::new()?;
        let node = probing.lab().node(1);
        let (netns, addresses) = (Some(node.netns().to_owned()), node.addresses().to_vec());
        let service_ranges = SERVICE_RANGES.join(",");
        let mut plane = ControlPlane::start(Options { netns, addresses, service_ranges, ..Options::default() })?;
        plane.wait_ready(START)?;
        let cluster = Cluster::new(plane.api()?)?;
        let marker = Marker::new(cluster.api())?;
        let daemon = Daemon::new(mode, probing.lab())?;
        Ok(Self { daemon, cluster, plane, probing, mode, marker, stopped: false, pending: true, ranges: Vec::new() })
    }

    /// Carries a scenario out.
    pub fn carry_out(&mut self, scenario: &Scenario) -> Result<()> {
        self.begin(scenario)?;
        run(scenario, self)?;
        let needless = self.cluster.needs_no_way_past();
        ensure!(!needless, "{scenario}: the API server takes every object: it needs no \"past the API server\"");
        Ok(())
    }

    /// Puts away what a scenario before has left, and gets ready for this one.
    fn begin(&mut self, scenario: &Scenario) -> Result<()> {
        if self.daemon.runs() && *self.daemon.config() != scenario.config {
            self.daemon.stop(false)?;
        }
        self.daemon.configure(scenario.config.clone());
        self.probing.reset()?;
        let past = matches!(scenario.kube_proxy, KubeProxy::PastApiServer(_));
        self.watching_node(|this| this.cluster.begin(&scenario.to_string(), past))?;
        self.stopped = false;
        self.pending = true;
        self.settle()
    }

    /// Changes objects, and sees to it that kube-proxy has taken in what that makes of its Node.
    fn watching_node(&mut self, change: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let before = self.cluster.node_facts();
        let syncs = if self.daemon.runs() { self.daemon.full_syncs(self.probing.lab()).ok() } else { None };
        change(self)?;
        self.follow_node(&before, syncs)
    }

    fn follow_node(&mut self, before: &NodeFacts, syncs: Option<Vec<u64>>) -> Result<()> {
        let now = self.cluster.node_facts();
        if !self.daemon.runs() {
            return Ok(());
        }
        if before.end_kube_proxy(&now, self.daemon.config().detect_local_mode == "NodeCIDR") {
            return self.daemon.wait_for_end();
        }
        if before.move_zone(&now) {
            let syncs = syncs.context("kube-proxy did not say how often it has brought everything up to date")?;
            self.daemon.wait_for_full_sync(self.probing.lab(), &syncs)?;
        }
        Ok(())
    }

    /// Starts kube-proxy where it has ended by itself: whatever runs it in a cluster does so. It waits for its Node half a minute, so
    /// that it is not started without one.
    fn revive(&mut self) -> Result<()> {
        if !self.daemon.runs() && !self.stopped && self.cluster.node().is_some() {
            self.daemon.start(self.probing.lab(), &self.plane)?;
            self.pending = true;
        }
        Ok(())
    }

    /// Waits until kube-proxy has taken everything in, if it runs.
    fn settle(&mut self) -> Result<()> {
        self.revive()?;
        if !self.daemon.runs() {
            return Ok(());
        }
        let (address, server) = self.marker.write(self.cluster.api())?;
        let lab = self.probing.lab();
        for (to, server) in address.into_iter().zip(server) {
            let probe = Connect::new(to, Proto::Tcp).timeout_ms(50);
            self.daemon.wait(lab, &format!("{to} to lead to {server}"), || match lab.host(1).probe(probe.clone())? {
                Outcome::Ok(answer) if answer.server.ip().to_canonical() == server => Ok(Seen::Done(())),
                other => Ok(Seen::not_yet(other)),
            })?;
        }
        let ranges = self.cluster.ranges();
        if self.pending || self.ranges != ranges {
            self.settle_ranges()?;
        }
        (self.pending, self.ranges) = (false, ranges);
        Ok(())
    }

    /// Sees to it that kube-proxy drops what goes to unused addresses. It does not wait for ServiceCIDRs when it starts, and heeds
    /// changes of them only when it brings everything up to date for another reason (SYNC-16): so it is given one.
    fn settle_ranges(&mut self) -> Result<()> {
        if self.mode == KubeProxyMode::Iptables {
            return Ok(());
        }
        // A change of a ServiceCIDR may come after that of the Node.
        let mut tries = 0;
        while !self.drops_ranges()? {
            tries += 1;
            ensure!(tries <= 10, "kube-proxy does not drop what goes to unused addresses of {:?}\n{}", self.cluster.ranges(), self.state());
            for away in [true, false] {
                let before = self.daemon.full_syncs(self.probing.lab())?;
                self.cluster.flip_zone(away)?;
                self.daemon.wait_for_full_sync(self.probing.lab(), &before)?;
            }
        }
        Ok(())
    }

    /// Whether it does so in all ranges there are, and in no other.
    fn drops_ranges(&self) -> Result<bool> {
        let rules = self.shell("for f in ip ip6; do nft list chain $f kube-proxy cluster-ips-check; done")?;
        let rules = rules.lines().filter(|line| line.contains("daddr") && line.contains("drop"));
        let words = rules.flat_map(|line| line.split([' ', ',', '\t'])).filter(|word| word.contains(['/', '-']));
        let found: Vec<_> = words.filter_map(ranges::read).collect();
        let wanted = self.cluster.ranges();
        let wanted: Vec<_> = wanted.iter().filter_map(|cidr| ranges::read(cidr)).collect();
        Ok(ranges::joined(found) == ranges::joined(wanted))
    }

    fn shell(&self, script: &str) -> Result<String> {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]);
        let output = self.probing.lab().output_on_node(1, shell)?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Executor for Reference {
    fn apply(&mut self, manifests: &[Manifest]) -> Result<()> {
        self.watching_node(|this| manifests.iter().try_for_each(|manifest| this.cluster.write(manifest)))?;
        self.settle()
    }

    fn delete(&mut self, objects: &[(ObjectKind, ObjectName)]) -> Result<()> {
        self.watching_node(|this| objects.iter().try_for_each(|(kind, name)| this.cluster.delete(*kind, name)))?;
        self.settle()
    }

    fn address(&mut self, changes: &[AddressChange]) -> Result<()> {
        self.probing.address(changes)?;
        self.settle()
    }

    fn wait(&mut self, duration: Duration) -> Result<()> {
        thread::sleep(duration);
        Ok(())
    }

    fn stop(&mut self, killed: bool) -> Result<()> {
        self.stopped = true;
        self.daemon.stop(killed)
    }

    fn start(&mut self) -> Result<()> {
        ensure!(self.stopped, "kube-proxy runs already");
        self.stopped = false;
        self.settle()
    }

    fn observe(&mut self, probes: &[Probe]) -> Result<Vec<Observed>> {
        if self.pending {
            self.settle()?;
        }
        self.probing.observe(probes, self.tested())
    }

    fn state(&mut self) -> String {
        let listing = self.shell(match self.mode {
            KubeProxyMode::Iptables => "iptables-save; ip6tables-save",
            KubeProxyMode::Nftables => "nft list ruleset",
        });
        let listing = listing.unwrap_or_else(|error| format!("{error:#}"));
        format!("programmed:\n{listing}\n{}", self.daemon.tail())
    }

    fn tested(&self) -> Option<Tested> {
        Some(Tested::KubeProxy(self.mode))
    }
}
