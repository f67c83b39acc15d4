//! How often somebody else's changes are repaired: at once, but not over and over against somebody who keeps on.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

/// The pause after a look at the kernel: first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// When one dataplane is looked at. A look reads back everything, and whoever has a reason to change our objects once may have it
/// again: the pauses grow as long as he goes on.
pub(super) struct Watch {
    due: Option<Instant>,
    last: Option<Instant>,
    pause: Duration,
}

impl Default for Watch {
    fn default() -> Self {
        Self { due: None, last: None, pause: PAUSE.0 }
    }
}

impl Watch {
    /// When the next look is due, if any.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Somebody else has changed something.
    pub(super) fn disturbed(&mut self, now: Instant) {
        let at = self.last.map_or(now, |last| now.max(last + self.pause));
        self.due.get_or_insert(at);
    }

    /// Whether the time for a look has come.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        self.due.take_if(|at| *at <= now).is_some()
    }

    /// A look has been taken.
    pub(super) fn looked(&mut self, now: Instant, dataplane: &str) {
        let goes_on = self.last.is_some_and(|last| now < last + self.pause * 2);
        self.pause = if goes_on { (self.pause * 2).min(PAUSE.1) } else { PAUSE.0 };
        self.last = Some(now);
        if goes_on {
            warn!(
                dataplane,
                "somebody else keeps changing what is programmed: it is not repaired again before {:?} have passed", self.pause
            );
        }
    }
}
