//! A node with a cluster, and a proxy on it: kube-proxy or ours, with the same addresses.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::{Agent, DEADLINE, Mode, Source};
use proxy_tests::controlplane::{ControlPlane, Options, User};
use proxy_tests::http::{self, Answer};
use proxy_tests::lab::{Lab, LabOptions, Program, Seen};
use proxy_tests::scenario::KubeProxyMode;
use serde_json::{Value, json};

use super::{HEALTHZ, NODE, Said};

/// Where both answer for their metrics.
pub(super) const METRICS: u16 = 10249;
/// How long a control plane may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);

/// Which one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Proxy {
    Ours(Mode),
    Theirs(KubeProxyMode),
}

/// Everything that the test has up.
pub(super) struct Rig {
    pub(super) lab: Lab,
    pub(super) plane: ControlPlane,
    pub(super) running: Option<(Proxy, Program)>,
}

impl Rig {
    /// A node without a proxy.
    pub(super) fn new() -> Result<Self> {
        let lab = Lab::new(LabOptions::default())?;
        let (netns, addresses) = (Some(lab.node(1).netns().to_owned()), lab.node(1).addresses().to_vec());
        let service_ranges = "10.96.0.0/16,fd00:10:96::/112".to_owned();
        let mut plane = ControlPlane::start(Options { netns, addresses, service_ranges, ..Options::default() })?;
        plane.wait_ready(START)?;
        let rig = Self { lab, plane, running: None };
        rig.node_comes()?;
        Ok(rig)
    }

    /// Starts a proxy and waits until it says that it is well.
    pub(super) fn start(&mut self, proxy: Proxy) -> Result<()> {
        let command = match proxy {
            Proxy::Ours(mode) => return self.start_with(mode, &[]).and_then(|()| self.is_well()),
            Proxy::Theirs(mode) => self.kube_proxy(mode)?,
        };
        self.running = Some((proxy, self.lab.spawn_on_node(1, command)?));
        self.is_well()
    }

    fn is_well(&self) -> Result<()> {
        self.answers(NODE[0], HEALTHZ, "/healthz", 200).map(drop).with_context(|| self.tail())
    }

    /// Starts ours with more flags, and waits until its metrics are there.
    pub(super) fn start_with(&mut self, mode: Mode, flags: &[&str]) -> Result<()> {
        let agent = Agent::new(1, mode, Source::Kubeconfig(self.plane.kubeconfig(User::KubeProxy)))?;
        // The same as kube-proxy's.
        let flags = ["--hostname-override=node1", "--iptables-sync-period=2s"].iter().chain(flags).map(|flag| (*flag).to_owned()).collect();
        let command = agent.with_flags(flags).command_to_run(&self.lab, "info");
        self.running = Some((Proxy::Ours(mode), self.lab.spawn_on_node(1, command)?));
        self.lab.wait(DEADLINE, "metrics", || {
            let answer = self.ask_metrics("GET", "/healthz", "");
            Ok(answer.map_or_else(|error| Seen::not_yet(format!("{error:#}")), |_| Seen::Done(())))
        })
    }

    fn kube_proxy(&self, mode: KubeProxyMode) -> Result<Command> {
        let mut config = self.plane.kube_proxy_config(&mode.to_string(), "node1", "10.1.0.0/16,fd00:10:1::/48", [HEALTHZ, METRICS]);
        config["healthzBindAddress"] = format!("0.0.0.0:{HEALTHZ}").into();
        // Health counts twice that.
        config["nftables"] = json!({"minSyncPeriod": "1ms", "syncPeriod": "2s"});
        let file = self.plane.path().join("kube-proxy.json");
        fs::write(&file, config.to_string()).with_context(|| file.display().to_string())?;
        let mut command = Command::new(&self.plane.binaries().kube_proxy);
        command.arg("--config").arg(file);
        Ok(command)
    }

    /// Ends the proxy, and removes what it has programmed. The Node is there again.
    pub(super) fn end(&mut self) -> Result<()> {
        let (proxy, mut program) = self.running.take().context("no proxy runs")?;
        match proxy {
            Proxy::Ours(mode) => {
                ensure!(program.stop(DEADLINE)?.success(), "the agent does not end in good order");
                Agent::new(1, mode, Source::Kubeconfig(self.plane.kubeconfig(User::KubeProxy)))?.cleanup(&self.lab)?;
            }
            Proxy::Theirs(_) => {
                if program.ended()?.is_none() {
                    program.kill()?;
                }
                self.lab.nft("node1", "flush ruleset")?;
            }
        }
        self.node_comes()
    }

