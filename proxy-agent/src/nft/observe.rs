//! Reads the table back.

use std::collections::BTreeMap;
use std::time::Duration;

use proxy_core::ledger::Objects;
use proxy_core::lower::ObjectsOf;
use proxy_core::lower::nft::{Key, LAYOUT, Nft, Value};

use super::by_key;
use super::element;
use super::layout::{CLASSES, Layout, REFUSED, SERVICES, SLOTS, TABLE, count_of, pick_name};
use super::rules;
use super::socket::Socket;
use super::wire::{Attributes, Message, find_userdata, message_type, nfta, text};

/// How often the elements are read again because something is missing, and how long to wait before the first time.
const ATTEMPTS: u32 = 6;
const PAUSE: Duration = Duration::from_millis(20);

/// Everything that the table holds, if its chains and sets are those that we would make. If not, only the [`Key::Base`] of
/// another version, so that the whole table is made anew.
pub(super) fn observe(layout: &Layout, socket: &mut Socket) -> anyhow::Result<ObjectsOf<Nft>> {
    let Some(comment) = table_comment(layout, socket)? else { return Ok(Objects::new()) };
    if comment != layout.comment() {
        let version = Layout::version_in(&comment).filter(|version| *version != LAYOUT).unwrap_or(0);
        tracing::info!(found = comment, "the table is of another layout and will be replaced");
        return Ok(Objects::from([(Key::Base, Value::Base(version))]));
    }
    let rules = rule_counts(layout, socket)?;
    let damaged = rules::expected().into_iter().find(|(chain, count)| rules.get(*chain) != Some(count));
    if let Some((chain, _)) = damaged {
        tracing::warn!(chain = %String::from_utf8_lossy(chain), "somebody else changed the chain: the table will be replaced");
        return Ok(Objects::from([(Key::Base, Value::Base(0))]));
    }
    let mut objects = Objects::from([(Key::Base, Value::Base(LAYOUT))]);
    objects.extend(picks(layout, socket, &rules)?.into_iter().map(|count| (Key::Pick(count), Value::Pick)));
    let mut services = elements(layout, socket, SERVICES)?;
    objects.append(&mut slots(layout, socket, &services)?);
    objects.append(&mut services);
    objects.append(&mut elements(layout, socket, REFUSED)?);
    Ok(objects)
}

/// Whether there is a table of our name.
pub(super) fn table_exists(layout: &Layout, socket: &mut Socket) -> anyhow::Result<bool> {
    Ok(table_comment(layout, socket)?.is_some())
}

/// The table's comment, empty if it has none.
fn table_comment(layout: &Layout, socket: &mut Socket) -> anyhow::Result<Option<String>> {
    let ours = |out: &mut Vec<u8>| text(out, nfta::TABLE_NAME, TABLE);
    socket.get(libc::NFT_MSG_GETTABLE, layout.protocol(), ours, |message| {
        let comment = message.attributes().get(nfta::TABLE_USERDATA).and_then(|list| find_userdata(list, 0));
        let text = comment.and_then(|comment| comment.split(|byte| *byte == 0).next()).unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    })
}

/// How many rules each chain of the table has.
fn rule_counts(layout: &Layout, socket: &mut Socket) -> anyhow::Result<BTreeMap<Vec<u8>, usize>> {
    let ours = |out: &mut Vec<u8>| text(out, nfta::RULE_TABLE, TABLE);
    socket.dump(libc::NFT_MSG_GETRULE, layout.protocol(), ours, |counts: &mut BTreeMap<Vec<u8>, usize>, message| {
        let rule = message.attributes();
        if rule.text(nfta::RULE_TABLE) == Some(TABLE)
            && let Some(chain) = rule.text(nfta::RULE_CHAIN)
        {
            *counts.entry(chain.as_bytes().to_vec()).or_default() += 1;
        }
    })
}

/// The chains that pick, as far as they are complete and reachable. Others are made anew when they are wanted.
fn picks(layout: &Layout, socket: &mut Socket, rules: &BTreeMap<Vec<u8>, usize>) -> anyhow::Result<Vec<u16>> {
    let found = read_set(layout, socket, CLASSES, |element| {
        let class = u32::from_ne_bytes(*element.nest(nfta::ELEM_KEY).get(nfta::DATA_VALUE)?.first_chunk()?);
        let verdict = element.nest(nfta::ELEM_DATA).nest(nfta::DATA_VERDICT);
        let code = i32::from_be_bytes(*verdict.get(nfta::VERDICT_CODE)?.first_chunk()?);
        let (count, chain) = (count_of(class)?, verdict.text(nfta::VERDICT_CHAIN)?);
        let complete = rules.get(chain.as_bytes()) == Some(&rules::PICK_RULES);
        (code == nfta::GOTO && chain == pick_name(count) && complete).then_some(count)
    })?;
    Ok(found.known)
}

