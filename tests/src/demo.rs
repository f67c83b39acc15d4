//! The demo: the real agent on real manifests in the lab, with real connections through virtual IPs.

use std::collections::BTreeSet;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, bail, ensure};

use crate::agent::{Agent, DEADLINE, Mode, Source};
use crate::lab::{Connect, Counts, Lab, LabOptions, Peer, Proto, Seen};
use crate::manifest::save;
use crate::programs::Before;

/// The manifests, as they are in the repository.
const MANIFESTS: [(&str, &str); 3] = [
    ("web.yaml", include_str!("../demo/web.yaml")),
    ("dns.yaml", include_str!("../demo/dns.yaml")),
    ("empty.yaml", include_str!("../demo/empty.yaml")),
];

/// Enough that each of three backends is chosen but once in a million runs.
const CONNECTIONS: u64 = 40;

/// What is expected of connections to a virtual address.
struct Case {
    from: &'static str,
    to: &'static str,
    proto: Proto,
    /// Pods that must answer, all of them; none: refused.
    pods: &'static [&'static str],
}

const fn case(from: &'static str, to: &'static str, proto: Proto, pods: &'static [&'static str]) -> Case {
    Case { from, to, proto, pods }
}

const CASES: [Case; 9] = [
    case("a1", "10.96.0.10:80", Proto::Tcp, &["b1", "a2", "b2"]),
    case("a1", "[fd00:10:96::a]:80", Proto::Tcp, &["b1", "a2", "b2"]),
    case("node1", "10.96.0.10:80", Proto::Tcp, &["b1", "a2", "b2"]),
    case("node2", "10.96.0.10:80", Proto::Tcp, &["b1", "a2", "b2"]),
    case("a1", "10.96.0.53:53", Proto::Udp, &["a2"]),
    case("a1", "[fd00:10:96::53]:53", Proto::Udp, &["a2"]),
    case("node1", "10.96.0.53:53", Proto::Udp, &["a2"]),
    case("a1", "10.96.0.99:80", Proto::Tcp, &[]),
    case("node1", "10.96.0.99:80", Proto::Tcp, &[]),
];

/// What web looks like after one of its pods has become unready.
const AFTER: [Case; 2] =
    [case("a1", "10.96.0.10:80", Proto::Tcp, &["a2", "b2"]), case("node1", "10.96.0.10:80", Proto::Tcp, &["a2", "b2"])];

/// Runs the demo with this agent, or the one beside the running program. An error if any expectation did not hold; everything is removed either way, unless `keep`.
pub fn run(mode: Mode, program: Option<PathBuf>, keep: bool) -> Result<()> {
    eprintln!("Making two nodes, four pods and a client in network namespaces of their own");
    let lab = Lab::new(LabOptions::default())?;
    let dir = tempfile::tempdir().context("a folder for manifests")?;
    for (name, text) in MANIFESTS {
        fs::write(dir.path().join(name), text).with_context(|| name.to_string())?;
    }
    eprintln!("Starting an agent on each node ({mode})");
    let before = Before::now()?;
    let mut agents = Vec::new();
    for node in [1, 2] {
        let source = Source::Manifests(dir.path().to_path_buf());
        let mut agent = match &program {
            Some(program) => Agent::with_program(program.clone(), node, mode, source),
            None => Agent::new(node, mode, source)?,
        };
        agent.start(&lab)?;
        agents.push(agent);
    }
    for agent in &mut agents {
        wait_for(&lab, agent, "10.96.0.10", "10.1.1.3", true)?;
    }
    let mut summary = format!("{mode}: ");
    if mode == Mode::Ebpf {
        let programs = before.all_loaded_since(agents.len())?;
        println!("\nAll {programs} programs of the object are in the kernel, for each agent.");
        summary += &format!("{programs} programs, ");
    }
    let mut tally = Tally { held: true, connections: 0 };
    println!("\nConnections, {CONNECTIONS} each:");
    table(&lab, &CASES, &mut tally)?;

    println!("\nAfter pod b1 has become unready (the file is edited while the agent runs):");
    let edited = MANIFESTS[0].1.replace("10.1.1.3], conditions: {ready: true}", "10.1.1.3], conditions: {ready: false}");
    save(&dir.path().join("web.yaml"), &edited)?;
    for agent in &mut agents {
        wait_for(&lab, agent, "10.96.0.10", "10.1.1.3", false)?;
    }
    table(&lab, &AFTER, &mut tally)?;

    println!("\nproxy-agent dump on node1:\n{}", agents[0].dump_as(&lab, &[])?);
    if keep {
        stay(&lab, dir.path())?;
    }
    for agent in &mut agents {
        agent.stop().with_context(|| agent.tail())?;
        agent.cleanup(&lab)?;
        let left = agent.dump_as(&lab, &[])?;
        ensure!(left.contains("nothing is programmed"), "cleanup left something:\n{left}");
    }
    ensure!(tally.held, "not every expectation held");
    println!("All expectations held; everything is removed again.");
    // What `cargo xtask vm` shows of a demo that succeeded.
    println!("summary: demo {summary}{} connections", tally.connections);
    Ok(())
}

