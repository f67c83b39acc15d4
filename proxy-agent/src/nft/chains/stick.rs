//! Chains that keep a client with its backend: `stick-pins` has the id of the backend by client and identity, which all frontends
//! of a Service port share. Two fields of the packet carry identity and id from rule to rule; both are zero again before it
//! leaves the chains.
//!
//! What differs by the time that clients stay, or by the number of backends, has a chain that comes and goes, without lookups in
//! large maps but that of the pins, which is not there before such a chain; see [pick](super::pick).

use proxy_core::lower::nft::{Target, stick_pick};
use proxy_core::route::Pool;

use super::super::expr::{self, Field, Key, Operation, Side};
use super::super::layout::Layout;
use super::super::sets::{STICK_CLASSES, STICK_PINS, of_kind};
use super::super::sys::Expr;
use super::pick::{first_slot, lost};
use super::{AGAIN, Chain};

/// The field of the id; before, of the class or slot.
const ID: Field = Field::Secmark;
const IDENTITY: Field = Field::Priority;
const FIND: &str = "stick-identity";
const TO_ID: &str = "stick-to-id";

/// The chains that all have in common.
pub(super) fn base(layout: &Layout) -> Vec<Chain> {
    let [find, node_find] = [false, true].map(|is_node_port| find(layout, is_node_port));
    let [to_id, node_to_id] = [false, true].map(|is_node_port| to_id(layout, is_node_port));
    let [any, any_local] = [Pool::Cluster, Pool::Local].map(|pool| any(layout, pool));
    vec![find, node_find, to_id, node_to_id, any, any_local]
}

fn key(layout: &Layout) -> Key {
    Key::new(layout.nft.family)
}

/// Client and Service port.
fn client(layout: &Layout) -> Key {
    key(layout).ip(Side::Source).field(IDENTITY)
}

/// Which Service port it is.
fn find(layout: &Layout, is_node_port: bool) -> Chain {
    let identity = key(layout).destination(is_node_port).find(&of_kind("identities", is_node_port));
    Chain::new(of_kind(FIND, is_node_port)).rule([IDENTITY.clear(), identity, IDENTITY.set()])
}

/// Any backend of a set.
fn any(layout: &Layout, pool: Pool) -> Chain {
    let sizes = if pool == Pool::Local { "stick-sizes-local" } else { "stick-sizes" };
    let id = || [key(layout).field(IDENTITY).field(ID).find("stick-slots"), ID.set(), expr::back()];
    Chain::new(any_name(pool))
        .rule([ID.set_to(first_slot(pool))])
        .rule([key(layout).field(IDENTITY).find(sizes), ID.set(), ID.vmap(STICK_CLASSES)])
        .comment(c"any slot; the first where the lookup misses an element that changes")
        .rule(id())
        .rule(id())
        .comment(AGAIN)
        .rule([ID.clear()])
}

fn any_name(pool: Pool) -> &'static str {
    if pool == Pool::Local { "stick-any-local" } else { "stick-any" }
}

/// To the backend of an id. Nothing of ours leaves with a packet that has been translated: cleared after the lookup, and before.
fn to_id(layout: &Layout, is_node_port: bool) -> Chain {
    let clear = || -> Vec<Expr> { [IDENTITY.clear(), ID.clear()].concat() };
    let endpoint = || key(layout).field(ID).find("stick-endpoints");
    let chain = Chain::new(of_kind(TO_ID, is_node_port))
        .counted(layout, is_node_port, endpoint())
        .rule([endpoint(), clear(), expr::dnat(layout.nft.family)])
        .rule([clear()]);
    lost(chain, layout, is_node_port)
}

/// The chain of clients that stay so long.
pub(super) fn sticky(layout: &Layout, target: Target, seconds: u32) -> Chain {
    let members = if target.pool == Pool::Local { "stick-members-local" } else { "stick-members" };
    let is_member = key(layout).field(IDENTITY).field(ID).inside(members);
    let keep = || client(layout).dynset(Operation::Update { seconds }, STICK_PINS, ID);
    let to_id = || expr::goto(&of_kind(TO_ID, target.is_node_port));
    Chain::new(target.to_string())
        .rule([expr::jump(&of_kind(FIND, target.is_node_port))])
        .rule([ID.clear(), client(layout).find(STICK_PINS), ID.set()])
        .comment(c"which backend the client has")
        .rule([is_member, keep(), to_id()])
        .comment(c"it is in the set that this frontend leads to")
        .rule([client(layout).dynset(Operation::Delete, STICK_PINS, ID), expr::jump(any_name(target.pool))])
        .comment(c"it is not, or there is none: an update would leave it")
        .rule([keep()])
        .comment(c"in a rule of its own, which a full map ends")
        .rule([to_id()])
}

/// `meta secmark set numgen random mod 3`
pub(super) fn pick(pool: Pool, count: u16) -> Chain {
    Chain::new(stick_pick(pool, count)).rule([expr::random(count.into(), first_slot(pool)), ID.set()])
}
