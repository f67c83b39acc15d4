//! The command line of proxy-agent.

use std::process::ExitCode;

use clap::Parser;
use proxy_agent::cli::{self, Cli};
use proxy_agent::memory;

fn main() -> ExitCode {
    memory::share();
    match cli::main(Cli::parse_from(cli::arguments(std::env::args_os()))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("proxy-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}
