//! Chains that keep a client with its backend: `stick-pins` has the id of the backend by client and identity, which all frontends
//! of a Service port share. Two fields of the packet carry identity and id from rule to rule; both are zero again before it
//! leaves the chain.

use proxy_core::lower::nft::{Target, stick_pick};
use proxy_core::route::Pool;

use super::super::expr::{self, Field, Key, Operation, Side};
use super::super::layout::Layout;
use super::super::sets::{STICK_CLASSES, STICK_PINS, of_kind};
use super::super::sys::Expr;
use super::pick::{first_slot, lost};
use super::{AGAIN, Chain};

/// The field of the id; before, of the class.
const ID: Field = Field::Secmark;
const IDENTITY: Field = Field::Priority;

pub(super) fn sticky(layout: &Layout, target: Target, seconds: u32) -> Chain {
    let family = layout.nft.family;
    let key = || Key::new(family);
    let (members, sizes) = match target.pool {
        Pool::Cluster => ("stick-members", "stick-sizes"),
        Pool::Local => ("stick-members-local", "stick-sizes-local"),
    };
    let client = || key().ip(Side::Source).field(IDENTITY);
    let keep = || client().dynset(Operation::Update { seconds }, STICK_PINS, ID);
    let identity = key().destination(target.is_node_port).find(&of_kind("identities", target.is_node_port));
    let is_member = key().field(IDENTITY).field(ID).is_in(members);
    let size = || [key().field(IDENTITY).find(sizes), ID.set(), ID.vmap(STICK_CLASSES)];
    let clear = || [IDENTITY.clear(), ID.clear()].concat();
    // Nothing of ours leaves with a packet that has been translated: cleared after the lookup that needs the id, and before.
    let dnat = || -> Vec<Expr> { [key().field(ID).find("stick-endpoints"), clear(), expr::dnat(family)].concat() };
    let again = size();
    let chain = Chain::new(target.to_string())
        .rule([IDENTITY.clear(), identity, IDENTITY.set()])
        .comment(c"which Service port it is")
        .rule([ID.clear(), client().find(STICK_PINS), ID.set()])
        .comment(c"which backend the client has")
        .rule([is_member, keep(), dnat()])
        .comment(c"it is in the set that this frontend leads to")
        .rule([client().dynset(Operation::Delete, STICK_PINS, ID), ID.clear()])
        .comment(c"it is not, or there is none: an update would leave it")
        .rule(size())
        .comment(c"any other")
        .rule([ID.is_clear(), again.into_iter().flatten().collect()])
        .comment(AGAIN)
        .rule([keep()])
        .comment(c"in a rule of its own, which a full map ends")
        .rule([dnat()])
        .rule([clear()]);
    lost(chain, layout, target)
}

/// `meta secmark set meta priority . numgen random mod 3 map @stick-slots return`
pub(super) fn pick(layout: &Layout, pool: Pool, count: u16) -> Chain {
    let id = || Key::new(layout.nft.family).field(IDENTITY).random(count.into(), first_slot(pool)).find("stick-slots");
    Chain::new(stick_pick(pool, count)).rule([id(), ID.set(), expr::back()]).rule([id(), ID.set()]).comment(AGAIN)
}
