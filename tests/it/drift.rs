//! Somebody else changes what is programmed, on a node of the lab.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::{DEADLINE, Mode};
use proxy_tests::lab::{self, Seen};
use proxy_tests::manifest::{service, slice};

use super::node::Rig;

const REPAIRED: &str = "somebody else changed what is programmed: it is repaired";
const FOREIGN: &str = "table inet foreign {\nset s { type ipv4_addr; elements = { 192.0.2.1 }; }\n}";

/// A change of somebody else and how many objects it breaks, as far as that does not depend on the layout.
const CHANGES: [(&str, Option<usize>); 10] = [
    ("delete element ip proxy-agent services { 10.96.0.10 . tcp . 80 }", Some(1)),
    ("delete element ip proxy-agent slots { 10.96.0.10 . tcp . 80 . 1 }", Some(1)),
    ("add element ip proxy-agent refused { 10.96.0.99 . tcp . 80 }", Some(1)),
    ("flush map ip proxy-agent services", Some(2)),
    ("flush chain ip proxy-agent nat-prerouting", Some(1)),
    ("flush chain ip proxy-agent pick-3", Some(1)),
    ("flush chain ip proxy-agent nat-output; add rule ip proxy-agent nat-output drop", Some(1)),
    ("delete chain ip proxy-agent filter-forward", Some(1)),
    ("delete table ip proxy-agent", None),
    ("flush ruleset", None),
];

#[test]
fn what_somebody_else_breaks_is_repaired_and_nothing_else() {
    if lab::available() {
        repaired().unwrap_or_else(|error| panic!("{error:?}"));
    }
}

fn repaired() -> Result<()> {
    let mut rig = Rig::new(Mode::Nftables)?;
    for (i, (change, broken)) in CHANGES.into_iter().enumerate() {
        // Before each change but the first, so long that it is the first of its kind again.
        if i > 0 {
            rig.agent.stop()?;
            rig.agent.start(&rig.lab)?;
            rig.agent.running()?.wait_for_log(DEADLINE, "first sync")?;
        }
        // Tables of others stay as they are, but where all are flushed.
        let foreign = if change == "flush ruleset" { "delete table inet foreign" } else { FOREIGN };
        rig.lab.nft("node1", foreign)?;
        let before = listing(&rig)?;
        rig.lab.nft("node1", change)?;
        rig.agent.running()?.wait_for_log(DEADLINE, REPAIRED).context(change)?;
        rig.lab.wait(DEADLINE, &format!("all to be as before {change:?}"), || {
            let now = listing(&rig)?;
            Ok(if now == before { Seen::Done(()) } else { Seen::not_yet(format!("{}\nnow:\n{now}\nbefore:\n{before}", rig.agent.tail())) })
        })?;
        rig.reaches("10.96.0.10:80/tcp", &["b1", "a2", "b2"]).context(change)?;
        let log = rig.agent.running()?.log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(REPAIRED)).collect();
        let v4 = lines.iter().find(|line| line.contains("IPv4")).with_context(|| format!("{change}: {log}"))?;
        ensure!(v4.contains("by=\"nft (pid "), "{change}: {v4}");
        if let Some(broken) = broken {
            ensure!(lines.len() == 1 && v4.contains(&format!(" objects={broken} ")), "{change}: {lines:?}");
        }
    }
    Ok(())
}

/// All tables of the node, as parts that come in the same order whatever that of the elements is. Without what connections have added to
/// sets that count them, which goes with the table.
fn listing(rig: &Rig) -> Result<String> {
    let mut nft = Command::new("nft");
    nft.args(["list", "ruleset"]);
    let text = String::from_utf8(rig.lab.output_on_node(1, nft)?.stdout)?;
    let parts = text.split([',', '\n']).map(|part| part.replace("elements = {", "").trim_matches([' ', '\t', '}']).to_owned());
    let counts = |part: &str| part.contains("tcp . ") && part.contains(" counter packets ");
    let mut parts: Vec<String> = parts.filter(|part| !part.is_empty() && !counts(part)).collect();
    parts.sort();
    Ok(parts.join("\n"))
}

/// Not even something that turns out to be nothing.
#[test]
fn loading_five_thousand_services_is_not_taken_for_somebody_elses_change() {
    if lab::available() {
        loaded().unwrap_or_else(|error| panic!("{error:?}"));
    }
}

fn loaded() -> Result<()> {
    const SERVICES: usize = 5000;
    let mut rig = Rig::new(Mode::Nftables)?;
    let address = |i: usize| format!("10.96.{}.{}", 100 + i / 250, 1 + i % 250);
    let many = (0..SERVICES).flat_map(|i| {
        let name = format!("many-{i}");
        [service(&name, &address(i), 80, "TCP"), slice(&name, "TCP", &[("10.1.2.2", true), ("10.1.2.3", true)])]
    });
    let many = many.collect::<Vec<_>>().join("\n---\n");
    // At the start, in several batches, and while it runs, in one.
    rig.write("many.yaml", &many)?;
    rig.agent.stop()?;
    rig.agent.cleanup(&rig.lab)?;
    rig.agent.start_with(&rig.lab, "debug")?;
    rig.agent.running()?.wait_for_log(DEADLINE * 3, "first sync")?;
    let last = format!("{}:80/tcp", address(SERVICES - 1));
    rig.reaches(&last, &["a2", "b2"])?;
    rig.write("many.yaml", "")?;
    proxy_tests::expect::untouched(&rig.lab, "a1", &last)?;
    rig.write("many.yaml", &many)?;
    rig.reaches(&last, &["a2", "b2"])?;
    let log = rig.agent.running()?.log();
    let heard: Vec<&str> = log.lines().filter(|line| line.contains("somebody")).collect();
    ensure!(heard.is_empty(), "{heard:#?}");
    // It listens all the same.
    rig.lab.nft("node1", CHANGES[0].0)?;
    rig.agent.running()?.wait_for_log(DEADLINE, REPAIRED)?;
    rig.reaches("10.96.0.10:80/tcp", &["b1", "a2", "b2"])
}
