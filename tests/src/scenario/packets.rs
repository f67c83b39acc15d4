//! The executor with real packets: the real agent on node1 of a [lab](crate::lab), manifests in a folder, real connections.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU16, Ordering};
use std::{cell::RefCell, fs, thread};

use anyhow::{Context, Result, anyhow};
use proxy_core::cluster::Kind;
use proxy_core::model::{ObjectName, Protocol};
use tempfile::TempDir;

use super::run::Probe;
use super::simulated::Model;
use super::{Executor, Host, Manifest, Observed, Outcome};
use crate::agent::{Agent, DEADLINE, Mode, Source};
use crate::lab::{Connect, Counts, Lab, LabOptions, Peer, Proto};
use crate::manifest::save;

/// Long for a lab on one machine; short enough to see soon that an untranslated address leads to nothing.
const TIMEOUT_MS: u64 = 500;
/// Connections for each backend: one of two, three or four is missed once in a hundred million runs at most.
const PER_BACKEND: u64 = 16;
/// Connections for each backend where their shares matter.
const PER_BACKEND_EVENLY: u64 = 200;

/// A lab with what has been opened in it: one for many scenarios, one after the other.
pub struct Bench {
    lab: Lab,
    mode: Mode,
    listening: RefCell<HashSet<(&'static str, Proto, u16)>>,
}

impl Bench {
    /// A lab of two nodes.
    pub fn new(mode: Mode) -> Result<Self> {
        Ok(Self { lab: Lab::new(LabOptions::default())?, mode, listening: RefCell::default() })
    }

    /// Echoes at a backend, as a pod would.
    fn listen(&self, proto: Proto, backend: SocketAddr) -> Result<()> {
        let families = proxy_core::model::Family::ALL;
        let host = Host::ALL.into_iter().find(|host| families.iter().any(|family| host.address(*family) == backend.ip()));
        let host = host.with_context(|| format!("no host has {backend}"))?;
        let opened = LabOptions::default().listen.contains(&(proto, backend.port()));
        if !opened && self.listening.borrow_mut().insert((host.name, proto, backend.port())) {
            self.lab.find(host.name)?.listen(proto, backend.port())?;
        }
        Ok(())
    }
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
    /// Starts the agent on an empty folder.
    pub fn new(bench: &'a Bench) -> Result<Self> {
        let dir = tempfile::tempdir().context("a folder for manifests")?;
        let agent = Agent::new(1, bench.mode, Source::Manifests(dir.path().to_path_buf()))?;
        let mut packets = Self { bench, dir, agent, model: Model::default(), running: false, nameless: 0 };
        packets.run()?;
        Ok(packets)
    }

    fn run(&mut self) -> Result<()> {
        self.agent.start(&self.bench.lab)?;
        self.running = true;
        // What is programmed may be right before the agent has done anything.
        self.agent.running()?.wait_for_log(DEADLINE, "first sync")?;
        self.settle()
    }

    /// Waits until what is programmed is what the model wants.
    fn settle(&self) -> Result<()> {
        if self.running {
            let wanted = serde_json::to_value(self.model.forwarding().view())?;
            self.agent.wait_for(&self.bench.lab, &wanted)?;
        }
        Ok(())
    }

