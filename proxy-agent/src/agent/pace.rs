//! When what has changed is written: at once after a pause, and no more often than the operator wants (SYNC-03).

use std::time::Duration;

use tokio::time::Instant;

/// The pace of syncs.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// From the end of one sync to the next.
    least: Duration,
    /// No sync before this.
    not_before: Option<Instant>,
    /// Something waits for that.
    waiting: bool,
}

impl Pace {
    pub(super) fn new(least: Duration) -> Self {
        Self { least, ..Self::default() }
    }

    /// Something may have changed. Whether now is the time for it; if not, it is at [`due`](Self::due).
    pub(super) fn may_sync(&mut self, now: Instant) -> bool {
        self.waiting = self.not_before.is_some_and(|at| now < at);
        !self.waiting
    }

    /// A sync has ended.
    pub(super) fn synced(&mut self, now: Instant) {
        (self.waiting, self.not_before) = (false, (!self.least.is_zero()).then(|| now + self.least));
    }

    /// When what waits is to be written.
    pub(super) fn due(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.waiting)
    }
}