/// Waits until a backend is or is not programmed behind a virtual IP. An error at once if the agent ends before.
fn wait_for(lab: &Lab, agent: &mut Agent, vip: &str, backend: &str, wanted: bool) -> Result<()> {
    let programmed = || {
        if let Some(status) = agent.running()?.ended()? {
            return Ok(Seen::Done(Some(status)));
        }
        let services = agent.dump(lab)?;
        let has = |list: &serde_json::Value, ip: &str| list.as_array().is_some_and(|l| l.iter().any(|a| a["ip"] == ip));
        let service = services.as_array().into_iter().flatten().find(|s| has(&s["frontends"], vip));
        let found = service.map(|service| has(&service["backends"], backend));
        Ok(if found == Some(wanted) { Seen::Done(None) } else { Seen::not_yet(format!("{services:#}")) })
    };
    let what = if wanted { "behind" } else { "no longer behind" };
    let ended = lab.wait(DEADLINE, &format!("{backend} {what} {vip}"), programmed).with_context(|| agent.tail())?;
    ended.map_or(Ok(()), |status| bail!("the agent ended ({status})\n{}", agent.tail()))
}

/// What became of all connections together.
struct Tally {
    /// Whether all were as expected.
    held: bool,
    /// How many were answered or refused.
    connections: u64,
}

/// Makes the connections and prints what became of them.
fn table(lab: &Lab, cases: &[Case], tally: &mut Tally) -> Result<()> {
    println!("  {:<6} {:<24} {:<22} {:<46} ", "FROM", "TO", "EXPECTED", "REACHED");
    for case in cases {
        let peer = lab.find(case.from)?;
        let dst: SocketAddr = case.to.parse().with_context(|| case.to)?;
        let counts = peer.spray(Connect::new(dst, case.proto), CONNECTIONS)?;
        let (expected, reached) = (expected(case), reached(lab, &counts));
        let held = holds(lab, case, &counts)?;
        tally.held &= held;
        tally.connections += counts.servers.values().sum::<u64>() + counts.refused;
        let mark = if held { "ok" } else { "WRONG" };
        println!("  {:<6} {:<24} {:<22} {:<46} {mark}", peer_name(peer), format!("{}/{}", case.to, case.proto), expected, reached);
    }
    Ok(())
}

fn peer_name(peer: &Peer) -> &str {
    peer.name()
}

fn expected(case: &Case) -> String {
    if case.pods.is_empty() { "refused".into() } else { case.pods.join(" | ") }
}

fn reached(lab: &Lab, counts: &Counts) -> String {
    let name = |server: &SocketAddr| lab.find(&server.ip().to_string()).map_or_else(|_| server.to_string(), |p| p.name().to_string());
    let mut parts: Vec<String> = counts.servers.iter().map(|(server, count)| format!("{} {count}", name(server))).collect();
    let others = [("refused", counts.refused), ("timeout", counts.timeouts)];
    parts.extend(others.into_iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{what} {count}")));
    parts.extend(counts.errors.iter().map(|(errno, count)| format!("{errno} {count}")));
    parts.join(", ")
}

fn holds(lab: &Lab, case: &Case, counts: &Counts) -> Result<bool> {
    if case.pods.is_empty() {
        return Ok(counts.refused == CONNECTIONS);
    }
    let ips = |name: &&str| lab.find(name).map(|peer| peer.addresses());
    let wanted: BTreeSet<IpAddr> = case.pods.iter().map(ips).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    let reached: BTreeSet<&str> = counts.servers.keys().map(|s| lab.find(&s.ip().to_string()).map(Peer::name)).collect::<Result<_>>()?;
    Ok(counts.failed() == 0 && counts.servers.keys().all(|s| wanted.contains(&s.ip())) && reached.len() == case.pods.len())
}

fn stay(lab: &Lab, manifests: &Path) -> Result<()> {
    let node = lab.node(1);
    println!("The lab stays up until you press Enter (or Ctrl-C). Manifests: {}", manifests.display());
    println!(
        "Enter node1 with: ip netns exec {} bash -c 'echo $$ > {}/host/cgroup.procs; exec bash'",
        node.netns(),
        node.cgroup().display()
    );
    println!(
        "and pod a1 with:  ip netns exec {} bash -c 'echo $$ > {}/cgroup.procs; exec bash'",
        lab.pod("a1").netns(),
        lab.pod("a1").cgroup().display()
    );
    io::stdin().read(&mut [0]).context("standard input")?;
    Ok(())
}
