//! KubeProxyConfiguration, kubeproxy.config.k8s.io/v1alpha1: every field that kube-proxy v1.37 has, with its default.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Deserializer, Serialize};

use super::go::GoDuration;

/// `apiVersion` of the configuration.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
/// `kind` of the configuration.
pub const KIND: &str = "KubeProxyConfiguration";

/// Where health checks are answered if no port is named.
const HEALTHZ: u16 = 10_256;
/// Where metrics are answered if no port is named.
const METRICS: u16 = 10_249;

/// The whole document. Before [`set_defaults`](Self::set_defaults), what is not said is empty, zero or none.
#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "docs/configuration.md has each field")]
pub struct KubeProxyConfiguration {
    pub api_version: String,
    pub kind: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub feature_gates: BTreeMap<String, bool>,
    pub client_connection: ClientConnection,
    pub logging: Logging,
    pub hostname_override: String,
    pub bind_address: String,
    pub healthz_bind_address: String,
    pub metrics_bind_address: String,
    pub bind_address_hard_fail: bool,
    pub enable_profiling: bool,
    pub show_hidden_metrics_for_version: String,
    pub mode: String,
    pub iptables: IpTables,
    pub ipvs: Ipvs,
    pub nftables: NfTables,
    pub winkernel: WinKernel,
    pub detect_local_mode: String,
    pub detect_local: DetectLocal,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    pub node_port_addresses: Vec<String>,
    pub oom_score_adj: Option<i32>,
    pub conntrack: Conntrack,
    pub config_sync_period: GoDuration,
    pub port_range: String,
    #[serde(skip_serializing_if = "is_false")]
    pub windows_run_as_service: bool,
}

#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "as above")]
pub struct ClientConnection {
    pub kubeconfig: String,
    pub accept_content_types: String,
    pub content_type: String,
    pub qps: f32,
    pub burst: i32,
}

#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "as above")]
pub struct Logging {
    pub format: String,
    #[serde(deserialize_with = "duration_or_nanoseconds")]
    pub flush_frequency: GoDuration,
    pub verbosity: u32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub vmodule: Vec<VModule>,
    pub options: LogOptions,
}

#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "as above")]
pub struct VModule {
    pub file_pattern: String,
    pub verbosity: u32,
}

#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "as above")]
pub struct LogOptions {
    pub text: LogStream,
    pub json: LogStream,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "as above")]
pub struct LogStream {
    #[serde(skip_serializing_if = "is_false")]
    pub split_stream: bool,
    #[serde(deserialize_with = "text_or_number")]
    pub info_buffer_size: String,
}

#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "as above")]
pub struct IpTables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub localhost_node_ports: Option<bool>,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "as above")]
pub struct Ipvs {
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
    pub scheduler: String,
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Vec<String>,
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    pub tcp_timeout: GoDuration,
    pub tcp_fin_timeout: GoDuration,
    pub udp_timeout: GoDuration,
}

#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "as above")]
pub struct NfTables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "as above")]
pub struct WinKernel {
    pub network_name: String,
    pub source_vip: String,
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    pub root_hns_endpoint_name: String,
    pub forward_health_check_vip: bool,
}

#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "as above")]
pub struct DetectLocal {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs, reason = "as above")]
pub struct Conntrack {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: GoDuration,
    pub udp_stream_timeout: GoDuration,
}

impl Default for LogStream {
    fn default() -> Self {
        Self { split_stream: false, info_buffer_size: "0".into() }
    }
}

impl KubeProxyConfiguration {
    /// A document in which nothing is said.
    pub fn empty() -> Self {
        Self { api_version: API_VERSION.into(), kind: KIND.into(), ..Self::default() }
    }

    /// The section of the mode that is asked for, as kube-proxy chooses it: where the periods and masqueradeAll are read.
    pub fn active(&self) -> &'static str {
        match &*self.mode {
            "nftables" => "nftables",
            "ipvs" => "ipvs",
            _ => "iptables",
        }
    }

    /// Puts in what is not said (CFG-05..12). A zero of what has a default is the default, as kube-proxy has it; `minSyncPeriod`
    /// has none here: what a change costs does not grow with the cluster, so that it need not wait.
    pub fn set_defaults(&mut self) {
        text(&mut self.bind_address, "0.0.0.0");
        let (any, loopback) = if self.bind_address.contains(':') { ("[::]", "[::1]") } else { ("0.0.0.0", "127.0.0.1") };
        text(&mut self.healthz_bind_address, &format!("{any}:{HEALTHZ}"));
        text(&mut self.metrics_bind_address, &format!("{loopback}:{METRICS}"));
        self.name_ports(None, None);
        self.oom_score_adj.get_or_insert(-999);
        period(&mut self.config_sync_period, 15 * 60);
        for sync_period in [&mut self.iptables.sync_period, &mut self.ipvs.sync_period, &mut self.nftables.sync_period] {
            period(sync_period, 30);
        }
        self.iptables.localhost_node_ports.get_or_insert(true);
        self.iptables.masquerade_bit.get_or_insert(14);
        self.nftables.masquerade_bit.get_or_insert(14);
        self.conntrack.max_per_core.get_or_insert(32 << 10);
        self.conntrack.min.get_or_insert(128 << 10);
        self.conntrack.tcp_established_timeout.get_or_insert(GoDuration::seconds(24 * 3600));
        self.conntrack.tcp_close_wait_timeout.get_or_insert(GoDuration::seconds(3600));
        text(&mut self.client_connection.content_type, "application/vnd.kubernetes.protobuf");
        if self.client_connection.qps == 0.0 {
            self.client_connection.qps = 5.0;
        }
        if self.client_connection.burst == 0 {
            self.client_connection.burst = 10;
        }
        text(&mut self.logging.format, "text");
        period(&mut self.logging.flush_frequency, 5);
        text(&mut self.detect_local_mode, "ClusterCIDR");
    }

    /// Addresses without a port get one: what is said, else the usual one (CFG-07).
    pub(super) fn name_ports(&mut self, healthz: Option<u16>, metrics: Option<u16>) {
        let (healthz, metrics) = (healthz.filter(|port| *port != 0), metrics.filter(|port| *port != 0));
        let ports = [healthz.unwrap_or(HEALTHZ), metrics.unwrap_or(METRICS)];
        for (address, port) in [&mut self.healthz_bind_address, &mut self.metrics_bind_address].into_iter().zip(ports) {
            if let Ok(ip) = address.parse::<IpAddr>() {
                *address = SocketAddr::new(ip, port).to_string();
            }
        }
    }
}

fn text(field: &mut String, default: &str) {
    if field.is_empty() {
        default.clone_into(field);
    }
}

fn period(field: &mut GoDuration, seconds: i64) {
    if field.0 == 0 {
        *field = GoDuration::seconds(seconds);
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// The log's flush frequency may be a number of nanoseconds.
fn duration_or_nanoseconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GoDuration, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Nanoseconds(i64),
        Text(GoDuration),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Nanoseconds(nanos) => GoDuration(nanos),
        Either::Text(duration) => duration,
    })
}

/// An amount may be written as a number.
fn text_or_number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Text(String),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::Number(number) => number.to_string(),
        Either::Text(text) => text,
    })
}
