//! Services, EndpointSlices, the own Node and ServiceCIDRs from a folder of manifests, for a host without a cluster. What is saved takes effect.

mod folder;
mod parse;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use proxy_core::cluster::Kind;

use self::folder::Folder;
use super::{Closed, Event, Sender, send};
use crate::bell::Bell;

/// Sends all Services, EndpointSlices and ServiceCIDRs and the Node of this name of the `*.yaml`, `*.yml` and `*.json` files of a
/// folder, and then what changes, until the channel closes. A file that cannot be used is reported as a problem of `file:line:column`, once for each content.
pub async fn watch(dir: PathBuf, node: Arc<str>, events: Sender) -> anyhow::Result<()> {
    let metadata = fs::metadata(&dir).with_context(|| format!("manifests folder {}: create it, or name another", dir.display()))?;
    ensure!(metadata.is_dir(), "manifests folder {}: is not a folder; name the one that the files are in", dir.display());
    let mut bell = Bell::default();
    // Before the first look, so that nothing that happens after it is missed.
    bell.hang(&dir);
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
            () = bell.rung() => {}
        }
        bell.hang(folder.dir());
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
