//! The pinned maps as objects of the lowering.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use proxy_abi as abi;
use proxy_abi::Plain;
use proxy_core::ledger::Step;
use proxy_core::lower::ObjectsOf;
use proxy_core::lower::bpf::{Bpf, Key, Value};
use tracing::warn;

use super::sys::Map;
use crate::dataplane::Refused;

/// As fast as one batch of everything, with a bounded buffer.
const CHUNK: usize = 4096;

/// The maps that the agent fills.
#[derive(Debug)]
pub(super) struct Maps {
    frontends: Map<abi::FrontendKey, abi::Frontend>,
    slots: Map<abi::SlotKey, abi::Addr>,
    members: Map<abi::MemberKey, u8>,
    names: Map<u32, abi::ServiceName>,
}

/// Consecutive steps on one map, of one kind.
enum Run<'a> {
    Put(Vec<(&'a Key, &'a Value)>),
    Delete(Vec<&'a Key>),
}

impl Maps {
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        Ok(Self {
            frontends: open(dir, "FRONTENDS")?,
            slots: open(dir, "SLOTS")?,
            members: open(dir, "MEMBERS")?,
            names: open(dir, "NAMES")?,
        })
    }

    /// How many entries each has room for.
    pub(super) fn capacities(&self) -> Vec<(&'static str, u32)> {
        let Self { frontends, slots, members, names } = self;
        let capacities = [frontends.capacity, slots.capacity, members.capacity, names.capacity];
        ["FRONTENDS", "SLOTS", "MEMBERS", "NAMES"].into_iter().zip(capacities).collect()
    }

    pub(super) fn observe(&self) -> anyhow::Result<ObjectsOf<Bpf>> {
        let mut objects = BTreeMap::new();
        objects.extend(entries(&self.frontends, "FRONTENDS")?.into_iter().map(|(k, v)| (Key::Frontend(k), Value::Frontend(v))));
        objects.extend(entries(&self.slots, "SLOTS")?.into_iter().map(|(k, v)| (Key::Slot(k), Value::Slot(v))));
        objects.extend(entries(&self.members, "MEMBERS")?.into_iter().map(|(k, _)| (Key::Member(k), Value::Member)));
        for (service, name) in entries(&self.names, "NAMES")? {
            let text = &name.text[..usize::from(name.len).min(abi::NAME_BYTES)];
            objects.insert(Key::Name(service), Value::Name(String::from_utf8_lossy(text).into()));
        }
        Ok(objects)
    }

    /// Carries steps out in their order, in as few calls as their order allows.
    pub(super) fn commit(&self, steps: &[Step<Key, Value>]) -> Refused<Bpf> {
        let mut refused = Refused::<Bpf>::new();
        let mut rest = steps;
        while let Some(first) = rest.first() {
            let alike = rest.iter().take(CHUNK).take_while(|step| kind(step) == kind(first)).count();
            let (now, later) = rest.split_at(alike);
            match run(now) {
                Run::Put(entries) => self.put(&entries, &mut refused),
                Run::Delete(keys) => self.delete(&keys, &mut refused),
            }
            rest = later;
        }
        refused
    }

    fn put(&self, entries: &[(&Key, &Value)], refused: &mut Refused<Bpf>) {
        macro_rules! put {
            ($map:ident, $key:ident, $value:pat => $stored:expr) => {{
                let pairs = entries.iter().filter_map(|(k, v)| match (k, v) {
                    (Key::$key(key), $value) => Some((*key, $stored)),
                    _ => None,
                });
                let (keys, values): (Vec<_>, Vec<_>) = pairs.unzip();
                update(&self.$map, &keys, &values, |key| Key::$key(key), refused);
            }};
        }
        match entries.first().map(|(key, _)| key) {
            Some(Key::Frontend(_)) => put!(frontends, Frontend, Value::Frontend(value) => *value),
            Some(Key::Slot(_)) => put!(slots, Slot, Value::Slot(value) => *value),
            Some(Key::Member(_)) => put!(members, Member, Value::Member => 1),
            Some(Key::Name(_)) => put!(names, Name, Value::Name(value) => service_name(value)),
            None => {}
        }
    }

    fn delete(&self, keys: &[&Key], refused: &mut Refused<Bpf>) {
        macro_rules! delete {
            ($map:ident, $key:ident) => {{
                let keys: Vec<_> = keys.iter().filter_map(|k| if let Key::$key(key) = k { Some(*key) } else { None }).collect();
                remove(&self.$map, &keys, |key| Key::$key(key), refused);
            }};
        }
        match keys.first() {
            Some(Key::Frontend(_)) => delete!(frontends, Frontend),
            Some(Key::Slot(_)) => delete!(slots, Slot),
            Some(Key::Member(_)) => delete!(members, Member),
            Some(Key::Name(_)) => delete!(names, Name),
            None => {}
        }
    }
}

