//! Reads the slots of many Services. A dump of a set takes time with the square of its size, because the kernel walks the set
//! from its beginning for every 32 KiB (nft_rhash_walk in net/netfilter/nft_set_hash.c): 20 s for 500,000 slots. But which
//! slots there must be follows from `services`, and asking for them by name is linear.

use proxy_core::ledger::Objects;
use proxy_core::lower::nft::{Key, Value};

use super::element;
use super::layout::{Layout, SLOTS, TABLE};
use super::observe::{elements_of, set_count};
use super::socket::Socket;
use super::wire::Batch;

/// From how many slots on asking is faster than a dump.
pub(super) const MANY: usize = 60_000;
/// How many elements are asked for at once: their answers fit the socket's buffer.
const AT_ONCE: usize = 512;

/// The slots of `services`, and those above that linger. None: the set holds something else, which only a dump shows.
pub(super) fn slots(layout: &Layout, socket: &mut Socket, services: &Objects<Key, Value>) -> anyhow::Result<Option<Objects<Key, Value>>> {
    let counts = || {
        services.iter().filter_map(|(key, value)| match (key, value) {
            (Key::Service(frontend), Value::Service(count, _)) => Some((*frontend, u32::from(*count))),
            _ => None,
        })
    };
    let used: Vec<Key> = counts().flat_map(|(frontend, count)| (0..count).map(move |slot| Key::Slot(frontend, slot))).collect();
    let mut found = Vec::with_capacity(used.len());
    for keys in used.chunks(AT_ONCE) {
        let before = found.len();
        ask(layout, socket, keys, false, &mut found)?;
        if found.len() - before != keys.len() {
            return Ok(None);
        }
    }
    let count = set_count(layout, socket, SLOTS)?;
    let mut above: Vec<Key> = counts().map(|(frontend, count)| Key::Slot(frontend, count)).collect();
    while count.is_none_or(|count| found.len() < count) && !above.is_empty() {
        let before = found.len();
        for keys in above.chunks(AT_ONCE) {
            ask(layout, socket, keys, true, &mut found)?;
        }
        above = found[before..].iter().filter_map(|(key, _)| next_slot(key)).collect();
    }
    Ok(count.is_none_or(|count| found.len() == count).then(|| found.into_iter().collect()))
}

/// Asks for elements: in one message, which the kernel breaks off at the first that does not exist, or `each` in its own.
fn ask(layout: &Layout, socket: &mut Socket, keys: &[Key], each: bool, found: &mut Vec<(Key, Value)>) -> anyhow::Result<()> {
    let first = socket.take_seq(AT_ONCE as u32);
    let mut requests = Batch::requests(layout.protocol(), first);
    for keys in keys.chunks(if each { 1 } else { AT_ONCE }) {
        let write = |out: &mut Vec<u8>, i: usize| element::write_key(out, &keys[i]);
        requests.elements((libc::NFT_MSG_GETSETELEM, 0), (TABLE, SLOTS), 0..keys.len(), write, |_, _| {});
    }
    let last = requests.next().saturating_sub(1);
    socket.exchange(&requests.unended(), first..=last, |message| {
        let known = elements_of(message).filter_map(|attributes| element::read(layout.family, SLOTS, attributes));
        found.extend(known);
    })
}

fn next_slot(key: &Key) -> Option<Key> {
    match key {
        Key::Slot(frontend, slot) => Some(Key::Slot(*frontend, slot.checked_add(1)?)),
        _ => None,
    }
}
