//! Session affinity over time: what scenarios cannot wait for, and what happens under load.

use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::DEADLINE;
use proxy_tests::expect;
use proxy_tests::lab::{Connect, Proto, Seen};
use proxy_tests::manifest::slice;
use serde_json::json;

use super::node::{Rig, each};

const VIP: &str = "10.96.0.10:80";
const CLIENTS: [&str; 3] = ["a1", "node1", "client"];
const PODS: [(&str, &str); 3] = [("b1", "10.1.1.3"), ("a2", "10.1.2.2"), ("b2", "10.1.2.3")];

fn sticky(seconds: u32) -> String {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "web"},
        "spec": {
            "clusterIP": "10.96.0.10", "ports": [{"name": "main", "port": 80, "protocol": "TCP"}],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": seconds}},
        },
    })
    .to_string()
}

/// Makes `web` sticky, and waits until clients stay.
fn stick(rig: &Rig, seconds: u32) -> Result<[IpAddr; 3]> {
    rig.write("web.json", &sticky(seconds))?;
    let mut servers = Vec::new();
    for from in CLIENTS {
        servers.push(rig.lab.wait(DEADLINE, &format!("{from} to stay with one backend"), || {
            let counts = rig.lab.find(from)?.spray(Connect::new(VIP.parse()?, Proto::Tcp), 20)?;
            let mut servers = counts.servers.keys().map(|server| server.ip());
            let is_one = counts.failed() == 0 && counts.servers.len() == 1;
            Ok(if is_one { servers.next().map_or_else(|| Seen::not_yet("none"), Seen::Done) } else { Seen::not_yet(format!("{counts:?}")) })
        })?);
    }
    servers.try_into().map_err(|servers| anyhow::anyhow!("{servers:?}"))
}

fn server(rig: &Rig, from: &str) -> Result<IpAddr> {
    Ok(rig.lab.find(from)?.connect(VIP.parse()?, Proto::Tcp)?.into_answer()?.server.ip())
}

/// For how long each pin is still good, in seconds, by client.
fn pins(rig: &Rig) -> Result<Vec<(IpAddr, u64)>> {
    let mut nft = Command::new("nft");
    nft.args(["-j", "list", "map", "ip", "proxy-agent", "stick-pins"]);
    let output = rig.lab.output_on_node(1, nft)?;
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).context("nft -j list map")?;
    let map = listed["nftables"].as_array().into_iter().flatten().find_map(|object| object.get("map")).context("no map of pins")?;
    let pins = map["elem"].as_array().into_iter().flatten().map(|pair| {
        let element = &pair[0]["elem"];
        let client = element["val"]["concat"][0].as_str().context("a client")?.parse()?;
        Ok((client, element["expires"].as_u64().context("when it expires")?))
    });
    pins.collect::<Result<_>>().with_context(|| listed.to_string())
}

fn pin_of(rig: &Rig, client: IpAddr) -> Result<u64> {
    let pins = pins(rig)?;
    pins.iter().find(|(ip, _)| *ip == client).map(|(_, expires)| *expires).with_context(|| format!("no pin of {client}: {pins:?}"))
}

#[test]
fn a_pin_that_has_run_out_is_chosen_anew_and_each_new_connection_renews_it() {
    each(|mode| {
        let rig = Rig::new(mode)?;
        stick(&rig, 600)?;
        let client = rig.lab.pod("a1").v4().into();
        // nft tells whole seconds.
        let aged = rig.lab.wait(DEADLINE, "a pin of five seconds", || {
            let left = pin_of(&rig, client)?;
            Ok(if left <= 595 { Seen::Done(left) } else { Seen::not_yet(left) })
        })?;
        server(&rig, "a1")?;
        let renewed = pin_of(&rig, client)?;
        ensure!(renewed > aged, "a new connection has not renewed the pin: {aged} s left, then {renewed} s");

        rig.write("web.json", &sticky(1))?;
        let first = rig.lab.wait(DEADLINE, "a pin for a second", || {
            let server = server(&rig, "a1")?;
            let left = pins(&rig)?.into_iter().find(|(ip, _)| *ip == client);
            Ok(if left.is_none_or(|(_, left)| left <= 1) { Seen::Done(server) } else { Seen::not_yet(format!("{left:?}")) })
        })?;
        rig.lab.wait(DEADLINE, "another backend after the pin has run out", || {
            // Without connecting, which would renew it.
            rig.lab.wait(DEADLINE, "the pin to run out", || {
                let left = pins(&rig)?;
                Ok(if left.iter().any(|(ip, _)| *ip == client) { Seen::not_yet(format!("{left:?}")) } else { Seen::Done(()) })
            })?;
            let now = server(&rig, "a1")?;
            Ok(if now == first { Seen::not_yet("the same again") } else { Seen::Done(()) })
        })
    });
}

