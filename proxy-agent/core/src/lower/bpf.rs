//! Objects of the eBPF dataplane: entries of the maps that [`proxy_abi`] describes.
//!
//! The programs at the sockets serve what does not depend on a packet: ClusterIPs over TCP and UDP that nobody but the host is
//! masqueraded for, whose clients do not stay with a backend and whose flows need not be found again. All else they leave to the packets' own way, but for NodePorts on ::1,
//! which packets cannot reach: the host's own sockets are translated, by the NodePort without an address.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use proxy_abi as abi;

use super::{Lowering, ObjectsOf, StepOf};
use crate::forward::{Flow, SourceSeen, Verdict};
use crate::ledger::{Objects, Step};
use crate::model::{Address, Family, Frontend, ObjectName, Protocol, ServicePortName, label};
use crate::route::{Entry, EntryKind, Masquerade, Pool, PortKey, Route, Treatment, Way};
use crate::settings::Settings;
use crate::slots::{Observed, Place, Seat};
use crate::surroundings::{Origin, Sender, Surroundings};
use crate::view::{FrontendView, PortView, ServiceView, To, Views};

/// An entry of a map. Ordered so that what is pointed at comes before what points there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// `NAMES`
    Name(u32),
    /// `SLOTS`
    Slot(abi::SlotKey),
    /// `MEMBERS`
    Member(abi::MemberKey),
    /// `FRONTENDS`
    Frontend(abi::FrontendKey),
}

/// The value of the entry, of the same map as its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// `NAMES`: the [label](ServicePortName::label).
    Name(Arc<str>),
    /// `SLOTS`
    Slot(abi::Addr),
    /// `MEMBERS`
    Member,
    /// `FRONTENDS`
    Frontend(abi::Frontend),
}

/// Both families share the maps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bpf {
    /// NodePorts are served on ::1, for the node itself (NP-07).
    pub loopback: bool,
    /// Connections are counted by frontend, in `COUNTS`, which only the programs fill.
    pub counts: bool,
}

impl Bpf {
    /// The maps as the operator wants them.
    pub fn new(settings: &Settings) -> Self {
        Self { loopback: settings.node_ports.names_loopback(Family::V6), counts: settings.counts_connections }
    }
}

impl Lowering for Bpf {
    type Key = Key;
    type Value = Value;

    const IS_NUMBERED: bool = true;

    fn serves(&self, _: Family) -> bool {
        true
    }

    fn is_sticky(&self) -> bool {
        true
    }

    fn base(&self, _: &Surroundings) -> ObjectsOf<Self> {
        Objects::new()
    }

    fn objects(&self, name: &ObjectName, seats: &[Seat], out: &mut Vec<(Key, Value)>) {
        for seat in seats {
            for Place { entry, number: service } in &seat.places {
                let (service, frontend) = (*service, &entry.frontend);
                let backends = match self.served(&seat.key, entry, seat.sticky.is_some(), seat.tracked) {
                    Some(Served::By(pool)) => seat.pool(pool),
                    Some(Served::Refused) => &[],
                    None => continue,
                };
                let count = backends.len() as u32;
                out.push((Key::Frontend(frontend_key(frontend)), Value::Frontend(abi::Frontend { service, count })));
                out.push((Key::Name(service), Value::Name(label(name, &seat.key.name).into())));
                for (slot, &backend) in (0..).zip(backends) {
                    let backend = to_addr(backend);
                    out.push((Key::Slot(abi::SlotKey { service, slot }), Value::Slot(backend)));
                    if frontend.protocol == Protocol::Udp {
                        out.push((Key::Member(abi::MemberKey { service, backend }), Value::Member));
                    }
                }
            }
        }
    }

    fn order(steps: &mut Vec<StepOf<Self>>) {
        // Written from what is pointed at to what points there, deleted the other way round.
        steps.sort_by_cached_key(|step| match step {
            Step::Add(key, _) | Step::Replace(key, _, _) => (0, rank(key), *key),
            Step::Delete(key, _) => (1, 3 - rank(key), *key),
        });
    }

    fn lingers(_: &Key) -> bool {
        // A program that finds a slot gone reads the frontend again.
        false
    }

    fn is_shared(_: &Key) -> bool {
        false
    }

