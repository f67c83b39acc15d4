//! The table's chains and rules.
//!
//! ```text
//! nat:     prerouting, output   frontends, NodePorts: by class to a chain that picks                            (nat.rs)
//!          postrouting          masquerade
//! filter:  prerouting, output   source ranges
//!          input, forward, output   what has found no backend                                                (filter.rs)
//! pick-3, masquerade-pick-3, …, to-slot                                                                        (pick.rs)
//! stick-10800, stick-pick-3, …, stick-identity, stick-any, stick-to-id                                            (stick.rs)
//! ```

pub(super) mod filter;
pub(super) mod nat;
mod pick;
mod stick;

use std::ffi::CStr;

use nftnl::{ChainType, Hook, Policy, ProtoFamily, Table};
use proxy_core::lower::nft::{Key, Pick, Target};
use proxy_core::model::Family;
use proxy_core::route::{Masquerade, Pool};

use super::expr::{self, text_of};
use super::layout::{Layout, TABLE};
use super::rules::{self, Rule};
use super::sets::{CONNECTIONS, of_kind};
use super::sys::{Expr, Writer};
use super::wire::{Batch, nfta, text};

/// A lookup can miss an element that changes, which it does by being deleted and added in one batch, on kernels before
/// "netfilter: nf_tables: restart set lookup on base_seq change" (September 2025): the rule is there twice.
const AGAIN: &CStr = c"again: a lookup may miss an element that changes";

/// The chain of what goes nowhere.
pub(super) const NOWHERE: &str = "no-backend";

/// All chains that are always there, or are with some configuration.
const NAMES: [&str; 25] = [
    "to-slot",
    "node-to-slot",
    "stick-identity",
    "node-stick-identity",
    "stick-to-id",
    "node-stick-to-id",
    "stick-any",
    "stick-any-local",
    NOWHERE,
    "by-source",
    "node-by-source",
    "node-ports",
    "nat-prerouting",
    "nat-output",
    "nat-postrouting",
    "refuse",
    "unserved-node-ports",
    "unserved-input",
    "unserved",
    "sources-prerouting",
    "sources-output",
    "filter-input",
    "filter-forward",
    "filter-output",
    "loopback-prerouting",
];

/// What stands for a chain whose rules are not what they must be; none if it is not one of ours.
pub(super) fn damage(chain: &str) -> Option<Key> {
    NAMES.iter().find(|name| **name == chain).map(|name| Key::Damage(name))
}

/// A chain as it must be.
pub(super) struct Chain {
    pub(super) name: String,
    hook: Option<(ChainType, Hook, i32)>,
    rules: Vec<(Option<&'static CStr>, Vec<Expr>)>,
}

/// All chains that are always there, each after those that it sends packets to.
pub(super) fn base(layout: &Layout) -> Vec<Chain> {
    let mut chains: Vec<Chain> = pick::base(layout).into();
    if layout.nft.is_sticky {
        chains.extend(stick::base(layout));
    }
    chains.extend(nat::chains(layout));
    chains.extend(filter::chains(layout));
    chains
}

/// The chain of a target.
pub(super) fn target(layout: &Layout, target: Target) -> Chain {
    match (target.masquerade, target.pick) {
        (Masquerade::Never, Pick::Even(count)) => pick::even(layout, target, count),
        (Masquerade::Never, Pick::Sticky(seconds)) => stick::sticky(layout, target, seconds),
        (Masquerade::UnlessPod | Masquerade::Always, _) => pick::masqueraded(layout, target),
    }
}

/// The chain that picks among so many ids.
pub(super) fn stick_pick(pool: Pool, count: u16) -> Chain {
    stick::pick(pool, count)
}

impl Chain {
    fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), hook: None, rules: Vec::new() }
    }

    /// One that packets come to by themselves.
    pub(super) fn at(name: &str, kind: ChainType, hook: Hook, priority: i32) -> Self {
        Self { hook: Some((kind, hook, priority)), ..Self::new(name) }
    }

    /// With a rule more.
    pub(super) fn rule<const N: usize>(mut self, parts: [Vec<Expr>; N]) -> Self {
        self.rules.push((None, parts.into_iter().flatten().collect()));
        self
    }

    /// With a rule, if connections are counted, that counts those for which `backend` finds one. It is one of its own, so that a
    /// connection that cannot be counted is led on all the same.
    fn counted(self, layout: &Layout, is_node_port: bool, backend: Vec<Expr>) -> Self {
        if !layout.nft.counts {
            return self;
        }
        let frontend = expr::Key::new(layout.nft.family).destination(is_node_port);
        self.rule([backend, frontend.count(&of_kind(CONNECTIONS, is_node_port))])
    }

    /// The comment of the rule that was added last.
    fn comment(mut self, comment: &'static CStr) -> Self {
        if let Some((of_rule, _)) = self.rules.last_mut() {
            *of_rule = Some(comment);
        }
        self
    }

    /// Its rules as the kernel tells of them.
    pub(super) fn rules(&self, layout: &Layout) -> Vec<Rule> {
        let mut batch = Batch::begin(layout.protocol(), 0);
        self.write(layout, &mut batch, TABLE);
        rules::written(batch)
    }

    /// What it is, of which somebody who deletes it and makes it anew may make something else.
    pub(super) fn hook(&self) -> Option<(&'static str, u32, i32)> {
        let (kind, hook, priority) = self.hook?;
        let kind = if matches!(kind, ChainType::Nat) { "nat" } else { "filter" };
        Some((kind, hook as u32, priority))
    }

    /// Makes it, also if it is there already, complete or not.
    pub(super) fn write(&self, layout: &Layout, batch: &mut Batch, table: &str) {
        let family = if layout.nft.family == Family::V4 { ProtoFamily::Ipv4 } else { ProtoFamily::Ipv6 };
        let of_table = Table::new(text_of(table), family);
        let mut chain = nftnl::Chain::new(text_of(&self.name), &of_table);
        if let Some((kind, hook, priority)) = self.hook {
            chain.set_type(kind);
            chain.set_hook(hook, priority);
            chain.set_policy(Policy::Accept);
        }
        let mut writer = Writer::new();
        let seq = batch.next();
        batch.foreign(writer.add(&chain, seq));
        batch.message(libc::NFT_MSG_DELRULE, 0, |out| {
            text(out, nfta::RULE_TABLE, table);
            text(out, nfta::RULE_CHAIN, &self.name);
        });
        for (comment, exprs) in &self.rules {
            let mut rule = nftnl::Rule::new(&chain);
            exprs.iter().for_each(|expr| rule.add_expr(expr));
            if let Some(comment) = comment
                && let Err(reason) = rule.set_comment(comment)
            {
                // Only a comment.
                tracing::debug!(?comment, reason, "rule without its comment");
            }
            let seq = batch.next();
            batch.foreign(writer.add(&rule, seq));
        }
    }
}
