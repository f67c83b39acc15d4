//! Objects of the nftables dataplane, one table per family: elements of flat data maps. Changing them makes the kernel check
//! nothing but the elements, so that a change costs the same at 10 and at 50,000 Services. There is no chain per Service or
//! backend, only one per number of backends.
//!
//! ```text
//! services: address . protocol . port          -> class (number of backends)
//! slots:    address . protocol . port . slot   -> backend
//! classes:  class                              -> goto pick-<k>: dnat to slots[… . random mod k]
//! refused:  address . protocol . port
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Lowering, ObjectsOf, StepOf};
use crate::forward::{Flow, Verdict};
use crate::ledger::{Objects, Step};
use crate::model::{Address, Family, Frontend, ObjectName, ServicePortName, label};
use crate::slots::{Observed, PortKey, Seat};
use crate::view::{ServiceView, Views};

/// The version of the table's chains, rules and sets. A table of another version is replaced.
pub const LAYOUT: u32 = 1;

/// An object in the table. Ordered so that what is pointed at comes before what points there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Key {
    /// The table with its base chains, their rules, and the empty sets.
    Base,
    /// The chain that picks among so many backends, and its element in `classes`.
    Pick(u16),
    /// Element of `slots`.
    Slot(Frontend, u32),
    /// Element of `services`.
    Service(Frontend),
    /// Element of `refused`.
    Refused(Frontend),
}

/// What the object is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// The [`LAYOUT`].
    Base(u32),
    /// Follows from the key.
    Pick,
    /// The backend.
    Slot(Address),
    /// The number of backends, from 1, and the [label](ServicePortName::label), which is the element's comment.
    Service(u16, Arc<str>),
    /// The label, which is the element's comment.
    Refused(Arc<str>),
}

/// The table of one family.
#[derive(Clone, Copy, Debug)]
pub struct Nft {
    /// The family.
    pub family: Family,
}

impl Lowering for Nft {
    type Key = Key;
    type Value = Value;

    fn serves(&self, family: Family) -> bool {
        self.family == family
    }

    fn base(&self) -> ObjectsOf<Self> {
        Objects::from([(Key::Base, Value::Base(LAYOUT))])
    }

    fn objects(&self, name: &ObjectName, seats: &[Seat], out: &mut Vec<(Key, Value)>) {
        for Seat { key: PortKey { name: port, frontend }, slots, .. } in seats {
            let label = label(name, port).into();
            // At most MAX_BACKENDS.
            let count = slots.len() as u16;
            if count == 0 {
                out.push((Key::Refused(*frontend), Value::Refused(label)));
                continue;
            }
            out.push((Key::Service(*frontend), Value::Service(count, label)));
            out.push((Key::Pick(count), Value::Pick));
            out.extend((0..).zip(slots).map(|(slot, &backend)| (Key::Slot(*frontend, slot), Value::Slot(backend))));
        }
    }

    fn order(steps: &mut Vec<StepOf<Self>>) {
        // One batch is atomic; the order matters for references within it, and where a batch has to be split.
        steps.sort_by_cached_key(|step| match step {
            Step::Add(key, _) | Step::Replace(key, _, _) => (0, rank(key), *key),
            Step::Delete(key, _) => (1, 4 - rank(key), *key),
        });
    }

    fn lingers(key: &Key) -> bool {
        // A packet reads `services`, then `slots`; a commit may come between the two.
        matches!(key, Key::Slot(..) | Key::Pick(_))
    }

    fn is_shared(key: &Key) -> bool {
        matches!(key, Key::Pick(_))
    }

    fn seats(objects: &ObjectsOf<Self>) -> BTreeMap<(ObjectName, PortKey), Observed> {
        let mut seats = BTreeMap::new();
        for (frontend, label, count) in elements(objects) {
            let Some(port) = ServicePortName::from_label(label, frontend.protocol) else { continue };
            let key = PortKey { name: port.port, frontend };
            let slots = slots(objects, frontend, count);
            // Numbers name nothing in this dataplane; any distinct ones will do.
            let id = seats.len() as u32 + 1;
            seats.entry((port.service, key)).or_insert_with(|| (id, slots.collect()));
        }
        seats
    }

