//! The configuration file is followed (W-16): what is saved, or swapped in as kubelet does with a ConfigMap, counts without a restart.

use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::{Launch, Loaded};
use crate::bell::Bell;
use crate::recorder::{Notice, Recorder, Regarding, Severity};

/// Where changes of the configuration come from.
pub struct Changes {
    launch: Launch,
    current: Loaded,
    /// What this host cannot run.
    refused: Option<Loaded>,
}

impl Changes {
    /// Changes of what was loaded, but not to what has been refused.
    pub fn new(launch: Launch, current: Loaded, refused: Option<Loaded>) -> Self {
        Self { launch, current, refused }
    }

    /// Waits for a configuration that is another and can be used. What cannot be used is reported, once for each content, and the one
    /// that runs stays. Never ends without a file.
    pub async fn next(self, recorder: Recorder) -> Loaded {
        let Some(file) = self.launch.file.clone() else { return std::future::pending().await };
        let folder = folder(&file);
        let mut bell = Bell::default();
        let mut seen: Option<Result<String, String>> = None;
        loop {
            bell.hang(&folder);
            // Compared by what it says: kubelet swaps folders, editors swap files, and either may save what was there.
            let content = std::fs::read_to_string(&file).map_err(|error| error.to_string());
            if seen.as_ref() != Some(&content) {
                seen = Some(content);
                match self.launch.load() {
                    Ok(next) if self.refused.as_ref().is_some_and(|refused| refused.changes(&next).is_empty()) => {}
                    Ok(next) => match &*self.current.changes(&next) {
                        [] => {}
                        paths => {
                            info!("{}: has changed: {}; starting with it", file.display(), paths.join(", "));
                            return next;
                        }
                    },
                    Err(error) => {
                        warn!("{}: has changed and cannot be used, so that what was there before stays: {error:#}", file.display());
                        recorder.record(invalid(&error));
                    }
                }
            }
            bell.rung().await;
        }
    }
}

/// The event of a configuration that cannot be used.
pub fn invalid(error: &anyhow::Error) -> Notice {
    let note = format!("{error:#}");
    Notice { regarding: Regarding::Node, severity: Severity::Warning, reason: "InvalidConfiguration", note }
}

fn folder(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => ".".into(),
    }
}
