//! From the two documents to the [`Config`] of a run.

use std::sync::Arc;

use proxy_core::model::Family;
use proxy_core::settings::{LocalDetection, NodePortAddresses, Settings};
use tracing::{info, warn};

use super::kube_proxy::KubeProxyConfiguration;
use super::own::ProxyAgentConfiguration;
use super::validate::{self, Check, Flaws};
use super::{Config, ConntrackSettings, Source};
use crate::bpf::BpfOptions;
use crate::cli::Mode;
use crate::recorder::{Notice, Regarding, Severity};
use crate::source::kube::KubeConfig;

/// What is said beside the documents.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Beside {
    /// The API server (`--master`).
    pub master: Option<String>,
    /// The health server's port (`--healthz-port`); 0 turns it off (CLI-03).
    pub healthz_port: Option<u16>,
    /// The metrics server's port (`--metrics-port`); 0 turns it off.
    pub metrics_port: Option<u16>,
}

impl KubeProxyConfiguration {
    /// `syncPeriod` and `minSyncPeriod` of the active section.
    pub(super) fn periods(&self) -> (super::go::GoDuration, super::go::GoDuration) {
        match self.active() {
            "nftables" => (self.nftables.sync_period, self.nftables.min_sync_period),
            "ipvs" => (self.ipvs.sync_period, self.ipvs.min_sync_period),
            _ => (self.iptables.sync_period, self.iptables.min_sync_period),
        }
    }
}

/// The configuration of a run, from documents that have their defaults in.
///
/// # Errors
///
/// Everything that cannot be used.
pub fn resolve(config: &KubeProxyConfiguration, own: &ProxyAgentConfiguration, beside: &Beside) -> Result<Config, Flaws> {
    let mut check = Check::default();
    validate::check(config, own, &mut check);
    let settings = settings(config, own, &mut check);
    let healthz = check.take("healthzBindAddress", validate::listen(&config.healthz_bind_address));
    let metrics = check.take("metricsBindAddress", validate::listen(&config.metrics_bind_address));
    check.end()?;
    let bpf = BpfOptions { pin_dir: own.bpf_pin_path.clone(), cgroup: own.cgroup.clone() };
    let (mode, notices) = mode(config, own);
    let (sync_period, min_sync_period) = config.periods();
    let path = &config.client_connection.kubeconfig;
    let kubeconfig = (!path.is_empty()).then(|| path.into());
    Ok(Config {
        mode,
        settings,
        source: match &own.manifests {
            Some(dir) => Source::Manifests(dir.clone()),
            None => Source::Kube(KubeConfig { kubeconfig, server: beside.master.clone() }),
        },
        bpf,
        remove_kube_proxy_rules: own.remove_kube_proxy_rules,
        healthz: healthz.filter(|_| beside.healthz_port != Some(0)),
        metrics: metrics.filter(|_| beside.metrics_port != Some(0)),
        bind_hard_fail: config.bind_address_hard_fail,
        profiling: config.enable_profiling,
        // What is negative has been refused.
        sync_period: sync_period.get().unwrap_or_default(),
        min_sync_period: min_sync_period.get().unwrap_or_default(),
        conntrack: conntrack(config),
        oom_score_adj: config.oom_score_adj,
        // Nobody has as many.
        service_connection_series: usize::try_from(own.service_connection_series).unwrap_or(usize::MAX),
        notices,
    })
}

fn settings(config: &KubeProxyConfiguration, own: &ProxyAgentConfiguration, check: &mut Check) -> Settings {
    Settings {
        node: node(config, check).unwrap_or_default().into(),
        local: local(config, check),
        masquerade_all: match config.active() {
            "nftables" => config.nftables.masquerade_all,
            _ => config.iptables.masquerade_all,
        },
        node_ports: node_ports(config, own, check),
        open_unnamed_families: own.open_unnamed_families,
        masquerade_bit: masquerade_bit(config),
        counts_connections: own.service_connection_series > 0,
        bind_address: validate::ip(&config.bind_address).filter(|ip| !ip.is_unspecified()),
    }
}

