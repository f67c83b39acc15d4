//! The whole way: a real API server with RBAC on, the agent with no rights but those of `system:node-proxier`, objects created through
//! the API, real connections.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::{Agent, DEADLINE, Mode, Source};
use proxy_tests::controlplane::{ControlPlane, Options, User};
use proxy_tests::expect;
use proxy_tests::lab::{self, Connect, Lab, LabOptions, Outcome, Proto, Seen};
use proxy_tests::manifest::{service, slice};
use serde_json::{Value, json};

/// How long a control plane may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);

#[test]
fn ebpf_follows_a_real_api_server() {
    follows_a_real_api_server(Mode::Ebpf);
}

#[test]
fn nftables_follows_a_real_api_server() {
    follows_a_real_api_server(Mode::Nftables);
}

fn follows_a_real_api_server(mode: Mode) {
    if lab::available() {
        run(mode).unwrap_or_else(|error| panic!("{mode}: {error:?}"));
    }
}

/// Everything that the test has up.
struct Rig {
    lab: Lab,
    plane: ControlPlane,
    agent: Agent,
}

fn run(mode: Mode) -> Result<()> {
    let lab = Lab::new(LabOptions::default())?;
    let (netns, addresses) = (Some(lab.node(1).netns().to_owned()), lab.node(1).addresses().to_vec());
    let mut plane = ControlPlane::start(Options { netns, addresses, ..Options::default() })?;
    plane.wait_ready(START)?;
    plane.add_node("node1", &lab.node(1).addresses())?;
    let agent = Agent::new(1, mode, Source::Kubeconfig(plane.kubeconfig(User::KubeProxy)))?;
    let mut agent = agent.with_flags(vec!["--hostname-override=node1".to_owned()]);
    // Objects from before the agent's start come with its first list.
    plane.kubectl(&["apply", "-f", "-"], Some(&service("early", "10.96.0.20", 80, "TCP")))?;
    plane.kubectl(&["apply", "-f", "-"], Some(&slice("early", "TCP", &[("10.1.1.3", true)])))?;
    agent.start(&lab)?;
    let mut rig = Rig { lab, plane, agent };
    let result = serves(&mut rig)
        .and_then(|()| records_events(&rig))
        .and_then(|()| follows_its_node(&rig))
        .and_then(|()| outlives_the_api_server(&mut rig))
        .and_then(|()| cleans_up(&mut rig));
    result.with_context(|| format!("{}\nprogrammed: {:#}", rig.agent.tail(), rig.agent.dump(&rig.lab).unwrap_or_default()))
}

fn serves(rig: &mut Rig) -> Result<()> {
    rig.reaches("10.96.0.20:80/tcp", &["b1"])?;
    rig.apply(&service("web", "10.96.0.10", 80, "TCP"))?;
    rig.refuses("10.96.0.10:80/tcp")?;
    rig.apply(&slice("web", "TCP", &[("10.1.1.3", true), ("10.1.2.2", true)]))?;
    rig.waits_for("default/web")?;
    // That is what the gate is for: no attempt after it may fail.
    let web = Connect::new("10.96.0.10:80".parse()?, Proto::Tcp);
    rig.lab.pod("a1").probe(web)?.into_answer().context("the first attempt after the gate")?;
    ensure!(rig.waits_for("default/nobody").is_err(), "a Service that does not exist is programmed");
    rig.reaches("10.96.0.10:80/tcp", &["b1", "a2"])?;
    rig.apply(&slice("web", "TCP", &[("10.1.1.3", false), ("10.1.2.2", true), ("10.1.2.3", true)]))?;
    rig.reaches("10.96.0.10:80/tcp", &["a2", "b2"])?;

    rig.apply(&service("dns", "10.96.0.53", 53, "UDP"))?;
    rig.apply(&slice("dns", "UDP", &[("10.1.2.2", true)]))?;
    rig.reaches("10.96.0.53:53/udp", &["a2"])?;

    // SVC-02: the label of another proxy takes a live Service out, and its removal brings it back.
    rig.plane.kubectl(&["label", "service", "web", "service.kubernetes.io/service-proxy-name=other"], None)?;
    rig.gone("10.96.0.10")?;
    rig.plane.kubectl(&["label", "service", "web", "service.kubernetes.io/service-proxy-name-"], None)?;
    rig.reaches("10.96.0.10:80/tcp", &["a2", "b2"])?;
    // EP-01: the same for a slice.
    rig.plane.kubectl(&["label", "endpointslice", "web-1", "service.kubernetes.io/headless="], None)?;
    rig.refuses("10.96.0.10:80/tcp")?;
    rig.plane.kubectl(&["label", "endpointslice", "web-1", "service.kubernetes.io/headless-"], None)?;
    rig.reaches("10.96.0.10:80/tcp", &["a2", "b2"])?;
    // The API server itself is a Service.
    let apiserver = Connect::new("10.96.0.1:443".parse()?, Proto::Tcp).timeout_ms(500);
    let connects = || match rig.lab.pod("a1").probe(apiserver.clone())? {
        // It speaks TLS, so that it accepts and then says nothing that an echo would.
        Outcome::Refused => Ok(Seen::not_yet("refused")),
        _ => Ok(Seen::Done(())),
    };
    rig.lab.wait(DEADLINE, "default/kubernetes to be served", connects)
}

