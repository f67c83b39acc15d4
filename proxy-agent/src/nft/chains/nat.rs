//! The chains that translate.

use nftnl::{ChainType, Hook};
use proxy_core::lower::nft::{Class, PodMatch};
use proxy_core::route::Pool;

use super::super::expr::{self, Key, Side};
use super::super::layout::Layout;
use super::super::sets::{BY_SOURCE_CLASSES, CLASSES, of_kind};
use super::super::sys::Expr;
use super::{AGAIN, Chain, NOWHERE};

/// NF_IP_PRI_NAT_DST (linux/netfilter_ipv4.h), `dstnat` for nft.
const DSTNAT: i32 = -100;
/// Before `srcnat`, which is 100: where another table's chain translates the source first, ours is not asked.
const SRCNAT: i32 = 99;
const NODE_PORTS: &str = "node-ports";

pub(super) fn chains(layout: &Layout) -> Vec<Chain> {
    let mut chains = vec![Chain::new(NOWHERE).rule([expr::drop_counted()])];
    chains.extend([false, true].map(|is_node_port| by_source(layout, is_node_port)));
    let has = |set| Key::new(layout.nft.family).destination(false).inside(set);
    // TP-10
    let node_ports = Chain::new(NODE_PORTS).rule([has("refused"), expr::back()]).comment(c"a Service has this address and port");
    chains.push(dispatch(node_ports.rule([has("dropped"), expr::back()]), layout, true));
    for (name, hook) in [("nat-prerouting", Hook::PreRouting), ("nat-output", Hook::Out)] {
        let chain = dispatch(Chain::at(name, ChainType::Nat, hook, DSTNAT), layout, false);
        chains.push(chain.rule([to_node(layout), expr::goto(NODE_PORTS)]));
    }
    let mark = layout.nft.masquerade_mark;
    let hairpins = Key::new(layout.nft.family).ip(Side::Source).ip(Side::Destination).inside("hairpins");
    let postrouting = Chain::at("nat-postrouting", ChainType::Nat, Hook::PostRouting, SRCNAT)
        .rule([expr::is_marked(mark), expr::flip_mark(mark), expr::masquerade()])
        .rule([expr::is_translated(), hairpins, expr::masquerade()])
        .comment(c"a backend to itself");
    chains.push(postrouting);
    chains
}

/// `meta secmark set ip daddr . meta l4proto . th dport map @services meta secmark vmap @classes`, twice. Lookup of the class and
/// jump are one rule: a packet to no Service ends there, whatever its field holds.
fn dispatch(chain: Chain, layout: &Layout, is_node_port: bool) -> Chain {
    let services = &of_kind("services", is_node_port);
    let one = || [found(layout, is_node_port, services), layout.scratch.vmap(CLASSES)];
    chain.rule(one()).comment(c"to the chain for this kind of frontend and number of backends").rule(one()).comment(AGAIN)
}

/// The address serves NodePorts.
pub(super) fn to_node(layout: &Layout) -> Vec<Expr> {
    let family = layout.nft.family;
    if !layout.nft.any_node_port {
        return Key::new(family).ip(Side::Destination).inside("node-addresses");
    }
    let mut exprs = expr::is_not_to_loopback(family);
    exprs.extend(expr::is_own(Side::Destination));
    exprs
}

/// The chain of frontends whose backends depend on who sends.
fn by_source(layout: &Layout, is_node_port: bool) -> Chain {
    let scratch = layout.scratch;
    let to = |pool| {
        let name = match pool {
            Pool::Cluster => "by-source-cluster",
            Pool::Local => "by-source-local",
        };
        found(layout, is_node_port, &of_kind(name, is_node_port))
    };
    let go = || scratch.vmap(BY_SOURCE_CLASSES);
    let mut chain = Chain::new(Class::BySource { is_node_port }.to_string());
    for comment in [c"from pods", AGAIN] {
        chain = chain.rule([from_pod(layout), to(Pool::Cluster), go()]).comment(comment);
    }
    for comment in [c"from this node", AGAIN] {
        // Marked only once it is known where it goes.
        let mark = expr::set_mark(layout.nft.masquerade_mark);
        chain = chain.rule([expr::is_own(Side::Source), to(Pool::Cluster), mark, go()]).comment(comment);
    }
    for comment in [c"from elsewhere", AGAIN] {
        chain = chain.rule([to(Pool::Local), go()]).comment(comment);
    }
    chain.rule([scratch.clear()]).comment(c"it is not known any more where it goes")
}

/// What tells a pod's packet.
pub(super) fn from_pod(layout: &Layout) -> Vec<Expr> {
    match &layout.nft.pods {
        PodMatch::Source => Key::new(layout.nft.family).ip(Side::Source).inside("pods"),
        PodMatch::Interface(name) => expr::came_by(name, false),
        PodMatch::InterfacePrefix(prefix) => expr::came_by(prefix, true),
    }
}

/// The scratch field is set to what a map has for the destination; ends the rule if there is nothing.
fn found(layout: &Layout, is_node_port: bool, map: &str) -> Vec<Expr> {
    let mut exprs = Key::new(layout.nft.family).destination(is_node_port).find(map);
    exprs.extend(layout.scratch.set());
    exprs
}