fn masquerade_bit(config: &KubeProxyConfiguration) -> u8 {
    let bit = if config.active() == "nftables" { config.nftables.masquerade_bit } else { config.iptables.masquerade_bit };
    // What is out of range has been refused.
    bit.and_then(|bit| bit.try_into().ok()).unwrap_or_default()
}

/// The Node's name (API-01): as it is said, else the host's name.
fn node(config: &KubeProxyConfiguration, check: &mut Check) -> Option<String> {
    let name = match &*config.hostname_override {
        "" => match nix::unistd::gethostname() {
            Ok(name) => name.to_string_lossy().into_owned(),
            Err(errno) => {
                check.flaw("hostnameOverride", format!("empty, and the host's name cannot be read ({errno}): name the Node"));
                return None;
            }
        },
        name => name.to_owned(),
    };
    check.take("hostnameOverride", validate::node(&name))
}

/// What tells a pod (CFG-12). What another mode would need is checked all the same.
fn local(config: &KubeProxyConfiguration, check: &mut Check) -> LocalDetection {
    let cidrs = check.take("clusterCIDR", validate::cluster_cidrs(&config.cluster_cidr));
    let bridge = check.take("detectLocal.bridgeInterface", validate::interface(&config.detect_local.bridge_interface));
    let prefix = check.take("detectLocal.interfaceNamePrefix", validate::interface(&config.detect_local.interface_name_prefix));
    let mut needed = |path: &str, name: Option<&str>| -> Arc<str> {
        if name == Some("") {
            check.flaw(path, format!("missing; detectLocalMode {} needs it", config.detect_local_mode));
        }
        name.unwrap_or_default().into()
    };
    match &*config.detect_local_mode {
        "ClusterCIDR" => LocalDetection::ClusterCidrs(cidrs.unwrap_or_default()),
        "NodeCIDR" => LocalDetection::NodeCidrs,
        "BridgeInterface" => LocalDetection::Bridge(needed("detectLocal.bridgeInterface", bridge)),
        "InterfaceNamePrefix" => LocalDetection::InterfacePrefix(needed("detectLocal.interfaceNamePrefix", prefix)),
        other => {
            let known = "ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix";
            check.flaw("detectLocalMode", format!("{other:?} is none of {known}"));
            LocalDetection::default()
        }
    }
}

/// Without entries the addresses are those that kube-proxy has in the mode that is asked for (NP-01), so that who reached a NodePort
/// before still does.
fn node_ports(config: &KubeProxyConfiguration, own: &ProxyAgentConfiguration, check: &mut Check) -> NodePortAddresses {
    let said: Vec<String> = config.node_port_addresses.iter().filter(|entry| !entry.trim().is_empty()).cloned().collect();
    let is_kube_proxys = own.mode.is_empty() && matches!(&*config.mode, "" | "iptables" | "ipvs");
    if said.is_empty() && is_kube_proxys { validate::node_ports(&["all".into()], check) } else { validate::node_ports(&said, check) }
}

fn conntrack(config: &KubeProxyConfiguration) -> ConntrackSettings {
    let conntrack = &config.conntrack;
    let number = |value: Option<i32>| value.and_then(|value| value.try_into().ok()).unwrap_or_default();
    let duration = |value: super::go::GoDuration| value.get().unwrap_or_default();
    ConntrackSettings {
        max_per_core: number(conntrack.max_per_core),
        min: number(conntrack.min),
        tcp_established_timeout: duration(conntrack.tcp_established_timeout.unwrap_or_default()),
        tcp_close_wait_timeout: duration(conntrack.tcp_close_wait_timeout.unwrap_or_default()),
        tcp_be_liberal: conntrack.tcp_be_liberal,
        udp_timeout: duration(conntrack.udp_timeout),
        udp_stream_timeout: duration(conntrack.udp_stream_timeout),
    }
}

