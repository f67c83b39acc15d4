//! Control groups of a lab: `<mount>/<lab>/<node>/<pod>`, found in every layout of version 2.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long processes get to vanish once they are killed.
const GRACE: Duration = Duration::from_secs(5);

/// Where version 2 is mounted, also beside version 1.
pub(super) fn mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("/proc/mounts")?;
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.find(|fields| matches!(fields[..], [_, _, "cgroup2", options, ..] if options.split(',').any(|o| o == "rw")));
    let path = found.with_context(|| "no cgroup2 mount that can be written to in /proc/mounts")?[1];
    Ok(PathBuf::from(path.replace("\\040", " ")))
}

/// Makes a group, and those above it.
pub(super) fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make cgroup {}", path.display()))
}

/// Kills all processes in a group and those below, and removes them all. A group that is not there is none.
pub(super) fn remove(path: &Path) -> Result<()> {
    let deadline = Instant::now() + GRACE;
    loop {
        let error = match try_remove(path) {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if Instant::now() > deadline {
            bail!("cannot remove cgroup {}: {error}; processes in it: {:?}", path.display(), processes(path));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn try_remove(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for pid in processes(path)? {
        // It may have ended by itself.
        let _ = kill(pid, Signal::SIGKILL);
    }
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            try_remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

fn processes(path: &Path) -> io::Result<Vec<Pid>> {
    let text = fs::read_to_string(path.join("cgroup.procs"))?;
    // 0 stands for a process of another pid namespace, and would be all of our own to kill(2).
    Ok(text.lines().filter_map(|pid| pid.parse().ok()).filter(|&pid| pid > 0).map(Pid::from_raw).collect())
}