    fn path(&self, kind: Kind, name: &ObjectName) -> PathBuf {
        // Names may be wrong on purpose.
        let name: String = name.to_string().chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        self.dir.path().join(format!("{kind:?}-{name}.yaml"))
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

/// Carries out one probe.
fn observe(lab: &Lab, (source, expectation): Probe) -> Result<Observed> {
    let (peer, proto) = (lab.find(source.name)?, proto(expectation.protocol));
    let probe = Connect::new(expectation.destination, proto).timeout_ms(TIMEOUT_MS);
    let (count, asked) = match &expectation.outcome {
        Outcome::Untouched => (1, false),
        Outcome::Refused => (3, false),
        Outcome::Backends { backends, source_kept, evenly } => {
            (backends.len() as u64 * if *evenly { PER_BACKEND_EVENLY } else { PER_BACKEND }, *source_kept)
        }
    };
    let counts = if proto == Proto::Udp || expectation.outcome == Outcome::Untouched {
        from_own_ports(peer, &probe, count, expectation.flow(source).source)
    } else {
        peer.spray(probe.clone(), count)
    };
    let counts = counts.with_context(|| format!("{} of {lab}", source.name))?;
    match observed(&counts, expectation.destination, is_node(source) && proto == Proto::Udp) {
        Observed::Backends { backends, evenly, .. } if asked => {
            Ok(Observed::Backends { backends, evenly, source_kept: source_kept(peer, &probe)? })
        }
        other => Ok(other),
    }
}

/// Probes from ports that nothing else uses, below those that the kernel chooses. Connection tracking remembers what became of a
/// datagram, and of a connection that nobody answered, for whatever comes from that port later: an expectation is about new flows.
fn from_own_ports(peer: &Peer, probe: &Connect, count: u64, source: IpAddr) -> Result<Counts> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let mut counts = Counts::default();
    for _ in 0..count {
        let port = 12_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 20_000;
        counts.add(&peer.probe(probe.clone().from(SocketAddr::new(source, port)))?);
    }
    Ok(counts)
}

/// Whether the backends see the sender's own address.
fn source_kept(peer: &Peer, probe: &Connect) -> Result<bool> {
    for _ in 0..8 {
        let answer = peer.probe(probe.clone())?.into_answer()?;
        if !peer.addresses().contains(&answer.seen_source.ip().to_canonical()) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn proto(protocol: Protocol) -> Proto {
    match protocol {
        Protocol::Tcp => Proto::Tcp,
        Protocol::Udp => Proto::Udp,
        Protocol::Sctp => Proto::Sctp,
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

    fn delete(&mut self, objects: &[(Kind, ObjectName)]) -> Result<()> {
        for (kind, name) in objects {
            let path = self.path(*kind, name);
            fs::remove_file(&path).with_context(|| path.display().to_string())?;
        }
        self.model.delete(objects)?;
        self.settle()
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

    /// All at once: what is expected to be untouched waits for its timeout.
    fn observe(&mut self, probes: &[Probe]) -> Result<Vec<Observed>> {
        for (_, expectation) in probes {
            if let Outcome::Backends { backends, .. } = &expectation.outcome {
                backends.iter().try_for_each(|backend| self.bench.listen(proto(expectation.protocol), *backend))?;
            }
        }
        let lab = &self.bench.lab;
        thread::scope(|scope| {
            let threads: Vec<_> = probes.iter().map(|probe| scope.spawn(move || observe(lab, *probe))).collect();
            let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a probe panicked"))?);
            joined.collect()
        })
    }

    fn state(&mut self) -> String {
        let lab = &self.bench.lab;
        let dump = self.agent.dump_as(lab, &[]).unwrap_or_else(|error| format!("{error:#}"));
        format!("{}programmed:\n{dump}\n{}", self.model.state(), self.agent.tail())
    }
}

impl Drop for Packets<'_> {
    fn drop(&mut self) {
        let stopped = if self.running { self.agent.stop() } else { Ok(()) };
        if let Err(error) = stopped.and_then(|()| self.agent.cleanup(&self.bench.lab)) {
            eprintln!("the next scenario may find something left of this one: {error:#}");
        }
    }
}

fn is_node(host: Host) -> bool {
    host.name.starts_with("node")
}

/// What the counts of one destination's probes say.
fn observed(counts: &Counts, destination: SocketAddr, host_udp: bool) -> Observed {
    let all = counts.answered() + counts.failed();
    // ERR-01: what a host's own datagrams meet when netfilter refuses them.
    let not_permitted = if host_udp { counts.errors.get("EPERM").copied().unwrap_or(0) } else { 0 };
    let servers = counts.servers.iter().map(|(server, count)| (canonical(*server), *count));
    if counts.timeouts == all || (counts.answered() == all && counts.servers.keys().all(|server| canonical(*server) == destination)) {
        Observed::Untouched
    } else if counts.refused + not_permitted == all {
        Observed::Refused
    } else if counts.answered() == all {
        let evenly = is_even(&counts.servers.values().copied().collect::<Vec<_>>(), all);
        Observed::Backends { backends: servers.map(|(server, _)| server).collect(), source_kept: true, evenly }
    } else {
        Observed::Other(format!("{counts:?}"))
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

/// Whether no share is more than five standard deviations from what it should be: by chance once in a million.
fn is_even(shares: &[u64], all: u64) -> bool {
    let (all, count) = (all as f64, shares.len() as f64);
    let (mean, deviation) = (all / count, (all / count * (1.0 - 1.0 / count)).sqrt());
    shares.iter().all(|share| (*share as f64 - mean).abs() <= 5.0 * deviation)
}
