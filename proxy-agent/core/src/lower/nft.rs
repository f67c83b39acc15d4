//! Objects of the nftables dataplane, one table per family: elements of flat data maps. Changing them makes the kernel check
//! nothing but the elements, so that a change costs the same at 10 and at 50,000 Services. There is no chain per Service or
//! backend, only one per number of backends and kind of frontend.
//!
//! ```text
//! services: address . protocol . port          -> class: which chain
//! slots:    address . protocol . port . slot   -> backend
//! classes:  class                              -> goto pick-<k>: dnat to slots[… . random mod k]
//! refused:  address . protocol . port
//! ```
//!
//! A frontend whose backends depend on who sends (`externalTrafficPolicy: Local`) goes through chain `by-source`; one with session
//! affinity through `stick-<seconds>`, where pins are kept by the identity of the Service port. [`Key`] lists all there is.

mod object;
mod read;

pub use object::{Class, Key, LOCAL_SLOTS, Pick, Target, Value, stick_pick};
pub use read::around;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Lowering, ObjectsOf, StepOf};
use crate::forward::{Flow, Verdict};
use crate::ledger::{Objects, Step};
use crate::model::{Family, Frontend, ObjectName, Protocol, label};
use crate::route::{Masquerade, Pool, PortKey, Route, Treatment};
use crate::settings::{LocalDetection, Settings};
use crate::slots::{Observed, Place, Seat, Sticky};
use crate::surroundings::{Detection, NodePortScope, Surroundings};
use crate::view::{PortView, ServiceView};

/// The version of the table's chains, rules and sets. A table of another version is replaced.
pub const LAYOUT: u32 = 3;

/// The table of one family: what of the configuration its rules depend on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nft {
    /// The family.
    pub family: Family,
    /// How a pod's packet is told.
    pub pods: PodMatch,
    /// NodePorts are served on whatever address the host has when a packet comes; else on those of set `node-addresses`.
    pub any_node_port: bool,
    /// NodePorts are served on 127.0.0.1, for the node itself. The kernel drops replies to such an address that come in by an
    /// interface unless it is told that they may (`route_localnet`); then others must be kept out.
    pub loopback: bool,
    /// The bits of a packet's mark that say "masquerade".
    pub masquerade_mark: u32,
    /// The kernel has the two fields of a packet that session affinity takes; without, there is no affinity.
    pub is_sticky: bool,
    /// Connections are counted by frontend.
    pub counts: bool,
}

/// How a pod's packet is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PodMatch {
    /// Its source is in set `pods`.
    Source,
    /// It came in by this interface.
    Interface(Arc<str>),
    /// It came in by an interface whose name begins like this.
    InterfacePrefix(Arc<str>),
}

impl Nft {
    /// The table of a family as the operator wants it.
    pub fn new(family: Family, settings: &Settings) -> Self {
        let pods = match &settings.local {
            LocalDetection::ClusterCidrs(_) | LocalDetection::NodeCidrs => PodMatch::Source,
            LocalDetection::Bridge(name) => PodMatch::Interface(name.clone()),
            LocalDetection::InterfacePrefix(prefix) => PodMatch::InterfacePrefix(prefix.clone()),
        };
        let (any_node_port, masquerade_mark) = (settings.node_ports.is_any(family), settings.masquerade_mark());
        let loopback = family == Family::V4 && settings.node_ports.names_loopback(family);
        Self { family, pods, any_node_port, loopback, masquerade_mark, is_sticky: true, counts: settings.counts_connections }
    }
}

impl Lowering for Nft {
    type Key = Key;
    type Value = Value;

    const IS_NUMBERED: bool = false;

    fn serves(&self, family: Family) -> bool {
        self.family == family
    }

    fn is_sticky(&self) -> bool {
        self.is_sticky
    }

