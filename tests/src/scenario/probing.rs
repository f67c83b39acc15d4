//! Probes of expectations with real packets: connections and datagrams between the peers of a [lab](crate::lab).

use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use proxy_core::model::{Family, Protocol};

use super::object::NODE;
use super::run::Probe;
use super::{AddressChange, Choice, Host, Observed, Outcome, Pins, Seen, Tested};
use crate::lab::{self, Connect, Counts, Lab, LabOptions, Peer, Proto, to_v4};

/// Long for a lab on one machine; short enough to see soon that an untranslated address leads to nothing.
const TIMEOUT_MS: u64 = 500;
/// The same where an answer is expected: below the second after which a lost SYN is sent again, so that none goes unseen.
const ANSWER_MS: u64 = 950;
/// The same where kube-proxy is to answer or refuse: a SYN that comes while it replaces its rules may be lost, and is sent again after
/// a second.
const PATIENT_MS: u64 = 3_000;
/// How long it may take until a flow is ended.
const FLOW: Duration = Duration::from_secs(10);
/// Connections for each backend: one of two, three or four is missed once in a hundred million runs at most.
const PER_BACKEND: u64 = 16;
/// Connections for each backend where their shares matter.
const PER_BACKEND_EVENLY: u64 = 200;

/// A lab with what has been opened in it: one for many scenarios, one after the other.
pub(super) struct Probing {
    lab: Lab,
    listening: RefCell<HashSet<(&'static str, Proto, SocketAddr)>>,
    /// Addresses that node1 has been given.
    added: RefCell<BTreeSet<IpAddr>>,
    /// Whether the kernel has such sockets.
    sctp: bool,
}

impl Probing {
    /// A lab of two nodes.
    pub(super) fn new() -> Result<Self> {
        let sctp = lab::has_sockets(Proto::Sctp);
        let lab = Lab::new(LabOptions::default())?;
        // What is expected of new connections must not meet what has become of those before.
        lab.forget_ended_soon()?;
        Ok(Self { lab, listening: RefCell::default(), added: RefCell::default(), sctp })
    }

    /// The lab.
    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Gives node1 addresses, or takes them away.
    pub(super) fn address(&self, changes: &[AddressChange]) -> Result<()> {
        for AddressChange { ip, added } in changes {
            let (word, length, flags) = match (added, ip.is_ipv4()) {
                (true, true) => ("add", 32, ""),
                (true, false) => ("add", 128, "nodad"),
                (false, v4) => ("delete", if v4 { 32 } else { 128 }, ""),
            };
            self.lab.ip(NODE, &format!("address {word} {ip}/{length} dev lo {flags}\n"))?;
            if *added {
                self.added.borrow_mut().insert(*ip)
            } else {
                self.added.borrow_mut().remove(ip)
            };
        }
        Ok(())
    }

    /// Takes away what a scenario has left.
    pub(super) fn reset(&self) -> Result<()> {
        let left: Vec<AddressChange> = self.added.borrow().iter().map(|ip| AddressChange { ip: *ip, added: false }).collect();
        self.address(&left)
    }

    /// What becomes of new connections or datagrams, for each of `probes`: as many as it takes to tell whether its expectation holds
    /// (on kube-proxy, where the proxy under test is that).
    pub(super) fn observe(&self, probes: &[Probe], tested: Option<Tested>) -> Result<Vec<Observed>> {
        for (source, expectation) in probes.iter().filter(|(_, expectation)| self.can_send(expectation.protocol)) {
            let outcomes = [&expectation.outcome, expectation.wanted(tested)];
            let proto = proto(expectation.protocol);
            outcomes.into_iter().flat_map(Outcome::backends).try_for_each(|backend| self.listen(proto, *backend, *source))?;
            // A node that nobody translates for answers by itself: so a refusal there is the proxy's.
            self.listen(proto, expectation.destination, *source)?;
        }
        let mut observed = vec![Observed::NotTried; probes.len()];
        for phase in Phase::ALL {
            let of_phase = |probe: &Probe| self.can_send(probe.1.protocol) && Phase::of(probe.1.wanted(tested)) == phase;
            let (places, probes): (Vec<usize>, Vec<Probe>) =
                probes.iter().copied().enumerate().filter(|(_, probe)| of_phase(probe)).unzip();
            let seen = match phase {
                Phase::Untouched | Phase::Dropped => self.silent(&probes, tested)?,
                Phase::Answered | Phase::Pinned => self.at_once(&probes, tested)?,
            };
            places.into_iter().zip(seen).for_each(|(place, seen)| observed[place] = seen);
        }
        for (source, expectation) in probes.iter().filter(|(_, expectation)| !self.can_send(expectation.protocol)) {
            println!("{} -> {}: not tried: this kernel has no sockets for it", source.name, expectation.target());
        }
        Ok(observed)
    }

