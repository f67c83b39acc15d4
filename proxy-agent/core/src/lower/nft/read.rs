//! Reads the table's objects: as the kernel does, and for people.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{Class, Key, Nft, Pick, PodMatch, Target, Value, first_slot};
use crate::forward::{Flow, Verdict};
use crate::ledger::Objects;
use crate::model::{Address, Frontend, ObjectName, ServicePortName};
use crate::route::{Masquerade, Pool, PortKey, Treatment};
use crate::slots::Observed;
use crate::surroundings::{Origin, Sender};
use crate::view::{AroundView, FrontendView, ServiceView, To, Views};

type Table = Objects<Key, Value>;

/// What the nat chains do, and what the filter chains do with what those leave.
pub(super) fn decide(nft: &Nft, objects: &Table, flow: &Flow) -> Verdict {
    let exact = flow.frontend();
    if let Some(frontend) = exact
        && objects.contains_key(&Key::Restricted(frontend))
        && !sources(objects, frontend).any(|key| matches!(key, Key::Source(_, cidr) if cidr.contains(flow.source)))
    {
        return Verdict::Dropped;
    }
    // TP-10: what a Service has, served or not, is no NodePort.
    let has = |frontend| objects.contains_key(&Key::Refused(frontend)) || objects.contains_key(&Key::Dropped(frontend));
    let node_port = flow.node_port().filter(|_| !exact.is_some_and(has) && serves_node_ports(nft, objects, flow));
    let candidates = exact.into_iter().chain(node_port);
    let class = candidates.clone().find_map(|frontend| match objects.get(&Key::Service(frontend))? {
        Value::Service(class, _) => Some((frontend, *class)),
        _ => None,
    });
    if let Some((frontend, class)) = class
        && let Some((target, masqueraded)) = target(nft, objects, flow, frontend, class)
    {
        return target.map_or(Verdict::Dropped, |target| pick(objects, flow, frontend, target, masqueraded));
    }
    for frontend in candidates {
        if objects.contains_key(&Key::Refused(frontend)) {
            return Verdict::Rejected;
        }
        if objects.contains_key(&Key::Dropped(frontend)) {
            return Verdict::Dropped;
        }
    }
    let ip = flow.destination.ip();
    if objects.contains_key(&Key::ClusterIp(ip)) {
        Verdict::Rejected
    } else if objects.keys().any(|key| matches!(key, Key::ServiceCidr(cidr) if cidr.contains(ip))) {
        Verdict::Dropped
    } else {
        Verdict::Untouched
    }
}

fn sources(objects: &Table, frontend: Frontend) -> impl Iterator<Item = &Key> {
    let of_frontend = move |key: &&Key| matches!(key, Key::Source(f, _) if *f == frontend);
    objects.keys().filter(of_frontend)
}

fn serves_node_ports(nft: &Nft, objects: &Table, flow: &Flow) -> bool {
    let ip = flow.destination.ip();
    if nft.any_node_port {
        flow.is_to_host && !ip.is_loopback()
    } else {
        objects.contains_key(&Key::NodeAddress(ip)) && !flow.is_to_loopback_of_another()
    }
}

fn sender(nft: &Nft, objects: &Table, flow: &Flow) -> Sender {
    let is_pod = match (&nft.pods, &flow.origin) {
        (PodMatch::Source, _) => objects.keys().any(|key| matches!(key, Key::PodCidr(cidr) if cidr.contains(flow.source))),
        (PodMatch::Interface(name), Origin::Interface(interface)) => name == interface,
        (PodMatch::InterfacePrefix(prefix), Origin::Interface(interface)) => interface.starts_with(&**prefix),
        (_, Origin::Host) => false,
    };
    match flow.origin {
        _ if is_pod => Sender::Pod,
        Origin::Host => Sender::Host,
        Origin::Interface(_) => Sender::Other,
    }
}

