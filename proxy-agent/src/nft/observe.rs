//! Reads the table back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proxy_core::ledger::Objects;
use proxy_core::lower::ObjectsOf;
use proxy_core::lower::nft::{Class, Key, LAYOUT, Nft, Value};
use proxy_core::model::Frontend;

use super::by_key;
use super::layout::{Layout, Link, TABLE};
use super::rules::{self, Rule};
use super::sets::{BY_SOURCE_CLASSES, CLASSES, SETS, STICK_CLASSES, STICKY, is_interval, of_kind};
use super::wire::{Attributes, Message, find_userdata, message_type, nfta, text};
use super::{chains, class, element, localnet};
use crate::netfilter::socket::Socket;

/// How often the elements are read again because something is missing, and how long to wait before the first time.
const ATTEMPTS: u32 = 6;
const PAUSE: Duration = Duration::from_millis(20);
/// Sets that are as large as there are backends in all: read after those from which their keys follow.
const LARGE: [&str; 3] = ["slots", "node-slots", "endpoints"];

/// Everything that the table holds, if its chains and sets are those that we would make. If not, only the [`Key::Base`] of
/// another version, so that the whole table is made anew.
pub(super) fn observe(layout: &Layout, socket: &mut Socket) -> anyhow::Result<ObjectsOf<Nft>> {
    let Some(comment) = table_comment(layout, socket)? else { return Ok(Objects::new()) };
    if comment != layout.comment() {
        if Layout::is_open_to_loopback(&comment) && !layout.nft.loopback {
            localnet::close();
        }
        let version = Layout::in_comment(&comment).map(|(version, _)| version).filter(|version| *version != LAYOUT).unwrap_or(0);
        tracing::info!(found = comment, "the table is of another layout or configuration and will be replaced");
        return Ok(Objects::from([(Key::Base, Value::Base(version))]));
    }
    let shape = Shape::read(layout, socket)?;
    if let Some(chain) = shape.lost(layout) {
        tracing::warn!(chain, "somebody else took the chain away: the table will be replaced");
        return Ok(Objects::from([(Key::Base, Value::Base(0))]));
    }
    let mut objects = contents(layout, socket, &shape)?;
    objects.extend(shape.damaged(layout).map(|key| (key, Value::Present)));
    Ok(objects)
}

/// What the table holds, whatever the configuration it was made for; nothing if it is of another version.
pub(super) fn read(layout: &Layout, socket: &mut Socket) -> anyhow::Result<ObjectsOf<Nft>> {
    let Some((version, scratch)) = table_comment(layout, socket)?.and_then(|comment| Layout::in_comment(&comment)) else {
        return Ok(Objects::new());
    };
    if version != LAYOUT {
        return Ok(Objects::from([(Key::Base, Value::Base(version))]));
    }
    let layout = Layout::new(layout.nft.clone(), scratch);
    let shape = Shape::read(&layout, socket)?;
    contents(&layout, socket, &shape)
}

/// The frontends that lead to backends; none if the table is of another version.
pub(super) fn frontends(layout: &Layout, socket: &mut Socket) -> anyhow::Result<Vec<Frontend>> {
    let found = table_comment(layout, socket)?.and_then(|comment| Layout::in_comment(&comment));
    let Some((_, scratch)) = found.filter(|(version, _)| *version == LAYOUT) else { return Ok(Vec::new()) };
    let layout = Layout::new(layout.nft.clone(), scratch);
    let mut frontends = Vec::new();
    for set in [false, true].map(|is_node_port| of_kind("services", is_node_port)) {
        let keys = elements(&layout, socket, &set)?.into_keys();
        frontends.extend(keys.filter_map(|key| if let Key::Service(frontend) = key { Some(frontend) } else { None }));
    }
    Ok(frontends)
}

fn contents(layout: &Layout, socket: &mut Socket, shape: &Shape) -> anyhow::Result<ObjectsOf<Nft>> {
    let mut objects = Objects::from([(Key::Base, Value::Base(LAYOUT))]);
    objects.extend(shape.chains(layout).into_iter().map(|key| (key, Value::Present)));
    let sticky = if layout.nft.is_sticky { &STICKY[..] } else { &[] };
    let verdicts = [CLASSES, BY_SOURCE_CLASSES, STICK_CLASSES];
    for name in SETS.iter().chain(sticky).map(|set| set.name).filter(|name| !verdicts.contains(name) && !LARGE.contains(name)) {
        objects.append(&mut elements(layout, socket, name)?);
    }
    for name in LARGE {
        let mut found = match by_key::elements(layout, socket, name, &objects) {
            Ok(Some(found)) => found,
            Ok(None) => elements(layout, socket, name)?,
            Err(error) => {
                tracing::info!(error = format!("{error:#}"), set = name, "reading all of the set, which takes longer");
                elements(layout, socket, name)?
            }
        };
        objects.append(&mut found);
    }
    Ok(objects)
}

