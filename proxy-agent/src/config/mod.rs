//! What an agent is to do: the configuration that flags and files come to.
//!
//! ```text
//! file ─ read ─▶ KubeProxyConfiguration, ProxyAgentConfiguration ─ defaults, flags ─▶ resolve (validates) ─▶ Config
//! ```

#[cfg(test)]
mod docs;
pub mod fields;
pub mod gates;
pub mod go;
pub mod kube_proxy;
pub mod launch;
pub mod own;
pub mod read;
pub mod reload;
pub mod resolve;
pub mod validate;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use proxy_core::settings::Settings;

use crate::bpf::BpfOptions;
use crate::cli::Mode;
use crate::recorder::Notice;
use crate::source::kube::KubeConfig;

pub use launch::{Launch, Loaded};
pub use reload::Changes;

/// The configuration of one run.
#[derive(Clone, Debug)]
pub struct Config {
    /// How the kernel is programmed; the best that this host can do if `None` ([`choose`](crate::modes::choose)).
    pub mode: Option<Mode>,
    /// What decides about packets.
    pub settings: Settings,
    /// Where Services come from.
    pub source: Source,
    /// Where eBPF objects are.
    pub bpf: BpfOptions,
    /// Remove the rules that kube-proxy has left, once ours are in place.
    pub remove_kube_proxy_rules: bool,
    /// Where health checks are answered (HC-01); nowhere if `None` (CLI-03).
    pub healthz: Option<SocketAddr>,
    /// Where metrics are answered (MET-01); nowhere if `None`.
    pub metrics: Option<SocketAddr>,
    /// The agent ends if one of the two cannot be bound (CFG-14).
    pub bind_hard_fail: bool,
    /// Answer profiling requests beside the metrics (MET-02).
    pub profiling: bool,
    /// How old a change that is not in place may be at most (SYNC-04); health counts twice that (HC-01).
    pub sync_period: Duration,
    /// The least time from the end of one sync to the next (SYNC-03).
    pub min_sync_period: Duration,
    /// The kernel's connection tracking (CT-11..15).
    pub conntrack: ConntrackSettings,
    /// How the kernel treats the agent where memory runs out, -1000 to 1000 (CFG-09); `None` leaves it.
    pub oom_score_adj: Option<i32>,
    /// So many Service ports have a series of their connections at most; 0: they are not counted.
    pub service_connection_series: usize,
    /// What the operator is told of the configuration, to be recorded once the run starts.
    pub notices: Vec<Notice>,
}

/// Where Services come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// An API server.
    Kube(KubeConfig),
    /// A folder of manifests.
    Manifests(PathBuf),
}

impl Source {
    /// How the API server is reached, if there is one.
    pub fn kube(&self) -> Option<&KubeConfig> {
        match self {
            Source::Kube(kube) => Some(kube),
            Source::Manifests(_) => None,
        }
    }
}

/// What of the kernel's connection tracking is set at the start. `None` and zero leave it as it is (CT-11..15).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConntrackSettings {
    /// Entries per processor; 0: neither `nf_conntrack_max` nor the hash size is touched.
    pub max_per_core: u32,
    /// Entries at least.
    pub min: u32,
    /// `nf_conntrack_tcp_timeout_established`
    pub tcp_established_timeout: Duration,
    /// `nf_conntrack_tcp_timeout_close_wait`
    pub tcp_close_wait_timeout: Duration,
    /// `nf_conntrack_tcp_be_liberal`
    pub tcp_be_liberal: bool,
    /// `nf_conntrack_udp_timeout`
    pub udp_timeout: Duration,
    /// `nf_conntrack_udp_timeout_stream`
    pub udp_stream_timeout: Duration,
}

impl Default for ConntrackSettings {
    /// kube-proxy's defaults.
    fn default() -> Self {
        Self {
            max_per_core: 32_768,
            min: 131_072,
            tcp_established_timeout: Duration::from_secs(24 * 3600),
            tcp_close_wait_timeout: Duration::from_secs(3600),
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
        }
    }
}