/// API-06: with the rights of `system:node-proxier`, and where `kubectl describe node` looks.
fn records_events(rig: &Rig) -> Result<()> {
    let about_node = "involvedObject.kind=Node,involvedObject.name=node1,involvedObject.uid=node1";
    rig.lab.wait(DEADLINE, "the event that the agent starts", || {
        let events = rig.plane.kubectl(&["get", "events", "--field-selector", about_node, "-o", "json"], None)?;
        let events: Value = serde_json::from_str(&events)?;
        let items = events["items"].as_array().context("items")?.clone();
        let starts = items.iter().any(|e| e["reason"] == "Starting" && e["type"] == "Normal" && e["reportingComponent"] == "proxy-agent");
        Ok(if starts { Seen::Done(()) } else { Seen::not_yet(format!("{items:#?}")) })
    })
}

/// The Node's address serves NodePorts, and what is on this Node is local; ServiceCIDRs come and go.
fn follows_its_node(rig: &Rig) -> Result<()> {
    let mut exposed: Value = serde_json::from_str(&service("exposed", "10.96.0.30", 80, "TCP"))?;
    exposed["spec"]["type"] = "NodePort".into();
    exposed["spec"]["externalTrafficPolicy"] = "Local".into();
    exposed["spec"]["ports"][0]["nodePort"] = 30080.into();
    rig.apply(&exposed.to_string())?;
    let mut endpoints: Value = serde_json::from_str(&slice("exposed", "TCP", &[("10.1.1.3", true), ("10.1.2.2", true)]))?;
    endpoints["endpoints"][0]["nodeName"] = "node1".into();
    endpoints["endpoints"][1]["nodeName"] = "node2".into();
    rig.apply(&endpoints.to_string())?;
    expect::reaches(&rig.lab, "client", "10.0.0.1:30080/tcp", &["b1"])?;

    // The Node's address is served as soon as the host has it.
    rig.plane.add_node("node1", &["10.0.0.7".parse()?])?;
    expect::refused(&rig.lab, "client", "10.0.0.1:30080/tcp").context("no address of the Node any more")?;
    rig.lab.ip("node1", "address add 10.0.0.7/32 dev lo\n")?;
    expect::reaches(&rig.lab, "client", "10.0.0.7:30080/tcp", &["b1"])?;
    rig.lab.ip("node1", "address delete 10.0.0.7/32 dev lo\n")?;
    rig.plane.add_node("node1", &rig.lab.node(1).addresses())?;
    expect::reaches(&rig.lab, "client", "10.0.0.1:30080/tcp", &["b1"])?;

    // ERR-07, with addresses that answer as long as they are not in such a range.
    expect::reaches(&rig.lab, "a1", "10.1.2.2:8080/tcp", &["a2"])?;
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"}, "spec": {"cidrs": ["10.1.2.0/24"]}});
    rig.apply(&range.to_string())?;
    expect::untouched(&rig.lab, "a1", "10.1.2.2:8080/tcp").context("dropped in a ServiceCIDR")?;
    rig.plane.kubectl(&["delete", "servicecidr", "more"], None)?;
    expect::reaches(&rig.lab, "a1", "10.1.2.2:8080/tcp", &["a2"])
}

