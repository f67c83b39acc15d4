//! What is to be measured, in which order, and how far that has come.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use crate::random::random;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::results::Kind;
use crate::agent::Mode;

/// What serves, or does not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    /// Our eBPF dataplane.
    Ebpf,
    /// Our nftables dataplane.
    Nftables,
    /// kube-proxy, mode nftables.
    KubeProxyNftables,
    /// kube-proxy, mode iptables.
    KubeProxyIptables,
    /// No proxy: what a direct connection costs, and how far two series of the same thing differ.
    None,
}

impl Proxy {
    /// All, in the order of tables.
    pub const ALL: [Proxy; 5] = [Proxy::Ebpf, Proxy::Nftables, Proxy::KubeProxyNftables, Proxy::KubeProxyIptables, Proxy::None];

    /// The agent's mode, if this is ours.
    pub fn ours(self) -> Option<Mode> {
        match self {
            Proxy::Ebpf => Some(Mode::Ebpf),
            Proxy::Nftables => Some(Mode::Nftables),
            _ => None,
        }
    }

    /// kube-proxy's mode, if this is kube-proxy.
    pub fn kube_proxy(self) -> Option<&'static str> {
        match self {
            Proxy::KubeProxyNftables => Some("nftables"),
            Proxy::KubeProxyIptables => Some("iptables"),
            _ => None,
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Proxy::Ebpf => "ebpf",
            Proxy::Nftables => "nftables",
            Proxy::KubeProxyNftables => "kube-proxy-nftables",
            Proxy::KubeProxyIptables => "kube-proxy-iptables",
            Proxy::None => "none",
        })
    }
}

impl FromStr for Proxy {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = || Proxy::ALL.map(|proxy| proxy.to_string()).join(", ");
        Proxy::ALL.into_iter().find(|proxy| proxy.to_string() == text).with_context(|| format!("proxy {text:?}: want one of {}", all()))
    }
}

/// The parameters of a run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Whether this is the short form, whose figures are not for publication.
    pub quick: bool,
    /// Numbers of Services.
    pub sizes: Vec<usize>,
    /// Endpoints of each Service.
    pub endpoints: usize,
    /// Who takes part.
    pub proxies: Vec<Proxy>,
    /// Sizes above this are for our own dataplanes only.
    pub others_up_to: usize,
    /// How often everything is done at each size, the proxies taking turns.
    pub rounds: usize,
    /// Changes of each kind in a round.
    pub changes: usize,
    /// Connections of each series in a round.
    pub connects: usize,
    /// How long a proxy may take from its start to the last working Service, in seconds.
    pub start_limit: u64,
    /// How long a change may take, in seconds.
    pub change_limit: u64,
    /// What the random choices are made from.
    pub seed: u64,
}

impl Plan {
    /// Everything, for publication.
    pub fn full() -> Self {
        Self {
            quick: false,
            sizes: vec![1, 1_000, 10_000, 50_000],
            endpoints: 10,
            proxies: Proxy::ALL.to_vec(),
            others_up_to: usize::MAX,
            rounds: 3,
            // 51 in three rounds.
            changes: 17,
            connects: 1_000,
            start_limit: 120,
            change_limit: 20,
            seed: 1,
        }
    }

    /// A few minutes, for a first look at a change.
    pub fn quick() -> Self {
        let full = Self::full();
        Self { quick: true, sizes: vec![1, 1_000, 10_000], others_up_to: 1_000, rounds: 1, changes: 15, start_limit: 60, ..full }
    }

    pub(super) fn check(&self) -> Result<()> {
        ensure!(!self.sizes.is_empty() && self.sizes.iter().all(|&n| n > 0), "sizes: at least one, all above 0");
        ensure!(self.sizes.is_sorted(), "sizes: from small to large, since who has not converged is not asked again");
        ensure!(!self.proxies.is_empty() && self.rounds > 0, "at least one proxy and one round are needed");
        Ok(())
    }

    /// The proxies of each round, rotated so that none is always the first.
    pub(super) fn order(&self) -> Vec<(usize, Proxy)> {
        let count = self.proxies.len();
        let rounds = (0..self.rounds).map(|round| (0..count).map(move |i| (round, self.proxies[(i + round) % count])));
        rounds.flatten().collect()
    }

    pub(super) fn takes_part(&self, proxy: Proxy, services: usize) -> bool {
        services <= self.others_up_to || proxy.ours().is_some()
    }

