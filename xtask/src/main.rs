//! Developer commands of proxy-agent: `cargo xtask <command>`.

mod apt;
mod bench;
mod ebpf;
mod image;
mod lab;
mod microbench;
mod packages;
mod run;
mod soak;
mod vm;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
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
    /// Check the Helm chart with every combination of its main values, against helm, a real API server and Prometheus' parser
    Chart,
    /// Build the kernel programs into proxy-ebpf/proxy-ebpf.o, the object that the agent embeds
    Ebpf(ebpf::Args),
    /// Make the container image, an OCI layout, for amd64 and arm64, without a container engine
    Image(image::Args),
    /// Show the main job in a lab of network namespaces: real connections through virtual IPs, and what is programmed
    Demo(lab::DemoArgs),
    /// Count what core's decisions cost, and compare with the baseline
    Microbench(microbench::Args),
    /// Install the system packages that building and testing need
    Packages,
    /// Change Services at random under many new connections, on nftables: none may be refused, lost or sent to who is gone
    Soak(soak::Args),
    /// Run the agent for an hour beside an API server whose objects change all the time, among faults
    Endure(soak::Args),
    /// Run all tests
    Test(lab::TestArgs),
    /// Run the demo and scenarios in virtual machines with the kernels of Debian's releases
    Vm(vm::Args),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Bench(args) => bench::run(&args),
        Command::Chart => lab::chart(),
        Command::Ebpf(args) => ebpf::run(&args),
        Command::Image(args) => image::run(&args),
        Command::Demo(args) => lab::demo(&args),
        Command::Microbench(args) => microbench::run(&args),
        Command::Packages => lab::packages(),
        Command::Endure(args) => soak::run("endure", &args),
        Command::Soak(args) => soak::run("soak", &args),
        Command::Test(args) => lab::test(&args),
        Command::Vm(args) => vm::run(&args),
    }
}

/// The folder of the workspace.
fn workspace() -> PathBuf {
    // Cargo sets the variable when it runs us; it is right even for a binary that was compiled in another checkout.
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    here.parent().map(Path::to_path_buf).unwrap_or(here)
}

/// Where things are kept that are dear to make: per user, for all checkouts.
fn cache() -> Result<PathBuf> {
    let folder = match std::env::var_os("XDG_CACHE_HOME").filter(|folder| Path::new(folder).is_absolute()) {
        Some(folder) => folder.into(),
        None => home()?.join(".cache"),
    };
    Ok(folder.join("proxy-agent"))
}

fn home() -> Result<PathBuf> {
    std::env::home_dir().context("HOME is not set")
}
