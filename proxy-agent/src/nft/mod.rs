//! The nftables dataplane: one table per family, `ip proxy-agent` and `ip6 proxy-agent`, written and read over netlink without
//! `nft`. The kernel's side is net/netfilter/nf_tables_api.c.
//!
//! A commit is one atomic batch: packets meet the rules before it or those after it. Only where the socket's buffer is too
//! small for that (in a user namespace of an older kernel) it is several, in the order of the steps, every prefix of which is
//! safe.

mod by_key;
mod chains;
mod class;
mod commit;
mod datatype;
mod element;
mod expr;
mod flaw;
mod hold;
pub mod kube_proxy;
mod layout;
mod localnet;
mod meter;
mod monitor;
mod observe;
mod rules;
mod sets;
mod sys;
#[cfg(test)]
mod tests;
mod wire;

use std::sync::Arc;

use anyhow::{Context, bail};
use nix::errno::Errno;
use proxy_core::lower::nft::Nft;
use proxy_core::lower::{ObjectsOf, StepOf};
use proxy_core::model::{Family, Frontend};
use proxy_core::settings::Settings;

use crate::dataplane::{Dataplane, DisturbanceOf, Refused};
use crate::netfilter::socket::{Failure, Outcome, Socket, Subsystem};
use expr::Field;
use layout::{Layout, TABLE};
pub use meter::NftMeter;
pub use monitor::Monitor;
use wire::{Batch, nfta, text};

/// The table of one family in the network namespace in which it was opened.
pub struct NftTable {
    layout: Layout,
    socket: Socket,
    monitor: Option<Arc<Monitor>>,
    /// What keeps the kernel translating when somebody flushes everything.
    hold: Option<Socket>,
}

impl NftTable {
    /// Finds out, without changing anything, whether this kernel has what the table needs. An error says what to do.
    pub fn open(nft: Nft) -> anyhow::Result<Self> {
        let mut failure = None;
        for scratch in [Field::Secmark, Field::Priority] {
            match Self::open_with(Layout::new(nft.clone(), scratch))? {
                Ok(table) => return Ok(table),
                // NFT_META_SECMARK without CONFIG_NETWORK_SECMARK gives EOPNOTSUPP, as does much else: the second try tells.
                Err(reason) => {
                    tracing::warn!(family = %nft.family, reason = reason.reason(), "the kernel does not take rules with {scratch}");
                    failure = Some(reason);
                }
            }
        }
        let reason = failure.map_or_else(String::new, |failure: Failure| failure.reason());
        bail!("nf_tables ({}) refuses the table that Services need: {reason}", nft.family)
    }

    /// The same table, of which the monitor tells what others change, and whose connections do not suffer from it.
    pub fn watched(mut self, monitor: &Arc<Monitor>) -> anyhow::Result<Self> {
        monitor.spare(self.socket.port()?);
        self.monitor = Some(Arc::clone(monitor));
        let family = self.layout.nft.family;
        match hold::open(&self.layout) {
            Ok(hold) => self.hold = Some(hold),
            Err(reason) => tracing::warn!(%family, "connections may be reset when somebody flushes all tables: {reason:#}"),
        }
        Ok(self)
    }

    fn open_with(layout: Layout) -> anyhow::Result<Result<Self, Failure>> {
        let mut table = Self { layout, socket: Socket::open(Subsystem::Tables)?, monitor: None, hold: None };
        let first = table.socket.take_seq(1024);
        let trial = table.layout.trial(first);
        let count = trial.len();
        Ok(match table.socket.transact(&trial.unended(), first, count).context("nf_tables cannot be tried")? {
            Outcome::Done => Ok(table),
            Outcome::TooLong => bail!("the netlink socket takes no batch at all: raise net.core.wmem_max"),
            Outcome::Refused(failures) => match failures.into_iter().next() {
                Some(failure) => Err(failure),
                None => Ok(table),
            },
        })
    }

