//! The executor with real packets: the real agent on node1 of a [lab](crate::lab), manifests in a folder, real connections.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use proxy_core::model::{Family, ObjectName};
use tempfile::TempDir;

use super::object::NODE;
use super::probing::Probing;
use super::run::Probe;
use super::simulated::Model;
use super::{AddressChange, Config, Executor, Manifest, ObjectKind, Observed, Scenario, Seen, Tested, object};
use crate::agent::{Agent, DEADLINE, Mode, Source};
use crate::manifest::save;

/// A lab and the dataplane to try in it: one for many scenarios, one after the other.
pub struct Bench {
    probing: Probing,
    mode: Mode,
}

impl Bench {
    /// A lab of two nodes.
    pub fn new(mode: Mode) -> Result<Self> {
        Ok(Self { probing: Probing::new()?, mode })
    }
}

/// Carries out the scenarios of one family, one after the other in one lab; those that are dual-stack themselves go with IPv4.
/// How many there were, and what failed.
pub fn carry_out(mode: Mode, family: Family, scenarios: &[Scenario]) -> Result<(usize, Vec<String>)> {
    let bench = Bench::new(mode)?;
    let (mut count, mut failures) = (0, Vec::new());
    for scenario in scenarios.iter().filter(|scenario| scenario.family.unwrap_or(Family::V4) == family) {
        let start = Instant::now();
        let result = Packets::new(&bench, &scenario.config).and_then(|mut packets| super::run(scenario, &mut packets));
        println!("{scenario}: {:?}{}", start.elapsed(), if result.is_err() { " FAILED" } else { "" });
        failures.extend(result.err().map(|error| format!("{scenario}: {error:?}")));
        count += 1;
    }
    Ok((count, failures))
}

/// An agent with a folder of manifests of its own. When dropped, nothing of it is left in the lab.
pub struct Packets<'a> {
    bench: &'a Bench,
    dir: TempDir,
    agent: Agent,
    /// What should be programmed.
    model: Model,
    running: bool,
    /// Objects without a name, which have a file all the same.
    nameless: u32,
}

impl<'a> Packets<'a> {
    /// Starts the agent, with this configuration, on a folder that has what is always there.
    pub fn new(bench: &'a Bench, config: &Config) -> Result<Self> {
        let dir = tempfile::tempdir().context("a folder for manifests")?;
        let agent = Agent::new(1, bench.mode, Source::Manifests(dir.path().to_path_buf()))?;
        let flags = [vec![format!("--hostname-override={NODE}")], config.flags()].concat();
        let mut packets = Self { bench, dir, agent: agent.with_flags(flags), model: Model::new(config)?, running: false, nameless: 0 };
        let defaults = object::defaults();
        defaults.iter().try_for_each(|manifest| packets.write(manifest))?;
        packets.run()?;
        Ok(packets)
    }

    fn run(&mut self) -> Result<()> {
        self.agent.start(self.bench.probing.lab())?;
        self.running = true;
        // What is programmed may be right before the agent has done anything.
        self.agent.running()?.wait_for_log(DEADLINE, "first sync")?;
        self.settle()
    }

    /// Waits until what is programmed is what the model wants.
    fn settle(&self) -> Result<()> {
        if self.running {
            self.agent.wait_for(self.bench.probing.lab(), &self.model.dataplanes(self.bench.mode)?)?;
        }
        Ok(())
    }

    fn path(&self, kind: ObjectKind, name: &ObjectName) -> PathBuf {
        // Names may be wrong on purpose.
        let name: String = name.to_string().chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        self.dir.path().join(format!("{kind}-{name}.yaml"))
    }

    fn write(&mut self, manifest: &Manifest) -> Result<()> {
        let path = manifest.object.name().map(|name| self.path(manifest.object.kind(), &name));
        let path = path.unwrap_or_else(|| {
            self.nameless += 1;
            self.dir.path().join(format!("nameless-{}.yaml", self.nameless))
        });
        save(&path, &manifest.text)
    }
}

impl Executor for Packets<'_> {
    fn apply(&mut self, manifests: &[Manifest]) -> Result<()> {
        for manifest in manifests {
            self.write(manifest)?;
        }
        self.model.apply(manifests)?;
        self.settle()
    }

    fn delete(&mut self, objects: &[(ObjectKind, ObjectName)]) -> Result<()> {
        for (kind, name) in objects {
            let path = self.path(*kind, name);
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
        self.model.delete(objects)?;
        self.settle()
    }

    fn address(&mut self, changes: &[AddressChange]) -> Result<()> {
        self.bench.probing.address(changes)?;
        self.model.address(changes)?;
        self.settle()
    }

    fn wait(&mut self, duration: Duration) -> Result<()> {
        thread::sleep(duration);
        self.model.wait(duration)
    }

    fn stop(&mut self, killed: bool) -> Result<()> {
        self.model.stop(killed)?;
        self.running = false;
        if killed { self.agent.kill() } else { self.agent.stop() }
    }

    fn start(&mut self) -> Result<()> {
        self.model.start()?;
        self.run()
    }

    fn observe(&mut self, probes: &[Probe]) -> Result<Vec<Observed>> {
        let mut observed = self.bench.probing.observe(probes, self.tested())?;
        if self.bench.mode == Mode::Ebpf {
            // Who is translated at the socket keeps the address that it has towards the backend: docs/datapath.md.
            let by_socket = |probe: &Probe| self.model.is_by_socket(probe);
            for (_, observed) in probes.iter().zip(&mut observed).filter(|(probe, _)| by_socket(probe)) {
                if let Observed::Backends { seen, .. } | Observed::One { seen, .. } = observed {
                    *seen = Seen::OwnNode;
                }
            }
        }
        Ok(observed)
    }

    fn tested(&self) -> Option<Tested> {
        (self.bench.mode == Mode::Nftables).then_some(Tested::Nftables)
    }

    fn state(&mut self) -> String {
        let lab = self.bench.probing.lab();
        let dump = self.agent.dump_as(lab, &[]).unwrap_or_else(|error| format!("{error:#}"));
        let mut nft = Command::new("nft");
        nft.args(["list", "ruleset"]);
        let rules =
            lab.output_on_node(1, nft).map_or_else(|error| format!("{error:#}"), |out| String::from_utf8_lossy(&out.stdout).into_owned());
        format!("{}programmed:\n{dump}\n{rules}\n{}", self.model.state(), self.agent.tail())
    }
}

impl Drop for Packets<'_> {
    fn drop(&mut self) {
        let stopped = if self.running { self.agent.stop() } else { Ok(()) };
        let cleaned = stopped.and_then(|()| self.agent.cleanup(self.bench.probing.lab()));
        if let Err(error) = cleaned.and_then(|()| self.bench.probing.reset()) {
            eprintln!("the next scenario may find something left of this one: {error:#}");
        }
    }
}
