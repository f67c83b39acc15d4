//! The chains that stop what is not to be served.

use nftnl::{ChainType, Hook};

use super::super::expr::{self, Key, Side};
use super::super::layout::Layout;
use super::super::sets::of_kind;
use super::{Chain, nat};

/// NF_IP_PRI_FILTER (linux/netfilter_ipv4.h), `filter` for nft.
const FILTER: i32 = 0;
/// NF_IP_PRI_RAW, `raw` for nft: before connections are tracked.
const RAW: i32 = -300;
/// Before anything is translated.
const SOURCES: i32 = -110;
const REFUSE: &str = "refuse";
const NODE_PORTS: &str = "unserved-node-ports";
const UNSERVED_INPUT: &str = "unserved-input";
const UNSERVED: &str = "unserved";

pub(super) fn chains(layout: &Layout) -> Vec<Chain> {
    let family = layout.nft.family;
    // TCP is reset because the kernel limits the rate of ICMP errors.
    let refuse = Chain::new(REFUSE).rule([expr::is_tcp(), expr::reset()]).rule([expr::unreachable(family)]);
    let node_ports = refused(Chain::new(NODE_PORTS), layout, true);
    let input = unserved(Chain::new(UNSERVED_INPUT), layout).rule([nat::to_node(layout), expr::goto(NODE_PORTS)]);
    let destination = || Key::new(family).ip(Side::Destination);
    let elsewhere = unserved(Chain::new(UNSERVED), layout)
        .rule([destination().inside("cluster-ips"), expr::goto(REFUSE)])
        .comment(c"a port that nobody serves")
        .rule([destination().inside("service-cidrs"), expr::drop_counted()])
        .comment(c"an address that nobody has");
    let mut chains = vec![refuse, node_ports, input, elsewhere];
    for (name, hook) in [("sources-prerouting", Hook::PreRouting), ("sources-output", Hook::Out)] {
        let restricted = Key::new(family).destination(false).inside("restricted");
        let let_in = Key::new(family).destination(false).ip(Side::Source).outside("sources");
        let chain = Chain::at(name, ChainType::Filter, hook, SOURCES);
        chains.push(chain.rule([expr::is_new(), restricted, let_in, expr::drop_counted()]));
    }
    if layout.nft.loopback {
        // What comes by a wire from or to a loopback address: the kernel lets it in where `route_localnet` is set. Replies have
        // not been translated back here yet.
        let foreign = |side| [expr::came_from_elsewhere(), expr::is_loopback(side), expr::drop_counted()];
        let chain = Chain::at("loopback-prerouting", ChainType::Filter, Hook::PreRouting, RAW);
        chains.push(chain.rule(foreign(Side::Destination)).rule(foreign(Side::Source)));
    }
    // Only what is new and has found no backend is looked at any further.
    let unserved = |to| [expr::is_new(), expr::is_not_translated(), expr::jump(to)];
    chains.push(Chain::at("filter-input", ChainType::Filter, Hook::In, FILTER).rule(unserved(UNSERVED_INPUT)));
    let source = Key::new(family).ip(Side::Source).port(Side::Source);
    let forward = Chain::at("filter-forward", ChainType::Filter, Hook::Forward, FILTER)
        .rule([expr::is_known(), expr::accept()])
        .rule([expr::is_invalid(), expr::is_tcp(), source.inside("endpoints"), expr::drop_counted()])
        .comment(c"conntrack has not translated it back")
        .rule(unserved(UNSERVED));
    chains.push(forward);
    chains.push(Chain::at("filter-output", ChainType::Filter, Hook::Out, FILTER).rule(unserved(UNSERVED)));
    chains
}

/// What becomes of packets to frontends that have found no backend.
fn unserved(chain: Chain, layout: &Layout) -> Chain {
    let dropped = Key::new(layout.nft.family).destination(false).inside("dropped");
    refused(chain, layout, false).rule([dropped, expr::drop_counted()])
}

fn refused(chain: Chain, layout: &Layout, is_node_port: bool) -> Chain {
    let refused = Key::new(layout.nft.family).destination(is_node_port).inside(&of_kind("refused", is_node_port));
    chain.rule([refused, expr::goto(REFUSE)])
}
