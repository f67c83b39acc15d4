//! What only ours does: it follows the node's addresses, and waits for ports that are taken without harm to what it serves.

use std::net::TcpListener;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::{Agent, DEADLINE, Mode, Source};
use proxy_tests::expect;
use proxy_tests::lab::{self, Lab, LabOptions, Seen};
use proxy_tests::manifest::{save, service as plain, slice as endpoints};

use super::proxy::{METRICS, Proxy, Rig};
use super::{CHECK, HEALTHZ, NODE, check, on, service, slice};

#[test]
fn the_health_check_of_a_service_follows_the_nodes_addresses() {
    if lab::available() {
        let run = || {
            let mut rig = Rig::new()?;
            rig.start(Proxy::Ours(Mode::Nftables))?;
            follows(&rig).with_context(|| rig.tail())
        };
        check(run());
    }
}

/// W-14
fn follows(rig: &Rig) -> Result<()> {
    rig.apply(&service("Local", CHECK))?;
    rig.apply(&slice("lb", "IPv4", &[on("node1", "10.1.1.3", "ready")]))?;
    rig.weighs(NODE[0], CHECK, 1)?;
    // The Node names an address that the host does not have yet.
    rig.plane.add_node("node1", &["10.0.0.7".parse()?, NODE[1].parse()?])?;
    rig.closed(NODE[0], CHECK)?;
    rig.lab.ip("node1", "address add 10.0.0.7/32 dev lo\n")?;
    rig.weighs("10.0.0.7", CHECK, 1)?;
    // What did not change answers as before.
    ensure!(rig.weighs(NODE[1], CHECK, 0)?.status == 503);
    Ok(())
}

#[test]
fn a_health_check_port_that_is_taken_is_answered_once_it_is_free() {
    if lab::available() {
        let run = || {
            let mut rig = Rig::new()?;
            rig.start(Proxy::Ours(Mode::Ebpf))?;
            waits(&mut rig).with_context(|| rig.tail())
        };
        check(run());
    }
}

/// HC-12
fn waits(rig: &mut Rig) -> Result<()> {
    let taken = take(&rig.lab, NODE[0], CHECK)?;
    rig.apply(&service("Local", CHECK))?;
    rig.apply(&slice("lb", "IPv4", &[on("node1", "10.1.1.3", "ready")]))?;
    let (_, program) = rig.running.as_mut().context("no proxy runs")?;
    program.wait_for_log(DEADLINE, &format!("health checks cannot be answered at {}:{CHECK}", NODE[0]))?;
    // The other family has a port of its own.
    rig.weighs(NODE[1], CHECK, 0)?;
    drop(taken);
    ensure!(rig.weighs(NODE[0], CHECK, 1)?.status == 200);
    Ok(())
}

#[test]
fn services_are_checked_without_a_health_server_and_the_log_level_can_be_changed() {
    if lab::available() {
        let run = || {
            let mut rig = Rig::new()?;
            rig.start_with(Mode::Ebpf, &["--healthz-port=0", "--profiling=true"])?;
            profiled(&rig).with_context(|| rig.tail())
        };
        check(run());
    }
}

/// W-20, MET-02
fn profiled(rig: &Rig) -> Result<()> {
    rig.apply(&service("Local", CHECK))?;
    rig.apply(&slice("lb", "IPv4", &[on("node1", "10.1.1.3", "ready")]))?;
    ensure!(rig.weighs(NODE[0], CHECK, 1)?.status == 200);
    rig.closed(NODE[0], HEALTHZ)?;
    let log = || rig.running.as_ref().map(|(_, program)| program.log()).unwrap_or_default();
    ensure!(!log().contains("committed"), "commits are said at level debug");
    let set = |level: &str| rig.ask_metrics("PUT", "/debug/flags/v", level);
    let answer = set("4")?;
    ensure!(answer.status == 200, "{answer}");
    rig.apply(&slice("lb", "IPv4", &[on("node1", "10.1.1.3", "ready"), on("node1", "10.1.1.4", "ready")]))?;
    rig.weighs(NODE[0], CHECK, 2)?;
    rig.lab
        .wait(DEADLINE, "a commit in the log", || Ok(if log().contains("committed") { Seen::Done(()) } else { Seen::not_yet(log()) }))?;
    ensure!(set("loud=very")?.status == 400);
    ensure!(rig.ask_metrics("GET", "/debug/pprof/", "")?.status == 501);
    Ok(())
}

#[test]
fn ports_of_the_agent_that_are_taken_harm_nothing_else() {
    if lab::available() {
        check(taken());
    }
}

/// CFG-14
fn taken() -> Result<()> {
    let lab = Lab::new(LabOptions::default())?;
    let dir = tempfile::tempdir()?;
    let ports = [("127.0.0.1", METRICS, "what is measured"), ("0.0.0.0", HEALTHZ, "the health of this node")];
    let taken = ports.iter().map(|(ip, port, _)| take(&lab, ip, *port)).collect::<Result<Vec<_>>>()?;
    save(&dir.path().join("web.json"), &plain("web", "10.96.0.10", 80, "TCP"))?;
    save(&dir.path().join("web-1.json"), &endpoints("web", "TCP", &[("10.1.1.3", true)]))?;
    let mut agent = Agent::new(1, Mode::Nftables, Source::Manifests(PathBuf::from(dir.path())))?;
    agent.start(&lab)?;
    let run = |agent: &mut Agent| {
        for (ip, port, what) in ports {
            agent.running()?.wait_for_log(DEADLINE, &format!("{what} cannot be served at {ip}:{port}"))?;
        }
        expect::reaches(&lab, "a1", "10.96.0.10:80/tcp", &["b1"])?;
        drop(taken);
        for (port, path) in [(METRICS, "/metrics"), (HEALTHZ, "/healthz")] {
            let well = lab.wait(DEADLINE, &format!("an answer at {port}"), || {
                let answer = lab.http_get("node1", port, path);
                Ok(answer.map_or_else(|error| Seen::not_yet(format!("{error:#}")), |answer| Seen::Done(answer.contains(" 200 "))))
            })?;
            ensure!(well, "{path}: not 200");
        }
        agent.stop()
    };
    run(&mut agent).with_context(|| agent.tail())
}

/// Listens on the node, in place of whoever wants to.
fn take(lab: &Lab, ip: &str, port: u16) -> Result<TcpListener> {
    lab.inside("node1", || Ok(TcpListener::bind((ip, port))?))
}
