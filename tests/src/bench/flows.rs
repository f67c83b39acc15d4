//! Ten thousand UDP flows from outside the cluster, whose endpoint goes: who ends them must not hold up what changes meanwhile.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::rig::{FLOWS_SLICE, NODE, Rig, silent_endpoint};

/// How many.
pub(super) const FLOWS: u16 = 10_000;
/// Below those that the kernel chooses for others.
const FIRST_PORT: u16 = 20_000;

/// Sends a datagram from each port: connection tracking then knows all the flows, to the endpoint that there is.
pub(super) fn open(rig: &Rig) -> Result<()> {
    let to = SocketAddr::new(rig.flows, 80);
    rig.lab.send_from("client", FIRST_PORT..FIRST_PORT + FLOWS, to)?;
    let known = count(rig, rig.flows_turn)?;
    ensure!(known == usize::from(FLOWS), "connection tracking knows {known} of {FLOWS} flows");
    Ok(())
}

/// Replaces their endpoint.
pub(super) fn make_stale(rig: &mut Rig) -> Result<()> {
    rig.flows_turn += 1;
    rig.flows_writer.write(&format!("endpoints {FLOWS_SLICE} {}", silent_endpoint(rig.flows_turn))).map(drop)
}

/// Waits until none of them goes to its former endpoint; whether that was within the limit.
pub(super) fn have_ended(rig: &Rig) -> Result<bool> {
    let deadline = Instant::now() + Duration::from_secs(rig.plan.change_limit);
    while count(rig, rig.flows_turn - 1)? > 0 {
        if Instant::now() > deadline {
            return Ok(false);
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(true)
}

/// How many flows lead to the endpoint of that turn.
fn count(rig: &Rig, turn: usize) -> Result<usize> {
    let (to, by) = (format!("dst={} ", rig.flows), format!("src={} ", silent_endpoint(turn)));
    rig.lab.tracked(NODE, &[&*to, &*by])
}