    pub(super) fn proxy(&self) -> Option<Proxy> {
        self.running.as_ref().map(|(proxy, _)| *proxy)
    }

    pub(super) fn tail(&self) -> String {
        self.running.as_ref().map_or_else(|| "no proxy runs".into(), |(_, program)| program.tail())
    }

    fn node_comes(&self) -> Result<()> {
        self.plane.add_node("node1", &self.lab.node(1).addresses())?;
        let clean = json!({"metadata": {"finalizers": []}, "spec": {"taints": [], "unschedulable": false}}).to_string();
        self.kubectl(&["patch", "node", "node1", "--type=merge", "-p", &clean])
    }

    /// The Node is gone for good: kube-proxy ends then, and is started again by whatever runs it; ours says that it is not to be used,
    /// and goes on.
    pub(super) fn node_goes(&mut self) -> Result<()> {
        let none = json!({"metadata": {"finalizers": []}}).to_string();
        self.kubectl(&["patch", "node", "node1", "--type=merge", "-p", &none])?;
        let (proxy, program) = self.running.as_mut().context("no proxy runs")?;
        if matches!(proxy, Proxy::Theirs(_)) {
            let status = program.wait(DEADLINE)?;
            ensure!(status.code() == Some(1), "kube-proxy ended with {status}");
            return Ok(());
        }
        let said = self.answers(NODE[0], HEALTHZ, "/healthz", 503)?;
        ensure!(said.body.contains(r#""nodeEligible":false"#), "{said:?}");
        self.answers(NODE[0], HEALTHZ, "/livez", 200)?;
        self.node_comes()?;
        self.answers(NODE[0], HEALTHZ, "/healthz", 200).map(drop)
    }

    pub(super) fn kubectl(&self, args: &[&str]) -> Result<()> {
        self.plane.kubectl(args, None).map(drop)
    }

    /// The Service and its slices are gone.
    pub(super) fn forget(&self) -> Result<()> {
        self.kubectl(&["delete", "--ignore-not-found", "service/lb", "endpointslice/lb", "endpointslice/lb-6"])
    }

    pub(super) fn apply(&self, object: &Value) -> Result<()> {
        self.plane.kubectl(&["apply", "-f", "-"], Some(&object.to_string())).map(drop)
    }

    /// Asks at an address of the node: from another host, as a load balancer does.
    pub(super) fn ask(&self, ip: &str, port: u16, method: &str, path: &str) -> Result<Answer> {
        let to = SocketAddr::new(ip.parse::<IpAddr>()?, port);
        http::ask(&self.lab, "client", to, method, path, "")
    }

    /// Asks for its own metrics, on the node.
    pub(super) fn ask_metrics(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        http::ask(&self.lab, "node1", SocketAddr::new([127, 0, 0, 1].into(), METRICS), method, path, body)
    }

    /// Waits for an answer with this status.
    pub(super) fn answers(&self, ip: &str, port: u16, path: &str, status: u16) -> Result<Said> {
        self.until(&format!("{status} at {ip}:{port}{path}"), ip, port, path, |answer| answer.status == status)
    }

    /// Waits until a Service's health check says that there are so many.
    pub(super) fn weighs(&self, ip: &str, port: u16, count: usize) -> Result<Said> {
        let weight = |answer: &Answer| answer.headers.get("x-load-balancing-endpoint-weight") == Some(&count.to_string());
        self.until(&format!("{count} endpoints at {ip}:{port}"), ip, port, "/", weight)
    }

    fn until(&self, what: &str, ip: &str, port: u16, path: &str, holds: impl Fn(&Answer) -> bool) -> Result<Said> {
        self.lab.wait(DEADLINE, what, || {
            Ok(match self.ask(ip, port, "GET", path) {
                Ok(answer) if holds(&answer) => Seen::Done(Said::of(&answer)),
                Ok(answer) => Seen::not_yet(answer),
                Err(error) => Seen::not_yet(format!("{error:#}")),
            })
        })
    }

    /// Waits until nobody listens.
    pub(super) fn closed(&self, ip: &str, port: u16) -> Result<()> {
        self.lab.wait(DEADLINE, &format!("{ip}:{port} to be closed"), || {
            let answer = self.ask(ip, port, "GET", "/");
            Ok(answer.map_or_else(|_| Seen::Done(()), Seen::not_yet))
        })
    }
}
