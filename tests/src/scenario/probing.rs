//! Probes of expectations with real packets: connections and datagrams between the peers of a [lab](crate::lab).

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::{cell::RefCell, thread};

use anyhow::{Context, Result, anyhow};
use proxy_core::model::{Family, Protocol};

use super::run::Probe;
use super::{Host, KubeProxyMode, Observed, Outcome};
use crate::lab::{Connect, Counts, Lab, LabOptions, Peer, Proto};

/// Long for a lab on one machine; short enough to see soon that an untranslated address leads to nothing.
const TIMEOUT_MS: u64 = 500;
/// The same where kube-proxy is to answer or refuse: a SYN that comes while it replaces its rules may be lost, and is sent again after
/// a second.
const PATIENT_MS: u64 = 3_000;
/// Connections for each backend: one of two, three or four is missed once in a hundred million runs at most.
const PER_BACKEND: u64 = 16;
/// Connections for each backend where their shares matter.
const PER_BACKEND_EVENLY: u64 = 200;

/// A lab with what has been opened in it: one for many scenarios, one after the other.
pub(super) struct Probing {
    lab: Lab,
    listening: RefCell<HashSet<(&'static str, Proto, u16)>>,
}

impl Probing {
    /// A lab of two nodes.
    pub(super) fn new() -> Result<Self> {
        Ok(Self { lab: Lab::new(LabOptions::default())?, listening: RefCell::default() })
    }

    /// The lab.
    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// What becomes of new connections or datagrams, for each of `probes`: as many as it takes to tell whether its expectation holds
    /// (on kube-proxy, where the proxy under test is that). All at once: what is expected to be untouched waits for its timeout.
    pub(super) fn observe(&self, probes: &[Probe], kube_proxy: Option<KubeProxyMode>) -> Result<Vec<Observed>> {
        for (_, expectation) in probes {
            let outcomes = [&expectation.outcome, expectation.wanted(kube_proxy)];
            let backends = outcomes.into_iter().flat_map(Outcome::backends);
            backends.into_iter().try_for_each(|backend| self.listen(proto(expectation.protocol), *backend))?;
        }
        let lab = &self.lab;
        thread::scope(|scope| {
            let threads: Vec<_> = probes.iter().map(|probe| scope.spawn(move || observe(lab, *probe, kube_proxy))).collect();
            let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a probe panicked"))?);
            joined.collect()
        })
    }

    /// Echoes at a backend, as a pod would.
    fn listen(&self, proto: Proto, backend: SocketAddr) -> Result<()> {
        let host = Host::ALL.into_iter().find(|host| Family::ALL.iter().any(|family| host.address(*family) == backend.ip()));
        let host = host.with_context(|| format!("no host has {backend}"))?;
        let opened = LabOptions::default().listen.contains(&(proto, backend.port()));
        if !opened && self.listening.borrow_mut().insert((host.name, proto, backend.port())) {
            self.lab.find(host.name)?.listen(proto, backend.port())?;
        }
        Ok(())
    }
}

/// Carries out one probe.
fn observe(lab: &Lab, (source, expectation): Probe, kube_proxy: Option<KubeProxyMode>) -> Result<Observed> {
    let (peer, proto) = (lab.find(source.name)?, proto(expectation.protocol));
    let wanted = expectation.wanted(kube_proxy);
    let patient = kube_proxy.is_some() && *wanted != Outcome::Untouched;
    let probe = Connect::new(expectation.destination, proto).timeout_ms(if patient { PATIENT_MS } else { TIMEOUT_MS });
    let count = match wanted {
        Outcome::Untouched => 1,
        Outcome::Refused => 3,
        Outcome::Backends { backends, evenly, .. } => backends.len() as u64 * if *evenly { PER_BACKEND_EVENLY } else { PER_BACKEND },
    };
    // A difference may be just that.
    let asked = [wanted, &expectation.outcome].into_iter().any(|outcome| matches!(outcome, Outcome::Backends { source_kept: true, .. }));
    let counts = if proto == Proto::Udp || *wanted == Outcome::Untouched {
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
