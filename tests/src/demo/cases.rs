//! What the demo tries: connections to every kind of virtual address, and what is expected of them.

use crate::lab::Proto;

/// What is expected of connections to a virtual address.
pub(super) struct Case {
    /// What it shows.
    pub(super) what: &'static str,
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) proto: Proto,
    pub(super) outcome: Outcome,
}

/// What becomes of them.
#[derive(Clone, Copy)]
pub(super) enum Outcome {
    /// These pods answer, all of them, and see this sender.
    Pods(&'static [&'static str], Source),
    /// One of these pods answers every time.
    One(&'static [&'static str]),
    /// Refused at once.
    Refused,
    /// Without any answer.
    Dropped,
}

/// Whom a pod sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    Any,
    Kept,
    Masqueraded,
}

impl Case {
    /// Connections that show it. Of two or three pods each is chosen but once in a million runs.
    pub(super) fn connections(&self) -> u64 {
        match self.outcome {
            Outcome::Pods(pods, _) => [0, 4, 21].get(pods.len()).copied().unwrap_or(40),
            // Two pods by turns would have to be the same one all the time.
            Outcome::One(_) => 20,
            Outcome::Refused => 4,
            Outcome::Dropped => 1,
        }
    }
}

const fn case(what: &'static str, from: &'static str, to: &'static str, proto: Proto, outcome: Outcome) -> Case {
    Case { what, from, to, proto, outcome }
}

use Outcome::{Dropped, One, Pods, Refused};
use Proto::{Sctp, Tcp, Udp};
use Source::{Any, Kept, Masqueraded};

const WEB: &[&str] = &["b1", "a2", "b2"];
const SHOP: &[&str] = &["b1", "a2"];

pub(super) const CASES: [Case; 35] = [
    case("ClusterIP", "a1", "10.96.0.10:80", Tcp, Pods(WEB, Kept)),
    case("", "a1", "[fd00:10:96::a]:80", Tcp, Pods(WEB, Kept)),
    case("", "node1", "10.96.0.10:80", Tcp, Pods(WEB, Any)),
    case("", "node2", "10.96.0.10:80", Tcp, Pods(WEB, Any)),
    case("", "client", "10.96.0.10:80", Tcp, Pods(WEB, Masqueraded)),
    case("UDP", "a1", "10.96.0.53:53", Udp, Pods(&["a2"], Kept)),
    case("", "a1", "[fd00:10:96::53]:53", Udp, Pods(&["a2"], Kept)),
    case("", "node1", "10.96.0.53:53", Udp, Pods(&["a2"], Any)),
    case("NodePort", "client", "10.0.0.1:30080", Tcp, Pods(SHOP, Masqueraded)),
    case("", "client", "[fd00:10::1]:30080", Tcp, Pods(SHOP, Masqueraded)),
    case("", "a1", "10.0.0.1:30080", Tcp, Pods(SHOP, Any)),
    case("", "node1", "10.0.0.1:30080", Tcp, Pods(SHOP, Any)),
    case("load balancer", "client", "10.97.0.1:80", Tcp, Pods(SHOP, Masqueraded)),
    case("", "client", "[fd00:10:97::1]:80", Tcp, Pods(SHOP, Masqueraded)),
    case("not in its ranges", "a1", "10.97.0.1:80", Tcp, Dropped),
    case("", "node1", "10.97.0.1:80", Tcp, Dropped),
    case("external IP", "client", "10.98.0.1:80", Tcp, Pods(SHOP, Masqueraded)),
    case("", "a1", "[fd00:10:98::1]:80", Tcp, Pods(SHOP, Any)),
    case("external Local", "client", "10.97.0.2:80", Tcp, Pods(&["b1"], Kept)),
    case("", "client", "10.0.0.1:30081", Tcp, Pods(&["b1"], Kept)),
    case("  from within", "a1", "10.97.0.2:80", Tcp, Pods(SHOP, Kept)),
    case("  with no pod here", "client", "10.0.0.1:30082", Tcp, Dropped),
    case("internal Local", "a1", "10.96.0.30:80", Tcp, Pods(&["b1"], Kept)),
    case("", "b2", "10.96.0.30:80", Tcp, Pods(&["a2"], Kept)),
    case("  with no pod here", "a1", "10.96.0.31:80", Tcp, Dropped),
    case("affinity", "a1", "10.96.0.40:80", Tcp, One(WEB)),
    case("", "node1", "10.96.0.40:80", Tcp, One(WEB)),
    case("", "client", "10.98.0.2:80", Tcp, One(WEB)),
    // At the socket nothing is left to masquerade: the pod connects to itself.
    case("to itself", "a1", "10.96.0.50:80", Tcp, Pods(&["a1"], Any)),
    case("no endpoints", "a1", "10.96.0.99:80", Tcp, Refused),
    case("", "node1", "10.96.0.99:80", Tcp, Refused),
    case("", "client", "10.96.0.99:80", Tcp, Refused),
    case("no such port", "a1", "10.96.0.10:81", Tcp, Refused),
    case("", "client", "10.96.0.10:81", Tcp, Refused),
    case("no such address", "a1", "10.96.0.77:80", Tcp, Dropped),
];

/// Where the kernel has SCTP.
pub(super) const SCTP: [Case; 6] = [
    case("SCTP", "a1", "10.96.0.60:2905", Sctp, Pods(SHOP, Kept)),
    case("", "a1", "[fd00:10:96::60]:2905", Sctp, Pods(SHOP, Kept)),
    case("", "node1", "10.96.0.60:2905", Sctp, Pods(SHOP, Any)),
    case("", "client", "10.96.0.60:2905", Sctp, Pods(SHOP, Masqueraded)),
    case("  NodePort", "client", "10.0.0.1:30090", Sctp, Pods(SHOP, Masqueraded)),
    case("", "client", "[fd00:10::1]:30090", Sctp, Pods(SHOP, Masqueraded)),
];

/// What web looks like after one of its pods has become unready.
pub(super) const AFTER: [Case; 3] = [
    case("ClusterIP", "a1", "10.96.0.10:80", Tcp, Pods(&["a2", "b2"], Kept)),
    case("", "node1", "10.96.0.10:80", Tcp, Pods(&["a2", "b2"], Any)),
    case("", "client", "10.96.0.10:80", Tcp, Pods(&["a2", "b2"], Masqueraded)),
];