    /// The table as it is: what was asked for, as far as this kernel has it.
    pub fn lowering(&self) -> Nft {
        self.layout.nft.clone()
    }
}

impl Dataplane for NftTable {
    type L = Nft;

    fn observe(&mut self) -> anyhow::Result<ObjectsOf<Nft>> {
        observe::observe(&self.layout, &mut self.socket).with_context(|| format!("cannot read the table {}", name(self.layout.nft.family)))
    }

    fn commit(&mut self, steps: &[StepOf<Nft>]) -> anyhow::Result<Refused<Nft>> {
        let write = |socket: &mut Socket| commit::commit(&self.layout, socket, steps);
        let refused = match &self.monitor {
            Some(monitor) if steps.len() >= monitor::MANY => monitor.away(&mut self.socket, write),
            _ => write(&mut self.socket),
        };
        refused.with_context(|| format!("cannot write the table {}", name(self.layout.nft.family)))
    }

    fn filled(&mut self) -> anyhow::Result<()> {
        if self.layout.nft.loopback {
            localnet::open();
        }
        Ok(())
    }

    fn disturbance(&mut self) -> Option<DisturbanceOf<Nft>> {
        self.monitor.as_ref()?.take(self.layout.nft.family)
    }

    fn remove(&mut self) -> anyhow::Result<()> {
        delete(self.layout.nft.family, &mut self.socket)
    }
}

/// Deletes the table of a family, whether or not this kernel could load it. That there is none is no error.
pub fn remove(family: Family) -> anyhow::Result<()> {
    delete(family, &mut Socket::open(Subsystem::Tables)?)
}

/// Reads what the table of a family holds, whatever the configuration that it was made for.
pub fn read(family: Family) -> anyhow::Result<ObjectsOf<Nft>> {
    observe::read(&any(family), &mut Socket::open(Subsystem::Tables)?).with_context(|| format!("cannot read the table {}", name(family)))
}

/// The frontends that the table of a family leads to backends, whatever the configuration that it was made for.
pub fn frontends(family: Family) -> anyhow::Result<Vec<Frontend>> {
    let found = observe::frontends(&any(family), &mut Socket::open(Subsystem::Tables)?);
    found.with_context(|| format!("cannot read the table {}", name(family)))
}

/// A layout for what depends on the family alone.
fn any(family: Family) -> Layout {
    Layout::new(Nft::new(family, &Settings::default()), Field::Priority)
}

fn delete(family: Family, socket: &mut Socket) -> anyhow::Result<()> {
    let layout = any(family);
    if observe::is_open_to_loopback(&layout, socket)? {
        localnet::close();
    }
    let first = socket.take_seq(1);
    let mut batch = Batch::begin(layout.protocol(), first);
    batch.message(libc::NFT_MSG_DELTABLE, 0, |out| text(out, nfta::TABLE_NAME, TABLE));
    let reason = match socket.transact(&batch.end(), first, 1)? {
        Outcome::Done => return Ok(()),
        Outcome::Refused(failures) if failures.iter().all(|f| f.errno == Errno::ENOENT) => return Ok(()),
        Outcome::Refused(failures) => failures.iter().map(Failure::reason).collect::<Vec<_>>().join("; "),
        Outcome::TooLong => "no room to ask".to_owned(),
    };
    bail!("cannot delete the table {}: {reason}", name(family))
}

/// As `nft` writes it.
fn name(family: Family) -> String {
    format!("{} {TABLE}", word(family))
}

/// As `nft` writes it.
fn word(family: Family) -> &'static str {
    if family == Family::V4 { "ip" } else { "ip6" }
}

/// NFPROTO_IPV4 or NFPROTO_IPV6.
fn protocol(family: Family) -> u8 {
    match family {
        Family::V4 => libc::NFPROTO_IPV4 as u8,
        Family::V6 => libc::NFPROTO_IPV6 as u8,
    }
}
