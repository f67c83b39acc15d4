//! Named network namespaces, as `ip netns` has them.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

const DIRECTORY: &str = "/run/netns";

/// Opens a namespace by name.
pub(super) fn open(name: &str) -> Result<File> {
    let path = path(name);
    File::open(&path).with_context(|| format!("network namespace {name}: cannot open {}", path.display()))
}

/// The file that is bound to the namespace.
pub(super) fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// The namespaces whose name begins so.
pub(super) fn with_prefix(prefix: &str) -> Result<Vec<String>> {
    let entries = match fs::read_dir(DIRECTORY) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(DIRECTORY),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with(prefix)).collect())
}

/// Runs a function in a namespace, in a thread of its own: entering is for good.
pub(super) fn inside<T: Send>(name: &str, function: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let file = open(name)?;
    let run = || {
        setns(&file, CloneFlags::CLONE_NEWNET).context("cannot enter it")?;
        function()
    };
    thread::scope(|scope| scope.spawn(run).join().map_err(|_| anyhow!("panicked"))?).with_context(|| format!("network namespace {name}"))
}
