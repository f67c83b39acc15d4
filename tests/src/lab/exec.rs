//! Starting processes in a network namespace and a control group.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;

use super::netns;
use crate::child::{before_exec, die_with_parent, spawn_from_lasting_thread};

/// Where a process runs.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// Name of the network namespace.
    pub(super) netns: String,
    /// Path of the control group.
    pub(super) cgroup: PathBuf,
}

impl Place {
    /// Starts a command here. It is killed when this process ends in any way.
    pub(super) fn spawn(&self, mut command: Command) -> Result<Child> {
        let netns = netns::open(&self.netns)?;
        let procs = open_procs(&self.cgroup)?;
        before_exec(&mut command, move || {
            // What is started here must not run anywhere else, not even for a moment: the group first. 0 is who writes.
            (&procs).write_all(b"0")?;
            Ok(setns(&netns, CloneFlags::CLONE_NEWNET)?)
        });
        die_with_parent(&mut command, Signal::SIGKILL);
        let text = format!("{command:?}");
        spawn_from_lasting_thread(command).with_context(|| format!("cannot start {text} in {}", self.netns))
    }
}

fn open_procs(cgroup: &Path) -> Result<File> {
    let path = cgroup.join("cgroup.procs");
    OpenOptions::new().write(true).open(&path).with_context(|| format!("cannot write {}", path.display()))
}
