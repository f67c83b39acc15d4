//! Which process a lab belongs to, and removing those whose process has ended.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::{cgroup, netns, network};

const DIRECTORY: &str = "/run/proxy-lab";

/// The directory of a lab: its owner's record, its bpffs, its logs.
pub(super) fn directory(lab: &str) -> PathBuf {
    Path::new(DIRECTORY).join(lab)
}

/// Where the lab's bpffs is mounted.
pub(super) fn bpffs(lab: &str) -> PathBuf {
    directory(lab).join("bpf")
}

/// Takes a name for a lab of this process, and records whose it is before anything of that name is made.
pub(super) fn claim() -> Result<String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let (pid, number) = (process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let name = format!("pa-{pid}-{number}");
    let record = format!("{pid} {}\n", start_time(pid).context("no start time of this process in /proc")?);
    // Renamed when complete: a directory without a record would be nobody's.
    let new = Path::new(DIRECTORY).join(format!(".{name}"));
    fs::create_dir_all(&new)
        .and_then(|()| fs::write(new.join("owner"), record))
        .and_then(|()| fs::rename(&new, directory(&name)))
        .with_context(|| format!("cannot make {}", directory(&name).display()))?;
    Ok(name)
}

/// Removes all labs whose process has ended, and returns their names. One process does it at a time.
pub(super) fn sweep() -> Result<Vec<String>> {
    fs::create_dir_all(DIRECTORY).context(DIRECTORY)?;
    let lock = File::create(Path::new(DIRECTORY).join(".lock")).context("the lock of labs")?;
    lock.lock().context("the lock of labs")?;
    let mut removed = Vec::new();
    for entry in fs::read_dir(DIRECTORY).context(DIRECTORY)? {
        let Ok(name) = entry.context(DIRECTORY)?.file_name().into_string() else { continue };
        if !name.starts_with('.') && !is_alive(&name) {
            tear_down(&name)?;
            removed.push(name);
        }
    }
    Ok(removed)
}

/// Removes everything of a lab's name. What is not there is none; the record goes last, so that it can be tried again.
pub(super) fn tear_down(lab: &str) -> Result<()> {
    let context = || format!("cannot remove lab {lab}");
    cgroup::remove(&cgroup::mount()?.join(lab)).with_context(context)?;
    network::delete(&netns::with_prefix(&format!("{lab}-"))?).with_context(context)?;
    match umount2(&bpffs(lab), MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => return Err(errno).with_context(|| format!("cannot unmount {}", bpffs(lab).display())),
    }
    match fs::remove_dir_all(directory(lab)) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(context),
        _ => Ok(()),
    }
}

/// Whether the process that made the lab still runs: the same one, not a later one with its number.
fn is_alive(lab: &str) -> bool {
    // Every lab has a record until its owner removes it. What has none is being removed, or not ours to judge.
    let Ok(record) = fs::read_to_string(directory(lab).join("owner")) else { return true };
    let Some((pid, start)) = record.trim().split_once(' ') else { return true };
    pid.parse().ok().and_then(start_time).is_some_and(|now| now == start)
}

/// When a process was started, in clock ticks since boot; none for one that has ended, waited for or not.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may have spaces. State is the first field after it, start time the twentieth.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ended = matches!(*fields.first()?, "Z" | "X");
    (!ended).then(|| fields.get(19).map(|start| (*start).to_owned()))?
}
