//! `proxy-lab`: the lab of network namespaces by hand, and the processes that stand for its pods.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::ensure;
use clap::{Args, Parser, Subcommand};
use proxy_core::model::Family;
use proxy_tests::agent::Mode;
use proxy_tests::bench::{self, Plan, Proxy};
use proxy_tests::lab::{self, Lab, LabOptions};
use proxy_tests::pod::worker;
use proxy_tests::scenario::{self, packets};
use proxy_tests::{chart, controlplane, demo, endure, soak};

#[derive(Parser)]
#[command(name = "proxy-lab", about = "Network namespaces with two nodes, pods and a client", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the real agent on example manifests, make real connections, and show where they went
    Demo {
        /// ebpf or nftables
        #[arg(long, default_value = "ebpf")]
        mode: Mode,
        /// The agent's program (default: the one beside this)
        #[arg(long)]
        agent: Option<PathBuf>,
        /// Leave the lab up afterwards
        #[arg(long)]
        keep: bool,
    },
    /// Carry out scenarios on the real agent with real packets, one after the other
    Scenarios {
        /// ebpf or nftables
        #[arg(long, default_value = "ebpf")]
        mode: Mode,
        /// Carry them out in IPv6
        #[arg(long)]
        v6: bool,
        /// The folder that they are in
        #[arg(long, default_value_os_t = scenario::directory())]
        directory: PathBuf,
        /// Which; all if none is named
        names: Vec<String>,
    },
    /// Build what the end-to-end tests run beside the agent, where that has not been done: a control plane, and helm
    Controlplane,
    /// Check the Helm chart with every combination of its main values, against helm, an API server and Prometheus' parser
    Chart,
    /// Measure proxies in the lab, or make a report of what was measured
    Bench {
        #[command(subcommand)]
        report: Option<BenchCommand>,
        #[command(flatten)]
        args: BenchArgs,
    },
    /// Change Services at random under many new connections, on nftables; fails if one is refused, lost or sent to who is gone
    Soak {
        /// How long
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// New connections a second, as far as the machine can
        #[arg(long, default_value_t = 10_000)]
        rate: u64,
        /// What the random choices are made from
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Run the agent beside an API server whose objects change all the time, among faults; fails if it grows, misses a change or loses
    /// a connection
    Endure {
        /// How long
        #[arg(long, default_value_t = 60)]
        minutes: u64,
        /// ebpf or nftables
        #[arg(long, default_value = "ebpf")]
        mode: Mode,
        /// Services
        #[arg(long, default_value_t = 1000)]
        services: usize,
        /// Changes a second
        #[arg(long, default_value_t = 10)]
        rate: u64,
        /// Seconds from one fault to the next
        #[arg(long, default_value_t = 20)]
        faults: u64,
        /// What the random choices are made from
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Make a lab, show it, and remove it when standard input ends
    Up,
    /// Remove what labs of ended processes have left behind
    Clean,
    /// Stand for a pod: requests on standard input, replies on standard output
    #[command(hide = true)]
    Pod {
        #[arg(long)]
        name: String,
        #[arg(long)]
        address: Vec<IpAddr>,
    },
}

#[derive(Subcommand)]
enum BenchCommand {
    /// Write benchmarks.md and the plots beside a file of results
    Report {
        /// benchmarks.json
        file: PathBuf,
    },
}

#[derive(Args)]
struct BenchArgs {
    /// A few minutes, with figures that are not for publication
    #[arg(long)]
    quick: bool,
    /// Numbers of Services, from small to large
    #[arg(long, value_delimiter = ',')]
    sizes: Option<Vec<usize>>,
    /// Who takes part: ebpf, nftables, kube-proxy-nftables, kube-proxy-iptables, none; at every size
    #[arg(long, value_delimiter = ',')]
    proxies: Option<Vec<Proxy>>,
    /// Rounds at each size
    #[arg(long)]
    rounds: Option<usize>,
    /// Changes of each kind in a round
    #[arg(long)]
    changes: Option<usize>,
    /// How many seconds a proxy may take to serve all Services
    #[arg(long)]
    start_limit: Option<u64>,
    /// What the random choices are made from
    #[arg(long)]
    seed: Option<u64>,
    /// The folder of results and report
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

impl BenchArgs {
    fn plan(self) -> Plan {
        let base = if self.quick { Plan::quick() } else { Plan::full() };
        Plan {
            // Who is named is wanted.
            others_up_to: if self.proxies.is_some() { usize::MAX } else { base.others_up_to },
            sizes: self.sizes.unwrap_or(base.sizes),
            proxies: self.proxies.unwrap_or(base.proxies),
            rounds: self.rounds.unwrap_or(base.rounds),
            changes: self.changes.unwrap_or(base.changes),
            start_limit: self.start_limit.unwrap_or(base.start_limit),
            seed: self.seed.unwrap_or(base.seed),
            ..base
        }
    }
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Demo { mode, agent, keep } => demo::run(mode, agent, keep),
        Command::Scenarios { mode, v6, directory, names } => scenarios(mode, if v6 { Family::V6 } else { Family::V4 }, &directory, &names),
        Command::Controlplane => controlplane::binaries().and_then(|_| chart::Helm::get()).map(drop),
        Command::Chart => {
            let summary = chart::check()?;
            let chart::Summary { combinations, objects, refused, metrics } = &summary;
            println!("chart: {combinations} combinations, {objects} objects accepted, {refused} values refused, {} metrics", metrics.len());
            Ok(())
        }
        Command::Bench { report: Some(BenchCommand::Report { file }), .. } => bench::report(&file),
        Command::Bench { report: None, args } => {
            let out = args.out.clone();
            bench::run(args.plan(), &out)?;
            println!("{}", std::fs::read_to_string(out.join("benchmarks.md"))?);
            Ok(())
        }
        Command::Soak { minutes, rate, seed } => {
            let limit = soak::Limit::Time(Duration::from_secs(60 * minutes));
            let report = soak::run(&soak::Plan { rate, limit, seed })?;
            println!("{report}");
            report.verdict()
        }
        Command::Endure { minutes, mode, services, rate, faults, seed } => {
            let (time, faults) = (Duration::from_secs(minutes * 60), Duration::from_secs(faults));
            let report = endure::run(&endure::Plan { mode, services, rate, time, faults, seed })?;
            println!("{report}");
            report.verdict()
        }
        Command::Up => {
            let lab = Lab::new(LabOptions::default())?;
            println!("{lab}");
            io::copy(&mut io::stdin(), &mut io::sink())?;
            Ok(())
        }
        Command::Clean => {
            for name in lab::clean()? {
                println!("removed {name}");
            }
            Ok(())
        }
        Command::Pod { name, address } => worker::run(&name, address),
    }
}

/// Carries scenarios out; an error that tells of all that failed.
fn scenarios(mode: Mode, family: Family, directory: &Path, names: &[String]) -> anyhow::Result<()> {
    let mut scenarios = scenario::load_from(directory)?;
    let unknown: Vec<&String> = names.iter().filter(|name| !scenarios.iter().any(|scenario| scenario.name == **name)).collect();
    ensure!(unknown.is_empty(), "{}: there is no scenario {unknown:?}", directory.display());
    scenarios.retain(|scenario| names.is_empty() || names.contains(&scenario.name));
    let (count, failures) = packets::carry_out(mode, family, &scenarios)?;
    ensure!(failures.is_empty(), "{mode} {family}: {} of {count} scenarios failed\n\n{}", failures.len(), failures.join("\n\n"));
    // What `cargo xtask vm` shows.
    println!("summary: {mode} {family}: {count} scenarios");
    Ok(())
}
