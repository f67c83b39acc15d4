//! What kube-proxy leaves in nf_tables when it ends: in nftables mode a table, in iptables and ipvs mode (over iptables-nft)
//! chains in the tables that iptables keeps for everybody.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::bail;
use nix::errno::Errno;
use proxy_core::model::Family;

use super::wire::{Attributes, Batch, attribute, nfta, text};
use super::{protocol, word};
use crate::netfilter::socket::{Failure, Outcome, Socket, Subsystem};

/// Its table in nftables mode, in each family.
const TABLE: &str = "kube-proxy";
/// Tables of iptables that it has chains in.
const SHARED: [&str; 3] = ["nat", "filter", "mangle"];
/// Its chains that chains of the kernel's hooks jump to; the last three are ipvs mode's.
const ENTRIES: [&str; 9] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-NODE-PORT",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];
/// Its other chains with a fixed name. KUBE-FIREWALL, KUBE-IPTABLES-HINT, KUBE-KUBELET-CANARY and KUBE-MARK-DROP are the kubelet's.
const OTHERS: [&str; 4] = [MARK, "KUBE-PROXY-CANARY", "KUBE-LOAD-BALANCER", "KUBE-SOURCE-RANGES-FIREWALL"];
/// What the names of its chains for a Service or an endpoint begin with.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "KUBE-XLB-"];
/// Sets a mark; what is marked is masqueraded in [`MASQUERADE`]. Container network plugins use the two (portmap's
/// externalSetMarkChain).
const MARK: &str = "KUBE-MARK-MASQ";
const MASQUERADE: &str = "KUBE-POSTROUTING";
/// So many chains are removed in one batch: a node with many Services has tens of thousands.
const AT_ONCE: usize = 1000;

/// Attributes (linux/netfilter/nf_tables.h).
mod attr {
    pub(super) const CHAIN_HOOK: u16 = 4;
    pub(super) const RULE_HANDLE: u16 = 3;
    pub(super) const RULE_EXPRESSIONS: u16 = 4;
    pub(super) const EXPR_NAME: u16 = 1;
    pub(super) const EXPR_DATA: u16 = 2;
    pub(super) const IMMEDIATE_DATA: u16 = 2;
}

/// What there is of one family.
#[derive(Debug, Default)]
pub struct Leftovers {
    /// The table of nftables mode.
    table: bool,
    /// Chains in tables of iptables.
    chains: BTreeSet<Chain>,
    /// Rules that lead there from the kernel's hooks, with the chain that they are in.
    entries: Vec<(Chain, Jump)>,
    /// Chains that stay because somebody else's rules use them, with whose.
    used: BTreeMap<Chain, Chain>,
}

/// A chain by its table and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Chain {
    table: String,
    name: String,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.table, self.name)
    }
}

/// A rule that goes to another chain of its table.
#[derive(Debug)]
struct Jump {
    handle: u64,
    to: Chain,
}

impl Leftovers {
    /// Whether there is anything to remove.
    pub fn is_empty(&self) -> bool {
        !self.table && self.chains.is_empty()
    }

    /// What there is, in words.
    pub fn describe(&self, family: Family) -> Vec<String> {
        let mut found = Vec::new();
        if self.table {
            found.push(format!("table {} {TABLE}", word(family)));
        }
        if !self.chains.is_empty() {
            let tables: BTreeSet<&str> = self.chains.iter().map(|chain| &*chain.table).collect();
            let tables = tables.into_iter().collect::<Vec<_>>().join(", ");
            found.push(format!("{} KUBE-* chains in iptables' {} tables {tables}", self.chains.len(), word(family)));
        }
        found
    }

    /// What stays because others use it, in words.
    pub fn in_use(&self) -> Vec<String> {
        self.used.iter().map(|(chain, by)| format!("{chain} (used by {by})")).collect()
    }
}

/// Finds what there is of a family in this network namespace. Nothing, where the kernel has no nf_tables.
pub fn find(family: Family) -> anyhow::Result<Leftovers> {
    find_by(family, &mut Socket::open(Subsystem::Tables)?)
}

fn find_by(family: Family, socket: &mut Socket) -> anyhow::Result<Leftovers> {
    let table = socket.get(libc::NFT_MSG_GETTABLE, protocol(family), |out| text(out, nfta::TABLE_NAME, TABLE), |_| ())?.is_some();
    let mut found = Leftovers { table, ..Leftovers::default() };
    let mut others = Vec::new();
    for (chain, hooked) in chains(family, socket)? {
        if is_kube_proxys(&chain.name) {
            found.chains.insert(chain);
        } else {
            others.push((chain, hooked));
        }
    }
    if found.chains.is_empty() {
        return Ok(found);
    }
    for (chain, hooked) in others {
        for jump in jumps(family, socket, &chain)? {
            if !hooked || !ENTRIES.contains(&&*jump.to.name) {
                found.keep(jump.to, &chain);
            } else if found.chains.contains(&jump.to) {
                found.entries.push((chain.clone(), jump));
            }
        }
    }
    // What those chains use in their turn.
    let mut open: Vec<(Chain, Chain)> = found.used.clone().into_iter().collect();
    while let Some((chain, by)) = open.pop() {
        for jump in jumps(family, socket, &chain)? {
            if found.keep(jump.to.clone(), &by) {
                open.push((jump.to, by.clone()));
            }
        }
    }
    let chains = &found.chains;
    found.entries.retain(|(_, jump)| chains.contains(&jump.to));
    Ok(found)
}

