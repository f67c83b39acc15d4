//! Which endpoints of a Service port are used (EP, TOP).

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::{Address, Endpoint, EndpointState, NodeHint};

/// An endpoint of a Service port, as one slice has it.
#[derive(Clone, Copy)]
pub(crate) struct Candidate {
    pub(crate) address: Address,
    pub(crate) state: EndpointState,
    pub(crate) is_local: bool,
    pub(crate) nodes: NodeHint,
    pub(crate) zones: ZoneHint,
}

/// What an endpoint says about the zones for which it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ZoneHint {
    None,
    Others,
    This,
}

impl Candidate {
    pub(crate) fn new(endpoint: &Endpoint, port: u16, zones: ZoneHint) -> Self {
        let Endpoint { ip, state, is_local, nodes } = *endpoint;
        Self { address: Address { ip, port }, state, is_local, nodes, zones }
    }
}

/// The endpoints to which flows may go on (CT-05), sorted, each once.
pub(crate) fn serving(candidates: impl Iterator<Item = Candidate>) -> Vec<Address> {
    let mut states: BTreeMap<Address, EndpointState> = BTreeMap::new();
    for Candidate { address, state, .. } in candidates {
        // EP-09
        states.entry(address).and_modify(|known| *known = state.max(*known)).or_insert(state);
    }
    states.into_iter().filter(|(_, state)| state.serves()).map(|(address, _)| address).collect()
}

/// The backends of a Service port in one family, sorted, each once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Usable {
    /// Those that are used under policy Cluster. Empty: there is none anywhere (EP-16).
    pub(crate) cluster: Vec<Address>,
    /// Those that are used under policy Local.
    pub(crate) local: Vec<Address>,
    /// The addresses of the backends in either that are on this node.
    pub(crate) here: Vec<IpAddr>,
}

impl Usable {
    /// Selects among the copies of endpoints that slices have.
    pub(crate) fn select(candidates: impl Iterator<Item = Candidate>) -> Self {
        let all = distinct(candidates);
        let mut cluster: Vec<&Candidate> = all.iter().filter(|c| c.state.is_ready()).collect();
        if cluster.is_empty() {
            // EP-12, EP-15
            cluster = all.iter().filter(|c| c.state == EndpointState::Draining).collect();
        } else {
            near(&mut cluster);
        }
        // EP-13
        let mut local: Vec<&Candidate> = all.iter().filter(|c| c.is_local && c.state.is_ready()).collect();
        if local.is_empty() {
            local = all.iter().filter(|c| c.is_local && c.state == EndpointState::Draining).collect();
        }
        let mut here: Vec<IpAddr> = cluster.iter().chain(&local).filter(|c| c.is_local).map(|c| c.address.ip).collect();
        here.sort_unstable();
        here.dedup();
        let addresses = |set: Vec<&Candidate>| set.into_iter().map(|candidate| candidate.address).collect();
        Self { cluster: addresses(cluster), local: addresses(local), here }
    }

    /// Those that are on this node and ready, whatever is used of them.
    pub(crate) fn ready_here(candidates: impl Iterator<Item = Candidate>) -> impl Iterator<Item = Address> {
        distinct(candidates).into_iter().filter(|c| c.is_local && c.state.is_ready()).map(|c| c.address)
    }
}

/// EP-09: of several copies the greatest state speaks for the address. The rest makes the order of slices irrelevant.
fn distinct(candidates: impl Iterator<Item = Candidate>) -> Vec<Candidate> {
    let mut all: Vec<Candidate> = candidates.collect();
    all.sort_unstable_by(|a, b| {
        let rank = |c: &Candidate| (c.state, c.is_local, c.nodes, c.zones);
        a.address.cmp(&b.address).then(rank(b).cmp(&rank(a)))
    });
    all.dedup_by_key(|candidate| candidate.address);
    all
}

/// Leaves those that are for this node (TOP-02), else those that are for its zone (TOP-03), else all (TOP-04, TOP-05).
fn near(ready: &mut Vec<&Candidate>) {
    let all_hinted = |none: fn(&Candidate) -> bool| !ready.iter().any(|c| none(c));
    let for_node = |c: &Candidate| c.nodes == NodeHint::This;
    let for_zone = |c: &Candidate| c.zones == ZoneHint::This;
    if all_hinted(|c| c.nodes == NodeHint::None) && ready.iter().any(|c| for_node(c)) {
        ready.retain(|c| for_node(c));
    } else if all_hinted(|c| c.zones == ZoneHint::None) && ready.iter().any(|c| for_zone(c)) {
        ready.retain(|c| for_zone(c));
    }
}
