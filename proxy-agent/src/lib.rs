//! The agent: effects around [`proxy_core`].

pub mod agent;
mod bell;
pub mod bpf;
pub mod cli;
pub mod coexist;
pub mod config;
pub mod conntrack;
pub mod dataplane;
pub mod dump;
pub mod health;
pub mod host;
pub mod http;
pub mod lead;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod modes;
mod netfilter;
pub mod nft;
pub mod programmed;
pub mod programmer;
pub mod recorder;
pub mod run;
pub mod source;
pub mod sysctl;
pub mod telemetry;
pub mod wait;