impl Leftovers {
    /// Lets a chain be. Whether it was to be removed.
    fn keep(&mut self, chain: Chain, by: &Chain) -> bool {
        if !self.chains.remove(&chain) {
            return false;
        }
        if chain.name == MARK {
            // A mark is of no use without what it is for.
            self.keep(Chain { table: chain.table.clone(), name: MASQUERADE.to_owned() }, by);
        }
        self.used.insert(chain, by.clone());
        true
    }
}

/// Removes what kube-proxy left of a family: first what leads packets there, all of it at once, then the chains. Returns what
/// there was.
pub fn remove(family: Family) -> anyhow::Result<Leftovers> {
    let mut socket = Socket::open(Subsystem::Tables)?;
    let found = find_by(family, &mut socket)?;
    transact(family, &mut socket, |batch| {
        for (chain, Jump { handle, .. }) in &found.entries {
            batch.message(libc::NFT_MSG_DELRULE, 0, |out| {
                of_chain(out, nfta::RULE_TABLE, nfta::RULE_CHAIN, chain);
                attribute(out, attr::RULE_HANDLE, &handle.to_be_bytes());
            });
        }
        if found.table {
            batch.message(libc::NFT_MSG_DELTABLE, 0, |out| text(out, nfta::TABLE_NAME, TABLE));
        }
    })?;
    let chains: Vec<&Chain> = found.chains.iter().collect();
    // Rules first: a chain that is jumped to cannot be deleted.
    for (kind, [of_table, name]) in
        [(libc::NFT_MSG_DELRULE, [nfta::RULE_TABLE, nfta::RULE_CHAIN]), (libc::NFT_MSG_DELCHAIN, [nfta::CHAIN_TABLE, nfta::CHAIN_NAME])]
    {
        for chains in chains.chunks(AT_ONCE) {
            transact(family, &mut socket, |batch| {
                chains.iter().for_each(|chain| batch.message(kind, 0, |out| of_chain(out, of_table, name, chain)));
            })?;
        }
    }
    Ok(found)
}

fn transact(family: Family, socket: &mut Socket, write: impl FnOnce(&mut Batch)) -> anyhow::Result<()> {
    let first = socket.take_seq(2 * AT_ONCE as u32);
    let mut batch = Batch::begin(protocol(family), first);
    write(&mut batch);
    let count = batch.len();
    if count == 0 {
        return Ok(());
    }
    let failures = match socket.transact(&batch.end(), first, count)? {
        Outcome::Done => return Ok(()),
        Outcome::Refused(failures) => failures,
        Outcome::TooLong => bail!("the netlink socket takes no batch of this size: raise net.core.wmem_max"),
    };
    let advice =
        if failures.iter().any(|f| matches!(f.errno, Errno::ENOENT | Errno::EBUSY)) { ": is kube-proxy still running?" } else { "" };
    let reasons: BTreeSet<String> = failures.iter().map(Failure::reason).collect();
    bail!("cannot remove kube-proxy's rules ({family}): {}{advice}", reasons.into_iter().collect::<Vec<_>>().join("; "))
}

fn of_chain(out: &mut Vec<u8>, of_table: u16, name: u16, chain: &Chain) {
    text(out, of_table, &chain.table);
    text(out, name, &chain.name);
}

fn is_kube_proxys(name: &str) -> bool {
    ENTRIES.contains(&name) || OTHERS.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The chains in tables of iptables, and whether they hang at a hook of the kernel.
fn chains(family: Family, socket: &mut Socket) -> anyhow::Result<Vec<(Chain, bool)>> {
    let all = socket.dump(
        libc::NFT_MSG_GETCHAIN,
        protocol(family),
        |_| (),
        |found: &mut Vec<_>, message| {
            let chain = message.attributes();
            if let (Some(table), Some(name)) = (chain.text(nfta::CHAIN_TABLE), chain.text(nfta::CHAIN_NAME))
                && SHARED.contains(&table)
            {
                found.push((Chain { table: table.to_owned(), name: name.to_owned() }, chain.get(attr::CHAIN_HOOK).is_some()));
            }
        },
    )?;
    Ok(all)
}

/// The rules of a chain that go to another chain.
fn jumps(family: Family, socket: &mut Socket, chain: &Chain) -> anyhow::Result<Vec<Jump>> {
    let of_this = |out: &mut Vec<u8>| of_chain(out, nfta::RULE_TABLE, nfta::RULE_CHAIN, chain);
    socket.dump(libc::NFT_MSG_GETRULE, protocol(family), of_this, |found: &mut Vec<_>, message| {
        let rule = message.attributes();
        let is_of_this = rule.text(nfta::RULE_TABLE) == Some(&chain.table) && rule.text(nfta::RULE_CHAIN) == Some(&chain.name);
        let handle = rule.get(attr::RULE_HANDLE).and_then(|handle| handle.first_chunk()).map(|handle| u64::from_be_bytes(*handle));
        if let (true, Some(handle), Some(name)) = (is_of_this, handle, target(rule)) {
            found.push(Jump { handle, to: Chain { table: chain.table.clone(), name } });
        }
    })
}

/// The chain that a rule goes to.
fn target(rule: Attributes<'_>) -> Option<String> {
    rule.nest(attr::RULE_EXPRESSIONS).find_map(|(_, expr)| {
        let expr = Attributes(expr);
        if expr.text(attr::EXPR_NAME) != Some("immediate") {
            return None;
        }
        let verdict = expr.nest(attr::EXPR_DATA).nest(attr::IMMEDIATE_DATA).nest(nfta::DATA_VERDICT);
        verdict.text(nfta::VERDICT_CHAIN).map(str::to_owned)
    })
}
