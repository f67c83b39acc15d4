//! The Services of a soak, how they change, and who may answer at each of their addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

use crate::lab::address;
use crate::random::random;

/// Pods that answer: name, node, last octet. Those on node 1 come first.
pub(super) const BACKENDS: [(&str, u8, u8); 6] = [("b1", 1, 3), ("c1", 1, 4), ("d1", 1, 5), ("a2", 2, 2), ("b2", 2, 3), ("c2", 2, 4)];
/// How many of them are on node 1.
const LOCAL: usize = 3;
/// Where they answer.
pub(super) const BACKEND_PORT: u16 = 8080;
/// How many Services there are all the time, and under load.
const SERVICES: u8 = 8;
/// The Service that comes and goes.
const EPHEMERAL: u8 = 100;
/// The Service that changes with every change, so that there is something to commit whatever else has changed.
const MARKER: u8 = 101;

/// A kind of change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Endpoint,
    Scale,
    InternalPolicy,
    ExternalPolicy,
    Affinity,
    Ephemeral,
    Restart,
    Crash,
}

impl Kind {
    /// One at random: endpoints most often, the agent's end seldom.
    pub(super) fn any(state: &mut u64) -> Self {
        match random(state) % 100 {
            0..40 => Kind::Endpoint,
            40..60 => Kind::Scale,
            60..70 => Kind::InternalPolicy,
            70..78 => Kind::ExternalPolicy,
            78..88 => Kind::Affinity,
            88..98 => Kind::Ephemeral,
            98 => Kind::Restart,
            _ => Kind::Crash,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Endpoint => "endpoint",
            Kind::Scale => "scale",
            Kind::InternalPolicy => "internal policy",
            Kind::ExternalPolicy => "external policy",
            Kind::Affinity => "affinity",
            Kind::Ephemeral => "Service added and deleted",
            Kind::Restart => "restart",
            Kind::Crash => "kill -9",
        }
    }
}

/// What an endpoint is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Ready,
    /// It terminates and serves on: not used while others are ready.
    Draining,
    Absent,
}

#[derive(Clone, Debug)]
struct Service {
    number: u8,
    endpoints: [State; BACKENDS.len()],
    internal_local: bool,
    external_local: bool,
    affinity: Option<u32>,
}

impl Service {
    fn new(number: u8) -> Self {
        Self { number, endpoints: [State::Ready; BACKENDS.len()], internal_local: false, external_local: false, affinity: None }
    }

    fn vip(&self) -> SocketAddr {
        (Ipv4Addr::new(10, 96, 1, self.number), 80).into()
    }

    fn node_port(&self) -> u16 {
        30_000 + u16::from(self.number)
    }

    /// Someone on node 1 is ready, so that no policy leaves nobody.
    fn is_served(&self) -> bool {
        self.endpoints[..LOCAL].contains(&State::Ready)
    }

    fn ready(&self, among: usize) -> BTreeSet<Ipv4Addr> {
        let ready = (0..among).filter(|&i| self.endpoints[i] == State::Ready);
        ready.map(|i| address::pod(BACKENDS[i].1, BACKENDS[i].2)).collect()
    }

    fn change(&mut self, kind: Kind, state: &mut u64) {
        match kind {
            Kind::Endpoint => self.until_served(state, |endpoints, state| {
                let any = below(state, endpoints.len());
                endpoints[any] = match endpoints[any] {
                    State::Ready if random(state).is_multiple_of(2) => State::Draining,
                    State::Ready | State::Draining => State::Absent,
                    State::Absent => State::Ready,
                };
            }),
            Kind::Scale => self.until_served(state, |endpoints, state| {
                let count = below(state, endpoints.len()) + 1;
                endpoints.fill(State::Absent);
                (0..count).for_each(|_| endpoints[below(state, endpoints.len())] = State::Ready);
            }),
            Kind::InternalPolicy => self.internal_local = !self.internal_local,
            Kind::ExternalPolicy => self.external_local = !self.external_local,
            Kind::Affinity => {
                self.affinity = match self.affinity {
                    None => Some(10_800),
                    Some(10_800) => Some(60),
                    Some(_) => None,
                }
            }
            Kind::Ephemeral | Kind::Restart | Kind::Crash => {}
        }
    }

    fn until_served(&mut self, state: &mut u64, change: impl Fn(&mut [State; BACKENDS.len()], &mut u64)) {
        let before = self.endpoints;
        loop {
            self.endpoints = before;
            change(&mut self.endpoints, state);
            if self.is_served() {
                return;
            }
        }
    }

