//! Services, EndpointSlices, the own Node and ServiceCIDRs from a folder of manifests, for a host without a cluster. What is saved takes effect.

mod folder;
mod parse;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use proxy_core::cluster::Kind;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use self::folder::Folder;
use super::{Closed, Event, Sender, send};

/// A save is several events, and an editor may write a file in several steps: nothing is read before this long has passed
/// without another event.
const QUIET: Duration = Duration::from_millis(100);
/// But a file that is written to all the time must not keep the others waiting.
const IMPATIENCE: Duration = Duration::from_secs(1);
/// Events may be lost, and some filesystems have none: the folder is looked at this often without one.
const RESCAN: Duration = Duration::from_secs(3);

/// Sends all Services, EndpointSlices and ServiceCIDRs and the Node of this name of the `*.yaml`, `*.yml` and `*.json` files of a
/// folder, and then what changes, until the channel closes. A file that cannot be used is reported as a problem of `file:line:column`, once for each content.
pub async fn watch(dir: PathBuf, node: Arc<str>, events: Sender) -> anyhow::Result<()> {
    let metadata = fs::metadata(&dir).with_context(|| format!("manifests folder {}: create it, or name another", dir.display()))?;
    ensure!(metadata.is_dir(), "manifests folder {}: is not a folder; name the one that the files are in", dir.display());
    let (bell, mut rung) = mpsc::channel(1);
    let mut alarm = Alarm { bell, watcher: None, watched: None, failed: false };
    // Before the first look, so that nothing that happens after it is missed.
    alarm.set(&dir);
    let mut folder = Folder::new(dir, &node);
    let mut first = true;
    loop {
        let (scanned, said) = tokio::task::spawn_blocking(move || {
            let said = folder.scan();
            (folder, said)
        })
        .await
        .context("the manifests folder cannot be read any further")?;
        folder = scanned;
        let mut out: Vec<Event> = said.into_iter().map(Event::Object).collect();
        if std::mem::take(&mut first) {
            out.extend([Kind::Node, Kind::ServiceCidr, Kind::Service, Kind::Slice].map(|kind| Event::Listed(kind, folder.names(kind))));
        }
        for event in out {
            if let Err(Closed) = send(&events, event).await {
                return Ok(());
            }
        }
        tokio::select! {
            () = events.closed() => return Ok(()),
            () = quiet_after_ring(&mut rung) => {}
            () = sleep(RESCAN) => {}
        }
        alarm.set(folder.dir());
    }
}

/// Waits for an event and then for quiet.
async fn quiet_after_ring(rung: &mut mpsc::Receiver<()>) {
    rung.recv().await;
    let latest = Instant::now() + IMPATIENCE;
    while timeout_at(latest.min(Instant::now() + QUIET), rung.recv()).await.is_ok() && Instant::now() < latest {}
}

/// Rings when something happens in the folder.
struct Alarm {
    bell: mpsc::Sender<()>,
    watcher: Option<RecommendedWatcher>,
    /// Which folder is watched: another one may have taken its name.
    watched: Option<(u64, u64)>,
    failed: bool,
}

impl Alarm {
    /// Watches the folder that has this name now. Without it, changes are found by looking from time to time.
    fn set(&mut self, dir: &Path) {
        let found = fs::metadata(dir).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if found.is_none() || found == self.watched {
            return;
        }
        match self.start(dir) {
            Ok(watcher) => (self.watcher, self.watched, self.failed) = (Some(watcher), found, false),
            Err(error) => {
                self.watched = None;
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!("{}: no notice of changes ({error}); looking every {RESCAN:?} instead", dir.display());
                }
            }
        }
    }

    fn start(&self, dir: &Path) -> notify::Result<RecommendedWatcher> {
        let bell = self.bell.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.as_ref().is_ok_and(is_reading) {
                return;
            }
            // A full channel has already been rung.
            let _ = bell.try_send(());
        })?;
        watcher.watch(dir, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }
}

/// Reading changes nothing, and we read ourselves.
fn is_reading(event: &notify::Event) -> bool {
    matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)) && !event.need_rescan()
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
