//! Reads large sets. A dump of a set takes time with the square of its size, because the kernel walks the set from its beginning
//! for every 32 KiB (nft_rhash_walk in net/netfilter/nft_set_hash.c): 20 s for 500,000 slots. But which slots there must be follows
//! from the classes of frontends, which endpoints from the slots, and asking for them by name is linear.

use std::collections::BTreeSet;

use proxy_core::ledger::Objects;
use proxy_core::lower::nft::{Class, Key, LOCAL_SLOTS, Pick, Target, Value};
use proxy_core::model::{Frontend, Protocol};
use proxy_core::route::Pool;

use super::element;
use super::layout::{Layout, TABLE};
use super::observe::{elements_of, set_count};
use super::wire::Batch;
use crate::netfilter::socket::Socket;

/// From how many elements on asking is faster than a dump.
pub(super) const MANY: usize = 60_000;
/// How many elements are asked for at once: their answers fit the socket's buffer.
const AT_ONCE: usize = 512;

/// The elements of a large set as far as they follow from `objects`, and slots that linger above those. None: there are few, or
/// the set holds something else, which only a dump shows.
pub(super) fn elements(
    layout: &Layout,
    socket: &mut Socket,
    set: &str,
    objects: &Objects<Key, Value>,
) -> anyhow::Result<Option<Objects<Key, Value>>> {
    let mut asker = Asker { layout, socket, set, found: Vec::new() };
    if set == "endpoints" {
        let keys = endpoints(objects);
        if keys.len() < MANY {
            return Ok(None);
        }
        asker.each(&keys)?;
        return asker.finish();
    }
    let counts = slot_counts(set, objects);
    let used: Vec<Key> = counts.iter().flat_map(|(frontend, slots)| slots.clone().map(|slot| Key::Slot(*frontend, slot))).collect();
    if used.len() < MANY {
        return Ok(None);
    }
    asker.each(&used)?;
    if asker.found.len() < used.len() {
        return Ok(None);
    }
    let mut above: Vec<Key> = counts.into_iter().map(|(frontend, slots)| Key::Slot(frontend, slots.end)).collect();
    while !asker.is_whole()? && !above.is_empty() {
        let before = asker.found.len();
        for keys in above.chunks(AT_ONCE) {
            asker.ask(keys, 1)?;
        }
        above = asker.found[before..].iter().filter_map(|(key, _)| next_slot(key)).collect();
    }
    asker.finish()
}

/// The slots in use of each frontend that has any in a set, of both pools.
fn slot_counts(set: &str, objects: &Objects<Key, Value>) -> Vec<(Frontend, std::ops::Range<u32>)> {
    let slots = |frontend: &Frontend, target: &Target| match target.pick {
        _ if Key::Slot(*frontend, 0).set() != Some(set) => None,
        Pick::Even(count) => {
            let first = if target.pool == Pool::Local { LOCAL_SLOTS } else { 0 };
            Some((*frontend, first..first + u32::from(count)))
        }
        Pick::Sticky(_) => None,
    };
    let of = |(key, value): (&Key, &Value)| match (key, value) {
        (Key::Service(frontend), Value::Service(Class::Target(target), _)) => slots(frontend, target),
        (Key::BySource(frontend, _), Value::Target(Some(target))) => slots(frontend, target),
        _ => None,
    };
    objects.iter().filter_map(of).collect()
}

/// The endpoints that there may be.
fn endpoints(objects: &Objects<Key, Value>) -> Vec<Key> {
    let backends = objects.iter().filter_map(|(key, value)| match (key, value) {
        (Key::Slot(frontend, _), Value::Backend(backend)) => (frontend.protocol == Protocol::Tcp).then_some(*backend),
        (Key::StickEndpoint(_), Value::Backend(backend)) => Some(*backend),
        _ => None,
    });
    let backends: BTreeSet<_> = backends.collect();
    backends.into_iter().map(|backend| Key::Endpoint(backend, Protocol::Tcp)).collect()
}

fn next_slot(key: &Key) -> Option<Key> {
    match key {
        Key::Slot(frontend, slot) => Some(Key::Slot(*frontend, slot.checked_add(1)?)),
        _ => None,
    }
}

/// Asks for elements of a set.
struct Asker<'a> {
    layout: &'a Layout,
    socket: &'a mut Socket,
    set: &'a str,
    found: Vec<(Key, Value)>,
}

impl Asker<'_> {
    /// Asks for elements most of which are there.
    fn each(&mut self, keys: &[Key]) -> anyhow::Result<()> {
        for keys in keys.chunks(AT_ONCE) {
            let before = self.found.len();
            self.ask(keys, AT_ONCE)?;
            if self.found.len() - before < keys.len() {
                self.found.truncate(before);
                self.ask(keys, 1)?;
            }
        }
        Ok(())
    }

    /// Asks for at most [`AT_ONCE`] elements, so many in one message, which the kernel breaks off at the first that does not exist.
    fn ask(&mut self, keys: &[Key], in_one: usize) -> anyhow::Result<()> {
        let first = self.socket.take_seq(AT_ONCE as u32);
        let mut requests = Batch::requests(self.layout.protocol(), first);
        for keys in keys.chunks(in_one) {
            let write = |out: &mut Vec<u8>, i: usize| element::write(out, &keys[i], None);
            requests.elements((libc::NFT_MSG_GETSETELEM, 0), (TABLE, self.set), 0..keys.len(), write, |_, _| {});
        }
        let last = requests.next().saturating_sub(1);
        let (family, set, found) = (self.layout.nft.family, self.set, &mut self.found);
        self.socket.exchange(&requests.unended(), first..=last, |message| {
            found.extend(elements_of(message).filter_map(|attributes| element::read(family, set, attributes)));
        })
    }

    /// Whether as many were found as the kernel says there are, if it does.
    fn is_whole(&mut self) -> anyhow::Result<bool> {
        let count = set_count(self.layout, self.socket, self.set)?;
        Ok(count.is_some_and(|count| count == self.found.len()))
    }

    /// What was found, if that is all.
    fn finish(self) -> anyhow::Result<Option<Objects<Key, Value>>> {
        let count = set_count(self.layout, self.socket, self.set)?;
        Ok(count.is_none_or(|count| count == self.found.len()).then(|| self.found.into_iter().collect()))
    }
}