    fn decide(objects: &ObjectsOf<Self>, flow: &Flow) -> Verdict {
        let frontend = flow.frontend();
        if let Some(Value::Service(count, _)) = objects.get(&Key::Service(frontend))
            && objects.contains_key(&Key::Pick(*count))
        {
            let backends: Vec<_> = slots(objects, frontend, *count).map(|(_, backend)| SocketAddr::from(backend)).collect();
            // The pick chain drops what finds its slot empty; nothing may rely on that.
            return if backends.len() == usize::from(*count) { Verdict::to(backends) } else { Verdict::Rejected };
        }
        if objects.contains_key(&Key::Refused(frontend)) { Verdict::Rejected } else { Verdict::Untouched }
    }

    fn view(objects: &ObjectsOf<Self>) -> Vec<ServiceView> {
        let mut views = Views::default();
        for (frontend, label, count) in elements(objects) {
            let unnamed = || ServicePortName { service: ObjectName::new("?", label), port: "".into(), protocol: frontend.protocol };
            let port = ServicePortName::from_label(label, frontend.protocol).unwrap_or_else(unnamed);
            views.add(port, &frontend, slots(objects, frontend, count).map(|(_, backend)| backend));
        }
        views.finish()
    }
}

/// The frontends with their labels and numbers of backends.
fn elements(objects: &ObjectsOf<Nft>) -> impl Iterator<Item = (Frontend, &str, u16)> {
    objects.iter().filter_map(|(key, value)| match (key, value) {
        (Key::Service(frontend), Value::Service(count, label)) => Some((*frontend, &**label, *count)),
        (Key::Refused(frontend), Value::Refused(label)) => Some((*frontend, &**label, 0)),
        _ => None,
    })
}

/// The slots in use; those above `count` linger.
fn slots(objects: &ObjectsOf<Nft>, frontend: Frontend, count: u16) -> impl Iterator<Item = (u32, Address)> {
    objects.range(Key::Slot(frontend, 0)..Key::Slot(frontend, u32::from(count))).filter_map(|(key, value)| match (key, value) {
        (Key::Slot(_, slot), Value::Slot(backend)) => Some((*slot, *backend)),
        _ => None,
    })
}

fn rank(key: &Key) -> u8 {
    match key {
        Key::Base => 0,
        Key::Pick(_) => 1,
        Key::Slot(..) => 2,
        Key::Service(_) => 3,
        Key::Refused(_) => 4,
    }
}

/// The address family of a frontend as nftables writes addresses.
fn element(f: &mut fmt::Formatter<'_>, frontend: &Frontend) -> fmt::Result {
    match frontend.ip {
        IpAddr::V4(ip) => write!(f, "{ip}")?,
        IpAddr::V6(ip) => write!(f, "{ip}")?,
    }
    write!(f, " . {} . {}", frontend.protocol.to_string().to_lowercase(), frontend.port)
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Base => f.write_str("base"),
            Key::Pick(count) => write!(f, "pick-{count}"),
            Key::Slot(frontend, slot) => {
                f.write_str("slots { ")?;
                element(f, frontend)?;
                write!(f, " . {slot} }}")
            }
            Key::Service(frontend) => {
                f.write_str("services { ")?;
                element(f, frontend)?;
                f.write_str(" }")
            }
            Key::Refused(frontend) => {
                f.write_str("refused { ")?;
                element(f, frontend)?;
                f.write_str(" }")
            }
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Base(layout) => write!(f, "layout {layout}"),
            Value::Pick => f.write_str("chain"),
            Value::Slot(backend) => write!(f, "{} . {}", backend.ip, backend.port),
            Value::Service(count, label) => write!(f, "{count} ({label})"),
            Value::Refused(label) => write!(f, "({label})"),
        }
    }
}
