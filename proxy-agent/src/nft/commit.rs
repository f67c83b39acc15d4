//! Steps to batches, and the kernel's refusals back to steps.

use std::ops::Range;

use anyhow::bail;
use nix::errno::Errno;
use proxy_core::ledger::Step;
use proxy_core::lower::StepOf;
use proxy_core::lower::nft::{Class, Key, Nft, Pick, Value};
use proxy_core::route::{Masquerade, Pool};

use super::element;
use super::flaw::flaw;
use super::layout::{Layout, Link, TABLE};
use super::observe::table_exists;
use super::wire::{Batch, nfta, text};
use crate::dataplane::Refused;
use crate::netfilter::socket::{Failure, Outcome, Socket};

/// How often a batch is sent again without what was refused. The first time shows the messages that fail, the second the
/// elements, the third what follows from them.
const ROUNDS: u32 = 6;
/// How many steps are sent one by one to find those that are refused.
const ALONE: usize = 8192;

/// One step, and how it is carried out.
struct Work<'a> {
    step: &'a StepOf<Nft>,
    how: How,
    /// In a message of its own, because one with others was refused.
    alone: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Add,
    /// Delete and add.
    Replace,
    Delete,
    /// Add, for there was nothing to delete.
    Insert,
    /// Done, or refused.
    Skip,
}

/// What a message says: which work, and which half of it.
struct Said {
    work: Range<usize>,
    what: What,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Base,
    Chain,
    Deletes,
    Adds,
}

/// Carries the steps out. See [`Dataplane::commit`](crate::dataplane::Dataplane::commit).
pub(super) fn commit(layout: &Layout, socket: &mut Socket, steps: &[StepOf<Nft>]) -> anyhow::Result<Refused<Nft>> {
    let flaws = steps.iter().filter_map(|step| Some((*step.key(), flaw(&layout.nft, step)?.to_owned())));
    let mut refused = flaws.collect();
    carry_out(layout, socket, steps, &mut refused)?;
    Ok(refused)
}

/// Carries the steps out but for those of what is refused already.
pub(super) fn carry_out(layout: &Layout, socket: &mut Socket, steps: &[StepOf<Nft>], refused: &mut Refused<Nft>) -> anyhow::Result<()> {
    let anew = steps.iter().any(|step| *step.key() == Key::Base && !matches!(step, Step::Delete(..)));
    let how = |step: &StepOf<Nft>| match step {
        _ if refused.contains_key(step.key()) => How::Skip,
        Step::Add(..) => How::Add,
        // In a table that is made anew there is nothing to delete.
        Step::Replace(..) if anew => How::Add,
        Step::Delete(..) if anew => How::Skip,
        Step::Replace(..) => How::Replace,
        Step::Delete(..) => How::Delete,
    };
    let mut work: Vec<Work<'_>> = steps.iter().map(|step| Work { step, how: how(step), alone: false }).collect();
    // A range is refused while one that it overlaps is there: those that go, go first.
    work.sort_by_key(|work| !(work.how == How::Delete && is_range(work.step.key())));
    spread(&mut work, refused);
    // A packet that has begun before a commit reads the maps as they are after it, but runs through chains as they were before: a new
    // one is empty then, and the packet leaves untranslated. So chains are there before anything leads to them.
    // In a table that is made anew nothing leads anywhere yet.
    let is_later = |work: &Work<'_>| anew || !makes_chain(work);
    work.sort_by_key(is_later);
    let chains = work.iter().take_while(|work| !is_later(work)).count();
    let (chains, rest) = work.split_at_mut(chains);
    send(layout, socket, chains, refused)?;
    spread(rest, refused);
    send(layout, socket, rest, refused)
}

fn makes_chain(work: &Work<'_>) -> bool {
    matches!(work.step.key(), Key::Chain(_) | Key::StickPick(..)) && !matches!(work.how, How::Delete | How::Skip)
}

fn is_range(key: &Key) -> bool {
    matches!(key, Key::PodCidr(_) | Key::ServiceCidr(_) | Key::Source(..))
}

