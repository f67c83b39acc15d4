//! The commands that need the lab: the demo and the tests. They install what they lack and build what they run.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::packages::{self, Package};
use crate::run;

const PACKAGES: [Package; 8] = [
    Package { name: "gcc", why: "links the program" },
    Package { name: "pkg-config", why: "finds the libraries below" },
    Package { name: "libmnl-dev", why: "netlink, which libnftnl needs" },
    Package { name: "libnftnl-dev", why: "nftables rules over netlink" },
    Package { name: "iproute2", why: "makes the lab's network namespaces" },
    Package { name: "netbase", why: "names of protocols, for what nft lists" },
    Package { name: "nftables", why: "lists what is programmed, as a check from outside; kube-proxy runs it" },
    Package { name: "iptables", why: "kube-proxy runs it, which the scenarios are tried on too" },
];

#[derive(clap::Args)]
pub(crate) struct DemoArgs {
    /// The dataplane: ebpf or nftables
    #[arg(long, default_value = "ebpf", value_parser = ["ebpf", "nftables"])]
    mode: String,
    /// Leave the lab up afterwards, and say how to enter it
    #[arg(long)]
    keep: bool,
}

#[derive(clap::Args)]
pub(crate) struct TestArgs {
    /// Only tests whose names contain this
    filter: Option<String>,
}

/// Installs what building and testing need.
pub(crate) fn packages() -> Result<()> {
    packages::ensure(&PACKAGES)
}

/// How programs are compiled.
#[derive(Clone, Copy)]
pub(crate) struct Profile {
    name: &'static str,
    /// Below Cargo's folder for what it builds.
    folder: &'static str,
}

/// As tests run.
pub(crate) const DEBUG: Profile = Profile { name: "dev", folder: "debug" };
/// As users run, and benchmarks.
pub(crate) const RELEASE: Profile = Profile { name: "release", folder: "release" };

/// Builds the agent and the lab, with all that this needs.
pub(crate) fn build(profile: Profile) -> Result<()> {
    packages()?;
    eprintln!("Building the agent and the lab (the first time takes some minutes)");
    let mut command = cargo();
    command.args(["build", "--locked", "--package", "proxy-agent", "--package", "proxy-tests", "--bins", "--profile", profile.name]);
    run::run(&mut command)
}

/// Builds the agent and the lab and runs the demo in it.
pub(crate) fn demo(args: &DemoArgs) -> Result<()> {
    build(DEBUG)?;
    let mut lab = Command::new(built(DEBUG, "proxy-lab"));
    lab.args(["demo", "--mode", &args.mode, "--agent"]).arg(built(DEBUG, "proxy-agent"));
    if args.keep {
        lab.arg("--keep");
    }
    run::run(&mut lab)
}

/// Checks the Helm chart.
pub(crate) fn chart() -> Result<()> {
    build(DEBUG)?;
    run::run(Command::new(built(DEBUG, "proxy-lab")).arg("chart"))
}

/// Runs all tests, those without needs first, and sums up.
pub(crate) fn test(args: &TestArgs) -> Result<()> {
    let start = Instant::now();
    build(DEBUG)?;
    if args.filter.is_none() {
        eprintln!("Looking for what the end-to-end tests run: a control plane, and helm");
        run::run(Command::new(built(DEBUG, "proxy-lab")).arg("controlplane"))?;
    }
    let mut sum = Sum::default();
    let unit = ["--package", "proxy-abi", "--package", "proxy-core", "--package", "proxy-agent", "--package", "xtask"];
    for (packages, threads) in [(&unit[..], None), (&["--package", "proxy-tests"], Some("2"))] {
        let mut command = cargo();
        command.args(["test", "--locked", "--no-fail-fast", "--lib", "--bins", "--tests"]).args(packages);
        // Root, namespaces, Go: all there or installed above, so nothing may be skipped.
        command.env("PROXY_TEST_REQUIRED", "1").env("PROXY_AGENT", built(DEBUG, "proxy-agent")).env("PROXY_LAB", built(DEBUG, "proxy-lab"));
        command.arg("--").args(&args.filter);
        if let Some(threads) = threads {
            command.args(["--test-threads", threads]);
        }
        sum.run(&mut command)?;
    }
    eprintln!("{} s", start.elapsed().as_secs());
    println!("{} passed, {} failed, {} skipped", sum.passed, sum.failed, sum.ignored);
    if sum.failed > 0 || sum.broken {
        bail!("not all tests passed");
    }
    if sum.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// What the test runner's closing lines add up to.
#[derive(Default)]
struct Sum {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// A run ended badly without saying which test failed, as where one does not compile.
    broken: bool,
}

impl Sum {
    fn run(&mut self, command: &mut Command) -> Result<()> {
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| run::line(command))?;
        let output = child.stdout.take().context("no output")?;
        for line in BufReader::new(output).lines() {
            let line = line.context("the test runner's output")?;
            self.add(&line);
            writeln!(std::io::stdout(), "{line}")?;
        }
        self.broken |= !child.wait()?.success();
        Ok(())
    }

    /// `test result: ok. 9 passed; 0 failed; 1 ignored; 0 measured; …`
    fn add(&mut self, line: &str) {
        let Some((_, counts)) = line.strip_prefix("test result: ").and_then(|rest| rest.split_once(". ")) else { return };
        for part in counts.split("; ") {
            let Some((count, what)) = part.trim().split_once(' ') else { continue };
            let sum = match what {
                "passed" => &mut self.passed,
                "failed" => &mut self.failed,
                "ignored" => &mut self.ignored,
                _ => continue,
            };
            *sum += count.parse::<u64>().unwrap_or(0);
        }
    }
}

/// The cargo that runs us, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(crate::workspace());
    // What cargo told us about our own package is not for the next one: a build script that asks for it (ring's does) would run
    // again, and all that depends on it, whenever cargo is called by hand in between.
    let ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)).for_each(|(name, _)| {
        command.env_remove(name);
    });
    command
}

/// Where cargo puts a program.
pub(crate) fn built(profile: Profile, program: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::workspace().join("target"), PathBuf::from);
    target.join(profile.folder).join(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_summed_up() {
        let mut sum = Sum::default();
        sum.add("test result: ok. 9 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        sum.add("test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s");
        sum.add("test something ... ok");
        assert_eq!((sum.passed, sum.failed, sum.ignored), (10, 2, 1));
    }
}
