//! Chains that pick any backend, and those that mark on the way to a chain that picks.
//!
//! To look a rule's map up when the rule is made, the kernel walks all of the map, if it is the first rule of its chain with that
//! map: 0.2 s for 500,000 slots. So the chains that come and go have no rules with large maps. They leave the slot's number in
//! the scratch field and go to one that is always there.

use proxy_core::lower::nft::{LOCAL_SLOTS, Target};
use proxy_core::route::{Masquerade, Pool};

use super::super::expr::{self, Key};
use super::super::layout::Layout;
use super::super::sets::of_kind;
use super::nat::from_pod;
use super::{AGAIN, Chain};

const TO_SLOT: &str = "to-slot";

/// The chains that translate to the backend in a slot, of frontends with addresses and of NodePorts.
pub(super) fn base(layout: &Layout) -> [Chain; 2] {
    [false, true].map(|is_node_port| {
        let scratch = layout.scratch;
        let slots = of_kind("slots", is_node_port);
        let slot = || Key::new(layout.nft.family).destination(is_node_port).field(scratch).find(&slots);
        let dnat = || [slot(), scratch.clear(), expr::dnat(layout.nft.family)];
        let chain = Chain::new(of_kind(TO_SLOT, is_node_port)).counted(layout, is_node_port, slot());
        let chain = chain.rule(dnat()).rule(dnat()).comment(AGAIN).rule([scratch.clear()]);
        lost(chain, layout, is_node_port)
    })
}

/// `meta secmark set numgen random mod 3 goto to-slot`
pub(super) fn even(layout: &Layout, target: Target, count: u16) -> Chain {
    let slot = expr::random(count.into(), first_slot(target.pool));
    Chain::new(target.to_string()).rule([slot, layout.scratch.set(), expr::goto(&of_kind(TO_SLOT, target.is_node_port))])
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
pub(super) fn lost(chain: Chain, layout: &Layout, is_node_port: bool) -> Chain {
    let service = Key::new(layout.nft.family).destination(is_node_port).find(&of_kind("services", is_node_port));
    chain.rule([service, layout.scratch.set(), expr::drop_counted()]).comment(c"no backend in the slot")
}

/// The first slot of a set.
pub(super) fn first_slot(pool: Pool) -> u32 {
    match pool {
        Pool::Cluster => 0,
        Pool::Local => LOCAL_SLOTS,
    }
}
