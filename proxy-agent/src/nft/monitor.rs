//! Who else changes our tables: a socket in the group that nf_tables tells of every change, one for both families.
//!
//! The kernel writes a message for every element to those who listen, which makes a bulk load several times slower and overflows
//! the socket. While we load much, the socket is out of the group; the number of the generation tells afterwards whether somebody
//! else has committed meanwhile.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket, sockopt};
use proxy_core::lower::nft::{Key, Nft, Value};
use proxy_core::model::Family;
use tracing::{error, warn};

use super::chains;
use super::element;
use super::layout::TABLE;
use super::protocol;
use super::sets::COUNTING;
use super::sys;
use super::wire::{Attributes, Message, message_type, messages, nfta};
use crate::dataplane::{Alarm, Disturbance, DisturbanceOf, MOST_KNOWN};
use crate::netfilter::socket::Socket;
use crate::netfilter::sys::netlink_option;

/// So many steps are carried out while nobody listens.
pub(super) const MANY: usize = 64;
/// NFNLGRP_NFTABLES (linux/netfilter/nfnetlink.h)
const GROUP: libc::c_int = 7;
/// Room for what comes while the reader waits for its turn.
const RECEIVE_BUFFER: usize = 4 << 20;
/// The kernel gathers messages up to about a page.
const DATAGRAM: usize = 64 << 10;

/// The socket and what it has told.
pub struct Monitor {
    fd: OwnedFd,
    /// Held by who writes beside the tables' own sockets, and while these load much: what is written then would look like somebody
    /// else's.
    quiet: Mutex<()>,
    heard: Mutex<Heard>,
}

/// What the kernel has told.
#[derive(Default)]
struct Heard {
    /// Sockets whose changes are our own.
    own: BTreeSet<u32>,
    /// What a transaction of somebody else has changed, by the protocol of the table; its last message names him.
    open: BTreeMap<u8, Option<Elements>>,
    /// What has been changed in the table of a family since that was last asked.
    disturbances: [Option<DisturbanceOf<Nft>>; 2],
}

/// Elements and chains with what they were afterwards.
type Elements = BTreeMap<Key, Option<Value>>;

impl Monitor {
    /// Listens in this network namespace from now on, until nobody has the result any more. To be called in a runtime.
    pub fn start(alarm: &Alarm) -> anyhow::Result<Arc<Self>> {
        let monitor = Arc::new(Self::open()?);
        let fd = monitor.fd.try_clone().context("cannot duplicate the socket that listens to nf_tables")?;
        let fd = sys::readable(fd).context("cannot wait for nf_tables")?;
        let (weak, alarm) = (Arc::downgrade(&monitor), Arc::clone(alarm));
        tokio::spawn(async move {
            loop {
                let mut ready = match fd.readable().await {
                    Ok(ready) => ready,
                    Err(reason) => return error!(%reason, "what others change in nf_tables is not noticed any more"),
                };
                let Some(monitor) = weak.upgrade() else { return };
                // Before it is read: what comes in between makes it ready again.
                ready.clear_ready();
                if monitor.read() {
                    alarm.notify_one();
                }
            }
        });
        Ok(monitor)
    }

