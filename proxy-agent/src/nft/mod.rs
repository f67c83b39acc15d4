//! The nftables dataplane: one table per family, `ip proxy-agent` and `ip6 proxy-agent`, written and read over netlink without
//! `nft`. The kernel's side is net/netfilter/nf_tables_api.c.
//!
//! A commit is one atomic batch: packets meet the rules before it or those after it. Only where the socket's buffer is too
//! small for that (in a user namespace of an older kernel) it is several, in the order of the steps, every prefix of which is
//! safe.

mod commit;
mod element;
mod layout;
mod observe;
mod rules;
mod socket;
mod sys;
#[cfg(test)]
mod tests;
mod wire;

use anyhow::{Context, bail};
use nix::errno::Errno;
use proxy_core::lower::nft::Nft;
use proxy_core::lower::{ObjectsOf, StepOf};
use proxy_core::model::Family;

use crate::dataplane::{Dataplane, Refused};
use layout::{Layout, Scratch, TABLE};
use socket::{Failure, Outcome, Socket};
use wire::{Batch, nfta, text};

/// The table of one family in the network namespace in which it was opened.
pub struct NftTable {
    layout: Layout,
    socket: Socket,
}

impl NftTable {
    /// Finds out, without changing anything, whether this kernel has what the table needs. An error says what to do.
    pub fn open(family: Family) -> anyhow::Result<Self> {
        let mut failure = None;
        for scratch in [Scratch::Secmark, Scratch::Priority] {
            match Self::open_with(family, scratch)? {
                Ok(table) => return Ok(table),
                // NFT_META_SECMARK without CONFIG_NETWORK_SECMARK gives EOPNOTSUPP, as does much else: the second try tells.
                Err(reason) => failure = Some(reason),
            }
        }
        let reason = failure.map_or_else(String::new, |failure: Failure| failure.reason());
        bail!("nf_tables ({family}) refuses the table that Services need: {reason}")
    }

    /// The name of the packet's field that carries the class between two lookups.
    pub fn scratch(&self) -> String {
        self.layout.scratch.to_string()
    }

    fn open_with(family: Family, scratch: Scratch) -> anyhow::Result<Result<Self, Failure>> {
        let mut table = Self { layout: Layout { family, scratch }, socket: Socket::open()? };
        let first = table.socket.take_seq(1024);
        let trial = table.layout.trial(first);
        let count = trial.len();
        Ok(match table.socket.transact(&trial.trial(), first, count).context("nf_tables cannot be tried")? {
            Outcome::Done => Ok(table),
            Outcome::TooLong => bail!("the netlink socket takes no batch at all: raise net.core.wmem_max"),
            Outcome::Refused(failures) => match failures.into_iter().next() {
                Some(failure) => Err(failure),
                None => Ok(table),
            },
        })
    }
}

impl Dataplane for NftTable {
    type L = Nft;

    fn observe(&mut self) -> anyhow::Result<ObjectsOf<Nft>> {
        observe::observe(&self.layout, &mut self.socket).with_context(|| format!("cannot read the table {}", self.name()))
    }

    fn commit(&mut self, steps: &[StepOf<Nft>]) -> anyhow::Result<Refused<Nft>> {
        commit::commit(&self.layout, &mut self.socket, steps).with_context(|| format!("cannot write the table {}", self.name()))
    }

    fn remove(&mut self) -> anyhow::Result<()> {
        let first = self.socket.take_seq(1);
        let mut batch = Batch::begin(self.layout.protocol(), first);
        batch.message(libc::NFT_MSG_DELTABLE, 0, |out| text(out, nfta::TABLE_NAME, TABLE));
        let outcome = self.socket.transact(&batch.end(), first, 1)?;
        match outcome {
            Outcome::Done => Ok(()),
            Outcome::Refused(failures) if failures.iter().all(|f| f.errno == Errno::ENOENT) => Ok(()),
            Outcome::Refused(failures) => {
                let reasons: Vec<_> = failures.iter().map(Failure::reason).collect();
                bail!("cannot delete the table {}: {}", self.name(), reasons.join("; "))
            }
            Outcome::TooLong => bail!("cannot delete the table {}: no room to ask", self.name()),
        }
    }
}

impl NftTable {
    fn name(&self) -> String {
        let family = if self.layout.family == Family::V4 { "ip" } else { "ip6" };
        format!("{family} {TABLE}")
    }
}
