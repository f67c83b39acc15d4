//! The benchmarks: built as users run it, measured by `proxy-lab bench`.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::lab::{RELEASE, built};
use crate::{lab, run};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Under five minutes, into target/bench: few samples, and large sizes for our own dataplanes only
    #[arg(long)]
    quick: bool,
    /// Where results and report go (default: docs, with --quick target/bench)
    #[arg(long, value_name = "DIR")]
    out: Option<String>,
    /// More for the harness: `--sizes 1,1000,10000,50000`, `--proxies ebpf,nftables,kube-proxy-nftables,kube-proxy-iptables,none`,
    /// `--rounds N`, `--changes N`, `--start-limit SECONDS`, `--seed N`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    more: Vec<String>,
}

/// Builds everything in release and measures.
pub(crate) fn run(args: &Args) -> Result<()> {
    lab::build(RELEASE)?;
    let lab = built(RELEASE, "proxy-lab");
    run::run(Command::new(&lab).arg("controlplane"))?;
    let default = if args.quick { "target/bench" } else { "docs" };
    let out = crate::workspace().join(args.out.as_deref().map_or(Path::new(default), Path::new));
    let mut bench = Command::new(&lab);
    bench.env("PROXY_AGENT", built(RELEASE, "proxy-agent")).env("PROXY_LAB", &lab).arg("bench");
    if args.quick {
        bench.arg("--quick");
    }
    run::run(bench.arg("--out").arg(out).args(&args.more))
}
