//! What the agents have counted of the demo's connections.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::agent::DEADLINE;
use crate::http;
use crate::lab::{Lab, Proto, Seen};

/// The metric's name, as at the beginning of a line of it.
const NAME: &str = "proxy_agent_service_connections_total{";

/// Connections by protocol.
pub(super) type Counted = BTreeMap<&'static str, u64>;

/// How metrics name those protocols that Services have.
pub(super) fn label(proto: Proto) -> Option<&'static str> {
    match proto {
        Proto::Tcp => Some("TCP"),
        Proto::Udp => Some("UDP"),
        Proto::Sctp => Some("SCTP"),
        Proto::Icmp => None,
    }
}

/// Waits until the agents of these nodes have counted every connection that was answered: TCP each, of the others nearly all, since
/// one from a port that another has just had is of the same flow to the kernel.
pub(super) fn wait(lab: &Lab, nodes: &[&str], answered: &Counted) -> Result<Counted> {
    let enough =
        |proto: &str, all: u64, counted: u64| counted <= all && if proto == "TCP" { counted == all } else { counted * 10 >= all * 9 };
    lab.wait(DEADLINE, &format!("the agents to count {answered:?}"), || {
        let counted = counted(lab, nodes)?;
        let good = counted.keys().eq(answered.keys()) && answered.iter().all(|(proto, all)| enough(proto, *all, counted[proto]));
        Ok(if good { Seen::Done(counted) } else { Seen::not_yet(format!("{counted:?}")) })
    })
}

fn counted(lab: &Lab, nodes: &[&str]) -> Result<Counted> {
    let mut counted = Counted::new();
    for node in nodes {
        // The default of --metrics-bind-address.
        let text = http::get(lab, node, "127.0.0.1:10249".parse()?, "/metrics")?.body;
        for line in text.lines().filter(|line| line.starts_with(NAME)) {
            let value: u64 = line.rsplit_once(' ').and_then(|(_, value)| value.parse().ok()).with_context(|| line.to_owned())?;
            let mut protos = [Proto::Tcp, Proto::Udp, Proto::Sctp].into_iter().filter_map(label);
            let proto = protos.find(|proto| line.contains(&format!("protocol=\"{proto}\""))).with_context(|| line.to_owned())?;
            *counted.entry(proto).or_default() += value;
        }
    }
    counted.retain(|_, count| *count > 0);
    Ok(counted)
}