/// Whether there is a table of our name.
pub(super) fn table_exists(layout: &Layout, socket: &mut Socket) -> anyhow::Result<bool> {
    Ok(table_comment(layout, socket)?.is_some())
}

/// Whether there is a table that makes up for what lets others reach loopback addresses.
pub(super) fn is_open_to_loopback(layout: &Layout, socket: &mut Socket) -> anyhow::Result<bool> {
    Ok(table_comment(layout, socket)?.is_some_and(|comment| Layout::is_open_to_loopback(&comment)))
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

/// A chain that there is.
#[derive(Default)]
struct Found {
    /// Type, hook and priority.
    hook: Option<(String, u32, i32)>,
    policy: u32,
    rules: Vec<Rule>,
}

/// The chains, and what leads there.
struct Shape {
    chains: BTreeMap<String, Found>,
    links: BTreeSet<Link>,
}

impl Shape {
    fn read(layout: &Layout, socket: &mut Socket) -> anyhow::Result<Self> {
        let ours = |out: &mut Vec<u8>| text(out, nfta::CHAIN_TABLE, TABLE);
        let mut chains = socket.dump(libc::NFT_MSG_GETCHAIN, layout.protocol(), ours, |found: &mut BTreeMap<String, Found>, message| {
            let chain = message.attributes();
            if chain.text(nfta::CHAIN_TABLE) == Some(TABLE)
                && let Some(name) = chain.text(nfta::CHAIN_NAME)
            {
                found.insert(name.to_owned(), Found::read(chain));
            }
        })?;
        let ours = |out: &mut Vec<u8>| text(out, nfta::RULE_TABLE, TABLE);
        let rules = socket.dump(libc::NFT_MSG_GETRULE, layout.protocol(), ours, |found: &mut Vec<(String, Rule)>, message| {
            let rule = message.attributes();
            if rule.text(nfta::RULE_TABLE) == Some(TABLE)
                && let Some(chain) = rule.text(nfta::RULE_CHAIN)
            {
                found.push((chain.to_owned(), rules::read(message)));
            }
        })?;
        for (chain, rule) in rules {
            chains.entry(chain).or_default().rules.push(rule);
        }
        let mut links = BTreeSet::new();
        for map in [CLASSES, BY_SOURCE_CLASSES, STICK_CLASSES] {
            if map != STICK_CLASSES || layout.nft.is_sticky {
                links.extend(read_set(layout, socket, map, |element| link(map, element))?.known);
            }
        }
        Ok(Self { chains, links })
    }

    /// A chain that must always be there and is not, or is another: only with the whole table can it be made anew.
    fn lost(&self, layout: &Layout) -> Option<String> {
        let is_lost = |chain: &chains::Chain| match (chain.hook(), self.chains.get(&chain.name)) {
            (None, found) => found.is_none_or(|found| found.hook.is_some()),
            // What hangs on nothing is made anew by itself.
            (Some(_), None) => false,
            (Some((kind, hook, priority)), Some(found)) => {
                found.hook.as_ref().is_none_or(|(k, h, p)| (k.as_str(), *h, *p) != (kind, hook, priority))
            }
        };
        chains::base(layout).into_iter().find(is_lost).map(|chain| chain.name)
    }

    /// The chains that are always there and are not as we would make them, or not led to.
    fn damaged(&self, layout: &Layout) -> impl Iterator<Item = Key> {
        let links = Link::base();
        let is_linked = move |name: &str| links.iter().all(|link| link.chain != name || self.links.contains(link));
        let chains = chains::base(layout).into_iter();
        let damaged = chains.filter(move |chain| !(self.has(layout, chain) && is_linked(&chain.name)));
        damaged.filter_map(|chain| chains::damage(&chain.name))
    }

    /// The chains that are made when they are wanted, as far as they are complete and reachable. Others are made anew.
    fn chains(&self, layout: &Layout) -> Vec<Key> {
        let key = |link: &Link| match (link.map, class::of_number(link.class)?) {
            (CLASSES, Class::Target(target)) => {
                let linked = Link::to_target(target).iter().all(|link| self.links.contains(link));
                (linked && self.has(layout, &chains::target(layout, target))).then_some(Key::Chain(target))
            }
            (STICK_CLASSES, class) => {
                let (pool, count) = class::stick_pick_of(class)?;
                let linked = self.links.contains(&Link::to_stick_pick(pool, count));
                (linked && self.has(layout, &chains::stick_pick(pool, count))).then_some(Key::StickPick(pool, count))
            }
            _ => None,
        };
        self.links.iter().filter_map(key).collect()
    }

    fn has(&self, layout: &Layout, chain: &chains::Chain) -> bool {
        self.chains.get(&chain.name).is_some_and(|found| found.policy == libc::NF_ACCEPT as u32 && found.rules == chain.rules(layout))
    }
}

impl Found {
    fn read(chain: Attributes<'_>) -> Self {
        let number = |value: Option<&[u8]>| value.and_then(|value| value.first_chunk()).map(|bytes| u32::from_be_bytes(*bytes));
        let hook = chain.nest(nfta::CHAIN_HOOK);
        let kind = || chain.text(nfta::CHAIN_TYPE).unwrap_or_default().to_owned();
        let hook = number(hook.get(nfta::HOOK_NUMBER)).zip(number(hook.get(nfta::HOOK_PRIORITY)));
        let policy = number(chain.get(nfta::CHAIN_POLICY)).unwrap_or(libc::NF_ACCEPT as u32);
        Self { hook: hook.map(|(hook, priority)| (kind(), hook, priority as i32)), policy, rules: Vec::new() }
    }
}

/// Reads an element of a map from class to chain.
fn link(map: &'static str, element: Attributes<'_>) -> Option<Link> {
    let class = u32::from_ne_bytes(*element.nest(nfta::ELEM_KEY).get(nfta::DATA_VALUE)?.first_chunk()?);
    let verdict = element.nest(nfta::ELEM_DATA).nest(nfta::DATA_VERDICT);
    let code = i32::from_be_bytes(*verdict.get(nfta::VERDICT_CODE)?.first_chunk()?);
    let chain = verdict.text(nfta::VERDICT_CHAIN)?.to_owned();
    Some(Link { map, class, verdict: code, chain })
}

/// The elements of a set that are ours. A dump that runs into the growth of the kernel's hash table leaves out elements and
/// repeats others without saying so (rhashtable_walk_next in net/netfilter/nft_set_hash.c): it is read again until it is whole.
/// What is missing all the same shows as [`EEXIST`](nix::errno::Errno::EEXIST) when it is written.
fn elements(layout: &Layout, socket: &mut Socket, set: &str) -> anyhow::Result<Objects<Key, Value>> {
    let family = layout.nft.family;
    if is_interval(set) {
        // A tree, whose dumps are whole.
        let found = read_set(layout, socket, set, |element| element::bound(family, element))?;
        let (known, unknown) = element::ranges(set, found.known);
        ignored(set, unknown + found.unknown);
        return Ok(known.into_iter().collect());
    }
    let mut pause = PAUSE;
    for attempt in 1.. {
        let found = read_set(layout, socket, set, |element| element::read(family, set, element))?;
        let (read, all) = (found.known.len(), found.known.len() + found.unknown);
        let objects: Objects<Key, Value> = found.known.into_iter().collect();
        let whole = objects.len() == read && found.count.is_none_or(|count| count == all);
        if whole || attempt >= ATTEMPTS {
            if !whole {
                tracing::warn!(set, read = objects.len(), expected = ?found.count, "the set cannot be read as a whole");
            }
            ignored(set, found.unknown);
            return Ok(objects);
        }
        std::thread::sleep(pause);
        pause *= 2;
    }
    Ok(Objects::new())
}

fn ignored(set: &str, unknown: usize) {
    if unknown > 0 {
        tracing::warn!(set, unknown, "elements that are not ours are ignored");
    }
}

/// What was read of a set.
struct Elements<T> {
    known: Vec<T>,
    /// How many elements are not ours.
    unknown: usize,
    /// How many elements the kernel says there are.
    count: Option<usize>,
}

impl<T> Default for Elements<T> {
    fn default() -> Self {
        Self { known: Vec::new(), unknown: 0, count: None }
    }
}

/// Reads the elements of a set. `read` knows ours.
fn read_set<T>(layout: &Layout, socket: &mut Socket, set: &str, read: impl Fn(Attributes<'_>) -> Option<T>) -> anyhow::Result<Elements<T>> {
    let ours = |out: &mut Vec<u8>| {
        text(out, nfta::LIST_TABLE, TABLE);
        text(out, nfta::LIST_SET, set);
    };
    let mut found = socket.dump(libc::NFT_MSG_GETSETELEM, layout.protocol(), ours, |found: &mut Elements<T>, message: &Message<'_>| {
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