#[test]
fn pins_outlive_restarts_and_changes_under_load_and_go_with_their_backend() {
    each(|mode| {
        let mut rig = Rig::new(mode)?;
        let pinned = stick(&rig, 10_800)?;
        let probe = Connect::new(VIP.parse()?, Proto::Tcp);
        let flowing = CLIENTS.map(|from| rig.lab.find(from).and_then(|peer| peer.traffic(probe.clone(), Duration::ZERO)));
        for crash in [true, false] {
            if crash { rig.agent.kill() } else { rig.agent.stop() }?;
            rig.agent.start(&rig.lab)?;
            rig.agent.running()?.wait_for_log(DEADLINE, "first sync")?;
        }
        for seconds in [600, 30, 10_800] {
            rig.write("web.json", &sticky(seconds))?;
            rig.lab.wait(DEADLINE, &format!("a pin for {seconds} s"), || {
                let left = pin_of(&rig, rig.lab.pod("a1").v4().into())?;
                let is_of_this = left <= u64::from(seconds) && left + 20 > u64::from(seconds);
                Ok(if is_of_this { Seen::Done(()) } else { Seen::not_yet(left) })
            })?;
        }
        for ((flowing, from), server) in flowing.into_iter().zip(CLIENTS).zip(pinned) {
            let report = flowing?.stop()?;
            let stayed = report.counts.servers.keys().all(|seen| seen.ip() == server);
            ensure!(stayed && report.counts.failed() == 0 && report.counts.answered() > 100, "{from}, pinned to {server}: {report:?}");
        }

        // One backend after the other goes; whoever was with it moves, and nobody is refused or lost.
        let flowing = CLIENTS.map(|from| rig.lab.find(from).and_then(|peer| peer.traffic(probe.clone(), Duration::ZERO)));
        let [gone, ..] = pinned;
        let left: Vec<(&str, &str)> = PODS.into_iter().filter(|(_, ip)| *ip != gone.to_string()).collect();
        rig.write("web-1.json", &slice("web", "TCP", &left.iter().map(|(_, ip)| (*ip, true)).collect::<Vec<_>>()))?;
        rig.lab.wait(DEADLINE, "the backend to be gone from what is programmed", || {
            let dump = rig.agent.dump_as(&rig.lab, &["--service", "default/web"])?;
            Ok(if dump.contains(&gone.to_string()) { Seen::not_yet(dump) } else { Seen::Done(()) })
        })?;
        // At once: the first connection from now on.
        let moved = server(&rig, "a1")?;
        ensure!(moved != gone, "pinned to a backend that is gone");
        ensure!((0..20).all(|_| server(&rig, "a1").is_ok_and(|now| now == moved)), "moved, and not pinned");
        let last = left.iter().find(|(_, ip)| *ip != moved.to_string()).context("another backend")?;
        rig.write("web-1.json", &slice("web", "TCP", &[(last.1, true)]))?;
        CLIENTS.into_iter().try_for_each(|from| expect::reaches(&rig.lab, from, "10.96.0.10:80/tcp", &[last.0]))?;
        for flowing in flowing {
            let report = flowing?.stop()?;
            ensure!(report.counts.failed() == 0 && report.counts.answered() > 100, "{report:?}");
        }
        Ok(())
    });
}
