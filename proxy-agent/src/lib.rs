//! The agent: effects around [`proxy_core`].

pub mod agent;
mod bell;
pub mod bpf;
pub mod cli;
pub mod coexist;
pub mod config;
pub mod dataplane;
pub mod dump;
pub mod host;
pub mod log;
pub mod modes;
pub mod nft;
pub mod programmer;
pub mod recorder;
pub mod run;
pub mod source;
