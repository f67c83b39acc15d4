//! `proxy-lab`: the lab of network namespaces by hand, and the processes that stand for its pods.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use proxy_tests::agent::Mode;
use proxy_tests::lab::{self, Lab, LabOptions};
use proxy_tests::pod::worker;
use proxy_tests::{controlplane, demo};

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
    /// Build the control plane of the end-to-end tests, where that has not been done
    Controlplane,
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

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Demo { mode, agent, keep } => demo::run(mode, agent, keep),
        Command::Controlplane => controlplane::binaries().map(drop),
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
