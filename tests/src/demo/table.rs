//! The demo's connections: made, judged, and shown line by line.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::thread;

use anyhow::{Context, Result, anyhow};

use super::cases::{Case, Outcome, Source};
use super::counted::Counted;
use crate::lab::{self, Connect, Counts, Lab};

/// How long nobody may answer what is to be dropped.
const SILENCE_MS: u64 = 500;

/// What became of all connections together.
pub(super) struct Tally {
    /// Whether all were as expected.
    pub(super) held: bool,
    /// How many were made.
    pub(super) connections: u64,
    /// How many were answered.
    pub(super) answered: Counted,
}

/// Makes the connections and prints what became of them.
pub(super) fn table(lab: &Lab, cases: &[&Case], tally: &mut Tally) -> Result<()> {
    println!("  {:<18} {:<6} {:<28} {:<32} {:<30}", "WHAT", "FROM", "TO", "EXPECTED", "REACHED");
    let seen = tried(lab, cases)?;
    for (case, seen) in cases.iter().zip(&seen) {
        let held = holds(lab, case, seen)?;
        tally.held &= held;
        tally.connections += seen.counts.answered() + seen.counts.failed();
        if seen.counts.answered() > 0 {
            *tally.answered.entry(case.proto).or_default() += seen.counts.answered();
        }
        let (to, mark) = (format!("{}/{}", case.to, case.proto), if held { "ok" } else { "WRONG" });
        println!("  {:<18} {:<6} {to:<28} {:<32} {:<30} {mark}", case.what, case.from, expected(case), reached(lab, case, seen)?);
    }
    Ok(())
}

/// What became of the connections of a case.
struct Seen {
    counts: Counts,
    /// Packets of it, or of others tried at the same time, have left the lab.
    lost: bool,
}

/// One case after the other, so that none takes another's time; but those that nobody is to answer wait all at once.
fn tried(lab: &Lab, cases: &[&Case]) -> Result<Vec<Seen>> {
    let before = lab.lost()?;
    let mut dropped = thread::scope(|scope| {
        let silent = cases.iter().filter(|case| is_silent(case));
        let threads: Vec<_> = silent.map(|case| scope.spawn(|| spray(lab, case, SILENCE_MS))).collect();
        let joined = threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a probe panicked"))?);
        joined.collect::<Result<Vec<_>>>()
    })?
    .into_iter();
    let lost = lab.lost()? != before;
    let seen = |case: &&Case| match dropped.next().filter(|_| is_silent(case)) {
        Some(counts) => Ok(Seen { counts, lost }),
        None => Ok(Seen { counts: spray(lab, case, Connect::TIMEOUT_MS * u64::from(lab::patience()?))?, lost: false }),
    };
    cases.iter().map(seen).collect()
}

fn is_silent(case: &Case) -> bool {
    matches!(case.outcome, Outcome::Dropped)
}

fn spray(lab: &Lab, case: &Case, timeout_ms: u64) -> Result<Counts> {
    let to: SocketAddr = case.to.parse().with_context(|| case.to)?;
    lab.find(case.from)?.spray(Connect::new(to, case.proto).timeout_ms(timeout_ms), case.connections())
}

fn expected(case: &Case) -> String {
    match case.outcome {
        Outcome::Pods(pods, Source::Any) => pods.join(" | "),
        Outcome::Pods(pods, Source::Kept) => format!("{}, source kept", pods.join(" | ")),
        Outcome::Pods(pods, Source::Masqueraded) => format!("{}, masqueraded", pods.join(" | ")),
        Outcome::One(pods) => format!("one of {}", pods.join(" | ")),
        Outcome::Refused => "refused".to_owned(),
        Outcome::Dropped => "dropped".to_owned(),
    }
}

fn reached(lab: &Lab, case: &Case, Seen { counts, lost }: &Seen) -> Result<String> {
    let mut parts: Vec<String> = counts.servers.iter().map(|(server, count)| format!("{} {count}", name(lab, server.ip()))).collect();
    let none = if *lost {
        "lost"
    } else if is_silent(case) {
        "dropped"
    } else {
        "timeout"
    };
    let others = [("refused", counts.refused), (none, counts.timeouts)];
    parts.extend(others.into_iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{what} {count}")));
    parts.extend(counts.errors.iter().map(|(errno, count)| format!("{errno} {count}")));
    let mut text = parts.join(", ");
    let own = lab.find(case.from)?.addresses();
    let others: BTreeSet<String> = counts.sources.keys().filter(|ip| !own.contains(ip)).map(|ip| name(lab, *ip)).collect();
    for other in others {
        // Writing to a string does not fail.
        let _ = write!(text, ", as {other}");
    }
    Ok(text)
}

/// Whose address it is.
fn name(lab: &Lab, ip: IpAddr) -> String {
    lab.find(&ip.to_string()).map_or_else(|_| ip.to_string(), |peer| peer.name().to_owned())
}

fn holds(lab: &Lab, case: &Case, Seen { counts, lost }: &Seen) -> Result<bool> {
    let all = case.connections();
    let from = lab.find(case.from)?.addresses();
    Ok(match case.outcome {
        Outcome::Refused => counts.refused == all,
        Outcome::Dropped => counts.timeouts == all && !lost,
        Outcome::One(pods) => counts.answered() == all && counts.servers.len() == 1 && answerers(lab, counts).is_subset(&set(pods)),
        Outcome::Pods(pods, source) => {
            let seen = match source {
                Source::Any => true,
                Source::Kept => counts.sources.keys().all(|ip| from.contains(ip)),
                Source::Masqueraded => counts.sources.keys().all(|ip| lab.node(1).addresses().contains(ip)),
            };
            counts.answered() == all && seen && answerers(lab, counts) == set(pods)
        }
    })
}

fn set(pods: &[&str]) -> BTreeSet<String> {
    pods.iter().map(|pod| (*pod).to_owned()).collect()
}

fn answerers(lab: &Lab, counts: &Counts) -> BTreeSet<String> {
    counts.servers.keys().map(|server| name(lab, server.ip())).collect()
}
