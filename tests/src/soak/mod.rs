//! The soak: random changes of Services under many new connections, each of which has to be answered, and by an endpoint that is in
//! use. `cargo xtask soak` runs it for as long as one likes, a test for a few changes.

mod log;
mod services;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::agent::{Agent, DEADLINE, Mode, Source};
use crate::lab::{Lab, LabOptions, PodSpec, Raging, Storm, Stormed, Target, Watch};
use crate::manifest::save;
use crate::random::random;
use log::Log;
use services::{BACKEND_PORT, Kind, Services};

/// Who connects.
const CLIENTS: [&str; 2] = ["a1", "node1"];
/// Connections that each of them has open at once at most.
const THREADS: u32 = 4;
/// Connections to a Service between its being added and deleted.
const EPHEMERAL: usize = 10;
/// How the names of chains begin that pick a backend.
const PICKING: [&str; 3] = ["pick-", "stick-", "no-backend"];
/// Longest pause between two changes, in milliseconds.
const PAUSE: u64 = 100;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// New connections a second, from all clients together.
    pub rate: u64,
    /// How long.
    pub limit: Limit,
    /// What the random choices are made from.
    pub seed: u64,
}

/// When it is over.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After so many changes.
    Changes(u64),
    /// After this time.
    Time(Duration),
}

/// What became of it.
#[derive(Default, Debug)]
pub struct Report {
    /// From the first change to the last.
    pub time: Duration,
    /// All connections.
    pub seen: Stormed,
    /// Answers by an endpoint out of use, as text.
    pub stale: Vec<String>,
    /// New connections that our rules have dropped for want of a backend, though there were some. (A client's second try hides it.)
    pub dropped: u64,
    /// Commits beyond one for a change: it was carried out in parts.
    pub parts: u64,
    /// Changes by kind.
    pub changes: BTreeMap<&'static str, u64>,
    /// How long each commit took, in microseconds.
    pub commits: Vec<u64>,
}

impl Report {
    /// An error that tells all if a connection was not answered, or by who was not in use.
    ///
    /// # Errors
    ///
    /// As said.
    pub fn verdict(&self) -> Result<()> {
        let is_good = self.seen.failed.failed() == 0 && self.stale.is_empty() && self.dropped == 0;
        ensure!(is_good, "{self}\nfailures: {:#?}\nstale: {:#?}", self.seen.failures, self.stale);
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = &self.seen.failed;
        let total = self.seen.answered + failed.failed();
        let rate = total as f64 / self.time.as_secs_f64().max(0.001);
        writeln!(f, "{total} new connections in {:.0} s: {rate:.0} a second", self.time.as_secs_f64())?;
        let other: u64 = failed.errors.values().sum();
        writeln!(f, "refused {}, lost {}, other errors {other} {:?}", failed.refused, failed.timeouts, failed.errors)?;
        writeln!(f, "answered by an endpoint out of use: {}", self.stale.len())?;
        writeln!(f, "packets dropped for want of a backend: {}", self.dropped)?;
        writeln!(f, "answered late, after a packet was sent again: {}", self.seen.late)?;
        writeln!(f, "changes: {} {:?}, in {} parts more", self.changes.values().sum::<u64>(), self.changes, self.parts)?;
        let mut commits = self.commits.clone();
        commits.sort_unstable();
        let at = |percent: usize| commits.get(commits.len() * percent / 100).copied().unwrap_or_default();
        write!(f, "commit of a change: p50 {} us, p99 {} us", at(50), at(99))
    }
}

/// Runs it, on nftables.
///
/// # Errors
///
/// The lab or the agent fails; not that a connection does, which the report tells.
pub fn run(plan: &Plan) -> Result<Report> {
    let mut rig = Rig::new(plan)?;
    let result = rig.churn(plan);
    result.with_context(|| rig.agent.tail())?;
    rig.end()
}

