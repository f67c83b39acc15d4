//! The demo: the real agent on real manifests in the lab, with real connections through virtual IPs.

mod cases;
mod counted;
mod table;

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, bail, ensure};

use crate::agent::{Agent, DEADLINE, Mode, Source};
use crate::lab::{self, Lab, LabOptions, Proto, Seen};
use crate::manifest::save;
use crate::programs::Before;
use crate::scenario::Config;
use cases::Case;
use counted::Counted;
use table::{Tally, table};

/// The manifests, as they are in the repository.
const MANIFESTS: [(&str, &str); 9] = [
    ("cluster.yaml", include_str!("../demo/cluster.yaml")),
    (WEB, include_str!("../demo/web.yaml")),
    ("dns.yaml", include_str!("../demo/dns.yaml")),
    ("empty.yaml", include_str!("../demo/empty.yaml")),
    ("shop.yaml", include_str!("../demo/shop.yaml")),
    ("local.yaml", include_str!("../demo/local.yaml")),
    ("sticky.yaml", include_str!("../demo/sticky.yaml")),
    ("self.yaml", include_str!("../demo/self.yaml")),
    ("sctp.yaml", include_str!("../demo/sctp.yaml")),
];

/// The manifest that is edited.
const WEB: &str = "web.yaml";

/// What is shown of what is programmed.
const SHOWN: [&str; 2] = ["demo/web", "demo/shop"];

/// Runs the demo with this agent, or the one beside the running program. An error if any expectation did not hold; everything is
/// removed either way, unless `keep`.
pub fn run(mode: Mode, program: Option<PathBuf>, keep: bool) -> Result<()> {
    eprintln!("Making two nodes, four pods and a client in network namespaces of their own");
    let lab = Lab::new(LabOptions::default())?;
    let dir = tempfile::tempdir().context("a folder for manifests")?;
    for (name, text) in MANIFESTS {
        fs::write(dir.path().join(name), text).with_context(|| name.to_string())?;
    }
    eprintln!("Starting an agent on each node ({mode})");
    let (before, modules) = (Before::now()?, modules()?);
    let mut agents = started(&lab, mode, program.as_deref(), dir.path())?;
    let mut summary = format!("{mode}: ");
    if mode == Mode::Ebpf {
        let programs = before.all_loaded_since(agents.len())?;
        println!("\nAll {programs} programs of the object are in the kernel, for each agent.");
        summary += &format!("{programs} programs, ");
    }
    ensure!(modules.contains(SCTP) || !self::modules()?.contains(SCTP), "programming an SCTP Service has loaded the kernel's sctp module");
    let mut tally = Tally { held: true, connections: 0, answered: Counted::new() };
    println!("\nConnections:");
    table(&lab, &cases(&lab)?, &mut tally)?;
    if !modules.contains(SCTP) && self::modules()?.contains(SCTP) {
        println!("The kernel's module for SCTP sockets came with the first socket, not with the Service.");
    }

    println!("\nAfter pod b1 of web has become unready (the file is edited while the agents run):");
    let path = dir.path().join(WEB);
    let text = fs::read_to_string(&path).with_context(|| WEB)?;
    save(&path, &text.replace("10.1.1.3], conditions: {ready: true}", "10.1.1.3], conditions: {ready: false}"))?;
    for agent in &mut agents {
        wait_for(&lab, agent, "10.96.0.10", "10.1.1.3", false)?;
    }
    table(&lab, &cases::AFTER.iter().collect::<Vec<_>>(), &mut tally)?;

    // What was not answered may have been counted.
    let counted = if tally.held { counted::wait(&lab, &["node1", "node2"], &tally.answered)? } else { Counted::new() };
    let shown: Vec<String> = counted.iter().map(|(proto, count)| format!("{count} {}", counted::label(*proto))).collect();
    println!("\nproxy_agent_service_connections_total of both agents: {}", shown.join(", "));

    for service in SHOWN {
        println!("\nproxy-agent dump --service {service} on node1:\n{}", agents[0].dump_as(&lab, &["--service", service])?);
    }
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
    println!("summary: demo {summary}{} connections, counted {}", tally.connections, shown.join(", "));
    Ok(())
}

/// An agent on each node, which has taken in what the manifests say.
fn started(lab: &Lab, mode: Mode, program: Option<&Path>, manifests: &Path) -> Result<Vec<Agent>> {
    let mut agents = Vec::new();
    for node in [1, 2] {
        let source = Source::Manifests(manifests.to_path_buf());
        let agent = match program {
            Some(program) => Agent::with_program(program.to_path_buf(), node, mode, source),
            None => Agent::new(node, mode, source)?,
        };
        let flags = [vec![format!("--hostname-override=node{node}")], Config::default().flags()].concat();
        let mut agent = agent.with_flags(flags);
        agent.start(lab)?;
        agents.push(agent);
    }
    for agent in &mut agents {
        agent.running()?.wait_for_log(DEADLINE, "first sync")?;
        wait_for(lab, agent, "10.96.0.10", "10.1.1.3", true)?;
    }
    Ok(agents)
}

/// What can be tried on this kernel.
fn cases(lab: &Lab) -> Result<Vec<&'static Case>> {
    let mut cases: Vec<&Case> = cases::CASES.iter().collect();
    if lab::has_sockets(Proto::Sctp) {
        ["b1", "a2"].into_iter().try_for_each(|pod| lab.pod(pod).listen(Proto::Sctp, 8080))?;
        cases.extend(&cases::SCTP);
    } else {
        println!("(Without SCTP, for which this kernel has no sockets.)");
    }
    Ok(cases)
}

/// The module that opening an SCTP socket loads, where it is one.
const SCTP: &str = "sctp";

/// The names of the kernel's loaded modules. None where it has no modules at all.
fn modules() -> Result<BTreeSet<String>> {
    let text = match fs::read_to_string("/proc/modules") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        text => text.context("/proc/modules")?,
    };
    Ok(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
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
