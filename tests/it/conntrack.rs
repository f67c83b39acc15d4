//! What becomes of connections to endpoints that are removed, and what it costs to end flows. UDP flows are in the scenarios
//! (`conntrack-*`).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use proxy_tests::agent::{DEADLINE, Mode};
use proxy_tests::expect;
use proxy_tests::lab::{self, Connect, Held, Outcome, Proto, Seen, to_v6_socket};
use proxy_tests::manifest::{service, slice};
use serde_json::{Value, json};

use super::node::{Rig, both, each};

/// Who connects to Service `app` in these tests, and to what: a pod, the node, and somebody outside.
const PATHS: [(&str, &str); 4] =
    [("a1", "10.96.0.20:80"), ("node1", "10.96.0.20:80"), ("client", "10.97.0.20:80"), ("client", "10.0.0.1:30020")];

/// How an endpoint is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Ready,
    Draining,
}

/// Service `app` with every kind of frontend, in both families.
fn app(annotation: Option<&str>) -> String {
    let mut metadata = json!({"namespace": "default", "name": "app"});
    if let Some(value) = annotation {
        metadata["annotations"] = json!({"proxy-agent.io/removed-endpoints": value});
    }
    let ips = both("10.96.0.20");
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {
            "type": "LoadBalancer", "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": "main", "port": 80, "nodePort": 30020, "protocol": "TCP"}],
        },
        "status": {"loadBalancer": {"ingress": both("10.97.0.20").map(|ip| json!({"ip": ip}))}},
    })
    .to_string()
}

/// Writes the slices of `app` in both families.
fn endpoints(rig: &Rig, endpoints: &[(&str, State)]) -> Result<()> {
    for (i, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let endpoint = |(pod, state): &(&str, State)| {
            let ready = *state == State::Ready;
            let ips = rig.lab.pod(pod).addresses();
            json!({"addresses": [ips[i]], "conditions": {"ready": ready, "serving": true, "terminating": !ready}})
        };
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": "default", "name": format!("app-{i}"), "labels": {"kubernetes.io/service-name": "app"}},
            "ports": [{"name": "main", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints.iter().map(endpoint).collect::<Vec<Value>>(),
        });
        rig.write(&format!("app-{i}.json"), &slice.to_string())?;
    }
    Ok(())
}

/// Connections to Service `app` on all paths, in both families.
struct Connections(Vec<(String, Held)>);

impl Connections {
    /// Opened to this endpoint, which is the only one.
    fn open(rig: &Rig, pod: &str) -> Result<Self> {
        let mut held = Vec::new();
        for (from, to) in PATHS {
            let v4: SocketAddr = to.parse()?;
            for to in [v4, to_v6_socket(v4)] {
                expect::reaches(&rig.lab, from, &format!("{to}/tcp"), &[pod])?;
                held.push((format!("{from} -> {to}"), rig.lab.find(from)?.hold(Connect::new(to, Proto::Tcp))?));
            }
        }
        Ok(Self(held))
    }

    /// Each of them is with this endpoint as before.
    fn go_on(&self, pod: &str) -> Result<()> {
        self.0.iter().try_for_each(|(name, held)| {
            let answer = held.echo()?.into_answer().with_context(|| name.clone())?;
            ensure!(answer.name == pod, "{name}: answered by {}", answer.name);
            Ok(())
        })
    }

    /// Each of them is reset when it sends something, soon.
    fn are_reset(&self, rig: &Rig) -> Result<()> {
        for (name, held) in &self.0 {
            rig.lab.wait(DEADLINE, &format!("{name} to be reset"), || match held.echo()? {
                Outcome::Error(errno) if errno == "ECONNRESET" => Ok(Seen::Done(())),
                // It has not gone stale yet.
                Outcome::Ok(answer) => Ok(Seen::not_yet(answer.name)),
                other => bail!("{name}: {other}"),
            })?;
        }
        Ok(())
    }
}

/// Waits until the agent has taken in that this endpoint is used and nobody else.
fn serves(rig: &Rig, pod: &str) -> Result<()> {
    PATHS.into_iter().try_for_each(|(from, to)| {
        let v4: SocketAddr = to.parse()?;
        [v4, to_v6_socket(v4)].into_iter().try_for_each(|to| expect::reaches(&rig.lab, from, &format!("{to}/tcp"), &[pod]))
    })
}

fn with_app(mode: Mode, annotation: Option<&str>) -> Result<Rig> {
    let rig = Rig::new(mode)?;
    rig.write("app.json", &app(annotation))?;
    endpoints(&rig, &[("a2", State::Ready)])?;
    Ok(rig)
}

#[test]
fn tcp_to_removed_endpoints_goes_on_unless_the_service_says_otherwise() {
    each(|mode| {
        for annotation in [None, Some("keep")] {
            let rig = with_app(mode, annotation)?;
            let held = Connections::open(&rig, "a2")?;
            endpoints(&rig, &[("b2", State::Ready)])?;
            serves(&rig, "b2")?;
            held.go_on("a2").with_context(|| format!("{annotation:?}"))?;
        }
        Ok(())
    });
}

