//! The long run: the agent beside a real API server whose objects change all the time, among faults. It must not grow, must not miss a
//! change, and must not lose a connection. `cargo xtask endure` runs it for an hour, a test for some changes.

mod objects;
mod samples;

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::agent::{Agent, DEADLINE, Mode, Source};
use crate::controlplane::{Api, ControlPlane, Options, User};
use crate::lab::{Connect, Lab, LabOptions, Proto, Report as Connections, Seen};
use crate::manifest::{service, slice};
use crate::random::random;
use objects::Objects;
use samples::{Samples, Window};

/// How long a control plane may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);
/// How long the agent may take to catch up at the end.
const CATCH_UP: Duration = Duration::from_secs(120);
/// A Service that stays as it is, whose connections are counted.
const STEADY: &str = "10.96.0.10:80";
/// For how long the agent is held still, as by a machine that sleeps.
const STILL: Duration = Duration::from_secs(3);
/// So often the agent is looked at.
const LOOKS: u32 = 120;

/// What to do.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The dataplane.
    pub mode: Mode,
    /// How many Services there are.
    pub services: usize,
    /// Changes a second.
    pub rate: u64,
    /// How long.
    pub time: Duration,
    /// From one fault to the next.
    pub faults: Duration,
    /// What the random choices are made from.
    pub seed: u64,
}

/// What became of it.
#[derive(Debug)]
pub struct Report {
    /// Changes that the API server took, and that it did not, while it was away.
    pub changes: [u64; 2],
    /// Faults by kind.
    pub faults: [u64; FAULTS.len()],
    /// The agent in the first and in the last sixth of the time.
    pub windows: [Window; 2],
    /// Connections to a Service that stayed as it was.
    pub connections: Connections,
    /// How long the agent took to catch up at the end.
    pub caught_up: Duration,
}

impl Report {
    /// An error that tells all if the agent has grown, or a connection failed. (A missed change is an error of [`run`].)
    ///
    /// # Errors
    ///
    /// As said.
    pub fn verdict(&self) -> Result<()> {
        let [first, last] = self.windows;
        ensure!(last.memory <= first.memory * 1.05, "the agent's memory grows\n{self}");
        ensure!(last.files <= first.files + 2.0, "the agent's open files grow\n{self}");
        ensure!(self.connections.counts.failed() == 0, "connections failed: {:?}\n{self}", self.connections);
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, last] = self.windows;
        writeln!(f, "{} changes, {} more not taken by an API server that was away", self.changes[0], self.changes[1])?;
        let faults = FAULTS.iter().zip(self.faults).map(|((name, _), count)| format!("{name} {count}"));
        writeln!(f, "faults: {}", faults.collect::<Vec<_>>().join(", "))?;
        let growth = (last.memory / first.memory - 1.0) * 100.0;
        writeln!(f, "memory: first {:.2} MB, last {:.2} MB: {growth:+.1} %", first.memory / 1e6, last.memory / 1e6)?;
        writeln!(f, "open files: first {:.1}, last {:.1}", first.files, last.files)?;
        let counts = &self.connections.counts;
        writeln!(f, "connections: {} answered, {} failed", counts.answered(), counts.failed())?;
        write!(f, "the kernel held what the API server had {:.1} s after the last change; none missed", self.caught_up.as_secs_f64())
    }
}

/// Something that goes wrong.
type Fault = fn(&mut Rig) -> Result<()>;

/// What goes wrong, in turn.
const FAULTS: [(&str, Fault); 5] = [
    ("API server killed", Rig::kill_api_server),
    ("history compacted", Rig::compact),
    ("agent held still", Rig::hold_still),
    ("element deleted by another", Rig::delete_element),
    ("table flushed by another", Rig::flush_table),
];

/// Runs it.
///
/// # Errors
///
/// The lab or the agent fails, or at the end the kernel does not come to hold what the API server has.
pub fn run(plan: &Plan) -> Result<Report> {
    let mut rig = Rig::new(plan)?;
    let result = rig.endure(plan);
    result.with_context(|| format!("seed {}\n{}", plan.seed, rig.agent.tail()))
}

struct Rig {
    // Before the control plane that it leads to.
    api: Api,
    plane: ControlPlane,
    agent: Agent,
    lab: Lab,
    objects: Objects,
    mode: Mode,
}

