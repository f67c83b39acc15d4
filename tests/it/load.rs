//! Connections while things change: none that is there is lost, and new ones only where nothing else is possible.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::{DEADLINE, Mode};
use proxy_tests::expect;
use proxy_tests::lab::{self, Connect, Held, Proto, Seen};
use proxy_tests::manifest::slice;
use proxy_tests::soak::{self, Limit, Plan};
use serde_json::{Value, json};

use super::node::{Rig, each};

const VIP: &str = "10.96.0.10:80";
const BALANCER: &str = "10.97.0.1:80";
const NODE_PORT: &str = "10.0.0.1:30080";

#[test]
fn random_changes_under_load_refuse_lose_and_mislead_nobody() {
    if lab::available() {
        let report = soak::run(&Plan { rate: 2000, limit: Limit::Changes(40), seed: 3 });
        report.and_then(|report| report.verdict()).unwrap_or_else(|error| panic!("{error:?}"));
    }
}

#[test]
fn a_foreign_flush_under_load_costs_no_connection_that_was_there() {
    if lab::available() {
        flushed().unwrap_or_else(|error| panic!("{error:?}"));
    }
}

fn flushed() -> Result<()> {
    let mut rig = Rig::new(Mode::Nftables)?;
    let web = Connect::new(VIP.parse()?, Proto::Tcp);
    let clients = ["a1", "node1"];
    let held = clients.map(|from| rig.lab.find(from).and_then(|peer| peer.hold(web.clone())));
    // Never silent. Long enough that what is lost while there are no rules is sent again.
    let lasting = Connect { hold: true, ..web.clone().timeout_ms(20_000) };
    let start =
        |probe: &Connect| clients.map(|from| rig.lab.find(from).and_then(|peer| peer.traffic(probe.clone(), std::time::Duration::ZERO)));
    let (lasting, new) = (start(&lasting), start(&web));
    rig.reaches("10.96.0.10:80/tcp", &["b1", "a2", "b2"])?;

    let before = micros();
    rig.lab.nft("node1", "flush ruleset")?;
    rig.agent.running()?.wait_for_log(DEADLINE, "somebody else changed what is programmed: it is repaired")?;
    let after = micros();
    rig.reaches("10.96.0.10:80/tcp", &["b1", "a2", "b2"])?;
    for held in held {
        held?.echo()?.into_answer().context("a connection that was there, and idle")?;
    }
    for lasting in lasting {
        let report = lasting?.stop()?;
        ensure!(report.counts.failed() == 0 && report.counts.answered() > 20, "a connection that was there, and never silent: {report:?}");
    }
    for new in new {
        let report = new?.stop()?;
        let outside = report.failures.iter().filter(|failure| !(before..=after).contains(&failure.at_us)).count();
        ensure!(outside == 0 && report.counts.answered() > 20, "flushed at {before}, repaired by {after}: {report:?}");
        let last = report.failures.iter().map(|failure| failure.at_us - before).max().unwrap_or_default();
        eprintln!(
            "repaired within {} us; {} new connections failed, the last {last} us after the flush",
            after - before,
            report.counts.failed()
        );
    }
    Ok(())
}

fn micros() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros()).unwrap_or_default()
}

/// Service `web` with every kind of frontend, and this in its spec besides.
fn web(more: Value) -> String {
    let mut spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.10",
        "ports": [{"name": "main", "port": 80, "nodePort": 30080, "protocol": "TCP"}],
    });
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    let status = json!({"loadBalancer": {"ingress": [{"ip": "10.97.0.1"}]}});
    let metadata = json!({"namespace": "default", "name": "web"});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status}).to_string()
}

#[test]
fn what_changes_is_for_new_connections_only() {
    each(|mode| {
        let rig = Rig::new(mode)?;
        let range = r#"{"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]}}"#;
        rig.write("range.json", range)?;
        rig.write("web.json", &web(json!({})))?;
        let paths = [("a1", VIP), ("node1", VIP), ("client", VIP), ("client", BALANCER), ("client", NODE_PORT), ("a1", NODE_PORT)];
        for (from, to) in paths {
            expect::reaches(&rig.lab, from, &format!("{to}/tcp"), &["b1", "a2", "b2"])?;
        }
        // To each of the backends, on every path.
        let held = paths.iter().map(|(from, to)| to_each(&rig, from, to)).collect::<Result<Vec<_>>>()?;
        let go_on = |when: &str| -> Result<()> {
            for ((from, to), held) in paths.iter().zip(&held) {
                for held in held {
                    let server = held.first().map(|answer| answer.name.clone());
                    let answer = held.echo()?.into_answer().with_context(|| format!("{from} -> {to} ({server:?}), {when}"))?;
                    ensure!(Some(answer.name) == server, "{from} -> {to}, {when}: from {server:?} to another");
                }
            }
            Ok(())
        };
        let drops = |from: &str, to: &str| expect::untouched(&rig.lab, from, &format!("{to}/tcp"));
        let refuses = |from: &str, to: &str| expect::refused(&rig.lab, from, &format!("{to}/tcp"));
        let one = |from: &str, to: &str| expect::reaches(&rig.lab, from, &format!("{to}/tcp"), &["b2"]);
        let all = [("10.1.1.3", true), ("10.1.2.2", true), ("10.1.2.3", true)];

        rig.write("web-1.json", &slice("web", "TCP", &all[2..]))?;
        paths.iter().try_for_each(|(from, to)| one(from, to))?;
        go_on("two of three endpoints gone")?;
        rig.write("web.json", &web(json!({"loadBalancerSourceRanges": ["192.0.2.0/24"]})))?;
        drops("client", BALANCER)?;
        go_on("the client not in the source ranges")?;
        // No endpoint says that it is on this node.
        rig.write("web.json", &web(json!({"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"})))?;
        drops("client", BALANCER).and_then(|()| drops("client", NODE_PORT)).and_then(|()| drops("a1", VIP))?;
        go_on("both policies Local, without endpoints here")?;
        rig.write("web-1.json", &slice("web", "TCP", &[]))?;
        paths.iter().try_for_each(|(from, to)| refuses(from, to))?;
        go_on("no endpoints: refused")?;
        rig.write("web.json", "")?;
        drops("a1", VIP).and_then(|()| drops("node1", VIP))?;
        go_on("the Service deleted: its address is of the Service range, and nobody's")
    });
}

/// A connection from here to each of the three backends.
fn to_each(rig: &Rig, from: &str, to: &str) -> Result<Vec<Held>> {
    let mut found = std::collections::BTreeMap::new();
    rig.lab.wait(DEADLINE, &format!("connections {from} -> {to} to each backend"), || {
        let held = rig.lab.find(from)?.hold(Connect::new(to.parse()?, Proto::Tcp))?;
        let server = held.first().context("no answer")?.name.clone();
        found.entry(server).or_insert(held);
        Ok(if found.len() == 3 { Seen::Done(()) } else { Seen::not_yet(format!("{:?}", found.keys())) })
    })?;
    Ok(found.into_values().collect())
}
