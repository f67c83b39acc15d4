//! Translation outlives `nft flush ruleset`: the kernel translates the packets of connections that it knows as long as there is any
//! NAT chain, and knows them as long as a rule asks for it. A flush takes ours, and what comes in before they are back is not
//! translated: an answer on its way comes from an address that its receiver does not know, and is reset. So there is a table with one
//! chain more, which belongs to a socket (NFT_TABLE_F_OWNER, 5.12): a flush leaves it, and it goes with the socket.

use anyhow::bail;
use nftnl::{ChainType, Hook};

use super::chains::Chain;
use super::expr;
use super::layout::Layout;
use super::wire::{Batch, nfta, number, text};
use crate::netfilter::socket::{Failure, Outcome, Socket, Subsystem};

/// The table's name, in both families.
const TABLE: &str = "proxy-agent-hold";
/// NFT_TABLE_F_OWNER (linux/netfilter/nf_tables.h)
const OWNER: u32 = 2;
/// NF_IP_PRI_NAT_SRC (linux/netfilter_ipv4.h)
const SRCNAT: i32 = 100;

/// Makes the table of a family; it is there as long as the result.
pub(super) fn open(layout: &Layout) -> anyhow::Result<Socket> {
    let mut socket = Socket::open(Subsystem::Tables)?;
    let first = socket.take_seq(16);
    let mut batch = Batch::begin(layout.protocol(), first);
    batch.message(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE | libc::NLM_F_EXCL, |out| {
        text(out, nfta::TABLE_NAME, TABLE);
        number(out, nfta::TABLE_FLAGS, OWNER);
    });
    // At the hook where least comes by, since any will do; a rule that asks for the state of connections.
    let chain = Chain::at("keep-translating", ChainType::Nat, Hook::In, SRCNAT).rule([expr::is_translated(), expr::accept()]);
    chain.write(layout, &mut batch, TABLE);
    let count = batch.len();
    match socket.transact(&batch.end(), first, count)? {
        Outcome::Done => Ok(socket),
        Outcome::Refused(failures) => bail!("{}", failures.iter().map(Failure::reason).collect::<Vec<_>>().join("; ")),
        Outcome::TooLong => bail!("no room to ask"),
    }
}