impl Rig {
    fn new(plan: &Plan) -> Result<Self> {
        let lab = Lab::new(LabOptions::default())?;
        let (netns, addresses) = (Some(lab.node(1).netns().to_owned()), lab.node(1).addresses().to_vec());
        let mut plane = ControlPlane::start(Options { netns, addresses, ..Options::default() })?;
        plane.wait_ready(START)?;
        plane.add_node("node1", &lab.node(1).addresses())?;
        for manifest in [service("steady", "10.96.0.10", 80, "TCP"), slice("steady", "TCP", &[("10.1.1.3", true), ("10.1.2.2", true)])] {
            plane.kubectl(&["apply", "-f", "-"], Some(&manifest))?;
        }
        let api = plane.api()?;
        let mut objects = Objects::new(plan.seed);
        for index in 0..plan.services {
            objects.create(&api, index)?;
        }
        let agent = Agent::new(1, plan.mode, Source::Kubeconfig(plane.kubeconfig(User::KubeProxy)))?;
        let mut agent = agent.with_flags(vec!["--hostname-override=node1".to_owned()]);
        agent.start(&lab)?;
        agent.running()?.wait_for_log(DEADLINE, "first sync")?;
        Ok(Self { api, plane, agent, lab, objects, mode: plan.mode })
    }

    fn endure(&mut self, plan: &Plan) -> Result<Report> {
        let steady = Connect::new(STEADY.parse()?, Proto::Tcp);
        let flowing = self.lab.pod("a1").traffic(steady, Duration::from_millis(10))?;
        let (start, mut samples) = (Instant::now(), Samples::of(self.agent.running()?.pid(), plan.time));
        let (mut changes, mut faults) = ([0, 0], [0; FAULTS.len()]);
        let (mut next_fault, mut next_look) = (plan.faults, Duration::ZERO);
        let pause = Duration::from_micros(1_000_000 / plan.rate.max(1));
        for tick in 1_u32.. {
            let now = start.elapsed();
            if now >= plan.time {
                break;
            }
            if now >= next_look {
                samples.look(now)?;
                next_look = now + plan.time / LOOKS;
            }
            if now >= next_fault {
                let which = (random(self.objects.seed()) % FAULTS.len() as u64) as usize;
                FAULTS[which].1(self).context(FAULTS[which].0)?;
                faults[which] += 1;
                next_fault = start.elapsed() + plan.faults;
            }
            let taken = self.objects.change(&self.api, plan.services);
            changes[usize::from(taken.is_err())] += 1;
            // As many as there should have been by now.
            thread::sleep((pause * tick).saturating_sub(start.elapsed()));
        }
        let caught_up = self.catch_up()?;
        Ok(Report { changes, faults, windows: samples.windows()?, connections: flowing.stop()?, caught_up })
    }

    /// Waits until what is programmed is what the API server has, and returns how long that took.
    fn catch_up(&mut self) -> Result<Duration> {
        self.plane.wait_ready(START)?;
        let start = Instant::now();
        let wanted = objects::wanted(&self.api)?;
        let equal = || {
            let dataplanes = self.agent.dataplanes(&self.lab)?;
            for dataplane in dataplanes.as_array().context("no dataplanes")? {
                let found = objects::programmed(&dataplane["services"])?;
                // The tables have all of them, and eBPF those that its sockets serve.
                let all = if dataplane["mode"] == "nftables" { wanted.keys() } else { found.keys() };
                if let Some(name) = all.chain(found.keys()).find(|name| wanted.get(*name) != found.get(*name)) {
                    let (wanted, found) = (wanted.get(name), found.get(name));
                    return Ok(Seen::not_yet(format!("{name}: the API server has {wanted:?}, {} {found:?}", dataplane["mode"])));
                }
            }
            Ok(Seen::Done(()))
        };
        self.lab.wait(CATCH_UP, "the kernel to hold what the API server has", equal)?;
        Ok(start.elapsed())
    }

    fn kill_api_server(&mut self) -> Result<()> {
        self.plane.kill_apiserver();
        self.plane.start_apiserver()
    }

    /// What a watch has not seen yet may be gone: it has to list anew.
    fn compact(&mut self) -> Result<()> {
        self.api.compact()
    }

    fn hold_still(&mut self) -> Result<()> {
        let program = self.agent.running()?;
        program.signal(Signal::SIGSTOP)?;
        thread::sleep(STILL);
        program.signal(Signal::SIGCONT)
    }

    fn delete_element(&mut self) -> Result<()> {
        let Some(address) = self.objects.any_address() else { return Ok(()) };
        // It may just have been deleted by who may.
        let _ = self.lab.nft("node1", &format!("delete element ip proxy-agent cluster-ips {{ {address} }}"));
        Ok(())
    }

    /// In eBPF mode too: the tables are part of it. New connections from the pod do not need them there, so none may fail.
    fn flush_table(&mut self) -> Result<()> {
        match self.mode {
            Mode::Ebpf => self.lab.nft("node1", "flush map ip proxy-agent services"),
            // New connections would fail until it is repaired, and they are counted here.
            Mode::Nftables => self.lab.nft("node1", "flush set ip proxy-agent endpoints"),
        }
    }
}
