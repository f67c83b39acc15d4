//! Developer commands of proxy-agent: `cargo xtask <command>`.

mod bench;
mod ebpf;
mod lab;
mod packages;
mod run;

use std::path::{Path, PathBuf};

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of proxy-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure our dataplanes, kube-proxy and no proxy side by side; writes docs/benchmarks.md
    Bench(bench::Args),
    /// Build the kernel programs into proxy-ebpf/proxy-ebpf.o, the object that the agent embeds
    Ebpf(ebpf::Args),
    /// Show the main job in a lab of network namespaces: real connections through virtual IPs, and what is programmed
    Demo(lab::DemoArgs),
    /// Install the system packages that building and testing need
    Packages,
    /// Run all tests
    Test(lab::TestArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Ebpf(args) => ebpf::run(&args),
        Command::Demo(args) => lab::demo(&args),
        Command::Packages => lab::packages(),
        Command::Test(args) => lab::test(&args),
    }
}

/// The folder of the workspace.
fn workspace() -> PathBuf {
    // Cargo sets the variable when it runs us; it is right even for a binary that was compiled in another checkout.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.parent().map(Path::to_path_buf).unwrap_or(here)
}
