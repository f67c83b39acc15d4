//! What the agents have counted of the demo's connections.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::agent::DEADLINE;
use crate::lab::{Lab, Proto, Seen};

/// The metric's name, as at the beginning of a line of it.
const NAME: &str = "proxy_agent_service_connections_total{";
/// Where metrics are, unless a flag says otherwise.
const METRICS_PORT: u16 = 10249;
/// What Services have.
const PROTOS: [Proto; 3] = [Proto::Tcp, Proto::Udp, Proto::Sctp];

/// Connections by protocol.
pub(super) type Counted = BTreeMap<Proto, u64>;

/// How metrics name it.
pub(super) fn label(proto: Proto) -> String {
    proto.to_string().to_uppercase()
}

/// Waits until the agents of these nodes have counted every connection that was answered: TCP each, of the others nearly all, since
/// one from a port that another has just had is of the same flow to the kernel.
pub(super) fn wait(lab: &Lab, nodes: &[&str], answered: &Counted) -> Result<Counted> {
    let enough =
        |proto: Proto, all: u64, counted: u64| counted <= all && if proto == Proto::Tcp { counted == all } else { counted * 10 >= all * 9 };
    lab.wait(DEADLINE, &format!("the agents to count {answered:?}"), || {
        let counted = counted(lab, nodes)?;
        let good = counted.keys().eq(answered.keys()) && answered.iter().all(|(proto, all)| enough(*proto, *all, counted[proto]));
        Ok(if good { Seen::Done(counted) } else { Seen::not_yet(format!("{counted:?}")) })
    })
}

fn counted(lab: &Lab, nodes: &[&str]) -> Result<Counted> {
    let mut counted = Counted::new();
    for node in nodes {
        let text = lab.http_get(node, METRICS_PORT, "/metrics")?;
        for line in text.lines().filter(|line| line.starts_with(NAME)) {
            let value: u64 = line.rsplit_once(' ').and_then(|(_, value)| value.parse().ok()).with_context(|| line.to_owned())?;
            let is_of = |proto: &Proto| line.contains(&format!("protocol=\"{}\"", label(*proto)));
            *counted.entry(PROTOS.into_iter().find(is_of).with_context(|| line.to_owned())?).or_default() += value;
        }
    }
    counted.retain(|_, count| *count > 0);
    Ok(counted)
}
