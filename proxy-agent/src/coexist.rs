//! Another Service proxy on this node: a kube-proxy that runs, or what one has left. Two that translate the same addresses do not
//! break each other at once (whose rules a connection meets first serves it), but what is left of one that has ended goes stale.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use proxy_core::model::Family;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::nft::kube_proxy;

/// The port on which kube-proxy answers health checks, unless it is told another.
const HEALTH_PORT: u16 = 10256;
/// How often it is looked whether a kube-proxy has ended.
const AGAIN: Duration = Duration::from_secs(5);

/// What there is of kube-proxy.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Whether one runs: how that is known.
    running: Option<String>,
    /// Rules that can be removed.
    rules: Vec<String>,
    /// Rules that somebody else uses.
    used: Vec<String>,
    /// What is there, or may be, that takes another program to remove.
    manual: Vec<String>,
}

/// Looks for a kube-proxy in this network namespace and for what one has left, without changing anything.
pub fn look() -> Found {
    let mut found = Found { running: running(), ..Found::default() };
    for family in Family::ALL {
        match kube_proxy::find(family) {
            Ok(leftovers) => {
                found.rules.extend(leftovers.describe(family));
                found.used.extend(leftovers.in_use());
            }
            Err(error) => found.manual.push(format!("rules of family {family} that cannot be read ({error:#})")),
        }
    }
    if Path::new("/sys/class/net/kube-ipvs0").exists() {
        found.manual.push("ipvs virtual servers (device kube-ipvs0): run `ipvsadm --clear && ip link delete kube-ipvs0`".to_owned());
    }
    for (names, save) in [("ip_tables_names", "iptables-legacy-save"), ("ip6_tables_names", "ip6tables-legacy-save")] {
        let tables = fs::read_to_string(Path::new("/proc/net").join(names)).unwrap_or_default();
        if !tables.trim().is_empty() {
            let tables = tables.split_whitespace().collect::<Vec<_>>().join(", ");
            found.manual.push(format!("legacy iptables tables ({tables}), which are not looked into: `{save} | grep KUBE-` shows whether they hold rules of kube-proxy, `kube-proxy --cleanup` removes them"));
        }
    }
    found
}

impl Found {
    /// Says in one line what there is and what to do about it, if anything is.
    pub fn report(&self, remove: bool) {
        let mut parts = Vec::new();
        if let Some(how) = &self.running {
            parts.push(format!("a kube-proxy runs ({how}): stop it, for example by deleting its DaemonSet"));
        }
        if !self.rules.is_empty() {
            let way_out = if remove {
                "they are removed once ours are in place and kube-proxy has ended"
            } else {
                "--remove-kube-proxy-rules, or `proxy-agent cleanup --kube-proxy`, removes them"
            };
            parts.push(format!("rules of kube-proxy are there ({}): {way_out}", self.rules.join("; ")));
        }
        // Legacy tables alone are no sign of kube-proxy.
        if !parts.is_empty() || self.manual.iter().any(|what| what.starts_with("ipvs")) {
            parts.extend(self.manual.iter().cloned());
        }
        if !parts.is_empty() {
            warn!("this node has another Service proxy: {}", parts.join("; "));
        }
    }
}

/// What is left to do once everything that we serve is in place: with `remove`, the rules of kube-proxy go as soon as none runs.
pub async fn migrate(before: Found, remove: bool) {
    let mut waits = false;
    loop {
        let Ok(found) = spawn_blocking(look).await else { return };
        if !remove || found.rules.is_empty() {
            if found != before {
                found.report(remove);
            }
            return;
        }
        match &found.running {
            Some(how) if !waits => warn!("the rules of kube-proxy stay until it has ended ({how}), else it would write them again"),
            Some(_) => {}
            None => {
                match spawn_blocking(self::remove).await {
                    Ok(Err(error)) => error!("{error:#}; `proxy-agent cleanup --kube-proxy` tries again"),
                    _ => info!("ours are in place, and those of kube-proxy are removed"),
                }
                return;
            }
        }
        waits = true;
        sleep(AGAIN).await;
    }
}