struct Rig {
    lab: Lab,
    agent: Agent,
    log: Log,
    dir: TempDir,
    services: Services,
    raging: Vec<Raging>,
    /// Who must not answer where any more, since when.
    gone: BTreeMap<(SocketAddr, Ipv4Addr), u64>,
    random: u64,
    report: Report,
    started: Instant,
}

impl Rig {
    fn new(plan: &Plan) -> Result<Self> {
        let mut pods = vec![PodSpec::new("a1", 1, 2)];
        pods.extend(services::BACKENDS.map(|(name, node, host)| PodSpec::new(name, node, host)));
        let lab = Lab::new(LabOptions { pods, listen: Vec::new(), ..LabOptions::default() })?;
        for (name, ..) in services::BACKENDS {
            lab.pod(name).answer_at((Ipv4Addr::UNSPECIFIED, BACKEND_PORT).into())?;
        }
        let dir = tempfile::tempdir()?;
        let flags = ["--hostname-override=node1", "--cluster-cidr=10.1.0.0/16"].map(str::to_owned).to_vec();
        let mut agent = Agent::new(1, Mode::Nftables, Source::Manifests(dir.path().to_path_buf()))?.with_flags(flags);
        let mut services = Services::new(lab.node(1).v4());
        save(&dir.path().join(FILE), &services.manifest())?;
        agent.start_with(&lab, "debug")?;
        agent.running()?.wait_for_log(DEADLINE, "first sync")?;
        let log = Log::of(agent.running()?);
        let (report, started) = (Report::default(), Instant::now());
        let mut rig =
            Self { lab, agent, log, dir, services, raging: Vec::new(), gone: BTreeMap::new(), random: plan.seed, report, started };
        rig.lab.forget_ended_soon()?;
        let dsts: Vec<SocketAddr> = rig.services.usable().into_keys().collect();
        let targets = dsts.iter().map(|&dst| Target { dst, server: None }).collect();
        let seen = rig.lab.pod("a1").watch(Watch { targets, pause_us: 1000, limit_ms: 20_000 })?;
        ensure!(seen.iter().all(Option::is_some), "not served: {seen:?} of {dsts:?}\n{}", rig.agent.tail());
        for client in CLIENTS {
            let storm = Storm { dsts: dsts.clone(), rate: plan.rate / CLIENTS.len() as u64, threads: THREADS };
            rig.raging.push(rig.lab.find(client)?.storm(storm)?);
        }
        rig.started = Instant::now();
        Ok(rig)
    }

    fn churn(&mut self, plan: &Plan) -> Result<()> {
        for changes in 0_u64.. {
            let is_over = match plan.limit {
                Limit::Changes(limit) => changes >= limit,
                Limit::Time(limit) => self.started.elapsed() >= limit,
            };
            if is_over {
                break;
            }
            let kind = Kind::any(&mut self.random);
            *self.report.changes.entry(kind.name()).or_default() += 1;
            self.change(kind).with_context(|| format!("change {changes}: {}", kind.name()))?;
            thread::sleep(Duration::from_millis(random(&mut self.random) % PAUSE));
        }
        Ok(())
    }

    fn change(&mut self, kind: Kind) -> Result<()> {
        match kind {
            Kind::Restart | Kind::Crash => self.restart(kind == Kind::Crash),
            Kind::Ephemeral => {
                let dst = self.services.add_ephemeral();
                self.write()?;
                // As many connections as fail are an error that says how.
                self.lab.pod("a1").connect_times(&[dst], EPHEMERAL).context("to a Service that has just been added")?;
                self.services.delete_ephemeral();
                self.write()
            }
            kind => {
                let before = self.services.usable();
                self.services.change(kind, &mut self.random);
                let after = self.services.usable();
                self.back_in_use(&pairs(&after))?;
                self.write()?;
                let since = now();
                self.gone.extend(pairs(&before).difference(&pairs(&after)).map(|&pair| (pair, since)));
                Ok(())
            }
        }
    }