    /// Listens, but has to be [read](Self::read).
    pub(super) fn open() -> anyhow::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)
            .context("cannot open a socket that listens to nf_tables")?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("cannot bind the socket that listens to nf_tables")?;
        if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER);
        }
        let monitor = Self { fd, quiet: Mutex::default(), heard: Mutex::default() };
        monitor.listen(true).context("cannot listen to nf_tables: CAP_NET_ADMIN is needed")?;
        Ok(monitor)
    }

    /// Changes through this socket are our own.
    pub(super) fn spare(&self, port: u32) {
        self.heard().own.insert(port);
    }

    /// For a change through a socket that is [spared](Self::spare) and is not a table's own.
    pub(super) fn quiet(&self) -> MutexGuard<'_, ()> {
        self.quiet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What somebody else has changed in the table of this family since this was last asked.
    pub(super) fn take(&self, family: Family) -> Option<DisturbanceOf<Nft>> {
        // What has been told and not been read yet is of before whatever the caller does next.
        self.read();
        self.heard().disturbances[index(family)].take()
    }

    /// Does something that changes very much, without being told of it.
    pub(super) fn away<T>(&self, socket: &mut Socket, change: impl FnOnce(&mut Socket) -> T) -> T {
        let _quiet = self.quiet();
        let before = others(socket);
        if let Err(reason) = self.listen(false) {
            warn!(%reason, "loading takes longer: cannot leave the group that is told of it");
        }
        let result = change(socket);
        if let Err(reason) = self.listen(true) {
            error!(%reason, "what others change in nf_tables is not noticed any more");
        }
        let meanwhile = match (before, others(socket)) {
            (Ok(before), Ok(after)) => before != after,
            (Err(reason), _) | (_, Err(reason)) => {
                warn!(reason = format!("{reason:#}"), "cannot tell whether others have changed nf_tables");
                true
            }
        };
        if meanwhile {
            self.heard().anybody("somebody, in a table that is not known, while much was loaded");
        }
        result
    }

    /// Takes in what has come. Whether somebody else has changed anything that nobody has asked about yet.
    fn read(&self) -> bool {
        let mut buffer = vec![0; DATAGRAM];
        // Held throughout, so that two readers take messages in as they came.
        let mut heard = self.heard();
        loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(len) => messages(&buffer[..len]).for_each(|message| heard.take_in(&message)),
                Err(Errno::EINTR) => {}
                Err(Errno::ENOBUFS) => heard.anybody("somebody, with more changes than could be followed"),
                Err(Errno::EAGAIN) => break,
                Err(reason) => {
                    error!(%reason, "cannot read what others change in nf_tables");
                    break;
                }
            }
        }
        heard.disturbances.iter().any(Option::is_some)
    }

    fn listen(&self, on: bool) -> std::io::Result<()> {
        let option = if on { libc::NETLINK_ADD_MEMBERSHIP } else { libc::NETLINK_DROP_MEMBERSHIP };
        netlink_option(self.fd.as_fd(), option, GROUP)
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        // Nothing that holds it panics, and what it guards is whole at every moment.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn take_in(&mut self, message: &Message<'_>) {
        if message.kind >> 8 != libc::NFNL_SUBSYS_NFTABLES as u16 || self.own.contains(&message.port) {
            return;
        }
        let attributes = message.attributes();
        if message.kind == message_type(libc::NFT_MSG_NEWGEN) {
            let by = process(attributes);
            for (protocol, objects) in std::mem::take(&mut self.open) {
                self.add(protocol, by.clone(), objects);
            }
        } else if attributes.text(nfta::TABLE_NAME) == Some(TABLE) {
            // Tables, chains, rules, sets and elements all name their table in the same attribute.
            let open = self.open.entry(message.family()).or_insert_with(|| Some(Elements::new()));
            *open = match open.take().filter(|open| open.len() <= MOST_KNOWN).zip(elements(message)) {
                Some((mut open, elements)) => {
                    open.extend(elements);
                    Some(open)
                }
                None => None,
            };
        }
    }

    /// Somebody may have changed anything in our tables.
    fn anybody(&mut self, who: &str) {
        Family::ALL.into_iter().for_each(|family| self.add(protocol(family), who.to_owned(), None));
    }

    fn add(&mut self, of: u8, by: String, objects: Option<Elements>) {
        let Some(family) = Family::ALL.into_iter().find(|family| protocol(*family) == of) else { return };
        let later = Disturbance { by: vec![by], objects };
        match &mut self.disturbances[index(family)] {
            Some(disturbance) => disturbance.merge(later),
            none => *none = Some(later),
        }
    }
}

/// How many batches of others took effect in this network namespace since the same was asked before, up to a constant.
fn others(socket: &mut Socket) -> anyhow::Result<u32> {
    let id = |message: &Message<'_>| message.attributes().get(nfta::GEN_ID)?.first_chunk().map(|id| u32::from_be_bytes(*id));
    let generation = socket.get(libc::NFT_MSG_GETGEN, 0, |_| (), id)?.flatten().context("nf_tables has no generation")?;
    Ok(generation.wrapping_sub(socket.committed()))
}

/// What a message tells of, if all of that are objects of ours.
fn elements(message: &Message<'_>) -> Option<Elements> {
    if [libc::NFT_MSG_NEWRULE, libc::NFT_MSG_DELRULE].map(message_type).contains(&message.kind) {
        // Whatever the rule: the chain is not ours any more.
        let chain = message.attributes().text(nfta::RULE_CHAIN)?;
        return match chains::damage(chain) {
            Some(damage) => Some(Elements::from([(damage, Some(Value::Present))])),
            None => Key::of_chain(chain).map(|chain| Elements::from([(chain, None)])),
        };
    }
    let is_added = message.kind == message_type(libc::NFT_MSG_NEWSETELEM);
    if !is_added && message.kind != message_type(libc::NFT_MSG_DELSETELEM) {
        return None;
    }
    let family = Family::ALL.into_iter().find(|family| protocol(*family) == message.family())?;
    let attributes = message.attributes();
    let set = attributes.text(nfta::LIST_SET)?;
    if COUNTING.iter().any(|counting| counting.name == set) {
        // It counts on, and packets meet the same.
        return Some(Elements::new());
    }
    let read = |(_, element)| element::read(family, set, Attributes(element)).map(|(key, value)| (key, is_added.then_some(value)));
    attributes.nest(nfta::LIST_ELEMENTS).map(read).collect()
}

/// The process that the last message of a transaction names.
fn process(generation: Attributes<'_>) -> String {
    let pid = generation.get(nfta::GEN_PROC_PID).and_then(|pid| pid.first_chunk()).map(|pid| u32::from_be_bytes(*pid));
    match (generation.text(nfta::GEN_PROC_NAME), pid) {
        (Some(name), Some(pid)) => format!("{name} (pid {pid})"),
        _ => "somebody".to_owned(),
    }
}

fn index(family: Family) -> usize {
    usize::from(family == Family::V6)
}
