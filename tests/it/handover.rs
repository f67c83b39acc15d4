//! From one agent to the next: in another mode, beside the first, and at the end.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::{DEADLINE, Mode};
use proxy_tests::lab::{self, Connect, Proto};
use proxy_tests::manifest::slice;

use super::node::{Rig, each};

const WEB: &str = "10.96.0.10:80";
const DNS: &str = "10.96.0.53:53";

/// What the kernel programs are hung up by.
fn links(rig: &Rig) -> Vec<String> {
    let names = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect::<Vec<_>>();
    let layouts = names(&rig.lab.node(1).bpffs().join("proxy-agent"));
    let pins = layouts.iter().flat_map(|layout| names(layout));
    let mut links: Vec<String> = pins.filter_map(|pin| Some(pin.file_name()?.to_str()?.strip_prefix("link-")?.to_owned())).collect();
    links.sort();
    links
}

#[test]
fn modes_are_switched_without_losing_a_connection() {
    if lab::available() {
        switch().unwrap_or_else(|error| panic!("{error:?}"));
    }
}

fn switch() -> Result<()> {
    let mut rig = Rig::new(Mode::Ebpf)?;
    let web = Connect::new(WEB.parse()?, Proto::Tcp);
    let dns = Connect::new(DNS.parse()?, Proto::Udp).unconnected();
    let mut held = vec![rig.lab.pod("a1").hold(web.clone())?, rig.lab.pod("a1").hold(dns.clone())?];
    let flowing = [("a1", &web), ("node1", &web), ("a1", &dns)];
    let flowing = flowing.map(|(from, probe)| rig.lab.find(from).and_then(|peer| peer.traffic(probe.clone(), Duration::from_millis(1))));
    ensure!(links(&rig).len() == 8, "{:?}", links(&rig));
    for mode in [Mode::Nftables, Mode::Ebpf, Mode::Nftables] {
        rig.agent.stop()?;
        rig.agent.switch(mode);
        rig.agent.start(&rig.lab)?;
        rig.agent.running()?.wait_for_log(DEADLINE, "first sync")?;
        if mode == Mode::Nftables {
            rig.agent.running()?.wait_for_log(DEADLINE, "choose no more backends")?;
            ensure!(links(&rig) == ["getpeername4", "getpeername6", "recvmsg4", "recvmsg6"], "{:?}", links(&rig));
        }
        rig.reaches("10.96.0.10:80/tcp", &["b1", "a2", "b2"])?;
        // What changes now counts for everyone: nothing is left that still goes by the former mode.
        rig.write("web-1.json", &slice("web", "TCP", &[("10.1.2.2", true)]))?;
        rig.reaches("10.96.0.10:80/tcp", &["a2"])?;
        rig.write("web-1.json", &slice("web", "TCP", &[("10.1.1.3", true), ("10.1.2.2", true), ("10.1.2.3", true)]))?;
        rig.reaches("10.96.0.10:80/tcp", &["b1", "a2", "b2"])?;
        held.iter().try_for_each(|held| held.echo()?.into_answer().map(drop)).with_context(|| format!("held, now in mode {mode}"))?;
        held.push(rig.lab.pod("a1").hold(web.clone())?);
    }
    for flowing in flowing {
        let report = flowing?.stop()?;
        ensure!(report.counts.failed() == 0 && report.counts.answered() > 100, "{report:?}");
    }
    Ok(())
}

#[test]
fn a_second_agent_waits_and_takes_over() {
    each(|mode| {
        let mut rig = Rig::new(mode)?;
        let flowing = rig.lab.pod("a1").traffic(Connect::new(WEB.parse()?, Proto::Tcp), Duration::from_millis(1))?;
        let mut second = rig.lab.spawn_on_node(1, rig.agent.command_to_run(&rig.lab, "info"))?;
        second.wait_for_log(DEADLINE, "this one waits until it has ended")?;
        // The first goes on as if it were alone.
        rig.write("web-1.json", &slice("web", "TCP", &[("10.1.2.2", true)]))?;
        rig.reaches("10.96.0.10:80/tcp", &["a2"])?;
        rig.agent.kill()?;
        second.wait_for_log(DEADLINE, "this one takes over")?;
        rig.write("web-1.json", &slice("web", "TCP", &[("10.1.2.3", true)]))?;
        rig.reaches("10.96.0.10:80/tcp", &["b2"]).with_context(|| second.tail())?;
        // A third, which is asked to end while it waits.
        let mut third = rig.lab.spawn_on_node(1, rig.agent.command_to_run(&rig.lab, "info"))?;
        third.wait_for_log(DEADLINE, "this one waits until it has ended")?;
        let status = third.stop(DEADLINE)?;
        ensure!(status.success(), "{status}");
        let report = flowing.stop()?;
        ensure!(report.counts.failed() == 0 && report.counts.answered() > 100, "{report:?}");
        ensure!(second.stop(DEADLINE)?.success());
        Ok(())
    });
}

/// A full disk for logs.
#[test]
fn an_agent_that_cannot_log_serves_on() {
    each(|mode| {
        let mut rig = Rig::new(mode)?;
        rig.agent.stop()?;
        let agent = rig.agent.command_to_run(&rig.lab, "debug");
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" >/dev/full 2>&1", "sh"]).arg(agent.get_program()).args(agent.get_args());
        let mut agent = rig.lab.spawn_on_node(1, command)?;
        for pods in [["a2"], ["b2"]] {
            let address = if pods == ["a2"] { "10.1.2.2" } else { "10.1.2.3" };
            rig.write("web-1.json", &slice("web", "TCP", &[(address, true)]))?;
            rig.reaches("10.96.0.10:80/tcp", &pods)?;
        }
        ensure!(agent.ended()?.is_none(), "the agent has ended");
        Ok(())
    });
}
