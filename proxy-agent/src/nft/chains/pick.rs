//! Chains that pick any backend, and those that mark on the way to a chain that picks.

use proxy_core::lower::nft::{LOCAL_SLOTS, Target};
use proxy_core::route::{Masquerade, Pool};

use super::super::expr::{self, Key};
use super::super::layout::Layout;
use super::super::sets::of_kind;
use super::nat::from_pod;
use super::{AGAIN, Chain};

/// `meta secmark set 0 dnat to ip daddr . meta l4proto . th dport . numgen random mod 3 map @slots`
pub(super) fn even(layout: &Layout, target: Target, count: u16) -> Chain {
    let slots = &of_kind("slots", target.is_node_port);
    let slot = || Key::new(layout.nft.family).destination(target.is_node_port).random(count.into(), first_slot(target.pool));
    let dnat = || [slot().find(slots), expr::dnat(layout.nft.family)].concat();
    let chain = Chain::new(target.to_string()).rule([layout.scratch.clear(), dnat()]).rule([dnat()]).comment(AGAIN);
    lost(chain, layout, target)
}

/// Marks, and goes to the chain that picks.
pub(super) fn masqueraded(layout: &Layout, target: Target) -> Chain {
    let pick = target.unmasqueraded().to_string();
    let mut chain = Chain::new(target.to_string());
    if target.masquerade == Masquerade::UnlessPod {
        chain = chain.rule([from_pod(layout), expr::goto(&pick)]);
    }
    chain.rule([expr::set_mark(layout.nft.masquerade_mark), expr::goto(&pick)])
}

/// What is no longer in `services` returns: the rule ends at its lookup. (Older kernels refuse a lookup in a map without use for
/// the result, hence the field, which is 0 here otherwise.)
pub(super) fn lost(chain: Chain, layout: &Layout, target: Target) -> Chain {
    let service = Key::new(layout.nft.family).destination(target.is_node_port).find(&of_kind("services", target.is_node_port));
    chain.rule([service, layout.scratch.set(), expr::drop_counted()]).comment(c"no backend in the slot")
}

/// The first slot of a set.
pub(super) fn first_slot(pool: Pool) -> u32 {
    match pool {
        Pool::Cluster => 0,
        Pool::Local => LOCAL_SLOTS,
    }
}
