//! Reads what the rules have counted.

use std::sync::Arc;

use anyhow::{Context, bail};
use nix::errno::Errno;
use proxy_core::lower::nft::Key;
use proxy_core::model::{Family, Frontend};

use super::layout::TABLE;
use super::observe::elements_of;
use super::sets::{CONNECTIONS, COUNTING, of_kind};
use super::wire::{Batch, Message, nest, nfta, text};
use super::{Monitor, element, name, protocol};
use crate::dataplane::Meter;
use crate::netfilter::socket::{Failure, Outcome, Socket, Subsystem};

/// So many elements are deleted in one batch, whose messages fit the socket's buffer.
const AT_ONCE: usize = 1024;

/// What the table of one family counts, in the network namespace in which this was opened.
pub struct NftMeter {
    family: Family,
    socket: Socket,
    monitor: Arc<Monitor>,
}

impl NftMeter {
    /// Nothing is read yet, and the table need not be there. The monitor does not take what this deletes for somebody else's change.
    ///
    /// # Errors
    ///
    /// There is no netlink socket.
    pub fn open(family: Family, monitor: &Arc<Monitor>) -> anyhow::Result<Self> {
        let socket = Socket::open(Subsystem::Tables)?;
        monitor.spare(socket.port()?);
        Ok(Self { family, socket, monitor: Arc::clone(monitor) })
    }

    fn set(&mut self, set: &str, found: &mut Vec<(Frontend, u64)>) -> anyhow::Result<()> {
        let ours = |out: &mut Vec<u8>| {
            text(out, nfta::LIST_TABLE, TABLE);
            text(out, nfta::LIST_SET, set);
        };
        let family = self.family;
        // A commit meanwhile, or the growth of the kernel's hash table, may leave some out: their counts come with the next reading.
        let take = |message: &Message<'_>| found.extend(elements_of(message).filter_map(|element| element::counted(family, set, element)));
        self.socket.dump_once(libc::NFT_MSG_GETSETELEM, protocol(family), ours, take).map(drop)
    }

    /// Deletes those that are there.
    fn delete(&mut self, mut frontends: Vec<Frontend>) -> anyhow::Result<()> {
        while !frontends.is_empty() {
            let first = self.socket.take_seq(AT_ONCE as u32 + 2);
            let mut batch = Batch::begin(protocol(self.family), first);
            for frontend in &frontends {
                batch.message(libc::NFT_MSG_DELSETELEM, 0, |out| {
                    text(out, nfta::LIST_TABLE, TABLE);
                    text(out, nfta::LIST_SET, &of_kind(CONNECTIONS, frontend.is_node_port()));
                    nest(out, nfta::LIST_ELEMENTS, |out| element::write(out, &Key::Service(*frontend), None));
                });
            }
            let count = batch.len();
            let failures = match self.socket.transact(&batch.end(), first, count)? {
                Outcome::Done => return Ok(()),
                Outcome::Refused(failures) => failures,
                Outcome::TooLong => bail!("no room to ask: raise net.core.wmem_max"),
            };
            let gone = |index: usize| failures.iter().any(|failure| failure.seq.checked_sub(first + 1) == Some(index as u32));
            match failures.iter().find(|failure| failure.errno != Errno::ENOENT) {
                Some(failure) => bail!("{}", failure.reason()),
                None => {
                    let before = frontends.len();
                    frontends = frontends.into_iter().enumerate().filter(|(i, _)| !gone(*i)).map(|(_, frontend)| frontend).collect();
                    if frontends.len() == before {
                        bail!("{}", failures.iter().map(Failure::reason).collect::<Vec<_>>().join("; "));
                    }
                }
            }
        }
        Ok(())
    }
}

impl Meter for NftMeter {
    fn read(&mut self) -> anyhow::Result<Vec<(Frontend, u64)>> {
        let mut found = Vec::new();
        for set in &COUNTING {
            self.set(set.name, &mut found).with_context(|| format!("set {} of the table {}", set.name, name(self.family)))?;
        }
        Ok(found)
    }

    fn forget(&mut self, frontends: &[Frontend]) -> anyhow::Result<()> {
        let monitor = Arc::clone(&self.monitor);
        let _quiet = monitor.quiet();
        let mut chunks = frontends.chunks(AT_ONCE);
        chunks.try_for_each(|chunk| self.delete(chunk.to_vec())).with_context(|| format!("counts in the table {}", name(self.family)))
    }
}
