//! Commands and their flags.

mod serving;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};

use crate::bpf::{BpfMaps, BpfOptions};
use crate::config::{Config, ConntrackSettings, Source};
use crate::source::kube::KubeConfig;
use crate::wait::{WaitArgs, wait};
use crate::{coexist, dump, log, modes, run};
use serving::Serving;

/// Where kube-proxy answers health checks, unless it is told otherwise.
const HEALTHZ: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 10256);
/// Where it answers for its metrics.
const METRICS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10249);

/// A Kubernetes Service proxy: programs the kernel so that connections to a Service reach its endpoints.
#[derive(Debug, Parser)]
#[command(name = "proxy-agent", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch Services and EndpointSlices and keep the kernel in line with them
    Run(RunArgs),
    /// Show what is programmed, read back from the kernel; no agent need be running
    Dump(DumpArgs),
    /// Wait until the agent of this node has programmed a Service as the API server has it now
    Wait(WaitArgs),
    /// Remove everything of ours from this node, of every mode
    Cleanup(CleanupArgs),
}

/// How the kernel is programmed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Mode {
    /// eBPF programs at the sockets of a cgroup
    Ebpf,
    /// NAT rules in an nftables table per family
    Nftables,
}

/// Where our objects are in this kernel.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// Folder on a bpf file system where eBPF maps and links are pinned
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/proxy-agent")]
    bpf_pin_path: PathBuf,
    /// How log lines are written
    #[arg(long, value_enum, default_value_t = log::Format::Text)]
    log_format: log::Format,
    /// Which log lines are written: error, warn, info, debug, trace, or a filter of the tracing crate
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log_level: String,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    place: Place,
    /// How the kernel is programmed
    #[arg(long, value_enum, default_value_t = Mode::Ebpf)]
    proxy_mode: Mode,
    #[command(flatten)]
    serving: Serving,
    /// Serve the Services and EndpointSlices in the files of this folder instead of a cluster's; Node and ServiceCIDRs too
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "master"])]
    manifests: Option<PathBuf>,
    /// How to reach the API server (default: from inside the cluster)
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Address of the API server, instead of the one in the kubeconfig
    #[arg(long, value_name = "URL")]
    master: Option<String>,
    /// Serve the processes in this cgroup (default: all, the root of the cgroup v2 hierarchy)
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Remove the rules that kube-proxy has left, once ours are in place (default: only report them)
    #[arg(long)]
    remove_kube_proxy_rules: bool,
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
    fn bpf(&self, cgroup: Option<PathBuf>) -> BpfOptions {
        BpfOptions { pin_dir: self.bpf_pin_path.clone(), cgroup }
    }
}

/// The flags of a command line with their values, by name, those that are not said too (MET-01).
pub fn flags(args: impl IntoIterator<Item = OsString>) -> BTreeMap<String, String> {
    let command = Cli::command();
    // It has been read before.
    let Ok(matches) = command.clone().try_get_matches_from(args) else { return BTreeMap::new() };
    let Some((name, matches)) = matches.subcommand() else { return BTreeMap::new() };
    let flags = command.find_subcommand(name).into_iter().flat_map(clap::Command::get_arguments);
    let value = |id: &str| {
        let values = matches.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy().into_owned());
        values.collect::<Vec<_>>().join(",")
    };
    flags.filter_map(|flag| Some((flag.get_long()?.to_owned(), value(flag.get_id().as_str())))).collect()
}

/// Runs a command to its end.
///
/// # Errors
///
/// What the user should read, with the way out.
pub fn main(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Run(args) => {
            log::start(args.place.log_format, &args.place.log_level)?;
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("starting threads")?;
            runtime.block_on(run::run(args.config()?))
        }
        Command::Dump(args) => {
            log::start(args.place.log_format, &args.place.log_level)?;
            let found = modes::observe(args.proxy_mode, args.place.bpf(None))?;
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
            if kube_proxy {
                return coexist::remove();
            }
            BpfMaps::remove_pinned(&place.bpf(None))?;
            modes::remove_nftables()
        }
    }
}

impl RunArgs {
    fn config(self) -> anyhow::Result<Config> {
        let settings = self.serving.settings()?;
        serving::report(&settings);
        let source = match self.manifests {
            Some(dir) => Source::Manifests(dir),
            None => Source::Kube(KubeConfig { kubeconfig: self.kubeconfig, server: self.master }),
        };
        Ok(Config {
            mode: self.proxy_mode,
            settings,
            source,
            bpf: self.place.bpf(self.cgroup),
            remove_kube_proxy_rules: self.remove_kube_proxy_rules,
            healthz: Some(HEALTHZ),
            metrics: Some(METRICS),
            bind_hard_fail: false,
            profiling: false,
            sync_period: Duration::from_secs(30),
            min_sync_period: Duration::ZERO,
            conntrack: ConntrackSettings::default(),
            oom_score_adj: None,
        })
    }
}