/// The chain that picks, or none that drops, and whether the packet is marked on the way there.
fn target(nft: &Nft, objects: &Table, flow: &Flow, frontend: Frontend, class: Class) -> Option<(Option<Target>, bool)> {
    let sender = sender(nft, objects, flow);
    match class {
        Class::Target(target) => {
            let masqueraded = match target.masquerade {
                Masquerade::Never => false,
                Masquerade::UnlessPod => sender != Sender::Pod,
                Masquerade::Always => true,
            };
            objects.contains_key(&Key::Chain(target)).then_some((Some(target.unmasqueraded()), masqueraded))
        }
        Class::BySource { .. } => {
            let pool = if sender == Sender::Other { Pool::Local } else { Pool::Cluster };
            match objects.get(&Key::BySource(frontend, pool))? {
                Value::Target(target) => Some((*target, sender == Sender::Host)),
                _ => None,
            }
        }
    }
}

/// What the chain picks among. It drops what finds nothing; no Service may rely on that.
fn pick(objects: &Table, flow: &Flow, frontend: Frontend, target: Target, masqueraded: bool) -> Verdict {
    let backends = match target.pick {
        Pick::Even(count) => {
            let found: Vec<Address> = slots(objects, frontend, target.pool, count).map(|(_, backend)| backend).collect();
            (found.len() == usize::from(count)).then_some(found)
        }
        Pick::Sticky(_) => sticky(objects, frontend, target.pool),
    };
    let Some(backends) = backends.filter(|_| objects.contains_key(&Key::Chain(target))) else { return Verdict::Dropped };
    let hairpin = objects.contains_key(&Key::Hairpin(flow.source)).then_some(flow.source);
    let is_sticky = matches!(target.pick, Pick::Sticky(_));
    Verdict::to(backends.into_iter().map(SocketAddr::from).collect(), masqueraded, hairpin, is_sticky)
}

/// The backends among which a new client of a sticky frontend is given one, if all is there.
fn sticky(objects: &Table, frontend: Frontend, pool: Pool) -> Option<Vec<Address>> {
    let identity = identity(objects, frontend)?;
    let Value::Count(count) = *objects.get(&Key::StickSize(identity, pool))? else { return None };
    if !objects.contains_key(&Key::StickPick(pool, count)) {
        return None;
    }
    let first = first_slot(pool);
    let one = |slot| {
        let (id, backend) = stick_slot(objects, identity, slot)?;
        objects.contains_key(&Key::StickMember(identity, pool, id)).then_some(backend)
    };
    (first..first + u32::from(count)).map(one).collect()
}

fn identity(objects: &Table, frontend: Frontend) -> Option<u32> {
    match objects.get(&Key::Identity(frontend))? {
        Value::Number(identity) => Some(*identity),
        _ => None,
    }
}

fn stick_slot(objects: &Table, identity: u32, slot: u32) -> Option<(u32, Address)> {
    let Value::Number(id) = *objects.get(&Key::StickSlot(identity, slot))? else { return None };
    let Value::Backend(backend) = *objects.get(&Key::StickEndpoint(id))? else { return None };
    Some((id, backend))
}

/// The slots in use of a frontend's set; those above `count` linger.
fn slots(objects: &Table, frontend: Frontend, pool: Pool, count: u16) -> impl Iterator<Item = (u32, Address)> {
    let first = first_slot(pool);
    objects.range(Key::Slot(frontend, first)..Key::Slot(frontend, first + u32::from(count))).filter_map(|(key, value)| match (key, value) {
        (Key::Slot(_, slot), Value::Backend(backend)) => Some((*slot, *backend)),
        _ => None,
    })
}

/// The backends of a target, in the order of slots, with their ids where they are sticky.
fn backends(objects: &Table, frontend: Frontend, target: Target) -> Vec<(Address, Option<u32>)> {
    match target.pick {
        Pick::Even(count) => slots(objects, frontend, target.pool, count).map(|(_, backend)| (backend, None)).collect(),
        Pick::Sticky(_) => {
            let of_identity = |identity| {
                let count = match objects.get(&Key::StickSize(identity, target.pool)) {
                    Some(Value::Count(count)) => u32::from(*count),
                    _ => 0,
                };
                let first = first_slot(target.pool);
                (first..first + count).filter_map(move |slot| stick_slot(objects, identity, slot)).map(|(id, b)| (b, Some(id)))
            };
            identity(objects, frontend).into_iter().flat_map(of_identity).collect()
        }
    }
}

/// A frontend, its label, what it does, and the targets that it leads to.
type Read<'a> = (Frontend, &'a str, Treatment, Vec<Target>);

