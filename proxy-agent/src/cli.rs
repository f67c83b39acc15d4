//! Commands and their flags.

mod fields;
mod run;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::bpf::{BpfMaps, BpfOptions};
use crate::config::own;
use crate::wait::{WaitArgs, wait};
use crate::{coexist, dump, log, modes};
use run::RunArgs;

/// A Kubernetes Service proxy: programs the kernel so that connections to a Service reach its endpoints.
#[derive(Debug, Parser)]
#[command(name = "proxy-agent", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch Services and EndpointSlices and keep the kernel in line with them; takes kube-proxy's flags
    #[command(args_override_self = true)]
    Run(Box<RunArgs>),
    /// Show what is programmed, read back from the kernel; no agent need be running
    Dump(DumpArgs),
    /// Wait until the agent of this node has programmed a Service as the API server has it now
    Wait(WaitArgs),
    /// Remove everything of ours from this node, of every mode
    Cleanup(CleanupArgs),
    /// Print what completes commands and flags in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write man pages
    Man {
        /// Folder to write them to
        #[arg(default_value = ".")]
        dir: PathBuf,
    },
}

/// How the kernel is programmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Mode {
    /// eBPF programs at the sockets of a cgroup
    Ebpf,
    /// NAT rules in an nftables table per family
    Nftables,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Ebpf => "ebpf",
            Mode::Nftables => "nftables",
        })
    }
}

/// Where our objects are in this kernel.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// Folder on a bpf file system where eBPF maps and links are pinned
    #[arg(long, value_name = "DIR", default_value = own::PIN_PATH)]
    bpf_pin_path: PathBuf,
    /// How log lines are written
    #[arg(long, value_enum, default_value_t = log::Format::Text)]
    log_format: log::Format,
    /// Which log lines are written: error, warn, info, debug, trace, or a filter of the tracing crate
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

#[derive(Debug, Args)]
struct CleanupArgs {
    #[command(flatten)]
    place: Place,
    /// Remove what kube-proxy has left instead: its nftables tables, and its chains in those of iptables (not legacy ones)
    #[arg(long)]
    kube_proxy: bool,
}

#[derive(Debug, Args)]
struct DumpArgs {
    #[command(flatten)]
    place: Place,
    /// Show this mode only (default: whatever is programmed)
    #[arg(long, value_enum)]
    proxy_mode: Option<Mode>,
    /// Show one Service
    #[arg(long, value_name = "NAMESPACE/NAME")]
    service: Option<String>,
    /// How it is shown
    #[arg(short, long, value_enum, default_value_t = dump::Output::Table)]
    output: dump::Output,
}

impl Place {
    fn bpf(&self) -> BpfOptions {
        BpfOptions { pin_dir: self.bpf_pin_path.clone(), cgroup: None }
    }
}

/// The flags of a command line with their values, by name, those that are not said too (MET-01).
pub fn flags(args: impl IntoIterator<Item = OsString>) -> BTreeMap<String, String> {
    let command = Cli::command();
    // It has been read before.
    let Ok(matches) = command.clone().try_get_matches_from(arguments(args)) else { return BTreeMap::new() };
    let Some((name, matches)) = matches.subcommand() else { return BTreeMap::new() };
    let flags = command.find_subcommand(name).into_iter().flat_map(clap::Command::get_arguments);
    let value = |id: &str| {
        let values = matches.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy().into_owned());
        values.collect::<Vec<_>>().join(",")
    };
    flags.filter_map(|flag| Some((flag.get_long()?.to_owned(), value(flag.get_id().as_str())))).collect()
}

/// The command line as clap is to read it: kube-proxy has no subcommands, and takes underscores for dashes in the names of flags. What is
/// called as kube-proxy, or begins with a flag, is `run`.
pub fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut given = given.into_iter();
    let program = given.next().unwrap_or_default();
    let mut rest: Vec<OsString> = given.collect();
    let is_kube_proxy = Path::new(&program).file_stem().is_some_and(|name| name == "kube-proxy");
    let first = rest.first().map(|first| first.to_string_lossy().into_owned()).unwrap_or_default();
    let is_flag = first.starts_with('-') && !matches!(&*first, "-h" | "--help" | "-V");
    if is_kube_proxy || is_flag {
        rest.insert(0, "run".into());
    }
    if rest.first().is_some_and(|first| first == "run") {
        rest = rest.into_iter().map(with_dashes).collect();
    }
    std::iter::once(program).chain(rest).collect()
}

fn with_dashes(argument: OsString) -> OsString {
    let Some(text) = argument.to_str().filter(|text| text.starts_with("--")) else { return argument };
    let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
    format!("{}{value}", name.replace('_', "-")).into()
}

/// Runs a command to its end.
///
/// # Errors
///
/// What the user should read, with the way out.
pub fn main(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Run(args) => args.run(),
        Command::Dump(args) => {
            log::start(args.place.log_format, &args.place.log_level)?;
            let found = modes::observe(args.proxy_mode, args.place.bpf())?;
            print!("{}", dump::render(found, args.service.as_deref(), args.output)?);
            Ok(())
        }
        Command::Wait(args) => {
            log::start(log::Format::Text, "error")?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting a thread")?;
            runtime.block_on(wait(args))
        }
        Command::Cleanup(CleanupArgs { place, kube_proxy }) => {
            log::start(place.log_format, &place.log_level)?;
            if kube_proxy { coexist::remove() } else { cleanup(&place.bpf()) }
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "proxy-agent", &mut std::io::stdout());
            Ok(())
        }
        Command::Man { dir } => {
            clap_mangen::generate_to(Cli::command(), &dir).with_context(|| format!("{}: cannot be written", dir.display()))
        }
    }
}

/// Removes everything of ours, of every mode.
fn cleanup(bpf: &BpfOptions) -> anyhow::Result<()> {
    BpfMaps::remove_pinned(bpf)?;
    modes::remove_nftables()
}