    fn can_send(&self, protocol: Option<Protocol>) -> bool {
        protocol != Some(Protocol::Sctp) || self.sctp
    }

    /// Carries out probes all at once.
    fn at_once(&self, probes: &[Probe], tested: Option<Tested>) -> Result<Vec<Observed>> {
        let (lab, added) = (&self.lab, &*self.added.borrow());
        thread::scope(|scope| {
            let threads: Vec<_> = probes.iter().map(|probe| scope.spawn(move || observe(lab, added, *probe, tested))).collect();
            let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a probe panicked"))?);
            joined.collect()
        })
    }

    /// Carries out probes that nobody is to answer: all of them untouched, or all of them dropped. What is untouched is lost, and
    /// counted, where the lab ends; what is dropped is not.
    fn silent(&self, probes: &[Probe], tested: Option<Tested>) -> Result<Vec<Observed>> {
        let before = self.lab.lost()?;
        let mut observed = self.at_once(probes, tested)?;
        let lost: u64 = self.lab.lost()?.iter().sum::<u64>() - before.iter().sum::<u64>();
        let silent = [Observed::Untouched, Observed::Dropped];
        let leaves = |ip: IpAddr| leaves_lab(ip) && !self.added.borrow().contains(&ip);
        let leaving = |(probe, observed): &(&Probe, &Observed)| silent.contains(observed) && leaves(probe.1.destination.ip());
        let places: Vec<usize> = probes.iter().zip(&observed).enumerate().filter(|(_, one)| leaving(one)).map(|(place, _)| place).collect();
        let all = |wanted: &Outcome| places.iter().all(|&place| probes[place].1.wanted(tested) == wanted);
        let as_wanted = (all(&Outcome::Dropped) && lost == 0) || (all(&Outcome::Untouched) && lost >= places.len() as u64);
        if !as_wanted && probes.len() > 1 {
            // Which?
            return probes.iter().map(|probe| self.silent(&[*probe], tested).map(|mut one| one.remove(0))).collect();
        }
        if !as_wanted {
            places.iter().for_each(|&place| observed[place] = if lost > 0 { Observed::Untouched } else { Observed::Dropped });
        }
        Ok(observed)
    }

    /// Echoes at a backend, as a pod would, or at any other address of the lab.
    fn listen(&self, proto: Proto, address: SocketAddr, source: Host) -> Result<()> {
        let name = if address.ip().is_loopback() {
            Some(source.name)
        } else if self.added.borrow().contains(&address.ip()) {
            Some(NODE)
        } else {
            let mut hosts = Host::ALL.into_iter();
            hosts.find(|host| Family::ALL.iter().any(|family| host.address(*family) == address.ip())).map(|host| host.name)
        };
        let Some(name) = name.filter(|_| proto != Proto::Icmp) else { return Ok(()) };
        let pod = LabOptions::default().pods.iter().any(|pod| pod.name == name);
        let opened = pod && LabOptions::default().listen.contains(&(proto, address.port()));
        if !opened && self.listening.borrow_mut().insert((name, proto, address)) {
            self.lab.find(name)?.listen_at(proto, address)?;
        }
        Ok(())
    }
}

/// Probes that may be carried out at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Those that somebody answers or refuses.
    Answered,
    /// Those that nobody does: they wait for their timeout.
    Untouched,
    /// Those that go nowhere, while there are no others that do.
    Dropped,
    /// Those that must go where one of the others has gone.
    Pinned,
}

