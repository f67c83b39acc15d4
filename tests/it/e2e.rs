//! The whole way: a real API server with RBAC on, the agent with no rights but those of `system:node-proxier`, objects created through
//! the API, real connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result};
use proxy_tests::agent::{Agent, DEADLINE, Mode, Source};
use proxy_tests::controlplane::{ControlPlane, Options, User};
use proxy_tests::lab::{self, Connect, Counts, Lab, LabOptions, Outcome, Proto, Seen};

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
    let mut agent = Agent::new(1, mode, Source::Kubeconfig(plane.kubeconfig(User::KubeProxy)))?;
    // Objects from before the agent's start come with its first list.
    plane.kubectl(&["apply", "-f", "-"], Some(&service("early", "10.96.0.20", 80, "TCP")))?;
    plane.kubectl(&["apply", "-f", "-"], Some(&slice("early", "TCP", &[("10.1.1.3", true)])))?;
    agent.start(&lab)?;
    let mut rig = Rig { lab, plane, agent };
    let result = serves(&mut rig).and_then(|()| outlives_the_api_server(&mut rig)).and_then(|()| cleans_up(&mut rig));
    result.with_context(|| format!("{}\nprogrammed: {:#}", rig.agent.tail(), rig.agent.dump(&rig.lab).unwrap_or_default()))
}

fn serves(rig: &mut Rig) -> Result<()> {
    rig.reaches("10.96.0.20:80", Proto::Tcp, &["b1"])?;
    rig.apply(&service("web", "10.96.0.10", 80, "TCP"))?;
    rig.refuses("10.96.0.10:80")?;
    rig.apply(&slice("web", "TCP", &[("10.1.1.3", true), ("10.1.2.2", true)]))?;
    rig.reaches("10.96.0.10:80", Proto::Tcp, &["b1", "a2"])?;
    rig.apply(&slice("web", "TCP", &[("10.1.1.3", false), ("10.1.2.2", true), ("10.1.2.3", true)]))?;
    rig.reaches("10.96.0.10:80", Proto::Tcp, &["a2", "b2"])?;

    rig.apply(&service("dns", "10.96.0.53", 53, "UDP"))?;
    rig.apply(&slice("dns", "UDP", &[("10.1.2.2", true)]))?;
    rig.reaches("10.96.0.53:53", Proto::Udp, &["a2"])?;

    // SVC-02: the label of another proxy takes a live Service out, and its removal brings it back.
    rig.plane.kubectl(&["label", "service", "web", "service.kubernetes.io/service-proxy-name=other"], None)?;
    rig.gone("10.96.0.10")?;
    rig.plane.kubectl(&["label", "service", "web", "service.kubernetes.io/service-proxy-name-"], None)?;
    rig.reaches("10.96.0.10:80", Proto::Tcp, &["a2", "b2"])?;
    // EP-01: the same for a slice.
    rig.plane.kubectl(&["label", "endpointslice", "web-1", "service.kubernetes.io/headless="], None)?;
    rig.refuses("10.96.0.10:80")?;
    rig.plane.kubectl(&["label", "endpointslice", "web-1", "service.kubernetes.io/headless-"], None)?;
    rig.reaches("10.96.0.10:80", Proto::Tcp, &["a2", "b2"])?;
    // The API server itself is a Service.
    let apiserver = Connect::new("10.96.0.1:443".parse()?, Proto::Tcp).timeout_ms(500);
    let connects = || match rig.lab.pod("a1").probe(apiserver.clone())? {
        // It speaks TLS, so that it accepts and then says nothing that an echo would.
        Outcome::Refused => Ok(Seen::not_yet("refused")),
        _ => Ok(Seen::Done(())),
    };
    rig.lab.wait(DEADLINE, "default/kubernetes to be served", connects)
}

