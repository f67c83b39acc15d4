//! What connections in the lab are expected to do, waited for with a deadline.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context, Result};

use crate::agent::DEADLINE;
use crate::lab::{Connect, Counts, Lab, Proto, Seen};

/// Enough that each of three backends is chosen but once in a hundred thousand runs.
const CONNECTIONS: u64 = 30;
/// Long for a lab on one machine; short enough to see soon that an untranslated address leads to nothing.
const TIMEOUT_MS: u64 = 500;

/// A destination as scenarios write it: `10.96.0.10:80/tcp`.
#[derive(Clone, Copy, Debug)]
pub struct To {
    /// Address and port.
    pub addr: SocketAddr,
    /// Protocol.
    pub proto: Proto,
}

impl FromStr for To {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (addr, proto) = text.split_once('/').with_context(|| format!("{text:?}: want ADDRESS:PORT/PROTOCOL"))?;
        Ok(Self { addr: addr.parse().with_context(|| text.to_string())?, proto: proto.parse()? })
    }
}

/// Waits until connections from here reach all of these pods and nobody else.
pub fn reaches(lab: &Lab, from: &str, to: &str, pods: &[&str]) -> Result<()> {
    let wanted = pods.iter().map(|name| lab.find(name).map(|pod| pod.addresses())).collect::<Result<Vec<_>>>()?;
    wait(lab, from, to, &format!("to reach {pods:?}"), |counts| {
        let among = |pod: &[IpAddr; 2], server: &SocketAddr| pod.contains(&server.ip().to_canonical());
        counts.failed() == 0
            && wanted.iter().all(|pod| counts.servers.keys().any(|server| among(pod, server)))
            && counts.servers.keys().all(|server| wanted.iter().any(|pod| among(pod, server)))
    })
}

/// Waits until connections from here are refused at once.
pub fn refused(lab: &Lab, from: &str, to: &str) -> Result<()> {
    wait(lab, from, to, "to be refused", |counts| counts.answered() == 0 && counts.refused == counts.failed())
}

/// Waits until connections from here come to nothing: no Service is there.
pub fn untouched(lab: &Lab, from: &str, to: &str) -> Result<()> {
    let to: To = to.parse()?;
    let probe = Connect::new(to.addr, to.proto).timeout_ms(TIMEOUT_MS);
    lab.wait(DEADLINE, &format!("{from} -> {}/{} to come to nothing", to.addr, to.proto), || {
        let outcome = lab.find(from)?.probe(probe.clone())?;
        Ok(if outcome == crate::lab::Outcome::Timeout { Seen::Done(()) } else { Seen::not_yet(outcome) })
    })
}

fn wait(lab: &Lab, from: &str, to: &str, what: &str, good: impl Fn(&Counts) -> bool) -> Result<()> {
    let (peer, to) = (lab.find(from)?, to.parse::<To>()?);
    let probe = Connect::new(to.addr, to.proto).timeout_ms(TIMEOUT_MS);
    lab.wait(DEADLINE, &format!("{from} -> {}/{} {what}", to.addr, to.proto), || {
        let counts = peer.spray(probe.clone(), CONNECTIONS)?;
        Ok(if good(&counts) { Seen::Done(()) } else { Seen::not_yet(format!("{counts:?}")) })
    })
}