impl Phase {
    const ALL: [Phase; 4] = [Phase::Answered, Phase::Untouched, Phase::Dropped, Phase::Pinned];

    fn of(wanted: &Outcome) -> Self {
        match wanted {
            Outcome::Untouched => Phase::Untouched,
            Outcome::Dropped => Phase::Dropped,
            Outcome::Refused | Outcome::Backends { .. } => Phase::Answered,
            Outcome::Pinned { .. } => Phase::Pinned,
        }
    }
}

/// Whether packets to an address that nobody translates leave the lab: all do but those to its nodes and pods.
fn leaves_lab(ip: IpAddr) -> bool {
    let v4 = match ip {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(ip) => to_v4(ip),
    };
    let within = v4.map_or(ip.is_loopback(), |ip| ip.is_loopback() || matches!(ip.octets(), [10, 0 | 1, ..]));
    !within
}

/// Carries out one probe. Where nobody answers it counts as what it was to be: untouched or dropped.
fn observe(lab: &Lab, added: &BTreeSet<IpAddr>, (source, expectation): Probe, tested: Option<Tested>) -> Result<Observed> {
    let (peer, proto) = (lab.find(source.name)?, proto(expectation.protocol));
    let wanted = expectation.wanted(tested);
    let silent = matches!(wanted, Outcome::Untouched | Outcome::Dropped);
    let timeout = match (silent, tested) {
        (true, _) => TIMEOUT_MS,
        (false, Some(Tested::KubeProxy(_))) => PATIENT_MS,
        (false, _) => ANSWER_MS * u64::from(lab::patience()?),
    };
    let probe = Connect::new(expectation.destination, proto).timeout_ms(timeout);
    if let Some(port) = expectation.source_port {
        let from = probe.from(SocketAddr::new(expectation.source_address(source), port));
        return one_flow(lab, added, (source, expectation), from, tested).with_context(|| format!("{} of {lab}", source.name));
    }
    let count = match wanted {
        Outcome::Untouched | Outcome::Dropped => 1,
        Outcome::Refused => 3,
        Outcome::Backends { backends, choice: Choice::Evenly, .. } => backends.len() as u64 * PER_BACKEND_EVENLY,
        Outcome::Backends { backends, .. } => backends.len() as u64 * PER_BACKEND,
        Outcome::Pinned { .. } => PER_BACKEND,
    };
    let counts = if matches!(proto, Proto::Udp | Proto::Icmp) || silent {
        // A socket that is bound to a loopback address cannot send anywhere else in IPv6 (docs/datapath.md).
        let own = Some(expectation.source_address(source)).filter(|ip| *ip != Family::V6.loopback());
        from_own_ports(peer, &probe, count, own.unwrap_or(Family::V6.unspecified()))
    } else {
        peer.spray(probe, count)
    };
    let counts = counts.with_context(|| format!("{} of {lab}", source.name))?;
    // ERR-01: what a host's own datagrams meet when netfilter refuses or drops them.
    let not_permitted = if source.is_node() && proto != Proto::Tcp { counts.errors.get("EPERM").copied().unwrap_or(0) } else { 0 };
    Ok(observed(&counts, expectation.destination, not_permitted, wanted, seen(lab, added, source, &counts)?))
}

