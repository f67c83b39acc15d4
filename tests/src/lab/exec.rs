//! Starting processes in a network namespace and a control group.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender, SyncSender};
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use super::netns;
use super::sys::before_exec;

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
        let parent = Pid::this();
        before_exec(&mut command, move || {
            // What is started here must not run anywhere else, not even for a moment: the group first. 0 is who writes.
            (&procs).write_all(b"0")?;
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have ended before that took effect.
            if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
        let text = format!("{command:?}");
        spawn_from_lasting_thread(command).with_context(|| format!("cannot start {text} in {}", self.netns))
    }
}

fn open_procs(cgroup: &Path) -> Result<File> {
    let path = cgroup.join("cgroup.procs");
    OpenOptions::new().write(true).open(&path).with_context(|| format!("cannot write {}", path.display()))
}

/// "Dies with its parent" means: with the thread that started it. A test's thread may end before its lab does, so processes are
/// started by one thread that never ends.
fn spawn_from_lasting_thread(command: Command) -> Result<Child> {
    type Job = (Command, SyncSender<io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in jobs {
                // An answer that nobody waits for is dropped.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (sender, answer) = mpsc::sync_channel(1);
    spawner.send((command, sender)).map_err(|_| anyhow!("the thread that starts processes is gone"))?;
    Ok(answer.recv()??)
}