/// All frontends.
fn frontends(objects: &Table) -> impl Iterator<Item = Read<'_>> {
    objects.iter().filter_map(|(key, value)| match (key, value) {
        (Key::Service(frontend), Value::Service(Class::Target(target), label)) => {
            Some((*frontend, &**label, Treatment::To(target.pool, target.masquerade), vec![*target]))
        }
        (Key::Service(frontend), Value::Service(Class::BySource { .. }, label)) => {
            let target = |pool| match objects.get(&Key::BySource(*frontend, pool)) {
                Some(Value::Target(target)) => *target,
                _ => None,
            };
            let targets = [Pool::Cluster, Pool::Local].into_iter().filter_map(target).collect();
            Some((*frontend, &**label, Treatment::BySource, targets))
        }
        (Key::Refused(frontend), Value::Label(label)) => Some((*frontend, &**label, Treatment::Rejected, Vec::new())),
        (Key::Dropped(frontend), Value::Label(label)) => Some((*frontend, &**label, Treatment::Dropped, Vec::new())),
        _ => None,
    })
}

/// See [`Lowering::seats`](crate::lower::Lowering::seats).
pub(super) fn seats(objects: &Table) -> BTreeMap<(ObjectName, PortKey), Observed> {
    let mut seats: BTreeMap<(ObjectName, PortKey), Observed> = BTreeMap::new();
    for (frontend, label, _, targets) in frontends(objects) {
        let Some(port) = ServicePortName::from_label(label, frontend.protocol) else { continue };
        let key = PortKey { name: port.port, protocol: frontend.protocol, family: frontend.family() };
        let seat = seats.entry((port.service, key)).or_default();
        for target in targets {
            let found = backends(objects, frontend, target);
            // Frontends of a port have the same backends in the same slots, but for a commit that was cut off.
            let known = if target.pool == Pool::Cluster { &mut seat.cluster } else { &mut seat.local };
            if known.is_empty() {
                known.extend(found.iter().map(|(backend, _)| *backend));
            }
            if let Some(identity) = identity(objects, frontend) {
                let (of, ids) = seat.sticky.get_or_insert_with(|| (identity, BTreeMap::new()));
                if *of == identity {
                    ids.extend(found.iter().filter_map(|(backend, id)| Some((*backend, (*id)?))));
                }
            }
        }
    }
    seats
}

/// See [`Lowering::view`](crate::lower::Lowering::view).
pub(super) fn view(objects: &Table) -> Vec<ServiceView> {
    let mut ranges: BTreeMap<Frontend, Vec<String>> = BTreeMap::new();
    for key in objects.keys() {
        match key {
            Key::Source(frontend, cidr) => ranges.entry(*frontend).or_default().push(cidr.to_string()),
            Key::Restricted(frontend) => drop(ranges.entry(*frontend).or_default()),
            _ => {}
        }
    }
    let mut views = Views::default();
    for (frontend, label, treatment, targets) in frontends(objects) {
        let unnamed = || ServicePortName { service: ObjectName::new("?", label), port: "".into(), protocol: frontend.protocol };
        let port = ServicePortName::from_label(label, frontend.protocol).unwrap_or_else(unnamed);
        let view = views.of(port, &frontend);
        view.frontends.push(FrontendView { sources: ranges.remove(&frontend), ..FrontendView::new(&frontend, To::Packets(treatment)) });
        for target in targets {
            let found = backends(objects, frontend, target).into_iter().map(|(backend, _)| backend);
            if target.pool == Pool::Cluster {
                view.backends.extend(found)
            } else {
                view.local.extend(found)
            }
            if let Pick::Sticky(seconds) = target.pick {
                view.affinity = Some(seconds);
            }
        }
    }
    views.finish()
}

/// What the objects say of what is around the Services.
pub fn around(objects: &Table) -> AroundView {
    let mut view = AroundView::default();
    for key in objects.keys() {
        match key {
            Key::NodeAddress(ip) => view.node_port_addresses.push(*ip),
            Key::PodCidr(cidr) => view.pod_ranges.push(cidr.to_string()),
            Key::ServiceCidr(cidr) => view.service_ranges.push(cidr.to_string()),
            _ => {}
        }
    }
    view
}
