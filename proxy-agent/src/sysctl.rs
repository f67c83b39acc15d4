//! What of the kernel is set at the start: how many flows connection tracking remembers and for how long (CT-11..15), and how the
//! kernel treats the agent where memory runs out (CFG-09).
//!
//! What is right already is not written, so that an agent without the permission does where the node has been set up. What cannot
//! be written ends the agent, as it does kube-proxy: a table that is too small loses connections later, when nobody thinks of it.
//! Two cases only are reported instead, since no change of the agent's permissions is meant by them: a read-only file system, as an
//! unprivileged container has it, and a network namespace that is not the host's first, where some of it belongs to that.

#[cfg(test)]
mod tests;

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tracing::{info, warn};

use crate::config::ConntrackSettings;
use crate::conntrack;

/// As many flows as processors are no reason to remember (CT-12).
const MOST_BY_PROCESSORS: u32 = 1 << 20;
const FOLDER: &str = "proc/sys/net/netfilter";
const HASHSIZE: &str = "sys/module/nf_conntrack/parameters/hashsize";
const PROCESSORS: &str = "sys/devices/system/cpu/online";
const OOM_SCORE: &str = "/proc/self/oom_score_adj";

/// A value of the kernel's.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Setting {
    /// Below the root.
    path: PathBuf,
    value: u64,
    /// A greater one is right as well.
    at_least: bool,
    /// The flag that leaves it alone.
    way_out: &'static str,
}

/// What was left as it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Left {
    /// Which, which value it was to have, and why it has not.
    pub note: String,
    /// The operator should look: on a node it may be too small.
    pub is_wrong: bool,
}

/// Sets what connection tracking is to have, and says what has to be left.
///
/// # Errors
///
/// Something cannot be set, with the way out.
pub fn set(settings: &ConntrackSettings) -> anyhow::Result<Vec<Left>> {
    if !Path::new("/").join(FOLDER).join("nf_conntrack_count").exists() {
        conntrack::load();
    }
    set_below(Path::new("/"), settings)
}

/// Sets how likely the kernel ends the agent where memory runs out.
pub fn set_oom_score(score: i32) {
    let is_set = || fs::read_to_string(OOM_SCORE).is_ok_and(|text| text.trim() == score.to_string());
    if is_set() {
        return;
    }
    if let Err(reason) = fs::write(OOM_SCORE, score.to_string()) {
        warn!(%reason, "{OOM_SCORE} is not set to {score}: a lower score than before needs CAP_SYS_RESOURCE");
    }
}

fn set_below(root: &Path, settings: &ConntrackSettings) -> anyhow::Result<Vec<Left>> {
    let mut left = Vec::new();
    for setting in wanted(settings, || processors(root)) {
        left.extend(setting.set(root)?);
    }
    Ok(left)
}

/// What is to be set; zero leaves things alone.
fn wanted(settings: &ConntrackSettings, processors: impl FnOnce() -> u32) -> Vec<Setting> {
    let of = |name: &str, value: u64, at_least, way_out| Setting { path: Path::new(FOLDER).join(name), value, at_least, way_out };
    let mut wanted = Vec::new();
    if settings.max_per_core > 0 {
        let way_out = "--conntrack-max-per-core=0";
        let max = u64::from(most(settings, processors()));
        wanted.push(of("nf_conntrack_max", max, true, way_out));
        // CT-13
        wanted.push(Setting { path: HASHSIZE.into(), value: max / 4, at_least: true, way_out });
    }
    let timeouts = [
        ("nf_conntrack_tcp_timeout_established", settings.tcp_established_timeout, "--conntrack-tcp-timeout-established=0s"),
        ("nf_conntrack_tcp_timeout_close_wait", settings.tcp_close_wait_timeout, "--conntrack-tcp-timeout-close-wait=0s"),
        ("nf_conntrack_udp_timeout", settings.udp_timeout, "--conntrack-udp-timeout=0s"),
        ("nf_conntrack_udp_timeout_stream", settings.udp_stream_timeout, "--conntrack-udp-timeout-stream=0s"),
    ];
    let timeouts = timeouts.into_iter().filter(|(_, timeout, _)| *timeout >= Duration::from_secs(1));
    wanted.extend(timeouts.map(|(name, timeout, way_out)| of(name, timeout.as_secs(), false, way_out)));
    if settings.tcp_be_liberal {
        wanted.push(of("nf_conntrack_tcp_be_liberal", 1, false, "--conntrack-tcp-be-liberal=false"));
    }
    wanted
}

/// CT-12
fn most(settings: &ConntrackSettings, processors: u32) -> u32 {
    match settings.max_per_core.checked_mul(processors) {
        Some(most) if most <= MOST_BY_PROCESSORS => most.max(settings.min),
        _ => MOST_BY_PROCESSORS,
    }
}

/// The processors that the host has, which may be more than the agent may use.
fn processors(root: &Path) -> u32 {
    let online = fs::read_to_string(root.join(PROCESSORS)).ok().and_then(|text| count(&text));
    online.unwrap_or_else(|| available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)))
}

/// How many numbers a list of ranges such as `0-3,5` has.
fn count(list: &str) -> Option<u32> {
    let ranges = list.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)?.checked_add(1)
    });
    ranges.sum()
}

impl Setting {
    /// Sets it unless it is right. What had to be left, and why, if there is no choice.
    fn set(&self, root: &Path) -> anyhow::Result<Option<Left>> {
        let path = root.join(&self.path);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // Another part of it is there: this one is the first network namespace's alone.
            Err(reason) if reason.kind() == ErrorKind::NotFound && root.join(FOLDER).join("nf_conntrack_count").exists() => {
                return Ok(Some(self.left("this network namespace does not have it", "unknown", false)));
            }
            Err(reason) if reason.kind() == ErrorKind::NotFound => {
                return Err(anyhow!(
                    "{}: there is none: load the kernel module nf_conntrack, or run with {}",
                    path.display(),
                    self.way_out
                ));
            }
            Err(reason) => return Err(self.cannot(&path, &reason, "be read")),
        };
        let known: u64 = text.trim().parse().with_context(|| format!("{}: {:?} is no number", path.display(), text.trim()))?;
        if known == self.value || (self.at_least && known > self.value) {
            return Ok(None);
        }
        let Err(reason) = fs::write(&path, self.value.to_string()) else {
            info!(before = known, "{} is set to {}", path.display(), self.value);
            return Ok(None);
        };
        let is_for_nobody = || fs::metadata(&path).is_ok_and(|file| file.permissions().mode() & 0o222 == 0);
        match reason.kind() {
            ErrorKind::ReadOnlyFilesystem => Ok(Some(self.left("it is on a read-only file system", &known.to_string(), true))),
            // The hash table is the first network namespace's alone as well, and says so in another way.
            _ if is_for_nobody() || reason.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Ok(Some(self.left("only the host's first network namespace can set it", &known.to_string(), false)))
            }
            _ => Err(self.cannot(&path, &reason, &format!("be set to {}, and is {known}", self.value))),
        }
    }

    fn left(&self, why: &str, known: &str, is_wrong: bool) -> Left {
        let (path, value, way_out) = (self.path.display(), self.value, self.way_out);
        Left { note: format!("/{path} stays {known} and was to be {value}: {why}; set it on the node, or run with {way_out}"), is_wrong }
    }

    fn cannot(&self, path: &Path, reason: &io::Error, what: &str) -> anyhow::Error {
        anyhow!("{} cannot {what}: {reason}; let the agent write it, set it on the node, or run with {}", path.display(), self.way_out)
    }
}
