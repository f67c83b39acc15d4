//! The soak: built as users run it, and run by `proxy-lab soak`.

use std::process::Command;

use anyhow::Result;

use crate::lab::{RELEASE, build, built};
use crate::run;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How long
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// New connections a second, as far as the machine can
    #[arg(long, default_value_t = 10_000)]
    rate: u64,
    /// What the random choices are made from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Builds everything in release and runs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    build(RELEASE)?;
    let lab = built(RELEASE, "proxy-lab");
    let mut soak = Command::new(&lab);
    soak.env("PROXY_AGENT", built(RELEASE, "proxy-agent")).env("PROXY_LAB", &lab).arg("soak");
    soak.args(["--minutes", &args.minutes.to_string(), "--rate", &args.rate.to_string(), "--seed", &args.seed.to_string()]);
    run::run(&mut soak)
}
