//! Starting processes that die with this one.
#![allow(unsafe_code)] // Two calls, which say why they are sound.

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

/// The last capability of a kernel is below this (include/uapi/linux/capability.h: CAP_LAST_CAP is 40 in 6.18).
const CAPABILITIES: u8 = 64;

/// The new process's program, run as root, has these capabilities (their numbers) and no others, as a container's has.
pub(crate) fn keep_capabilities(command: &mut Command, kept: &'static [u8]) {
    before_exec(command, move || {
        // The bounding set counts from exec on, so that what else is done before it goes on having all rights.
        for capability in (0..CAPABILITIES).filter(|capability| !kept.contains(capability)) {
            // SAFETY: the call takes a number and touches no memory.
            let done = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0, 0, 0) };
            // The kernel has no capability of this number.
            if done != 0 && io::Error::last_os_error().raw_os_error() != Some(libc::EINVAL) {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
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
