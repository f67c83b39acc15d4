//! Starting processes that die with this one.
#![allow(unsafe_code)] // One call, which says why it is sound.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{self, Sender, SyncSender};
use std::thread;

use anyhow::{Result, anyhow};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

/// Registers a function that the new process runs before its program. The function makes system calls and nothing else: between
/// fork and exec no lock may be taken, so no memory allocated.
pub(crate) fn before_exec(command: &mut Command, function: impl FnMut() -> io::Result<()> + Send + Sync + 'static) {
    // SAFETY: all callers (here, in `lab::exec` and in `controlplane::process`) pass functions that make system calls (stat, write,
    // setns, prctl, getppid) on files opened before, and build errors that hold no allocation.
    unsafe { command.pre_exec(function) };
}

/// Makes the kernel send `signal` to the new process when the thread that starts it ends, in whatever way.
pub(crate) fn die_with_parent(command: &mut Command, signal: Signal) {
    let parent = Pid::this();
    before_exec(command, move || {
        set_pdeathsig(signal)?;
        // The parent may have ended before that took effect.
        if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
    });
}

/// "Dies with its parent" means: with the thread that started it. A test's thread may end before its lab or control plane does, so
/// processes are started by one thread that never ends.
pub(crate) fn spawn_from_lasting_thread(command: Command) -> Result<Child> {
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
