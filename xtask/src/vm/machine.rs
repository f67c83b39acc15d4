//! A virtual machine: booted, watched, and over in time.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run;

/// What the first process says before it switches the machine off (init.sh).
const STATUS: &str = "vm: exit status ";

/// How a line begins with which a program in the machine tells why it failed.
const ERROR: &str = "Error: ";

/// How many of the console's lines an error shows: of what a program said of its failure, and of the end.
const SHOWN: [usize; 2] = [40, 20];

/// Boots a kernel into an initramfs. What the console shows goes to a file, and with `echo` to the terminal, each line behind that
/// word. Returns it if the commands in the machine have succeeded within the time.
pub(super) fn boot(image: &Path, initramfs: &Path, log: &Path, echo: Option<&str>, limit: Duration) -> Result<String> {
    let mut command = qemu(image, initramfs);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn();
    let mut child = child.with_context(|| run::line(&command))?;
    let console = watch(&mut child, log, echo, limit);
    if console.is_err() {
        // It hangs, most likely. Fails only for a process that has been waited for.
        let _ = child.kill();
    }
    let status = child.wait().context("waiting for the virtual machine")?;
    let text = fs::read_to_string(log).with_context(|| log.display().to_string())?;
    match console.map_err(|error| format!("{error:#}")).and_then(|()| verdict(&text, status)) {
        Ok(()) => Ok(text),
        // It has been seen.
        Err(why) if echo.is_some() => bail!("{why}"),
        Err(why) => bail!("{why}; from its console ({} has all):\n{}", log.display(), excerpt(&text)),
    }
}

/// Emulation, which is the same everywhere: machines that are virtual themselves may have a /dev/kvm with which nothing boots.
fn qemu(image: &Path, initramfs: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1024", "-no-reboot"]);
    command.args(["-nodefaults", "-display", "none", "-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1"]);
    command.arg("-kernel").arg(image).arg("-initrd").arg(initramfs);
    command
}

/// Copies the console until it ends. An error if that is not within the time.
fn watch(child: &mut Child, log: &Path, echo: Option<&str>, limit: Duration) -> Result<()> {
    let console = BufReader::new(child.stdout.take().context("no console")?);
    let mut file = File::create(log).with_context(|| log.display().to_string())?;
    let (sender, lines) = mpsc::channel();
    // It ends with the console.
    thread::spawn(move || console.split(b'\n').map_while(Result::ok).try_for_each(|line| sender.send(line)));
    let end = Instant::now() + limit;
    loop {
        let line = match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned(),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => bail!("it has not ended within {} s", limit.as_secs()),
        };
        writeln!(file, "{line}").with_context(|| log.display().to_string())?;
        if let Some(word) = echo {
            writeln!(io::stdout(), "{word} | {line}")?;
        }
    }
}

/// Whether the commands in the machine have succeeded, by what its first process said last; what qemu says of itself decides
/// nothing, but helps where there is no such word.
fn verdict(console: &str, qemu: ExitStatus) -> Result<(), String> {
    match console.lines().rev().find_map(|line| line.strip_prefix(STATUS)) {
        Some("0") => Ok(()),
        Some(status) => Err(format!("the commands failed: exit status {status}")),
        None => Err(format!("it ended without an exit status of its commands (qemu: {qemu})")),
    }
}

/// The beginning of the last error that a program told, which says what happened, and the console's end.
fn excerpt(console: &str) -> String {
    let lines: Vec<&str> = console.lines().collect();
    let error = lines.iter().rposition(|line| line.starts_with(ERROR));
    let told = error.map_or(0..0, |first| first..lines.len().min(first + SHOWN[0]));
    let end = told.end.max(lines.len().saturating_sub(SHOWN[1]));
    let cut: &[&str] = if end > told.end { &["…"] } else { &[] };
    [&lines[told], cut, &lines[end..]].concat().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_exit_status_of_0_is_success() {
        let verdict = |console| verdict(console, ExitStatus::default());
        assert_eq!(verdict("booting\nvm: exit status 0\n[ 1.0] reboot: Power down\n"), Ok(()));
        assert_eq!(verdict("vm: exit status 0\nvm: exit status 1\n"), Err("the commands failed: exit status 1".to_owned()));
        assert!(verdict("> vm: exit status 0\n").is_err(), "not at the beginning of a line");
        assert!(verdict("Kernel panic\n").is_err_and(|why| why.contains("without an exit status")));
    }

    #[test]
    fn an_excerpt_shows_the_last_error_and_the_end() {
        let lines = |word: &str, count: usize| (0..count).map(|i| format!("{word} {i}\n")).collect::<String>();
        let long = excerpt(&format!("Error: first\n{}Error: second\n{}", lines("before", 100), lines("after", 100)));
        assert!(
            long.starts_with("Error: second\nafter 0\n") && long.contains("after 38\n…\nafter 80\n") && long.ends_with("after 99"),
            "{long}"
        );
        let short = excerpt(&format!("Error: one\n{}", lines("after", 30)));
        assert_eq!(short.lines().count(), 31, "{short}");
        assert_eq!(excerpt(&lines("quiet", 50)).lines().filter(|line| line.starts_with("quiet")).count(), 20);
    }
}
