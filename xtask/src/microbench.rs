//! What core's decisions cost: runs its microbenchmarks, shows the figures, and compares them with the baseline that is committed.
//!
//! Allocations and instructions (but for the allocator's own) are the same in every run on every machine with the same tools, so a
//! change of the code is judged by them. Time is shown and judges nothing.

mod callgrind;
mod compare;
mod environment;
mod figures;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::lab::cargo;
use crate::packages::{self, Package};
use crate::run::output;
use compare::{Baseline, compare};
use environment::Environment;
use figures::Figures;

/// What each case may cost.
const BASELINE: &str = "proxy-agent/core/benches/baseline.json";
/// Where callgrind writes.
const COUNTS: &str = "target/microbench";

const PACKAGES: [Package; 2] =
    [Package { name: "gcc", why: "links the program" }, Package { name: "valgrind", why: "counts instructions: callgrind" }];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fail where allocations or instructions are more than the baseline allows
    #[arg(long, conflicts_with = "update")]
    check: bool,
    /// Make what is measured now the baseline
    #[arg(long)]
    update: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    packages::ensure(&PACKAGES)?;
    eprintln!("Building the microbenchmarks");
    let program = build()?;
    let now = Baseline { environment: Environment::here()?, cases: measure(program)? };
    print!("{}", table::table(&now.cases));

    let path = crate::workspace().join(BASELINE);
    if args.update {
        fs::write(&path, now.to_json()?).with_context(|| format!("cannot write {BASELINE}"))?;
        eprintln!("{BASELINE} is written: commit it");
        return Ok(());
    }
    let baseline = fs::read_to_string(&path).with_context(|| format!("{BASELINE}: make it with `cargo xtask microbench --update`"))?;
    let baseline = Baseline::from_json(&baseline).with_context(|| format!("{BASELINE} is not what `--update` writes"))?;
    let verdict = compare(&baseline, &now);
    print!("{verdict}");
    if args.check && !verdict.passes() {
        bail!(
            "core costs more than {BASELINE} allows: see above. Make it cheaper, or accept the cost with `cargo xtask microbench \
             --update`, commit the file, and say in the commit what the cost is for"
        );
    }
    Ok(())
}

/// Compiles the benchmarks; returns the program.
fn build() -> Result<PathBuf> {
    let mut cargo = cargo();
    cargo.args(["bench", "--locked", "--no-run", "--package", "proxy-core", "--bench", "micro"]);
    cargo.arg("--message-format=json-render-diagnostics").env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    let messages = output(&mut cargo).context("the microbenchmarks do not build")?;
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = messages.filter(|message| message["target"]["name"] == "micro");
    let program = programs.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    program.context("cargo does not say where it put the microbenchmarks")
}

/// All cases with all figures: time and allocations from one run, instructions from another.
fn measure(program: PathBuf) -> Result<Vec<Figures>> {
    eprintln!("Counting allocations");
    let lines = output(Command::new(&program).env_clear())?;
    let mut cases = lines.lines().map(Figures::from_line).collect::<Result<Vec<_>>>()?;
    if cases.is_empty() {
        bail!("the microbenchmarks measured nothing");
    }
    if environment::counts_instructions() {
        eprintln!("Counting instructions (a minute)");
        callgrind::count(&program, &crate::workspace().join(COUNTS), &mut cases)?;
    }
    Ok(cases)
}
