//! The command line of proxy-agent.

use std::process::ExitCode;

use clap::Parser;
use proxy_agent::cli::Cli;

fn main() -> ExitCode {
    match proxy_agent::cli::main(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxy-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
