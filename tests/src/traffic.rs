//! Many probes: a given number of them, or in a loop until told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, anyhow};

use crate::pod::{Counts, Failure, Outcome, Report, Spray, Traffic};
use crate::probe::{Session, probe};

/// Carries out a spray.
pub(crate) fn spray(spray: &Spray) -> Counts {
    let mut counts = Counts::default();
    for _ in 0..spray.count {
        counts.add(&probe(&spray.probe).0);
    }
    counts
}

/// A loop of probes that runs.
pub(crate) struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Report>,
}

impl Running {
    /// Starts it.
    pub(crate) fn start(traffic: Traffic) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        Self { stop, thread: thread::spawn(move || run(&traffic, &stopped)) }
    }

    /// Ends it, once the probe that is under way is over.
    pub(crate) fn stop(self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the thread that probes panicked"))
    }
}

fn run(traffic: &Traffic, stop: &AtomicBool) -> Report {
    let started = Instant::now();
    let mut report = Report::default();
    let mut last_answer = started;
    let mut session = None;
    while !stop.load(Ordering::Relaxed) {
        let at = SystemTime::now();
        let outcome = one(traffic, &mut session);
        report.counts.add(&outcome);
        if outcome.answer().is_some() {
            let now = Instant::now();
            report.longest_gap_us = report.longest_gap_us.max(micros(now - last_answer));
            last_answer = now;
        } else if report.failures.len() < Report::KEPT {
            let at_us = micros(at.duration_since(UNIX_EPOCH).unwrap_or_default());
            report.failures.push(Failure { at_us, outcome });
        }
        thread::sleep(Duration::from_micros(traffic.pause_us));
    }
    report.longest_gap_us = report.longest_gap_us.max(micros(last_answer.elapsed()));
    report.duration_us = micros(started.elapsed());
    report
}

fn one(traffic: &Traffic, kept: &mut Option<Session>) -> Outcome {
    let Some(session) = kept else {
        let (outcome, session) = probe(&traffic.probe);
        *kept = session.filter(|_| traffic.probe.hold && outcome.answer().is_some());
        return outcome;
    };
    let deadline = Instant::now() + Duration::from_millis(traffic.probe.timeout_ms);
    let outcome = session.echo(None, deadline);
    // A connection without an answer has failed; the next probe opens a new one.
    if outcome.answer().is_none() {
        *kept = None;
    }
    outcome
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