/// Sends the work in one batch, or in two halves where it does not fit.
fn send(layout: &Layout, socket: &mut Socket, work: &mut [Work<'_>], refused: &mut Refused<Nft>) -> anyhow::Result<()> {
    for _ in 0..ROUNDS {
        let first = socket.take_seq(u32::try_from(work.len()).unwrap_or(u32::MAX / 16).saturating_mul(8).saturating_add(64));
        let mut batch = Batch::begin(layout.protocol(), first);
        let said = say(layout, &mut batch, work);
        let count = batch.len();
        if count == 0 {
            return Ok(());
        }
        match socket.transact(&batch.end(), first, count)? {
            Outcome::Done => return Ok(()),
            Outcome::Refused(failures) => learn(layout, socket, work, &said, first, &failures, refused)?,
            Outcome::TooLong if work.len() < 2 => bail!("the netlink socket takes no batch of this size: raise net.core.wmem_max"),
            Outcome::TooLong => {
                let (before, after) = work.split_at_mut(work.len() / 2);
                send(layout, socket, before, refused)?;
                return send(layout, socket, after, refused);
            }
        }
    }
    bail!("the kernel refuses something else at every attempt")
}

/// Writes the messages. The message with the sequence number `first` + 1 + i is the one that `said[i]` tells of.
fn say(layout: &Layout, batch: &mut Batch, work: &[Work<'_>]) -> Vec<Said> {
    let mut said = Vec::new();
    let mut start = 0;
    while let Some(head) = work.get(start) {
        let mut end = start + 1;
        match head.step.key().set() {
            _ if head.how == How::Skip => {}
            Some(set) => {
                end = start + run(&work[start..]);
                elements(batch, set, work, start..end, &mut said);
            }
            None => {
                let before = batch.len();
                let what = chain_or_base(layout, batch, head);
                said.extend((before..batch.len()).map(|_| Said { work: start..end, what }));
            }
        }
        start = end;
    }
    said
}

/// Writes what is no element of a set.
fn chain_or_base(layout: &Layout, batch: &mut Batch, work: &Work<'_>) -> What {
    match (work.step.key(), work.how == How::Delete) {
        (Key::Chain(target), false) => layout.add_target(batch, *target),
        (Key::Chain(target), true) => layout.drop_chain(batch, &Link::to_target(*target)),
        (Key::StickPick(pool, count), false) => layout.add_stick_pick(batch, *pool, *count),
        (Key::StickPick(pool, count), true) => layout.drop_chain(batch, &[Link::to_stick_pick(*pool, *count)]),
        (Key::Damage(chain), _) => layout.repair(batch, chain),
        (_, is_deletion) => {
            match is_deletion {
                true => batch.message(libc::NFT_MSG_DELTABLE, 0, |out| text(out, nfta::TABLE_NAME, TABLE)),
                false => layout.replace(batch),
            }
            return What::Base;
        }
    }
    What::Chain
}

/// How many pieces of work at the beginning go into messages together.
fn run(work: &[Work<'_>]) -> usize {
    let Some(head) = work.first() else { return 0 };
    let set = head.step.key().set();
    let together = |w: &&Work<'_>| !head.alone && !w.alone && w.step.key().set() == set;
    1 + work[1..].iter().take_while(together).count()
}

/// Writes what is said of elements of one set: first all deletions, then all additions.
fn elements(batch: &mut Batch, set: &str, work: &[Work<'_>], range: Range<usize>, said: &mut Vec<Said>) {
    let deletes = range.clone().filter(|i| matches!(work[*i].how, How::Delete | How::Replace));
    let write = |out: &mut Vec<u8>, i: usize| element::write(out, work[i].step.key(), None);
    batch.elements((libc::NFT_MSG_DELSETELEM, 0), (TABLE, set), deletes, write, |first, last| {
        said.push(Said { work: first..last + 1, what: What::Deletes });
    });
    let adds = range.filter(|i| matches!(work[*i].how, How::Add | How::Replace | How::Insert));
    let write = |out: &mut Vec<u8>, i: usize| {
        if let Step::Add(key, value) | Step::Replace(key, value, _) = work[i].step {
            element::write(out, key, Some(value));
        }
    };
    // Exclusive: an element that is there already may have another comment, which the kernel does not look at.
    let kind = (libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
    batch.elements(kind, (TABLE, set), adds, write, |first, last| said.push(Said { work: first..last + 1, what: What::Adds }));
}

/// Takes out what was refused, so that the rest can be sent again.
fn learn(
    layout: &Layout,
    socket: &mut Socket,
    work: &mut [Work<'_>],
    said: &[Said],
    first: u32,
    failures: &[Failure],
    refused: &mut Refused<Nft>,
) -> anyhow::Result<()> {
    if failures.iter().any(|f| f.errno == Errno::ENOENT) && !work.iter().any(makes_table) && !table_exists(layout, socket)? {
        bail!("somebody else deleted the table");
    }
    let mut looked_at = 0;
    for failure in failures {
        let index = failure.seq.checked_sub(first + 1).map(|i| i as usize);
        let Some(Said { work: range, what }) = index.and_then(|i| said.get(i)) else { bail!("{}", failure.reason()) };
        if *what == What::Base {
            bail!("{}", failure.reason());
        }
        if *what != What::Chain && range.len() > 1 {
            looked_at += range.len();
            if looked_at > ALONE {
                bail!("too much is refused: {}", failure.reason());
            }
            work[range.clone()].iter_mut().for_each(|w| w.alone = true);
            continue;
        }
        let (one, how) = (range.start, work[range.start].how);
        match (what, failure.errno, how) {
            // It follows from an earlier failure of the same work.
            (_, _, How::Skip) => {}
            // Somebody else did it.
            (What::Chain | What::Deletes, Errno::ENOENT, How::Delete) if !matches!(work[one].step.key(), Key::Damage(_)) => {
                work[one].how = How::Skip
            }
            (What::Deletes, Errno::ENOENT, _) => work[one].how = How::Insert,
            // Somebody else's element, or one that was left when we last stopped. EBUSY: it has another value.
            (What::Adds, Errno::EEXIST | Errno::EBUSY, How::Add) => work[one].how = How::Replace,
            (_, Errno::ENOENT, _) => bail!("somebody else changed the table: {}", failure.reason()),
            _ => {
                work[one].how = How::Skip;
                refused.insert(*work[one].step.key(), failure.reason());
                if *what == What::Chain {
                    // Before the failures of what leads there are looked at.
                    spread(work, refused);
                }
            }
        }
    }
    spread(work, refused);
    Ok(())
}

/// Refuses what is of no use or does harm without something that was refused: Services are not sent to a chain that there is not.
fn spread(work: &mut [Work<'_>], refused: &mut Refused<Nft>) {
    let mut before = 0;
    // Nearly always there is nothing to look at. What is needed comes first, so that once through finds all but what is new.
    while refused.len() > before {
        before = refused.len();
        for w in work.iter_mut().filter(|w| w.how != How::Skip) {
            let (Step::Add(key, value) | Step::Replace(key, value, _)) = w.step else { continue };
            if let Some((gone, reason)) = needs(key, value).into_iter().flatten().find_map(|needed| refused.get_key_value(&needed)) {
                let reason = format!("{gone} was refused: {reason}");
                w.how = How::Skip;
                refused.insert(*key, reason);
            }
        }
    }
}

/// What an object leads to, or leads nowhere without.
fn needs(key: &Key, value: &Value) -> [Option<Key>; 3] {
    match (key, value) {
        (Key::Chain(target), _) if target.masquerade != Masquerade::Never => [Some(Key::Chain(target.unmasqueraded())), None, None],
        (Key::StickSize(_, pool), Value::Count(count)) => [Some(Key::StickPick(*pool, *count)), None, None],
        (Key::Identity(_), Value::Number(identity)) => {
            [Some(Key::StickSize(*identity, Pool::Cluster)), Some(Key::StickSize(*identity, Pool::Local)), None]
        }
        (_, Value::Target(Some(target))) => [Some(Key::Chain(*target)), None, None],
        (Key::Service(frontend), Value::Service(Class::Target(target), _)) => {
            let identity = matches!(target.pick, Pick::Sticky(_)).then_some(Key::Identity(*frontend));
            [Some(Key::Chain(*target)), identity, None]
        }
        (Key::Service(frontend), Value::Service(Class::BySource { .. }, _)) => {
            let by_source = [Pool::Cluster, Pool::Local].map(|pool| Some(Key::BySource(*frontend, pool)));
            [by_source[0], by_source[1], Some(Key::Identity(*frontend))]
        }
        _ => [None; 3],
    }
}

fn makes_table(work: &Work<'_>) -> bool {
    *work.step.key() == Key::Base && work.how != How::Skip
}