    fn kind(key: &Key) -> &'static str {
        match key {
            Key::Name(_) => "NAMES",
            Key::Slot(_) => "SLOTS",
            Key::Member(_) => "MEMBERS",
            Key::Frontend(_) => "FRONTENDS",
        }
    }

    fn seats(objects: &ObjectsOf<Self>) -> BTreeMap<(ObjectName, PortKey), Observed> {
        let mut seats: BTreeMap<(ObjectName, PortKey), Observed> = BTreeMap::new();
        for (frontend, value) in frontends(objects) {
            let Some(port) = port_name(objects, value.service, frontend.protocol) else { continue };
            let key = PortKey { name: port.port, protocol: frontend.protocol, family: frontend.family() };
            let seat = seats.entry((port.service, key)).or_default();
            seat.numbers.insert(frontend, value.service);
            if seat.cluster.is_empty() {
                // Which set it is does not show; what is in neither moves out.
                seat.cluster = slots(objects, value.service).map(|(_, backend)| from_addr(backend)).collect();
                seat.local = seat.cluster.clone();
            }
        }
        seats
    }

    fn decide(&self, objects: &ObjectsOf<Self>, flow: &Flow) -> Verdict {
        let to_loopback = flow.destination.ip() == Family::V6.loopback() && flow.origin == Origin::Host;
        let frontend = if to_loopback { flow.node_port() } else { flow.frontend() };
        let frontend = frontend.and_then(|frontend| objects.get(&Key::Frontend(frontend_key(&frontend))));
        let Some(Value::Frontend(frontend)) = frontend else { return Verdict::Untouched };
        let backends = (0..frontend.count).map(|slot| match objects.get(&Key::Slot(abi::SlotKey { service: frontend.service, slot })) {
            Some(Value::Slot(addr)) => Some(SocketAddr::from(from_addr(*addr))),
            _ => None,
        });
        match backends.collect::<Option<BTreeSet<_>>>() {
            // Whoever sends keeps the address that it has towards the backend: for the host that is one of the node's.
            Some(backends) if !backends.is_empty() => Verdict::Backends { backends, source: SourceSeen::Either, is_sticky: false },
            // The programs refuse where a slot stays empty.
            _ => Verdict::Rejected,
        }
    }

    fn view(objects: &ObjectsOf<Self>) -> Vec<ServiceView> {
        let mut views = Views::default();
        for (frontend, value) in frontends(objects) {
            let unnamed = || ServicePortName {
                service: ObjectName::new("?", value.service.to_string()),
                port: "".into(),
                protocol: frontend.protocol,
            };
            let port = port_name(objects, value.service, frontend.protocol).unwrap_or_else(unnamed);
            let used = slots(objects, value.service).take_while(|(slot, _)| *slot < value.count);
            let view = views.of(port, &frontend);
            view.frontends.push(FrontendView::new(&frontend, if value.count == 0 { To::SocketsRefused } else { To::Sockets }));
            view.backends.extend(used.map(|(_, backend)| from_addr(backend)));
        }
        views.finish()
    }

    fn show(&self, route: &Route) -> Option<PortView> {
        let mut view = PortView::default();
        for entry in &route.entries {
            match self.served(&route.key, entry, route.affinity.is_some(), route.tracked) {
                None => {}
                Some(Served::Refused) => view.frontends.push(FrontendView::new(&entry.frontend, To::SocketsRefused)),
                Some(Served::By(pool)) => {
                    view.frontends.push(FrontendView::new(&entry.frontend, To::Sockets));
                    view.backends.extend(if pool == Pool::Cluster { &route.cluster } else { &route.local });
                }
            }
        }
        (!view.frontends.is_empty()).then_some(view)
    }
}

/// What the programs do with a frontend.
enum Served {
    /// They translate to one of these.
    By(Pool),
    /// They refuse.
    Refused,
}