/// The last state stays while the API server is away; what changes while the agent cannot see it takes effect afterwards.
fn outlives_the_api_server(rig: &mut Rig) -> Result<()> {
    let probe = Connect::new("10.96.0.10:80".parse()?, Proto::Tcp);
    let held = rig.lab.pod("a1").hold(probe.clone())?;
    let flowing = rig.lab.pod("a1").traffic(probe, Duration::from_millis(2))?;
    // A graceful end waits a minute for watches; a crash is the harder case anyway.
    rig.plane.kill_apiserver();
    rig.reaches("10.96.0.10:80/tcp", &["a2", "b2"])?;
    rig.plane.start_apiserver()?;
    rig.plane.wait_ready(START)?;
    rig.plane.kubectl(&["delete", "service", "early"], None)?;
    rig.gone("10.96.0.20")?;
    rig.apply(&slice("web", "TCP", &[("10.1.2.2", true), ("10.1.2.3", true), ("10.1.1.3", true)]))?;
    rig.reaches("10.96.0.10:80/tcp", &["b1", "a2", "b2"])?;
    let report = flowing.stop()?;
    ensure!(report.counts.failed() == 0, "connections were lost: {report:?}");
    ensure!(report.counts.answered() > 100, "hardly any connection was made: {report:?}");
    held.echo()?.into_answer().context("a connection from before")?;
    Ok(())
}

fn cleans_up(rig: &mut Rig) -> Result<()> {
    rig.agent.stop()?;
    rig.reaches("10.96.0.10:80/tcp", &["b1", "a2", "b2"]).context("after the agent's end")?;
    rig.agent.cleanup(&rig.lab)?;
    let left = rig.agent.dump(&rig.lab)?;
    ensure!(left.as_array().is_some_and(Vec::is_empty), "cleanup left {left:#}");
    Ok(())
}

impl Rig {
    /// The gate: `proxy-agent wait`.
    fn waits_for(&self, service: &str) -> Result<()> {
        let mut command = Command::new(self.agent.program());
        command.args(["wait", "--service", service, "--timeout=5", "--kubeconfig"]).arg(self.plane.kubeconfig(User::KubeProxy));
        let output = self.lab.output_on_node(1, command)?;
        ensure!(output.status.success(), "wait: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn apply(&self, manifest: &str) -> Result<()> {
        self.plane.kubectl(&["apply", "-f", "-"], Some(manifest)).map(drop)
    }

    /// Connections from a pod and from the node reach all of these pods and nobody else.
    fn reaches(&self, to: &str, pods: &[&str]) -> Result<()> {
        ["a1", "node1"].into_iter().try_for_each(|from| expect::reaches(&self.lab, from, to, pods))
    }

    fn refuses(&self, to: &str) -> Result<()> {
        ["a1", "node1"].into_iter().try_for_each(|from| expect::refused(&self.lab, from, to))
    }

    /// Waits until a virtual IP is no longer programmed.
    fn gone(&self, ip: &str) -> Result<()> {
        self.lab.wait(DEADLINE, &format!("{ip} to be gone"), || {
            let programmed = self.agent.dump(&self.lab)?;
            let there = programmed.to_string().contains(&format!("\"{ip}\""));
            Ok(if there { Seen::not_yet(format!("{programmed:#}")) } else { Seen::Done(()) })
        })
    }
}