/// The last state stays while the API server is away; what changes while the agent cannot see it takes effect afterwards.
fn outlives_the_api_server(rig: &mut Rig) -> Result<()> {
    let probe = Connect::new("10.96.0.10:80".parse()?, Proto::Tcp);
    let held = rig.lab.pod("a1").hold(probe.clone())?;
    let flowing = rig.lab.pod("a1").traffic(probe, Duration::from_millis(2))?;
    // A graceful end waits a minute for watches; a crash is the harder case anyway.
    rig.plane.kill_apiserver();
    rig.reaches("10.96.0.10:80", Proto::Tcp, &["a2", "b2"])?;
    rig.plane.start_apiserver()?;
    rig.plane.wait_ready(START)?;
    rig.plane.kubectl(&["delete", "service", "early"], None)?;
    rig.gone("10.96.0.20")?;
    rig.apply(&slice("web", "TCP", &[("10.1.2.2", true), ("10.1.2.3", true), ("10.1.1.3", true)]))?;
    rig.reaches("10.96.0.10:80", Proto::Tcp, &["b1", "a2", "b2"])?;
    let report = flowing.stop()?;
    anyhow::ensure!(report.counts.failed() == 0, "connections were lost: {report:?}");
    anyhow::ensure!(report.counts.answered() > 100, "hardly any connection was made: {report:?}");
    held.echo()?.into_answer().context("a connection from before")?;
    Ok(())
}

fn cleans_up(rig: &mut Rig) -> Result<()> {
    rig.agent.stop()?;
    rig.reaches("10.96.0.10:80", Proto::Tcp, &["b1", "a2", "b2"]).context("after the agent's end")?;
    rig.agent.cleanup(&rig.lab)?;
    let left = rig.agent.dump(&rig.lab)?;
    anyhow::ensure!(left.as_array().is_some_and(Vec::is_empty), "cleanup left {left:#}");
    Ok(())
}

impl Rig {
    fn apply(&self, manifest: &str) -> Result<()> {
        self.plane.kubectl(&["apply", "-f", "-"], Some(manifest)).map(drop)
    }

    /// Waits until connections from a pod and from the node reach all of these pods and nobody else.
    fn reaches(&self, to: &str, proto: Proto, pods: &[&str]) -> Result<()> {
        let wanted = pods.iter().map(|name| self.lab.find(name).map(|pod| pod.v4())).collect::<Result<Vec<_>>>()?;
        self.wait(to, proto, &format!("to reach {pods:?}"), |counts| {
            let reached = |ip: &Ipv4Addr| counts.servers.keys().any(|server| server.ip() == *ip);
            counts.failed() == 0
                && wanted.iter().all(reached)
                && counts.servers.keys().all(|server| wanted.iter().any(|ip| server.ip() == *ip))
        })
    }

    fn refuses(&self, to: &str) -> Result<()> {
        self.wait(to, Proto::Tcp, "to be refused", |counts| counts.answered() == 0 && counts.refused == counts.failed())
    }

    fn wait(&self, to: &str, proto: Proto, what: &str, good: impl Fn(&Counts) -> bool) -> Result<()> {
        let dst: SocketAddr = to.parse()?;
        for name in ["a1", "node1"] {
            let peer = self.lab.find(name)?;
            self.lab.wait(DEADLINE, &format!("{name} -> {to}/{proto} {what}"), || {
                let counts = peer.spray(Connect::new(dst, proto).timeout_ms(500), 30)?;
                Ok(if good(&counts) { Seen::Done(()) } else { Seen::not_yet(format!("{counts:?}")) })
            })?;
        }
        Ok(())
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

fn service(name: &str, ip: &str, port: u16, protocol: &str) -> String {
    serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {"clusterIP": ip, "ports": [{"name": "main", "port": port, "protocol": protocol}]},
    })
    .to_string()
}

fn slice(service: &str, protocol: &str, endpoints: &[(&str, bool)]) -> String {
    let endpoints = endpoints.iter().map(|(ip, ready)| serde_json::json!({"addresses": [ip], "conditions": {"ready": ready}}));
    serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "main", "port": 8080, "protocol": protocol}],
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
    .to_string()
}
