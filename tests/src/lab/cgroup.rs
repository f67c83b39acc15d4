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

/// Bytes of a page of memory on the machines that labs are made on.
const PAGE: u64 = 4096;

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

/// A control group whose processes are measured. Dropping it changes nothing: the lab removes it in the end.
#[derive(Clone, Debug)]
pub struct Group(PathBuf);

impl Group {
    pub(super) fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// CPU time that its processes have used, those that have ended included. It exists whether or not the CPU controller does.
    pub fn cpu_time(&self) -> Result<Duration> {
        let path = self.0.join("cpu.stat");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let micros = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        Ok(Duration::from_micros(micros.with_context(|| format!("{}: no usage_usec", path.display()))?))
    }

    /// Memory that its processes have resident now, in bytes; pages that two of them share count twice.
    pub fn resident(&self) -> Result<u64> {
        let pids = processes(&self.0).with_context(|| self.0.display().to_string())?;
        // One that ends meanwhile has none.
        Ok(pids.into_iter().filter_map(resident_of).sum())
    }

    /// Kills everything in it, and waits for nothing.
    pub fn kill(&self) -> Result<()> {
        let pids = processes(&self.0).with_context(|| self.0.display().to_string())?;
        // One may have ended by itself.
        for pid in pids {
            let _ = kill(pid, Signal::SIGKILL);
        }
        Ok(())
    }

    /// Kills what is left in it, and removes it once that has ended: a process within a long system call takes its time.
    pub fn end(self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        while let Err(error) = remove(&self.0) {
            if Instant::now() > deadline {
                return Err(error);
            }
        }
        Ok(())
    }
}

fn resident_of(pid: Pid) -> Option<u64> {
    // A child that has not begun with its own program yet has its parent's memory, which would count twice.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.to_owned();
    let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe")).ok();
    if program(&pid.to_string())? == program(&parent).unwrap_or_default() {
        return None;
    }
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * PAGE)
}
