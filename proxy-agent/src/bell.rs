//! A bell that rings when something happens in a folder.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

/// A save is several events, and an editor may write a file in several steps: nothing is read before this long has passed
/// without another event.
const QUIET: Duration = Duration::from_millis(100);
/// But a file that is written to all the time must not keep the others waiting.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// Events may be lost, and some filesystems have none: the folder is looked at this often without one.
pub(crate) const RESCAN: Duration = Duration::from_secs(3);

/// The bell of one folder.
pub(crate) struct Bell {
    rope: mpsc::Sender<()>,
    rung: mpsc::Receiver<()>,
    watcher: Option<RecommendedWatcher>,
    /// Which folder is watched: another one may have taken its name.
    watched: Option<(u64, u64)>,
    failed: bool,
}

impl Default for Bell {
    fn default() -> Self {
        let (rope, rung) = mpsc::channel(1);
        Self { rope, rung, watcher: None, watched: None, failed: false }
    }
}

impl Bell {
    /// Watches the folder that has this name now. Without it, changes are found by looking from time to time.
    pub(crate) fn hang(&mut self, dir: &Path) {
        let found = fs::metadata(dir).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if found.is_none() || found == self.watched {
            return;
        }
        match self.watch(dir) {
            Ok(watcher) => (self.watcher, self.watched, self.failed) = (Some(watcher), found, false),
            Err(error) => {
                self.watched = None;
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!("{}: no notice of changes ({error}); looking every {RESCAN:?} instead", dir.display());
                }
            }
        }
    }

    /// Waits until something has happened and then for quiet; at most until it is time to look without a ring.
    pub(crate) async fn rung(&mut self) {
        tokio::select! {
            _ = self.rung.recv() => {
                let latest = Instant::now() + IMPATIENCE;
                while timeout_at(latest.min(Instant::now() + QUIET), self.rung.recv()).await.is_ok() && Instant::now() < latest {}
            }
            () = sleep(RESCAN) => {}
        }
    }

    fn watch(&self, dir: &Path) -> notify::Result<RecommendedWatcher> {
        let rope = self.rope.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.as_ref().is_ok_and(is_reading) {
                return;
            }
            // A full channel has already been rung.
            let _ = rope.try_send(());
        })?;
        watcher.watch(dir, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }
}

/// Reading changes nothing, and we read ourselves.
fn is_reading(event: &notify::Event) -> bool {
    matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)) && !event.need_rescan()
}
