//! From kube-proxy to the agent, and back, on a node that serves all the while: the real kube-proxy, with what it leaves.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::{Agent, DEADLINE, Mode, Source};
use proxy_tests::controlplane::process::{Netns, free_ports};
use proxy_tests::controlplane::{ControlPlane, Options, User};
use proxy_tests::expect;
use proxy_tests::lab::{self, Connect, Lab, LabOptions, Program, Proto};
use proxy_tests::manifest::{service, slice};
use proxy_tests::scenario::KubeProxyMode;

/// How long a control plane may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);
const WEB: &str = "10.96.0.10:80/tcp";
const REMOVED: &str = "ours are in place, and those of kube-proxy are removed";
/// Rules of others, and of the kubelet. The last lines are a plugin's that masquerades through kube-proxy's chains, in IPv6 only.
const OTHERS: &str = "
    iptables -t nat -A PREROUTING -d 192.0.2.1 -j ACCEPT
    iptables -t nat -N FOREIGN
    iptables -t nat -A POSTROUTING -j FOREIGN
    iptables -t filter -N KUBE-FIREWALL 2>/dev/null || true
    iptables -t filter -A INPUT -j KUBE-FIREWALL
    iptables -t mangle -N KUBE-IPTABLES-HINT
    nft add table inet foreign
    ip6tables -t nat -N CNI-HOSTPORT-SETMARK
    ip6tables -t nat -N KUBE-MARK-MASQ 2>/dev/null || true
    ip6tables -t nat -A CNI-HOSTPORT-SETMARK -j KUBE-MARK-MASQ
";

struct Rig {
    lab: Lab,
    plane: ControlPlane,
    kube_proxy: Option<Program>,
    mode: KubeProxyMode,
}

impl Rig {
    /// A node on which kube-proxy serves `web`.
    fn new(mode: KubeProxyMode) -> Result<Self> {
        let lab = Lab::new(LabOptions::default())?;
        let (netns, addresses) = (Some(lab.node(1).netns().to_owned()), lab.node(1).addresses().to_vec());
        let mut plane = ControlPlane::start(Options { netns, addresses, ..Options::default() })?;
        plane.wait_ready(START)?;
        plane.add_node("node1", &lab.node(1).addresses())?;
        for manifest in [service("web", "10.96.0.10", 80, "TCP"), slice("web", "TCP", &[("10.1.1.3", true), ("10.1.2.2", true)])] {
            plane.kubectl(&["apply", "-f", "-"], Some(&manifest))?;
        }
        let mut rig = Self { lab, plane, kube_proxy: None, mode };
        rig.start_kube_proxy()?;
        expect::reaches(&rig.lab, "a1", WEB, &["b1", "a2"]).context("kube-proxy")?;
        Ok(rig)
    }

    fn start_kube_proxy(&mut self) -> Result<()> {
        let config = self.plane.path().join("kube-proxy.json");
        let ports = free_ports(&Netns::open(self.lab.node(1).netns())?)?;
        let configuration = self.plane.kube_proxy_config(&self.mode.to_string(), "node1", "10.1.0.0/16,fd00:10:1::/48", ports);
        fs::write(&config, configuration.to_string()).with_context(|| config.display().to_string())?;
        let mut command = Command::new(&self.plane.binaries().kube_proxy);
        command.arg("--config").arg(config);
        self.kube_proxy = Some(self.lab.spawn_on_node(1, command)?);
        Ok(())
    }

    fn agent(&self, args: &[&str]) -> Result<Program> {
        let agent = Agent::new(1, Mode::Nftables, Source::Kubeconfig(self.plane.kubeconfig(User::KubeProxy)))?;
        let mut command = agent.command_to_run(&self.lab, "info");
        command.args(args);
        self.lab.spawn_on_node(1, command)
    }

    fn end_kube_proxy(&mut self) -> Result<()> {
        self.kube_proxy.take().context("kube-proxy does not run")?.kill()
    }