    fn base(&self, surroundings: &Surroundings) -> ObjectsOf<Self> {
        let mut base = Objects::from([(Key::Base, Value::Base(LAYOUT))]);
        if let Some(Detection::Cidr(cidr)) = surroundings.detection(self.family) {
            base.insert(Key::PodCidr(cidr), Value::Present);
        }
        if let NodePortScope::These(addresses) = surroundings.node_ports(self.family) {
            // ::1 is left to sockets: the kernel takes no reply to it that comes in by another interface, translated back or not.
            let by_packet = addresses.into_iter().filter(|ip| !ip.is_loopback() || self.loopback);
            base.extend(by_packet.map(|ip| (Key::NodeAddress(ip), Value::Present)));
        }
        let cidrs = surroundings.service_cidrs(self.family).into_iter();
        base.extend(cidrs.map(|cidr| (Key::ServiceCidr(cidr), Value::Present)));
        base
    }

    fn objects(&self, name: &ObjectName, seats: &[Seat], out: &mut Vec<(Key, Value)>) {
        for seat in seats {
            let label: Arc<str> = label(name, &seat.key.name).into();
            for place in &seat.places {
                Writer { seat, place, label: &label, out }.place();
            }
            if let Some(sticky) = &seat.sticky {
                stick(seat, sticky, out);
            }
            out.push((Key::ClusterIp(seat.cluster_ip), Value::Present));
            out.extend(seat.here.iter().map(|ip| (Key::Hairpin(*ip), Value::Present)));
            if seat.key.protocol == Protocol::Tcp {
                let backends = seat.cluster.iter().chain(&seat.local);
                out.extend(backends.map(|backend| (Key::Endpoint(*backend, Protocol::Tcp), Value::Present)));
            }
        }
    }

    fn order(steps: &mut Vec<StepOf<Self>>) {
        // One batch is atomic; the order matters for references within it, and where a batch has to be split.
        steps.sort_by_cached_key(|step| match step {
            Step::Add(key, _) | Step::Replace(key, _, _) => (Some(*key), None),
            Step::Delete(key, _) => (None, Some(Reverse(*key))),
        });
        let deletions = steps.iter().take_while(|step| matches!(step, Step::Delete(..))).count();
        steps.rotate_left(deletions);
    }

    fn lingers(key: &Key) -> bool {
        // A packet reads `services`, then the others; a commit may come between the two. What clients are pinned to is left at
        // once all the same: a pin to what is no member is none.
        match key {
            Key::Chain(_) | Key::StickPick(..) | Key::Slot(..) | Key::Identity(_) | Key::BySource(..) => true,
            Key::StickEndpoint(_) | Key::StickSlot(..) | Key::StickSize(..) => true,
            Key::Base | Key::PodCidr(_) | Key::NodeAddress(_) | Key::ServiceCidr(_) | Key::Hairpin(_) | Key::Endpoint(..) => false,
            Key::StickMember(..) | Key::Source(..) | Key::Restricted(_) => false,
            Key::Service(_) | Key::Refused(_) | Key::Dropped(_) | Key::ClusterIp(_) | Key::Damage(_) => false,
        }
    }

    fn is_shared(key: &Key) -> bool {
        matches!(key, Key::Chain(_) | Key::StickPick(..) | Key::Hairpin(_) | Key::Endpoint(..) | Key::ClusterIp(_))
    }

    fn kind(key: &Key) -> &'static str {
        match key {
            Key::Base => "table",
            Key::Chain(_) | Key::StickPick(..) => "chains",
            Key::Damage(_) => "damage",
            key => key.set().unwrap_or("other"),
        }
    }

    fn seats(objects: &ObjectsOf<Self>) -> BTreeMap<(ObjectName, PortKey), Observed> {
        read::seats(objects)
    }

    fn decide(&self, objects: &ObjectsOf<Self>, flow: &Flow) -> Verdict {
        read::decide(self, objects, flow)
    }

    fn view(objects: &ObjectsOf<Self>) -> Vec<ServiceView> {
        read::view(objects)
    }

    fn show(&self, route: &Route) -> Option<PortView> {
        Some(route.show())
    }
}