    /// Has what is there now programmed.
    fn write(&mut self) -> Result<()> {
        // A commit that nobody has waited for would be taken for this change's.
        self.report.parts += self.log.rest()?;
        save(&self.dir.path().join(FILE), &self.services.manifest())?;
        let micros = self.log.commit(&self.agent)?;
        self.report.commits.push(micros);
        Ok(())
    }

    fn restart(&mut self, crash: bool) -> Result<()> {
        if crash {
            self.agent.kill()?
        } else {
            self.agent.stop()?
        }
        self.agent.start_with(&self.lab, "debug")?;
        self.agent.running()?.wait_for_log(DEADLINE, "first sync")?;
        self.log = Log::of(self.agent.running()?);
        Ok(())
    }

    /// These are about to be in use again: whether they have answered since they were not.
    fn back_in_use(&mut self, used: &BTreeSet<(SocketAddr, Ipv4Addr)>) -> Result<()> {
        if self.gone.keys().any(|pair| used.contains(pair)) {
            let seen = self.seen()?;
            self.check(&seen, |pair| used.contains(pair));
        }
        Ok(())
    }

    fn check(&mut self, seen: &Stormed, wanted: impl Fn(&(SocketAddr, Ipv4Addr)) -> bool) {
        for ((dst, server), since) in self.gone.extract_if(.., |pair, _| wanted(pair)) {
            let latest = seen.latest.get(&dst).and_then(|servers| servers.get(&server)).copied().unwrap_or_default();
            if latest.at > since {
                let late = Duration::from_nanos(latest.at - since);
                let before = latest.before.map_or("none".to_owned(), |(at, server)| {
                    format!("{:?} earlier, answered by {server}", Duration::from_nanos(latest.at.saturating_sub(at)))
                });
                let port = latest.port;
                let last = format!("last from port {port}; the connection before it from there: {before}");
                self.report.stale.push(format!("{dst} answered by {server}, which was out of use for {late:?}, {last}"));
            }
        }
    }

    fn seen(&self) -> Result<Stormed> {
        let mut all = Stormed::default();
        self.raging.iter().try_for_each(|raging| raging.seen().map(|seen| all.merge(seen)))?;
        Ok(all)
    }

    /// What the rules of chains that pick a backend have dropped, of those chains that are there.
    fn dropped(&self) -> Result<u64> {
        let mut nft = Command::new("nft");
        nft.args(["-j", "list", "table", "ip", "proxy-agent"]);
        let listed: Value = serde_json::from_slice(&self.lab.output_on_node(1, nft)?.stdout).context("nft -j list table")?;
        let rules = listed["nftables"].as_array().context("no table")?.iter().filter_map(|object| object.get("rule"));
        let picking = rules.filter(|rule| rule["chain"].as_str().is_some_and(|chain| PICKING.iter().any(|start| chain.starts_with(start))));
        let exprs: Vec<&Value> = picking.filter_map(|rule| rule["expr"].as_array()).flatten().collect();
        ensure!(!exprs.is_empty(), "no chain that picks a backend: {listed}");
        Ok(exprs.iter().filter_map(|expr| expr["counter"]["packets"].as_u64()).sum())
    }

    fn end(mut self) -> Result<Report> {
        self.report.time = self.started.elapsed();
        let mut seen = Stormed::default();
        for raging in std::mem::take(&mut self.raging) {
            seen.merge(raging.stop()?);
        }
        self.check(&seen, |_| true);
        self.report.dropped = self.dropped()?;
        self.report.seen = seen;
        Ok(self.report)
    }
}

/// The file that has all Services.
const FILE: &str = "all.yaml";

fn pairs(usable: &BTreeMap<SocketAddr, BTreeSet<Ipv4Addr>>) -> BTreeSet<(SocketAddr, Ipv4Addr)> {
    usable.iter().flat_map(|(&dst, servers)| servers.iter().map(move |&server| (dst, server))).collect()
}

/// Nanoseconds since 1970, by the clock that those who connect have too.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
