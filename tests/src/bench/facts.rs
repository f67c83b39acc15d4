//! What the figures depend on besides the proxies: the machine and the versions.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::controlplane::binaries;

/// The machine's facts, by name.
pub(super) fn gather() -> Result<BTreeMap<String, String>> {
    let kube_proxy = binaries()?.kube_proxy;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?.display().to_string();
    let git = |args: &[&str]| said("git", &[&["-C", &root], args].concat());
    let dirty = if git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() { "" } else { " with changes" };
    let facts = [
        ("date", said("date", &["--utc", "+%Y-%m-%d %H:%M UTC"])),
        ("commit", git(&["rev-parse", "--short=12", "HEAD"]) + dirty),
        ("kernel", said("uname", &["-sr"])),
        ("processor", field("/proc/cpuinfo", "model name")),
        ("cores", said("nproc", &[])),
        ("memory", memory()),
        ("kube-proxy", said(&kube_proxy.display().to_string(), &["--version"])),
        ("nft", said("nft", &["--version"])),
        ("iptables", said("iptables", &["--version"])),
        ("rustc", said("rustc", &["--version"])),
    ];
    Ok(facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// What a program prints; that it is not there is a fact too.
fn said(program: &str, args: &[&str]) -> String {
    match Command::new(program).args(args).output() {
        Ok(output) => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(_) => "not installed".to_owned(),
    }
}

fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
    line.map_or_else(|| "unknown".to_owned(), |(_, value)| value.trim().to_owned())
}

fn memory() -> String {
    let kilobytes = field("/proc/meminfo", "MemTotal");
    let bytes = kilobytes.trim_end_matches(" kB").parse::<f64>().map(|kilobytes| kilobytes * 1024.0);
    bytes.map_or(kilobytes, |bytes| format!("{:.0} GiB", bytes / f64::from(1 << 30)))
}