/// The first slot of a set.
fn first_slot(pool: Pool) -> u32 {
    match pool {
        Pool::Cluster => 0,
        Pool::Local => LOCAL_SLOTS,
    }
}

/// Writes the objects of one frontend.
struct Writer<'a> {
    seat: &'a Seat,
    place: &'a Place,
    label: &'a Arc<str>,
    out: &'a mut Vec<(Key, Value)>,
}

impl Writer<'_> {
    fn place(&mut self) {
        let entry = &self.place.entry;
        let frontend = entry.frontend;
        match entry.treatment {
            Treatment::To(pool, masquerade) => {
                let target = self.target(pool, masquerade);
                self.out.push((Key::Service(frontend), Value::Service(Class::Target(target), self.label.clone())));
            }
            Treatment::BySource => {
                let class = Class::BySource { is_node_port: frontend.is_node_port() };
                self.out.push((Key::Service(frontend), Value::Service(class, self.label.clone())));
                for pool in [Pool::Cluster, Pool::Local] {
                    let target = (!self.seat.pool(pool).is_empty()).then(|| self.target(pool, Masquerade::Never));
                    self.out.push((Key::BySource(frontend, pool), Value::Target(target)));
                }
            }
            Treatment::Rejected => self.out.push((Key::Refused(frontend), Value::Label(self.label.clone()))),
            Treatment::Dropped => self.out.push((Key::Dropped(frontend), Value::Label(self.label.clone()))),
        }
        if let (Some(sticky), false) = (&self.seat.sticky, matches!(entry.treatment, Treatment::Rejected | Treatment::Dropped)) {
            self.out.push((Key::Identity(frontend), Value::Number(sticky.identity)));
        }
        if let Some(sources) = &entry.sources {
            self.out.push((Key::Restricted(frontend), Value::Present));
            self.out.extend(sources.iter().map(|cidr| (Key::Source(frontend, *cidr), Value::Present)));
        }
    }

    /// The chain for a set, and what that needs.
    fn target(&mut self, pool: Pool, masquerade: Masquerade) -> Target {
        let frontend: Frontend = self.place.entry.frontend;
        let backends = self.seat.pool(pool);
        let pick = match &self.seat.sticky {
            Some(sticky) => Pick::Sticky(sticky.seconds),
            // At most MAX_BACKENDS.
            None => Pick::Even(backends.len() as u16),
        };
        let target = Target { masquerade, is_node_port: frontend.is_node_port(), pool, pick };
        self.out.push((Key::Chain(target), Value::Present));
        self.out.push((Key::Chain(target.unmasqueraded()), Value::Present));
        if self.seat.sticky.is_none() {
            let slots = (first_slot(pool)..).zip(backends);
            self.out.extend(slots.map(|(slot, backend)| (Key::Slot(frontend, slot), Value::Backend(*backend))));
        }
        target
    }
}

/// Writes what the frontends of a port have in common where clients stay with their backends.
fn stick(seat: &Seat, sticky: &Sticky, out: &mut Vec<(Key, Value)>) {
    for pool in [Pool::Cluster, Pool::Local] {
        let backends = seat.pool(pool);
        if backends.is_empty() {
            continue;
        }
        let count = backends.len() as u16;
        out.push((Key::StickPick(pool, count), Value::Present));
        out.push((Key::StickSize(sticky.identity, pool), Value::Count(count)));
        for (slot, backend) in (first_slot(pool)..).zip(backends) {
            let Some(id) = sticky.id(backend) else { continue };
            out.push((Key::StickEndpoint(id), Value::Backend(*backend)));
            out.push((Key::StickSlot(sticky.identity, slot), Value::Number(id)));
            out.push((Key::StickMember(sticky.identity, pool, id), Value::Present));
        }
    }
}
