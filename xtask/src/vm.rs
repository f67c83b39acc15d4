//! The demo and scenarios on other kernels than this machine's, in virtual machines, so that no program and no rule is ever written
//! that only the newest kernel takes.

mod cpio;
mod initramfs;
mod kernel;
mod machine;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::builder::PossibleValuesParser;

use crate::lab;
use crate::packages::{self, Package};
use initramfs::Programs;
use kernel::{Kernel, Series};

const PACKAGES: [Package; 3] = [
    Package { name: "qemu-system-x86", why: "the virtual machines" },
    Package { name: "busybox-static", why: "the shell in them" },
    Package { name: "kmod", why: "loads the kernels' modules" },
];

/// Scenarios that kernels may differ in: what chooses, remembers and forgets, refuses, drops, masquerades; ranges; SCTP. All would take an hour.
const SCENARIOS: [&str; 15] = [
    "affinity-endpoint-gone",
    "affinity-restart",
    "conntrack-restart",
    "conntrack-sctp",
    "conntrack-udp",
    "external-local",
    "hairpin",
    "masquerade",
    "node-port-addresses",
    "node-port-any-address",
    "sctp",
    "short-circuits",
    "source-ranges",
    "unallocated",
    "unused-port",
];

/// What is run where nothing else is asked for: every dataplane on the real lab. nftables comes first, on a kernel whose module for
/// SCTP sockets nobody has loaded yet.
fn commands() -> String {
    let scenarios = format!("proxy-lab scenarios --directory /{} {}", initramfs::SCENARIOS, SCENARIOS.join(" "));
    format!("proxy-lab demo --mode nftables\nproxy-lab demo --mode ebpf\n{scenarios} --mode nftables\n{scenarios} --mode ebpf --v6\n")
}

/// How the closing lines of demo and scenarios begin.
const SUMMARY: &str = "summary: ";

/// Every kernel.
const ALL: &str = "all";

/// How long a machine may take. Emulation takes some minutes.
const LIMIT: Duration = Duration::from_secs(20 * 60);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The kernel: a series, or all
    #[arg(long, default_value = ALL, value_parser = names())]
    kernel: String,
    /// What to run instead of demo and scenarios, in a shell, with its output shown
    #[arg(last = true)]
    command: Vec<String>,
}

fn names() -> PossibleValuesParser {
    kernel::SERIES.map(|series| series.name).into_iter().chain([ALL]).into()
}

/// Boots the kernels, all at once: a machine by itself waits half of its time. An error if anything failed on any.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(cfg!(target_arch = "x86_64"), "the kernels are fetched for x86-64 machines, and this is none");
    packages::ensure(&PACKAGES)?;
    lab::build(lab::DEBUG)?;
    let folder = crate::workspace().join("target/vm");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    let programs = Programs::collect(
        &["proxy-agent", "proxy-lab"].map(|program| lab::built(lab::DEBUG, program)),
        &["busybox", "modprobe", "ip", "nft"],
        &folder,
    )?;
    let wanted: Vec<Series> = kernel::SERIES.into_iter().filter(|series| [series.name, ALL].contains(&&*args.kernel)).collect();
    let cache = crate::cache()?.join("kernels");
    let kernel = |series: Series| Kernel::get(series, &cache).with_context(|| format!("Linux {}", series.name));
    let kernels = wanted.into_iter().map(kernel).collect::<Result<Vec<_>>>()?;
    let failed: Vec<anyhow::Error> = thread::scope(|scope| {
        let machines: Vec<_> = kernels.iter().map(|kernel| scope.spawn(|| one(args, &programs, kernel, &folder))).collect();
        let ends = machines.into_iter().map(|machine| machine.join().unwrap_or_else(|_| bail!("a thread panicked")));
        ends.filter_map(Result::err).collect()
    });
    for error in &failed {
        eprintln!("{error:#}");
    }
    ensure!(failed.is_empty(), "{} of {} kernels failed", failed.len(), kernels.len());
    Ok(())
}

fn one(args: &Args, programs: &Programs, kernel: &Kernel, folder: &Path) -> Result<()> {
    let start = Instant::now();
    let series = kernel.series.name;
    let (packed, log) = (folder.join(format!("{series}.initramfs")), folder.join(format!("{series}.log")));
    let commands = if args.command.is_empty() { commands() } else { args.command.join(" ") };
    fs::write(&packed, initramfs::pack(programs, &kernel.modules(), &commands)?).with_context(|| packed.display().to_string())?;
    let echo = (!args.command.is_empty()).then_some(series);
    let booted = machine::boot(&kernel.image(), &packed, &log, echo, LIMIT);
    let console = booted.with_context(|| format!("Linux {}", kernel.version))?;
    println!("Linux {}: {}{} s", kernel.version, summary(&console), start.elapsed().as_secs());
    Ok(())
}

/// What demos and scenarios said at their end.
fn summary(console: &str) -> String {
    console.lines().filter_map(|line| line.strip_prefix(SUMMARY)).map(|line| format!("{line}; ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scenarios_are_there() {
        let file = |name: &&str| crate::workspace().join("tests/scenarios").join(format!("{name}.txt"));
        let missing: Vec<&&str> = SCENARIOS.iter().filter(|name| !file(name).is_file()).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn the_closing_lines_are_found() {
        assert_eq!(summary("x\nsummary: a, 1\nnot summary: b\nsummary: c, 2\n"), "a, 1; c, 2; ");
        assert_eq!(summary(""), "");
    }
}