#[test]
fn drained_connections_go_on_while_their_endpoint_serves_and_are_reset_then() {
    each(|mode| {
        let rig = with_app(mode, Some("drain"))?;
        let held = Connections::open(&rig, "a2")?;
        endpoints(&rig, &[("a2", State::Draining), ("b2", State::Ready)])?;
        serves(&rig, "b2")?;
        held.go_on("a2").context("it terminates and serves")?;
        endpoints(&rig, &[("b2", State::Ready)])?;
        held.are_reset(&rig).context("it is gone")?;
        // Nobody is there that could answer with a reset.
        let held = Connections::open(&rig, "b2")?;
        endpoints(&rig, &[])?;
        held.are_reset(&rig).context("no endpoint at all")
    });
}

#[test]
fn connections_are_reset_as_soon_as_their_endpoint_gets_no_new_ones() {
    each(|mode| {
        let rig = with_app(mode, Some("reset"))?;
        let held = Connections::open(&rig, "a2")?;
        endpoints(&rig, &[("a2", State::Draining)])?;
        serves(&rig, "a2")?;
        held.go_on("a2").context("it terminates, and is used because there is no other")?;
        endpoints(&rig, &[("a2", State::Draining), ("b2", State::Ready)])?;
        held.are_reset(&rig).context("it terminates")?;
        let held = Connections::open(&rig, "b2")?;
        rig.write("app.json", "")?;
        expect::untouched(&rig.lab, "a1", "10.96.0.20:80/tcp")?;
        held.go_on("b2").context("the Service is gone, and its endpoint is not")
    });
}

#[test]
fn a_policy_that_is_none_is_reported_with_its_service() {
    if lab::available() {
        let reported = || {
            let mut rig = with_app(Mode::Nftables, Some("Drain!"))?;
            rig.agent.running()?.wait_for_log(DEADLINE, "service default/app: metadata.annotations[proxy-agent.io/removed-endpoints]")?;
            Connections::open(&rig, "a2").map(drop)
        };
        reported().unwrap_or_else(|error: anyhow::Error| panic!("{error:?}"));
    }
}

/// Service `many` (UDP 53 at 10.96.0.30), answered by this pod alone.
fn many(rig: &Rig, pod: &str) -> Result<()> {
    rig.write("many.json", &service("many", "10.96.0.30", 53, "UDP"))?;
    rig.write("many-1.json", &slice("many", "UDP", &[(&rig.lab.pod(pod).v4().to_string(), true)]))
}

const FLOWS: u16 = 10_000;

#[test]
fn ten_thousand_stale_flows_are_ended_while_endpoints_change() {
    each(|mode| {
        let mut rig = Rig::new(mode)?;
        many(&rig, "a2")?;
        expect::reaches(&rig.lab, "client", "10.96.0.30:53/udp", &["a2"])?;
        // To somebody who is nobody's Service, from the same ports.
        let others: SocketAddr = (rig.lab.pod("b2").v4(), 8080).into();
        let to: SocketAddr = "10.96.0.30:53".parse()?;
        rig.lab.send_from("client", 20_000..20_000 + FLOWS, to)?;
        rig.lab.send_from("client", (20_000..20_000 + FLOWS).step_by(100), others)?;
        let to_a2 = ["udp", "dst=10.96.0.30 ", "src=10.1.2.2 "];
        rig.lab.wait(DEADLINE, "all flows to be known", || {
            let count = rig.lab.tracked("node1", &to_a2)?;
            Ok(if count >= usize::from(FLOWS) { Seen::Done(()) } else { Seen::not_yet(count) })
        })?;
        // Service `web` moves to its other endpoint, and how long that takes.
        let change = |i: usize| -> Result<Duration> {
            let (pod, start) = (["a2", "b2"][i % 2], Instant::now());
            rig.write("web-1.json", &slice("web", "TCP", &[(&rig.lab.pod(pod).v4().to_string(), true)]))?;
            let probe = Connect::new("10.96.0.10:80".parse()?, Proto::Tcp);
            rig.lab.wait(DEADLINE, "an endpoint change", || {
                let answer = rig.lab.client().probe(probe.clone())?.into_answer()?;
                Ok(if answer.name == pod { Seen::Done(()) } else { Seen::not_yet(answer.name) })
            })?;
            Ok(start.elapsed())
        };
        change(1)?;
        expect::reaches(&rig.lab, "client", "10.96.0.10:80/tcp", &["b2"])?;
        let mut usual = Vec::new();
        for i in 0..20 {
            // Counting takes time as well.
            rig.lab.tracked("node1", &to_a2)?;
            usual.push(change(i)?);
        }
        many(&rig, "b2")?;
        let (mut meanwhile, mut rounds) = (Vec::new(), 0);
        while rig.lab.tracked("node1", &to_a2)? > 0 || rounds < 20 {
            meanwhile.push(change(rounds)?);
            rounds += 1;
            ensure!(rounds < 2_000, "{} flows are left", rig.lab.tracked("node1", &to_a2)?);
        }
        rig.agent.running()?.wait_for_log(DEADLINE, "ended flows that had gone stale")?;
        let (usual, meanwhile) = (spread(usual), spread(meanwhile));
        eprintln!("{mode}: an endpoint change took {usual:?}, and {meanwhile:?} while flows were ended\n{}", rig.agent.tail());
        ensure!(rig.lab.tracked("node1", &["udp", "dst=10.1.2.3 "])? >= usize::from(FLOWS) / 100, "flows to nobody's Service were ended");
        expect::reaches(&rig.lab, "client", "10.96.0.30:53/udp", &["b2"])
    });
}

/// The median and the longest.
fn spread(mut all: Vec<Duration>) -> (Duration, Duration) {
    all.sort_unstable();
    (all[all.len() / 2], all[all.len() - 1])
}
