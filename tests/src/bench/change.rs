//! Changes through the API server, and when each takes effect for new connections.

use std::net::SocketAddr;
use std::thread;

use anyhow::{Result, anyhow};

use super::flows;
use super::proxies::Running;
use super::results::{Kind, Series};
use super::rig::{PROBE, PROBE_SLICE, Rig, Written, endpoint, port};
use crate::lab::{Target, Watch};

/// Pause between two tries: the resolution of what is measured, together with the connection's own time.
pub(super) const PAUSE_US: u64 = 300;

/// The same where the probes are not to compete with the proxy for the machine's cores.
pub(super) const SELDOM_US: u64 = 25_000;

/// One change that counts for nothing: the first of all has caches to fill, in the writer and the prober too.
pub(super) fn warm_up(rig: &mut Rig, running: &Running) -> Result<()> {
    apply(rig, Kind::EndpointSlice, PAUSE_US)?;
    rig.pause();
    running.settle()
}

/// So many changes of a kind as the plan has, one after the other, watched for with this pause between two tries.
pub(super) fn series(rig: &mut Rig, running: &Running, kind: Kind, pause_us: u64) -> Result<Series> {
    let (cpu, probing, said) = (running.cpu()?, rig.probing()?, running.commits(&rig.lab)?);
    let mut each = Vec::new();
    let mut series = Series::new(kind);
    for _ in 0..rig.plan.changes {
        let taken_away = match kind {
            // It is another proxy's, or only for endpoints of the node, of which it has none.
            Kind::Service => Some(format!("proxy-name {PROBE} other")),
            Kind::Policy => Some(format!("internal-policy {PROBE} Local")),
            Kind::EndpointSlice | Kind::Port | Kind::StaleFlows => None,
        };
        if let Some(line) = &taken_away
            && !take_away(rig, line)?
        {
            series.gave_up = true;
            break;
        }
        let before = running.commits(&rig.lab)?;
        let (written, effect) = apply(rig, kind, pause_us)?;
        series.writes += if taken_away.is_some() || kind == Kind::StaleFlows { 2 } else { 1 };
        series.write.push(micros(written.done.saturating_sub(written.started)));
        series.seen.push(micros(written.seen.saturating_sub(written.started)));
        let Some(effect) = effect else {
            series.gave_up = true;
            break;
        };
        series.latency.push(micros(effect.saturating_sub(written.started)));
        if kind == Kind::StaleFlows && !flows::have_ended(rig)? {
            series.gave_up = true;
            break;
        }
        rig.pause();
        each.extend(running.first_commit_since(&before));
    }
    series.cpu = running.cpu()?.saturating_sub(cpu).as_secs_f64();
    series.probing = rig.probing()?.saturating_sub(probing).as_secs_f64();
    series.commit = running.commit_since(&rig.lab, &said, each)?;
    Ok(series)
}

/// Writes what takes the Service away and waits until it is no longer served; whether that was within the limit.
fn take_away(rig: &mut Rig, line: &str) -> Result<bool> {
    rig.writer.write(line)?;
    let gone = rig.lab.pod("a1").gone(rig.vip(), rig.plan.change_limit * 1000)?;
    rig.pause();
    Ok(gone)
}

/// Writes one change and watches for it. When it took effect, in nanoseconds since 1970.
fn apply(rig: &mut Rig, kind: Kind, pause_us: u64) -> Result<(Written, Option<u64>)> {
    if kind == Kind::StaleFlows {
        flows::open(rig)?;
        flows::make_stale(rig)?;
    }
    let line = match kind {
        Kind::EndpointSlice | Kind::StaleFlows => {
            rig.endpoint_turn += 1;
            format!("endpoints {PROBE_SLICE} {}", endpoint(rig.endpoint_turn))
        }
        Kind::Service => format!("proxy-name {PROBE} -"),
        Kind::Port => {
            rig.port_turn += 1;
            format!("port {PROBE} {}", port(rig.port_turn))
        }
        Kind::Policy => format!("internal-policy {PROBE} Cluster"),
    };
    let target = Target { dst: SocketAddr::new(rig.probe, port(rig.port_turn)), server: Some(endpoint(rig.endpoint_turn)) };
    let order = Watch { targets: vec![target], pause_us, limit_ms: rig.plan.change_limit * 1000 };
    let (lab, writer) = (&rig.lab, &mut rig.writer);
    thread::scope(|scope| {
        // From before the write on, so that nothing has to be started within what is timed.
        let watch = scope.spawn(|| lab.pod("a1").watch(order));
        let written = writer.write(&line)?;
        let seen = watch.join().map_err(|_| anyhow!("panicked")).flatten()?;
        Ok((written, seen.first().copied().flatten()))
    })
}

fn micros(nanos: u64) -> f64 {
    // Nanoseconds are more than the clock of a virtual machine gives.
    nanos as f64 / 1e3
}
