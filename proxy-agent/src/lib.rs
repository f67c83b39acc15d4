//! The agent: effects around [`proxy_core`].

pub mod agent;
pub mod bpf;
pub mod cli;
pub mod coexist;
pub mod config;
pub mod conntrack;
pub mod dataplane;
pub mod dump;
pub mod host;
pub mod log;
pub mod modes;
mod netfilter;
pub mod nft;
pub mod programmer;
pub mod recorder;
pub mod run;
pub mod source;
pub mod sysctl;