/// Removes the rules of kube-proxy in this network namespace. That there are none is no error.
///
/// # Errors
///
/// The kernel refuses.
pub fn remove() -> anyhow::Result<()> {
    for family in Family::ALL {
        let removed = kube_proxy::remove(family)?;
        for what in removed.describe(family) {
            info!("removed what kube-proxy has left: {what}");
        }
        for what in removed.in_use() {
            warn!("chain {what} stays");
        }
    }
    Ok(())
}

/// How it is known that a kube-proxy runs in this network namespace.
fn running() -> Option<String> {
    process().map(|pid| format!("pid {pid}")).or_else(|| is_bound(HEALTH_PORT).then(|| format!("port {HEALTH_PORT} is in use")))
}

/// A process of that name, where such can be seen: in a container with hostPID, or on the host. An agent that was started by that name
/// (kubeadm's DaemonSet does) is none.
fn process() -> Option<u32> {
    let here = network(Path::new("/proc/self"))?;
    let ours = fs::read_link("/proc/self/exe").unwrap_or_default();
    let processes = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let is_one = |pid: &u32| {
        let dir = Path::new("/proc").join(pid.to_string());
        let named = fs::read_to_string(dir.join("comm")).is_ok_and(|name| name.trim() == "kube-proxy");
        let is_agent = || fs::read_link(dir.join("exe")).is_ok_and(|program| program.file_name() == ours.file_name());
        // One in another network namespace writes other rules.
        named && !is_agent() && network(&dir) == Some(here)
    };
    processes.into_iter().find(is_one)
}

/// The network namespace of a process, told by a file that each namespace has its own of: that takes no right to trace the process,
/// as `ns/net` does.
fn network(process: &Path) -> Option<u64> {
    fs::metadata(process.join("net/dev")).ok().map(|file| file.ino())
}

/// Whether another process of this network namespace listens on a TCP port: we serve health checks there ourselves.
fn is_bound(port: u16) -> bool {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().filter_map(|path| fs::read_to_string(path).ok());
    let found: Vec<u64> = tables.flat_map(|table| listeners(&table, port)).collect();
    if found.is_empty() {
        return false;
    }
    let own = own_sockets();
    found.iter().any(|socket| !own.contains(socket))
}

/// The sockets (by inode) that listen on a port: lines of such a table in state 0A.
fn listeners(table: &str, port: u16) -> Vec<u64> {
    let suffix = format!(":{port:04X}");
    let listener = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_one = fields.get(1)?.ends_with(&suffix) && *fields.get(3)? == "0A";
        is_one.then(|| fields.get(9)?.parse().ok()).flatten()
    };
    table.lines().skip(1).filter_map(listener).collect()
}

/// The sockets of this process.
fn own_sockets() -> HashSet<u64> {
    let links = fs::read_dir("/proc/self/fd").into_iter().flatten().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_listener_is_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                     0: 0100007F:2810 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 7 1\n   \
                     1: 0100007F:1F90 0100007F:2811 01 00000000:00000000 00:00000000 00000000     0        0 1 1\n";
        assert_eq!(listeners(table, HEALTH_PORT), [7]);
        assert!(listeners(table, 8080).is_empty(), "a connection is no listener");
        assert!(listeners(table, 10257).is_empty());
    }

    #[test]
    fn a_port_that_we_listen_on_ourselves_is_nobody_elses() -> anyhow::Result<()> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").context("loopback")?;
        let port = listener.local_addr()?.port();
        let table = fs::read_to_string("/proc/net/tcp")?;
        let found = listeners(&table, port);
        assert_eq!(found.len(), 1, "{table}");
        assert!(own_sockets().contains(&found[0]));
        assert!(!is_bound(port));
        Ok(())
    }
}
