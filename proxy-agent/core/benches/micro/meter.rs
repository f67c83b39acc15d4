//! Counts what stretches of work cost and adds them up by case.

use std::ffi::CString;
use std::fmt;

use crate::alloc::counts;
use crate::{clock, valgrind};

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Counting {
    Nothing,
    /// Time as well.
    Allocations,
    Instructions,
}

/// Counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meter(Counting);

/// What one case has cost so far. Shown as a line of JSON.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// Of the way from an object to the kernel.
    stage: String,
    /// `service` or `change`.
    per: &'static str,
    /// The size of the cluster.
    services: u32,
    /// Services or changes that were measured.
    count: u32,
    /// On the processor.
    nanoseconds: u64,
    allocations: u64,
    bytes: u64,
    /// What the stage's structure keeps in use, after the first load.
    pub(crate) resident: u64,
}

impl Row {
    pub(crate) fn new(stage: impl Into<String>, per: &'static str, services: u32, count: u32) -> Self {
        Self { stage: stage.into(), per, services, count, nanoseconds: 0, allocations: 0, bytes: 0, resident: 0 }
    }
}

impl Meter {
    pub(crate) fn new(counting: Counting) -> Self {
        Self(counting)
    }

    /// Does a stretch of the work of a case.
    pub(crate) fn measure<T>(self, row: &mut Row, work: impl FnOnce() -> T) -> T {
        match self.0 {
            Counting::Nothing => work(),
            Counting::Instructions => {
                let name = CString::new(format!("{}/{}/{}", row.stage, row.per, row.services)).expect("no zero");
                valgrind::count(&name, work)
            }
            Counting::Allocations => {
                let (before, start) = (counts(), clock::now());
                let result = work();
                let after = counts();
                row.nanoseconds += (clock::now() - start).as_nanos() as u64;
                row.allocations += after.allocations - before.allocations;
                row.bytes += after.bytes - before.bytes;
                result
            }
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stage, per, services, count, nanoseconds, allocations, bytes, resident } = self;
        let line = serde_json::json!({
            "stage": stage, "per": per, "services": services, "count": count,
            "nanoseconds": nanoseconds, "allocations": allocations, "bytes": bytes, "resident": resident,
        });
        write!(f, "{line}")
    }
}