fn slots(layout: &Layout, socket: &mut Socket, services: &Objects<Key, Value>) -> anyhow::Result<Objects<Key, Value>> {
    let count = |value: &Value| if let Value::Service(count, _) = value { usize::from(*count) } else { 0 };
    if services.values().map(count).sum::<usize>() >= by_key::MANY {
        match by_key::slots(layout, socket, services) {
            Ok(Some(slots)) => return Ok(slots),
            Ok(None) => tracing::info!("there are slots of no Service: reading all of them, which takes longer"),
            Err(error) => tracing::info!(error = format!("{error:#}"), "reading all slots, which takes longer"),
        }
    }
    elements(layout, socket, SLOTS)
}

/// The elements of a set that are ours. A dump that runs into the growth of the kernel's hash table leaves out elements and
/// repeats others without saying so (rhashtable_walk_next in net/netfilter/nft_set_hash.c): it is read again until it is whole.
/// What is missing all the same shows as [`EEXIST`](nix::errno::Errno::EEXIST) when it is written.
fn elements(layout: &Layout, socket: &mut Socket, set: &str) -> anyhow::Result<Objects<Key, Value>> {
    let mut pause = PAUSE;
    for attempt in 1.. {
        let found = read_set(layout, socket, set, |element| element::read(layout.family, set, element))?;
        let (read, all) = (found.known.len(), found.known.len() + found.unknown);
        let objects: Objects<Key, Value> = found.known.into_iter().collect();
        let whole = objects.len() == read && found.count.is_none_or(|count| count == all);
        if whole || attempt >= ATTEMPTS {
            if !whole {
                tracing::warn!(set, read = objects.len(), expected = ?found.count, "the set cannot be read as a whole");
            }
            if found.unknown > 0 {
                tracing::warn!(set, unknown = found.unknown, "elements that are not ours are ignored");
            }
            return Ok(objects);
        }
        std::thread::sleep(pause);
        pause *= 2;
    }
    Ok(Objects::new())
}

/// What was read of a set.
struct Found<T> {
    known: Vec<T>,
    /// How many elements are not ours.
    unknown: usize,
    /// How many elements the kernel says there are.
    count: Option<usize>,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self { known: Vec::new(), unknown: 0, count: None }
    }
}

/// Reads the elements of a set. `read` knows ours.
fn read_set<T>(layout: &Layout, socket: &mut Socket, set: &str, read: impl Fn(Attributes<'_>) -> Option<T>) -> anyhow::Result<Found<T>> {
    let ours = |out: &mut Vec<u8>| {
        text(out, nfta::LIST_TABLE, TABLE);
        text(out, nfta::LIST_SET, set);
    };
    let mut found = socket.dump(libc::NFT_MSG_GETSETELEM, layout.protocol(), ours, |found: &mut Found<T>, message: &Message<'_>| {
        for element in elements_of(message) {
            match read(element) {
                Some(read) => found.known.push(read),
                None => found.unknown += 1,
            }
        }
    })?;
    found.count = set_count(layout, socket, set)?;
    Ok(found)
}

/// The elements in a message.
pub(super) fn elements_of<'a>(message: &Message<'a>) -> impl Iterator<Item = Attributes<'a>> {
    let told = message.kind == message_type(libc::NFT_MSG_NEWSETELEM);
    let list = if told { message.attributes().nest(nfta::LIST_ELEMENTS) } else { Attributes(&[]) };
    list.map(|(_, element)| Attributes(element))
}

/// How many elements the kernel says a set has. Not before 6.16.
pub(super) fn set_count(layout: &Layout, socket: &mut Socket, set: &str) -> anyhow::Result<Option<usize>> {
    let ours = |out: &mut Vec<u8>| {
        text(out, nfta::SET_TABLE, TABLE);
        text(out, nfta::SET_NAME, set);
    };
    let count = socket.get(libc::NFT_MSG_GETSET, layout.protocol(), ours, |message| {
        message.attributes().get(nfta::SET_COUNT).and_then(|count| count.first_chunk()).map(|count| u32::from_be_bytes(*count) as usize)
    })?;
    Ok(count.flatten())
}
