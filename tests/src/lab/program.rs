//! A program that runs in the background on a node: the agent.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::exec::Place;
use super::wait::{Seen, wait};

/// Lines of the log that an error shows.
const TAIL: usize = 40;

/// A program that runs. It is killed when this is dropped; a test that panics shows the end of its output.
pub struct Program {
    text: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    pub(super) fn spawn(place: &Place, mut command: Command, log: PathBuf) -> Result<Self> {
        let text = command.get_program().display().to_string();
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Ok(Self { text, child: place.spawn(command)?, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed, to standard output and standard error, so far.
    pub fn log(&self) -> String {
        // Whatever is in it: a test's error must not fail over it.
        fs::read(&self.log).map_or_else(|error| error.to_string(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The file that it prints to. It goes with the lab.
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Whether it has ended, and how.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().with_context(|| format!("{} (pid {})", self.text, self.pid()))
    }

    /// Waits until its output has this text. An error if it ends before.
    pub fn wait_for_log(&mut self, deadline: Duration, text: &str) -> Result<()> {
        let what = format!("{text:?} in the output of {}", self.text);
        let ended = wait(deadline, &what, || {
            let ended = self.ended()?;
            let found = self.log().contains(text);
            Ok(if found { Seen::Done(None) } else { ended.map_or_else(|| Seen::not_yet(self.tail()), |e| Seen::Done(Some(e))) })
        })?;
        ended.map_or(Ok(()), |status| bail!("{} ended ({status}) before it said {text:?}\n{}", self.text, self.tail()))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        kill(pid, signal).with_context(|| format!("cannot send {signal} to {} (pid {pid})", self.text))
    }

    /// Waits for its end.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("the end of {} (pid {})", self.text, self.pid());
        wait(deadline, &what, || Ok(self.ended()?.map_or_else(|| Seen::not_yet(self.tail()), Seen::Done)))
    }

    /// Asks it to end (SIGTERM) and waits for that.
    pub fn stop(mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(deadline)
    }

    /// Ends it as a crash would (SIGKILL).
    pub fn kill(mut self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait().context("wait")?;
        Ok(())
    }

    /// The end of its output.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        format!("--- output of {} (last lines)\n{}", self.text, lines[lines.len().saturating_sub(TAIL)..].join("\n"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails only for a process that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("{}", self.tail());
        }
    }
}
