//! The soak: built as users run it, and run by `proxy-lab soak`.

use std::process::Command;

use anyhow::Result;

use crate::lab::{RELEASE, build, built};
use crate::run;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// For `proxy-lab soak`, which has their defaults: `--minutes N`, `--rate N`, `--seed N`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    more: Vec<String>,
}

/// Builds everything in release and runs it.
pub(crate) fn run(args: &Args) -> Result<()> {
    build(RELEASE)?;
    let lab = built(RELEASE, "proxy-lab");
    let mut soak = Command::new(&lab);
    soak.env("PROXY_AGENT", built(RELEASE, "proxy-agent")).env("PROXY_LAB", &lab).arg("soak");
    run::run(soak.args(&args.more))
}
