//! One proxy's turn: clean, start, changes, connections, stop, clean.

use std::fs;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};

use super::change;
use super::plan::Proxy;
use super::proxies::{Running, clean};
use super::results::{Connect, Kind, Run, Start};
use super::rig::Rig;
use crate::lab::{Target, Watch};

/// Pause between two tries of the first Service.
const START_PAUSE_US: u64 = 1_000;

/// Measures everything about one proxy once.
pub(super) fn measure(rig: &mut Rig, proxy: Proxy, round: usize) -> Result<Run> {
    clean(rig)?;
    rig.settle()?;
    let (services, load_before) = (rig.services, load_average());
    let mut run =
        Run { proxy, services, round, load_before, start: None, changes: Vec::new(), alone: None, connect: None, peak_memory: None };
    if proxy == Proxy::None {
        let direct = rig.backend();
        run.connect = Some(connect(rig, direct)?);
        return Ok(run);
    }
    let (mut running, start) = start(rig, proxy)?;
    let converged = start.last.is_some();
    run.start = Some(start);
    running.alive()?;
    if converged {
        running.settle()?;
        change::warm_up(rig, &running)?;
        for kind in Kind::ALL {
            let series = change::series(rig, &running, kind, change::PAUSE_US)?;
            let gave_up = series.gave_up;
            run.changes.push(series);
            running.alive()?;
            if gave_up {
                break;
            }
        }
        if run.changes.iter().all(|series| !series.gave_up) {
            run.alone = Some(change::series(rig, &running, Kind::EndpointSlice, change::SELDOM_US)?);
        }
        let vip = rig.vip();
        run.connect = Some(connect(rig, vip)?);
    }
    run.peak_memory = Some(running.stop()?);
    clean(rig)?;
    Ok(run)
}

/// Starts the proxy and waits for the first Service, and for all of the sample.
fn start(rig: &Rig, proxy: Proxy) -> Result<(Running, Start)> {
    let targets = rig.sample.iter().map(|&dst| Target { dst, server: None }).collect();
    let limit_ms = rig.plan.start_limit * 1000;
    let order = Watch { targets, pause_us: START_PAUSE_US, limit_ms };
    let probing = rig.probing()?;
    let (seen, started) = thread::scope(|scope| {
        let watch = scope.spawn(|| rig.lab.pod("a1").watch(order));
        let before = now();
        let running = Running::start(rig, proxy).map(|running| (running, before));
        (watch.join().map_err(|_| anyhow!("panicked")).flatten(), running)
    });
    let (running, before) = started?;
    let cpu = running.cpu()?.as_secs_f64();
    let probing = rig.probing()?.saturating_sub(probing).as_secs_f64();
    let seconds: Vec<Option<f64>> = seen?.into_iter().map(|ns| Some(ns?.saturating_sub(before) as f64 / 1e9)).collect();
    let commit = running.committed_in_all();
    let last = seconds.iter().copied().collect::<Option<Vec<f64>>>().map(|all| all.into_iter().fold(0.0, f64::max));
    Ok((running, Start { first: seconds.first().copied().flatten(), last, sample: seconds.len(), cpu, probing, commit }))
}

/// Connects to an endpoint directly and to another destination, in turn.
fn connect(rig: &Rig, other: SocketAddr) -> Result<Connect> {
    let direct = rig.backend();
    let pod = rig.lab.pod("a1");
    // Caches and routes are warm afterwards.
    pod.connect_times(&[direct, other], 50)?;
    let times = pod.connect_times(&[direct, other], rig.plan.connects)?;
    let micros = |ns: &Vec<u64>| ns.iter().map(|&ns| (ns as f64 / 100.0).round() / 10.0).collect();
    let [direct, other] = &times[..] else { return Err(anyhow!("{} series of connections", times.len())) };
    Ok(Connect { direct: micros(direct), other: micros(other) })
}

/// Nanoseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").context("/proc/loadavg");
    text.ok().and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(f64::NAN)
}