    fn sh(&self, script: &str) -> Result<String> {
        let mut shell = Command::new("sh");
        shell.args(["-ec", script]);
        let output = self.lab.output_on_node(1, shell)?;
        ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    fn has_rules_of_kube_proxy(&self) -> Result<bool> {
        let is_theirs = |line: &str| match self.mode {
            KubeProxyMode::Nftables => line.ends_with(" kube-proxy"),
            KubeProxyMode::Iptables => line.contains("KUBE-SERVICES"),
        };
        Ok(self.rules()?.lines().any(is_theirs))
    }

    /// Everything that there is but for our own tables, one a line: tables, chains, rules.
    fn rules(&self) -> Result<String> {
        self.sh("nft list tables; iptables-save; ip6tables-save").map(|text| {
            let lines = text.lines().filter(|line| !line.starts_with('#') && !line.contains("proxy-agent"));
            // Counters change with every packet.
            lines.map(|line| line.split(" [").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
        })
    }
}

#[test]
fn migration_from_nftables_loses_no_connection() {
    migrates(KubeProxyMode::Nftables);
}

#[test]
fn migration_from_iptables_loses_no_connection() {
    migrates(KubeProxyMode::Iptables);
}

fn migrates(mode: KubeProxyMode) {
    if lab::available() {
        let moved = Rig::new(mode).and_then(|mut rig| {
            let result = migrate(&mut rig);
            result.with_context(|| rig.rules().unwrap_or_default())
        });
        moved.unwrap_or_else(|error| panic!("{mode}: {error:?}"));
    }
}

fn migrate(rig: &mut Rig) -> Result<()> {
    rig.sh(OTHERS)?;
    let web = Connect::new("10.96.0.10:80".parse()?, Proto::Tcp);
    let held = [rig.lab.pod("a1").hold(web.clone())?, rig.lab.host(1).hold(web.clone())?];
    let flowing = ["a1", "node1"].map(|from| rig.lab.find(from).and_then(|peer| peer.traffic(web.clone(), Duration::from_millis(1))));
    // Without the flag it says what there is, and leaves it.
    let mut agent = rig.agent(&[])?;
    agent.wait_for_log(DEADLINE, "first sync")?;
    let said = agent.log();
    let warned = said.lines().find(|line| line.contains("another Service proxy")).with_context(|| said.clone())?;
    let what = if rig.mode == KubeProxyMode::Nftables { "table ip kube-proxy" } else { "KUBE-* chains in iptables' ip tables filter, " };
    for part in ["WARN", "a kube-proxy runs (pid ", what, "--remove-kube-proxy-rules"] {
        ensure!(warned.contains(part), "{part:?} is not in {warned}");
    }
    agent.stop(DEADLINE)?;
    let before = rig.rules()?;
    ensure!(rig.has_rules_of_kube_proxy()?, "no rules of kube-proxy:\n{before}");
    // With it, they go, but not while kube-proxy runs.
    let mut agent = rig.agent(&["--remove-kube-proxy-rules"])?;
    agent.wait_for_log(DEADLINE, "the rules of kube-proxy stay until it has ended (pid ")?;
    ensure!(rig.rules()? == before, "removed under a running kube-proxy");
    rig.end_kube_proxy()?;
    agent.wait_for_log(DEADLINE, REMOVED)?;
    let after = rig.rules()?;
    let left: Vec<&str> = after.lines().filter(|line| line.contains("kube-proxy") || line.contains("KUBE-")).collect();
    // kube-proxy does not remove KUBE-FIREWALL either.
    let mut kept = vec!["KUBE-FIREWALL", ":KUBE-IPTABLES-HINT -", "KUBE-MARK-MASQ"];
    if rig.mode == KubeProxyMode::Iptables {
        kept.push("KUBE-POSTROUTING");
    }
    // In IPv6 alone: what the plugin uses, of kube-proxy or made by the plugin itself.
    let masquerades = left.iter().filter(|line| line.contains("KUBE-MARK-MASQ") || line.contains("KUBE-POSTROUTING")).count();
    ensure!(masquerades == if rig.mode == KubeProxyMode::Iptables { 8 } else { 2 }, "{left:#?}");
    ensure!(left.iter().all(|line| kept.iter().any(|kept| line.contains(kept))), "left: {left:#?}");
    for line in OTHERS.lines().filter(|line| line.contains(" -A ")) {
        let rule = line.split_once(" -A ").map(|(_, rule)| rule.replace("192.0.2.1", "192.0.2.1/32")).unwrap_or_default();
        ensure!(after.contains(&rule), "{rule} is gone:\n{after}");
    }
    ensure!(after.contains("table inet foreign"), "{after}");
    expect::reaches(&rig.lab, "a1", WEB, &["b1", "a2"])?;
    for flowing in flowing {
        let report = flowing?.stop()?;
        ensure!(report.counts.failed() == 0 && report.counts.answered() > 100, "{report:?}");
    }
    held.iter().try_for_each(|held| held.echo()?.into_answer().map(drop)).context("a connection from the beginning")?;
    // The others' alone are no reason to warn.
    agent.stop(DEADLINE)?;
    let mut cleanup = Command::new(Agent::new(1, Mode::Nftables, Source::Kubeconfig(rig.plane.kubeconfig(User::KubeProxy)))?.program());
    cleanup.args(["cleanup", "--kube-proxy"]);
    let output = rig.lab.output_on_node(1, cleanup)?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(rig.rules()? == after, "there was nothing left to remove");
    expect::reaches(&rig.lab, "a1", WEB, &["b1", "a2"]).context("our own rules stay")
}

#[test]
fn the_way_back_from_ebpf_loses_no_connection() {
    goes_back(Mode::Ebpf, KubeProxyMode::Nftables);
}

#[test]
fn the_way_back_from_nftables_loses_no_connection() {
    goes_back(Mode::Nftables, KubeProxyMode::Iptables);
}

fn goes_back(from: Mode, to: KubeProxyMode) {
    if lab::available() {
        let moved = Rig::new(to).and_then(|mut rig| {
            let result = go_back(&mut rig, from);
            result.with_context(|| rig.rules().unwrap_or_default())
        });
        moved.unwrap_or_else(|error| panic!("{from} to {to}: {error:?}"));
    }
}

/// As docs/migrate.md has it: the agent ends, kube-proxy starts, then what the agent has left goes.
fn go_back(rig: &mut Rig, from: Mode) -> Result<()> {
    let flags = ["--hostname-override=node1", "--remove-kube-proxy-rules"].map(str::to_owned).to_vec();
    let mut agent = Agent::new(1, from, Source::Kubeconfig(rig.plane.kubeconfig(User::KubeProxy)))?.with_flags(flags);
    agent.start(&rig.lab)?;
    rig.end_kube_proxy()?;
    agent.running()?.wait_for_log(DEADLINE, REMOVED)?;
    ensure!(!rig.has_rules_of_kube_proxy()?, "removed, but there");

    let web = Connect::new("10.96.0.10:80".parse()?, Proto::Tcp);
    let held = [rig.lab.pod("a1").hold(web.clone())?, rig.lab.host(1).hold(web.clone())?];
    let flowing = ["a1", "node1"].map(|from| rig.lab.find(from).and_then(|peer| peer.traffic(web.clone(), Duration::from_millis(1))));
    agent.stop()?;
    rig.start_kube_proxy()?;
    // Its chains are there a moment before what they hold.
    let theirs = || rig.sh("nft list table ip kube-proxy 2>&1 || true; iptables-save");
    rig.lab.wait(DEADLINE, "kube-proxy to serve", || Ok(theirs()?.contains("10.96.0.10").then_some(())))?;
    agent.cleanup(&rig.lab)?;
    let left = agent.dump(&rig.lab)?;
    ensure!(left.as_array().is_some_and(Vec::is_empty), "cleanup left {left:#}");

    // From here on kube-proxy is who serves.
    rig.plane.kubectl(&["apply", "-f", "-"], Some(&slice("web", "TCP", &[("10.1.1.3", true), ("10.1.2.2", true), ("10.1.2.3", true)])))?;
    expect::reaches(&rig.lab, "a1", WEB, &["b1", "a2", "b2"])?;
    for flowing in flowing {
        let report = flowing?.stop()?;
        ensure!(report.counts.failed() == 0 && report.counts.answered() > 100, "{report:?}");
    }
    held.iter().try_for_each(|held| held.echo()?.into_answer().map(drop)).context("a connection from before")
}