    fn manifests(&self) -> [Value; 2] {
        let policy = |is_local| if is_local { "Local" } else { "Cluster" };
        let name = format!("soak-{}", self.number);
        let mut spec = json!({
            "type": "NodePort", "clusterIP": self.vip().ip(),
            "internalTrafficPolicy": policy(self.internal_local), "externalTrafficPolicy": policy(self.external_local),
            "ports": [{"name": "main", "port": 80, "nodePort": self.node_port(), "protocol": "TCP"}],
        });
        if let Some(seconds) = self.affinity {
            spec["sessionAffinity"] = json!("ClientIP");
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
        }
        let endpoints = self.endpoints.iter().zip(BACKENDS).filter(|(state, _)| **state != State::Absent);
        let endpoints = endpoints.map(|(state, (_, node, host))| {
            let is_ready = *state == State::Ready;
            json!({
                "addresses": [address::pod(node, host)], "nodeName": format!("node{node}"),
                "conditions": {"ready": is_ready, "serving": true, "terminating": !is_ready},
            })
        });
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name}, "spec": spec});
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "default", "name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"name": "main", "port": BACKEND_PORT, "protocol": "TCP"}],
            "endpoints": endpoints.collect::<Vec<Value>>(),
        });
        [service, slice]
    }
}

/// All of them.
pub(super) struct Services {
    node: Ipv4Addr,
    lasting: Vec<Service>,
    ephemeral: Option<Service>,
    marker: Service,
}

impl Services {
    /// With NodePorts at this address.
    pub(super) fn new(node: Ipv4Addr) -> Self {
        let lasting = (1..=SERVICES).map(Service::new).collect();
        Self { node, lasting, ephemeral: None, marker: Service::new(MARKER) }
    }

    /// Changes one of those that last.
    pub(super) fn change(&mut self, kind: Kind, state: &mut u64) {
        let any = below(state, self.lasting.len());
        self.lasting[any].change(kind, state);
    }

    /// Adds the one that does not last, and returns its address.
    pub(super) fn add_ephemeral(&mut self) -> SocketAddr {
        self.ephemeral.insert(Service::new(EPHEMERAL)).vip()
    }

    pub(super) fn delete_ephemeral(&mut self) {
        self.ephemeral = None;
    }

    /// Who may answer at each address of those that last. Clients are a pod of node 1 and node 1 itself, for whom an external policy
    /// of Local is as Cluster.
    pub(super) fn usable(&self) -> BTreeMap<SocketAddr, BTreeSet<Ipv4Addr>> {
        let each = self.lasting.iter().flat_map(|service| {
            let all = service.ready(BACKENDS.len());
            let internal = if service.internal_local { service.ready(LOCAL) } else { all.clone() };
            [(service.vip(), internal), ((self.node, service.node_port()).into(), all)]
        });
        each.collect()
    }

    /// All of it, with the marker changed.
    pub(super) fn manifest(&mut self) -> String {
        let other = if self.marker.endpoints[1] == State::Ready { State::Absent } else { State::Ready };
        self.marker.endpoints[1] = other;
        let services = self.lasting.iter().chain(&self.ephemeral).chain([&self.marker]);
        let documents = services.flat_map(Service::manifests).map(|document| document.to_string());
        documents.collect::<Vec<_>>().join("\n---\n")
    }
}

/// A number below `limit`, of whose tiny bias nothing depends.
fn below(state: &mut u64, limit: usize) -> usize {
    usize::try_from(random(state) % limit.max(1) as u64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_changes_somebody_may_answer_everywhere() {
        let (mut services, mut state) = (Services::new(Ipv4Addr::new(10, 0, 0, 1)), 7);
        let mut seen = BTreeSet::new();
        for _ in 0..2000 {
            services.change(Kind::any(&mut state), &mut state);
            let usable = services.usable();
            assert!(usable.len() == 2 * usize::from(SERVICES) && usable.values().all(|servers| !servers.is_empty()), "{usable:?}");
            seen.extend(usable.values().map(BTreeSet::len));
        }
        assert_eq!(seen, (1..=BACKENDS.len()).collect());
    }

    #[test]
    fn each_manifest_differs_from_the_last() {
        let mut services = Services::new(Ipv4Addr::new(10, 0, 0, 1));
        assert_ne!(services.manifest(), services.manifest());
    }
}