    /// About how many seconds one turn takes: for the time left, before anything has been measured.
    fn estimate(&self, proxy: Proxy, services: usize) -> f64 {
        let (thousands, changes) = (services as f64 / 1000.0, Kind::ALL.len() as f64 * self.changes as f64);
        let (start, change) = match proxy {
            Proxy::None => return 2.0,
            Proxy::Ebpf | Proxy::Nftables => (1.0 + 0.1 * thousands, 0.15),
            Proxy::KubeProxyNftables => (1.0 + 2.7 * thousands, 0.2 + 0.07 * thousands),
            Proxy::KubeProxyIptables => (1.0 + 5.0 * thousands, 0.3 + 0.1 * thousands),
        };
        let limit = self.start_limit as f64;
        if start > limit { limit + 30.0 } else { start + changes * change + 4.0 }
    }
}

/// Says on standard error what runs, how much is done, and how long the rest will take.
pub(super) struct Progress {
    plan: Plan,
    start: Instant,
    /// Seconds that are still to come, by the estimates, and how many turns.
    left: f64,
    turns: usize,
    done: usize,
    /// What was estimated for the turns that are over, and what they took.
    estimated: f64,
    took: f64,
    turn: Instant,
}

impl Progress {
    pub(super) fn new(plan: &Plan) -> Self {
        let turns: Vec<(usize, Proxy)> =
            plan.sizes.iter().flat_map(|&services| plan.order().into_iter().map(move |(_, proxy)| (services, proxy))).collect();
        let taking_part = turns.iter().filter(|(services, proxy)| plan.takes_part(*proxy, *services));
        let left = taking_part.map(|(services, proxy)| plan.estimate(*proxy, *services)).sum();
        let now = Instant::now();
        Self { plan: plan.clone(), start: now, left, turns: turns.len(), done: 0, estimated: 0.0, took: 0.0, turn: now }
    }

    pub(super) fn say(&self, text: &str) {
        // Early on, the machine's speed is not known.
        let speed = if self.estimated > 10.0 { self.took / self.estimated } else { 1.0 };
        let left = Duration::from_secs_f64((self.left * speed).max(0.0));
        let minutes = |d: Duration| format!("{}:{:02}", d.as_secs() / 60, d.as_secs() % 60);
        eprintln!("bench: [{}/{}, {} left about {}] {text}", self.done, self.turns, minutes(self.start.elapsed()), minutes(left));
    }

    pub(super) fn start(&mut self, proxy: Proxy, services: usize, round: usize) {
        self.turn = Instant::now();
        self.say(&format!("{services} Services, round {} of {}: {proxy}", round + 1, self.plan.rounds));
    }

    pub(super) fn done(&mut self, proxy: Proxy, services: usize) {
        let estimate = self.plan.estimate(proxy, services);
        self.estimated += estimate;
        self.took += self.turn.elapsed().as_secs_f64();
        self.left -= estimate;
        self.done += 1;
    }

    pub(super) fn skip(&mut self, proxy: Proxy, services: usize) {
        if self.plan.takes_part(proxy, services) {
            self.left -= self.plan.estimate(proxy, services);
        }
        self.done += 1;
    }
}

/// Numbers of a sample of Services: first, last and some at random, or all where there are few.
pub(super) fn sample(services: usize, seed: u64) -> Vec<usize> {
    const RANDOM: usize = 50;
    if services <= RANDOM + 2 {
        return (0..services).collect();
    }
    let mut state = seed;
    let mut chosen = BTreeMap::from([(0, ()), (services - 1, ())]);
    while chosen.len() < RANDOM + 2 {
        // The remainder's bias does not matter for a sample.
        chosen.insert(usize::try_from(random(&mut state)).unwrap_or_default() % services, ());
    }
    chosen.into_keys().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_proxy_takes_each_place_in_turn() {
        let plan = Plan { proxies: vec![Proxy::Ebpf, Proxy::None], rounds: 2, ..Plan::full() };
        assert_eq!(plan.order(), [(0, Proxy::Ebpf), (0, Proxy::None), (1, Proxy::None), (1, Proxy::Ebpf)]);
    }

    #[test]
    fn a_sample_has_the_ends_and_is_the_same_again() {
        assert_eq!(sample(1, 7), [0]);
        assert_eq!(sample(52, 7).len(), 52);
        let found = sample(10_000, 7);
        assert_eq!((found.len(), found[0], found[51]), (52, 0, 9_999));
        assert_eq!(found, sample(10_000, 7));
        assert_ne!(found, sample(10_000, 8));
    }

    #[test]
    fn proxies_are_read_as_they_are_written() {
        for proxy in Proxy::ALL {
            assert_eq!(proxy.to_string().parse::<Proxy>().ok(), Some(proxy));
            assert_eq!(serde_json::to_string(&proxy).ok(), Some(format!("\"{proxy}\"")));
        }
        assert!("ipvs".parse::<Proxy>().is_err());
    }
}