/// What becomes of the next packet of a flow, once that is what is expected, or when the time for that is over: who ends flows does so
/// after everything else.
fn one_flow(lab: &Lab, added: &BTreeSet<IpAddr>, (source, expectation): Probe, probe: Connect, tested: Option<Tested>) -> Result<Observed> {
    let (peer, wanted) = (lab.find(source.name)?, expectation.wanted(tested));
    let deadline = Instant::now() + FLOW * lab::patience()?;
    loop {
        let mut counts = Counts::default();
        counts.add(&peer.probe(probe.clone())?);
        let not_permitted = if source.is_node() { counts.errors.get("EPERM").copied().unwrap_or(0) } else { 0 };
        let seen = seen(lab, added, source, &counts)?;
        let observed = match observed(&counts, expectation.destination, not_permitted, wanted, seen) {
            Observed::Backends { backends, seen, .. } if backends.len() == 1 => {
                backends.first().map_or(Observed::NotTried, |backend| Observed::One { backend: *backend, seen })
            }
            other => other,
        };
        let as_expected = matches!(wanted, Outcome::Pinned { .. }) || observed.satisfies(wanted, source, &Pins::default());
        if as_expected || Instant::now() > deadline {
            return Ok(observed);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Probes from ports that nothing else uses, below those that the kernel chooses and those of Services. Connection tracking remembers
/// what became of a datagram, and of a connection that nobody answered, for whatever comes from that port later: an expectation is
/// about new flows.
fn from_own_ports(peer: &Peer, probe: &Connect, count: u64, source: IpAddr) -> Result<Counts> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let mut counts = Counts::default();
    for _ in 0..count {
        let port = 12_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 18_000;
        counts.add(&peer.probe(probe.clone().from(SocketAddr::new(source, port)))?);
    }
    Ok(counts)
}

/// Whom backends saw.
fn seen(lab: &Lab, added: &BTreeSet<IpAddr>, source: Host, counts: &Counts) -> Result<Seen> {
    let (own, node) = (lab.find(source.name)?.addresses(), lab.find(NODE)?.addresses());
    let of_node = |ip: &IpAddr| node.contains(ip) || added.contains(ip) || (source.name == NODE && ip.is_loopback());
    let all_of_node = counts.sources.keys().all(of_node);
    Ok(match source.name {
        NODE if all_of_node => Seen::OwnNode,
        _ if counts.sources.keys().all(|ip| own.contains(ip)) => Seen::Own,
        _ if all_of_node => Seen::Node,
        _ => Seen::Other,
    })
}

fn proto(protocol: Option<Protocol>) -> Proto {
    match protocol {
        Some(Protocol::Tcp) => Proto::Tcp,
        Some(Protocol::Udp) => Proto::Udp,
        Some(Protocol::Sctp) => Proto::Sctp,
        None => Proto::Icmp,
    }
}

/// What the counts of one destination's probes say.
fn observed(counts: &Counts, destination: SocketAddr, not_permitted: u64, wanted: &Outcome, seen: Seen) -> Observed {
    let all = counts.answered() + counts.failed();
    let dropped = counts.timeouts + if *wanted == Outcome::Dropped { not_permitted } else { 0 };
    let servers: Vec<(SocketAddr, u64)> = counts.servers.iter().map(|(server, count)| (canonical(*server), *count)).collect();
    if dropped == all {
        if *wanted == Outcome::Untouched { Observed::Untouched } else { Observed::Dropped }
    } else if counts.answered() == all && servers.iter().all(|(server, _)| *server == destination) {
        Observed::Untouched
    } else if counts.refused + not_permitted == all {
        Observed::Refused
    } else if counts.answered() < all {
        Observed::Other(described(counts))
    } else if let ([(backend, _)], true) = (&servers[..], wanted.is_pinned()) {
        Observed::One { backend: *backend, seen }
    } else {
        let evenly = is_even(&servers.iter().map(|(_, count)| *count).collect::<Vec<_>>(), all);
        let backends = servers.into_iter().map(|(server, _)| server).collect();
        Observed::Backends { backends, evenly, sticky: false, seen }
    }
}

fn described(counts: &Counts) -> String {
    let mut text = String::new();
    let servers = counts.servers.iter().map(|(server, count)| (server.to_string(), *count));
    let others = [("refused".to_owned(), counts.refused), ("without an answer".to_owned(), counts.timeouts)];
    let errors = counts.errors.iter().map(|(errno, count)| (errno.clone(), *count));
    for (what, count) in servers.chain(others).chain(errors).filter(|(_, count)| *count > 0) {
        // Writing to a string does not fail.
        let _ = write!(text, "{}{count} {what}", if text.is_empty() { "" } else { ", " });
    }
    text
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether no share is more than five standard deviations from what it should be: by chance once in a million.
fn is_even(shares: &[u64], all: u64) -> bool {
    let (all, count) = (all as f64, shares.len() as f64);
    let (mean, deviation) = (all / count, (all / count * (1.0 - 1.0 / count)).sqrt());
    shares.iter().all(|share| (*share as f64 - mean).abs() <= 5.0 * deviation)
}