impl Bpf {
    /// What the programs do with a frontend, if they serve it.
    fn served(&self, port: &PortKey, entry: &Entry, is_sticky: bool, is_tracked: bool) -> Option<Served> {
        if port.protocol == Protocol::Sctp {
            return None;
        }
        match (entry.kind, entry.treatment) {
            (EntryKind::ClusterIp, Treatment::Rejected) => Some(Served::Refused),
            (EntryKind::ClusterIp, Treatment::To(pool, Masquerade::Never | Masquerade::UnlessPod)) if !is_sticky && !is_tracked => {
                Some(Served::By(pool))
            }
            (EntryKind::NodePort, treatment) if self.loopback && port.family == Family::V6 => match treatment.way(Sender::Host, false) {
                Way::Rejected => Some(Served::Refused),
                Way::To(pool, _) if !is_sticky => Some(Served::By(pool)),
                _ => None,
            },
            _ => None,
        }
    }
}

fn rank(key: &Key) -> u8 {
    match key {
        Key::Name(_) => 0,
        Key::Slot(_) => 1,
        Key::Member(_) => 2,
        Key::Frontend(_) => 3,
    }
}

fn frontends(objects: &ObjectsOf<Bpf>) -> impl Iterator<Item = (Frontend, &abi::Frontend)> {
    objects.iter().filter_map(|(key, value)| match (key, value) {
        (Key::Frontend(key), Value::Frontend(value)) => Some((frontend_of(key)?, value)),
        _ => None,
    })
}

fn slots(objects: &ObjectsOf<Bpf>, service: u32) -> impl Iterator<Item = (u32, abi::Addr)> {
    let all = Key::Slot(abi::SlotKey { service, slot: 0 })..=Key::Slot(abi::SlotKey { service, slot: u32::MAX });
    objects.range(all).filter_map(|(key, value)| match (key, value) {
        (Key::Slot(key), Value::Slot(addr)) => Some((key.slot, *addr)),
        _ => None,
    })
}

fn port_name(objects: &ObjectsOf<Bpf>, service: u32, protocol: Protocol) -> Option<ServicePortName> {
    match objects.get(&Key::Name(service))? {
        Value::Name(label) => ServicePortName::from_label(label, protocol),
        _ => None,
    }
}

/// The key of a frontend in the maps.
pub fn frontend_key(frontend: &Frontend) -> abi::FrontendKey {
    abi::FrontendKey::new(to_addr(Address { ip: frontend.ip, port: frontend.port }), frontend.protocol.number())
}

/// The inverse of [`frontend_key`]; none for a protocol that no Service has.
pub fn frontend_of(key: &abi::FrontendKey) -> Option<Frontend> {
    let Address { ip, port } = from_addr(key.addr);
    Some(Frontend { ip, port, protocol: Protocol::from_number(key.protocol)? })
}

/// The form of an address in the maps.
pub fn to_addr(addr: Address) -> abi::Addr {
    let port = addr.port.to_be();
    match addr.ip {
        IpAddr::V4(ip) => abi::Addr::v4(u32::from_ne_bytes(ip.octets()), port),
        IpAddr::V6(ip) => {
            let o = ip.octets();
            let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
            abi::Addr::v6([word(0), word(4), word(8), word(12)], port)
        }
    }
}

/// The inverse of [`to_addr`].
pub fn from_addr(addr: abi::Addr) -> Address {
    let mut octets = [0; 16];
    for (bytes, word) in octets.chunks_exact_mut(4).zip(addr.ip) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    let v6 = Ipv6Addr::from(octets);
    let ip = v6.to_ipv4_mapped().map_or(IpAddr::V6(v6), |v4: Ipv4Addr| IpAddr::V4(v4));
    Address { ip, port: u16::from_be(addr.port) }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Name(service) => write!(f, "names[{service}]"),
            Key::Slot(key) => write!(f, "slots[{} {}]", key.service, key.slot),
            Key::Member(key) => write!(f, "members[{} {}]", key.service, from_addr(key.backend)),
            Key::Frontend(key) => match Protocol::from_number(key.protocol) {
                Some(protocol) => write!(f, "frontends[{}/{protocol}]", from_addr(key.addr)),
                None => write!(f, "frontends[{}/{}]", from_addr(key.addr), key.protocol),
            },
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Name(name) => f.write_str(name),
            Value::Slot(addr) => write!(f, "{}", from_addr(*addr)),
            Value::Member => f.write_str("yes"),
            Value::Frontend(value) => write!(f, "service {} count {}", value.service, value.count),
        }
    }
}
