//! What the agent takes of the machine, over time.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// The first and the last of so many parts of the time are compared.
const PARTS: u32 = 6;

/// What was seen in one part of the time, on average.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Resident memory, in bytes.
    pub memory: f64,
    /// Open files.
    pub files: f64,
}

/// Looks at one process.
pub(super) struct Samples {
    pid: u32,
    time: Duration,
    seen: Vec<(Duration, Window)>,
}

impl Samples {
    pub(super) fn of(pid: u32, time: Duration) -> Self {
        Self { pid, time, seen: Vec::new() }
    }

    pub(super) fn look(&mut self, now: Duration) -> Result<()> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).context("the agent has ended")?;
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let kilobytes: f64 = resident.trim().trim_end_matches(" kB").parse().context("VmRSS")?;
        let files = fs::read_dir(format!("/proc/{}/fd", self.pid)).context("the agent has ended")?.count();
        self.seen.push((now, Window { memory: kilobytes * 1024.0, files: files as f64 }));
        Ok(())
    }

    /// The first and the last part.
    pub(super) fn windows(&self) -> Result<[Window; 2]> {
        let part = self.time / PARTS;
        let first = average(self.seen.iter().filter(|(at, _)| *at < part))?;
        let last = average(self.seen.iter().filter(|(at, _)| *at >= self.time - part))?;
        Ok([first, last])
    }
}

fn average<'a>(seen: impl Iterator<Item = &'a (Duration, Window)>) -> Result<Window> {
    let seen: Vec<&Window> = seen.map(|(_, window)| window).collect();
    ensure!(!seen.is_empty(), "the time was too short to look at the agent");
    let mean = |of: fn(&Window) -> f64| seen.iter().copied().map(of).sum::<f64>() / seen.len() as f64;
    Ok(Window { memory: mean(|w| w.memory), files: mean(|w| w.files) })
}