/// The mode (CFG-04), none where this host decides, and what the operator is told of it.
fn mode(config: &KubeProxyConfiguration, own: &ProxyAgentConfiguration) -> (Option<Mode>, Vec<Notice>) {
    let asked = if own.mode.is_empty() { &config.mode } else { &own.mode };
    let (mode, replaced) = match &**asked {
        "ebpf" => (Some(Mode::Ebpf), None),
        "nftables" => (Some(Mode::Nftables), None),
        // The rules that come closest.
        "iptables" => (Some(Mode::Nftables), Some("nftables")),
        "ipvs" => (None, Some("auto")),
        _ => (None, None),
    };
    let notice = replaced.map(|by| {
        let note =
            format!("mode {asked} of kube-proxy is not here: Services are programmed in mode {by}; name that mode to end this warning");
        Notice { regarding: Regarding::Node, severity: Severity::Warning, reason: "KubeProxyModeReplaced", note }
    });
    (mode, notice.into_iter().collect())
}

/// Says what the operator may not expect of the configuration.
pub(super) fn report(config: &KubeProxyConfiguration, resolved: &Config) {
    for notice in &resolved.notices {
        warn!("{}", notice.note);
    }
    let settings = &resolved.settings;
    if let LocalDetection::ClusterCidrs(cidrs) = &settings.local {
        // LOC-02
        for family in Family::ALL.into_iter().filter(|family| !cidrs.iter().any(|cidr| cidr.family() == *family)) {
            info!("clusterCIDR: names nothing of {family}, so that {family} pods are not told from others");
        }
    }
    let addresses = &settings.node_ports;
    for family in Family::ALL.into_iter().filter(|family| !addresses.primary && addresses.of(*family).next().is_none()) {
        let what = if settings.open_unnamed_families { "on all of them" } else { "on none; openUnnamedFamilies opens them" };
        warn!("nodePortAddresses: names nothing of {family}: its NodePorts are served {what}");
    }
    for mismatch in family_mismatches(config, resolved) {
        warn!("{mismatch}");
    }
    for (name, on) in &config.feature_gates {
        if !matches!(&**name, "KubeProxyIPVS" | "LoggingAlphaOptions" | "LoggingBetaOptions" | "AllAlpha" | "AllBeta") {
            warn!("featureGates: {name}={on} changes nothing here");
        }
    }
    for path in super::fields::without_effect(config) {
        info!("{path}: is of no use here; docs/configuration.md says why");
    }
    if !config.logging.vmodule.is_empty() {
        info!("logging.vmodule: has no files here; logLevel of ProxyAgentConfiguration takes a filter");
    }
}

/// CFG-13: what is of another family than the Node, as far as the configuration tells that.
pub(super) fn family_mismatches(config: &KubeProxyConfiguration, resolved: &Config) -> Vec<String> {
    let Some(primary) = resolved.settings.bind_address.map(Family::of) else { return Vec::new() };
    let mut found = Vec::new();
    let mut flaw = |path: &str, what: String| found.push(format!("{path}: {what}, but bindAddress is {}", config.bind_address));
    for (path, address) in [("healthzBindAddress", resolved.healthz), ("metricsBindAddress", resolved.metrics)] {
        if let Some(address) = address.filter(|address| !address.ip().is_unspecified() && Family::of(address.ip()) != primary) {
            flaw(path, format!("{address} is not of family {primary}"));
        }
    }
    if let LocalDetection::ClusterCidrs(cidrs) = &resolved.settings.local
        && !cidrs.is_empty()
        && cidrs.iter().all(|cidr| cidr.family() != primary)
    {
        flaw("clusterCIDR", format!("{} has nothing of family {primary}", config.cluster_cidr));
    }
    found
}
