//! The long runs: built as users run them, and run by `proxy-lab soak` and `proxy-lab endure`.

use std::process::Command;

use anyhow::Result;

use crate::lab::{RELEASE, build, built};
use crate::run;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// For `proxy-lab` and the command of this name, which have their defaults: `--minutes N`, `--rate N`, `--seed N` and others
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    more: Vec<String>,
}

/// Builds everything in release and runs a command of `proxy-lab`.
pub(crate) fn run(command: &str, args: &Args) -> Result<()> {
    build(RELEASE)?;
    let lab = built(RELEASE, "proxy-lab");
    let mut soak = Command::new(&lab);
    soak.env("PROXY_AGENT", built(RELEASE, "proxy-agent")).env("PROXY_LAB", &lab).arg(command);
    run::run(soak.args(&args.more))
}