/// Steps of one kind go into one call.
fn kind(step: &Step<Key, Value>) -> (bool, std::mem::Discriminant<Key>) {
    (matches!(step, Step::Delete(..)), std::mem::discriminant(step.key()))
}

fn run(steps: &[Step<Key, Value>]) -> Run<'_> {
    if matches!(steps.first(), Some(Step::Delete(..))) {
        return Run::Delete(steps.iter().map(Step::key).collect());
    }
    Run::Put(
        steps.iter().filter_map(|step| if let Step::Add(k, v) | Step::Replace(k, v, _) = step { Some((k, v)) } else { None }).collect(),
    )
}

pub(super) fn open<K: Plain, V: Plain>(dir: &Path, name: &str) -> anyhow::Result<Map<K, V>> {
    let path = dir.join(name);
    Map::open(&path).with_context(|| format!("{}: the map cannot be opened; `proxy-agent cleanup` removes what is broken", path.display()))
}

fn entries<K: Plain, V: Plain>(map: &Map<K, V>, name: &str) -> anyhow::Result<Vec<(K, V)>> {
    map.entries().with_context(|| format!("map {name}: cannot be read"))
}

/// Writes all entries that the kernel takes; after one that it refuses it goes on with the next.
fn update<K: Plain, V: Plain>(map: &Map<K, V>, keys: &[K], values: &[V], name: impl Fn(K) -> Key, refused: &mut Refused<Bpf>) {
    let mut from = 0;
    while from < keys.len() {
        let batch = map.update(&keys[from..], &values[from..]);
        from += batch.done;
        if let Some(error) = batch.error {
            let why = match error.raw_os_error() {
                Some(libc::E2BIG) => format!("the map is full: it takes {} entries", map.capacity),
                _ => error.to_string(),
            };
            refused.insert(name(keys[from]), why);
            from += 1;
        }
    }
}

/// Deletes all entries; one that is gone already is no error.
fn remove<K: Plain, V: Plain>(map: &Map<K, V>, keys: &[K], name: impl Fn(K) -> Key, refused: &mut Refused<Bpf>) {
    let mut from = 0;
    while from < keys.len() {
        let batch = map.delete(&keys[from..]);
        from += batch.done;
        if let Some(error) = batch.error {
            match error.raw_os_error() {
                Some(libc::ENOENT) => warn!(key = %name(keys[from]), "was gone already: someone else edits the maps"),
                _ => drop(refused.insert(name(keys[from]), error.to_string())),
            }
            from += 1;
        }
    }
}

/// A label longer than the ABI allows does not come out of input conversion; it would be cut here.
fn service_name(label: &str) -> abi::ServiceName {
    let mut name = abi::ServiceName::ZERO;
    let bytes = &label.as_bytes()[..label.len().min(abi::NAME_BYTES)];
    name.len = bytes.len() as u8;
    name.text[..bytes.len()].copy_from_slice(bytes);
    name
}
