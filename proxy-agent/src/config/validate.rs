//! What in a configuration cannot be used: every flaw at once, each with the path of its field.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use proxy_core::cidr::Cidr;
use proxy_core::settings::NodePortAddresses;
use tracing_subscriber::EnvFilter;

use super::fields;
use super::gates;
use super::go::{self, GoDuration};
use super::kube_proxy::{KubeProxyConfiguration, LogStream};
use super::own::ProxyAgentConfiguration;

/// The longest name of an interface that the kernel has.
const LONGEST_INTERFACE: usize = 15;
/// The one release whose hidden metrics may be asked for (CFG-15): the one before the release that this stands in for.
const HIDDEN_METRICS: &str = "1.36";

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flaw {
    /// The field, as a path from the top of its document.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

/// All that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flaws(pub Vec<Flaw>);

impl fmt::Display for Flaws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration cannot be used")?;
        for (number, Flaw { path, what }) in self.0.iter().enumerate() {
            write!(f, "{} {path}", if number == 0 { ":" } else { ";" })?;
            let field = path.split(['[', '(']).next().unwrap_or_default();
            if let Some(flag) = fields::flag_of(field) {
                write!(f, " (--{flag})")?;
            }
            write!(f, ": {what}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Flaws {}

/// Collects flaws.
#[derive(Default, Debug)]
pub(super) struct Check(Vec<Flaw>);

impl Check {
    pub(super) fn flaw(&mut self, path: impl Into<String>, what: impl Into<String>) {
        self.0.push(Flaw { path: path.into(), what: what.into() });
    }

    /// The value, or a flaw of the field.
    pub(super) fn take<T>(&mut self, path: &str, result: Result<T, impl Into<String>>) -> Option<T> {
        result.map_err(|what| self.flaw(path, what)).ok()
    }

    pub(super) fn end(self) -> Result<(), Flaws> {
        if self.0.is_empty() { Ok(()) } else { Err(Flaws(self.0)) }
    }

    fn range(&mut self, path: &str, value: Option<i32>, least: i32, most: i32) {
        if let Some(value) = value.filter(|value| !(least..=most).contains(value)) {
            let range = if most == i32::MAX { format!("{least} or more") } else { format!("from {least} to {most}") };
            self.flaw(path, format!("{value} is not {range}"));
        }
    }

    fn not_negative(&mut self, path: &str, value: GoDuration) {
        if value.0 < 0 {
            self.flaw(path, format!("{value} is negative"));
        }
    }

    fn positive(&mut self, path: &str, value: GoDuration) {
        if value.0 <= 0 {
            self.flaw(path, format!("{value} is not more than 0s"));
        }
    }
}

/// Checks what has its defaults in.
pub(super) fn check(config: &KubeProxyConfiguration, own: &ProxyAgentConfiguration, check: &mut Check) {
    for (name, what) in gates::flaws(&config.feature_gates) {
        check.flaw(format!("featureGates[{name}]"), what);
    }
    modes(config, own, check);
    periods(config, check);
    check.range("iptables.masqueradeBit", config.iptables.masquerade_bit, 0, 31);
    check.range("nftables.masqueradeBit", config.nftables.masquerade_bit, 0, 31);
    check.range("oomScoreAdj", config.oom_score_adj, -1000, 1000);
    check.range("clientConnection.burst", Some(config.client_connection.burst), 0, i32::MAX);
    conntrack(config, check);
    if ip(&config.bind_address).is_none() {
        check.flaw("bindAddress", format!("{:?} is not an IP address", config.bind_address));
    }
    if config.mode == "ipvs" {
        ipvs(config, check);
    }
    let wanted = &config.show_hidden_metrics_for_version;
    if !wanted.is_empty() && wanted != HIDDEN_METRICS {
        check.flaw("showHiddenMetricsForVersion", format!("{wanted:?} is not the minor release before: {HIDDEN_METRICS}"));
    }
    logging(config, own, check);
}

fn modes(config: &KubeProxyConfiguration, own: &ProxyAgentConfiguration, check: &mut Check) {
    let known = |mode: &str, more: &[&str]| ["", "auto", "ebpf", "nftables"].contains(&mode) || more.contains(&mode);
    if !known(&config.mode, &["iptables", "ipvs"]) {
        check.flaw("mode", format!("{:?} is none of auto, ebpf, nftables, iptables, ipvs; empty is auto", config.mode));
    } else if config.mode == "ipvs" && !gates::enabled(&config.feature_gates, "KubeProxyIPVS") {
        check.flaw("mode", "\"ipvs\" is turned off by the feature gate KubeProxyIPVS");
    }
    if !known(&own.mode, &[]) {
        check.flaw("ProxyAgentConfiguration.mode", format!("{:?} is none of auto, ebpf, nftables", own.mode));
    }
}

/// The periods of the active section (CFG-05).
fn periods(config: &KubeProxyConfiguration, check: &mut Check) {
    check.positive("configSyncPeriod", config.config_sync_period);
    let section = config.active();
    let (most, least) = config.periods();
    check.positive(&format!("{section}.syncPeriod"), most);
    check.not_negative(&format!("{section}.minSyncPeriod"), least);
    if least > most && least.0 >= 0 {
        check.flaw(format!("{section}.minSyncPeriod"), format!("{least} is more than {section}.syncPeriod, {most}"));
    }
}

fn conntrack(config: &KubeProxyConfiguration, check: &mut Check) {
    let conntrack = &config.conntrack;
    check.range("conntrack.maxPerCore", conntrack.max_per_core, 0, i32::MAX);
    check.range("conntrack.min", conntrack.min, 0, i32::MAX);
    check.not_negative("conntrack.tcpEstablishedTimeout", conntrack.tcp_established_timeout.unwrap_or_default());
    check.not_negative("conntrack.tcpCloseWaitTimeout", conntrack.tcp_close_wait_timeout.unwrap_or_default());
    check.not_negative("conntrack.udpTimeout", conntrack.udp_timeout);
    check.not_negative("conntrack.udpStreamTimeout", conntrack.udp_stream_timeout);
}

fn ipvs(config: &KubeProxyConfiguration, check: &mut Check) {
    check.not_negative("ipvs.tcpTimeout", config.ipvs.tcp_timeout);
    check.not_negative("ipvs.tcpFinTimeout", config.ipvs.tcp_fin_timeout);
    check.not_negative("ipvs.udpTimeout", config.ipvs.udp_timeout);
    for (i, range) in config.ipvs.exclude_cidrs.iter().enumerate() {
        if let Err(why) = range.parse::<Cidr>() {
            check.flaw(format!("ipvs.excludeCIDRs[{i}]"), format!("{range:?} {why}"));
        }
    }
}

fn logging(config: &KubeProxyConfiguration, own: &ProxyAgentConfiguration, check: &mut Check) {
    let logging = &config.logging;
    let on = |gate: &str| gates::enabled(&config.feature_gates, gate);
    match &*logging.format {
        "text" => {}
        "json" if on("LoggingBetaOptions") => {}
        "json" => check.flaw("logging.format", "\"json\" is turned off by the feature gate LoggingBetaOptions"),
        other => check.flaw("logging.format", format!("{other:?} is neither text nor json")),
    }
    check.positive("logging.flushFrequency", logging.flush_frequency);
    if i32::try_from(logging.verbosity).is_err() {
        check.flaw("logging.verbosity", format!("{} is more than {}", logging.verbosity, i32::MAX));
    }
    if !logging.vmodule.is_empty() && logging.format != "text" {
        check.flaw("logging.vmodule", "is for the format text only");
    }
    for (i, module) in logging.vmodule.iter().enumerate() {
        if module.file_pattern.is_empty() || module.file_pattern.contains(['=', ',']) {
            check.flaw(format!("logging.vmodule[{i}].filePattern"), format!("{:?} is not a pattern of files", module.file_pattern));
        }
    }
    for (name, LogStream { split_stream, info_buffer_size }) in [("text", &logging.options.text), ("json", &logging.options.json)] {
        let path = |field: &str| format!("logging.options.{name}.{field}");
        if *split_stream && !on("LoggingAlphaOptions") {
            check.flaw(path("splitStream"), "is turned off by the feature gate LoggingAlphaOptions");
        }
        match go::amount(info_buffer_size) {
            Err(what) => check.flaw(path("infoBufferSize"), what),
            Ok(size) if size != 0.0 && !on("LoggingAlphaOptions") => {
                check.flaw(path("infoBufferSize"), "is turned off by the feature gate LoggingAlphaOptions");
            }
            Ok(_) => {}
        }
    }
    if let Err(why) = EnvFilter::try_new(&own.log_level) {
        check.flaw("ProxyAgentConfiguration.logLevel", format!("{:?} is neither a level nor a filter: {why}", own.log_level));
    }
}

/// An address; decimal numbers of IPv4 may have leading zeros, as in Go.
pub(super) fn ip(text: &str) -> Option<IpAddr> {
    let decimal = || {
        let digits = |part: &str| part.trim_start_matches('0').to_owned();
        let parts: Vec<String> =
            text.split('.').map(|part| if part.ends_with('0') && digits(part).is_empty() { "0".into() } else { digits(part) }).collect();
        parts.join(".").parse().ok()
    };
    text.parse().ok().or_else(decimal)
}

/// Where a server listens (CFG-07).
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    let wrong = || format!("{text:?} is not IP:port");
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let host = match host.strip_prefix('[') {
        Some(host) => host.strip_suffix(']').ok_or_else(wrong)?,
        None if host.contains(':') => return Err(wrong()),
        None => host,
    };
    let ip = ip(host).ok_or_else(|| format!("{host:?} is not an IP address"))?;
    let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(|| format!("{port:?} is not a port from 1 to 65535"))?;
    Ok(SocketAddr::new(ip, port))
}

/// `clusterCIDR` (CFG-12): nothing, one range, or one of each family.
pub(super) fn cluster_cidrs(text: &str) -> Result<Vec<Cidr>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let parse = |text: &str| text.trim().parse().map_err(|why| format!("{text:?} {why}"));
    let cidrs: Vec<Cidr> = text.split(',').map(parse).collect::<Result<_, _>>()?;
    let is_pair = matches!(&*cidrs, [a, b] if a.family() != b.family());
    if cidrs.len() == 1 || is_pair { Ok(cidrs) } else { Err(format!("{text:?} is neither one range nor one of each family")) }
}

/// `nodePortAddresses` (CFG-11), each entry by its number.
pub(super) fn node_ports(entries: &[String], check: &mut Check) -> NodePortAddresses {
    let entries: Vec<&str> = entries.iter().map(|entry| entry.trim()).collect();
    for (i, entry) in entries.iter().enumerate() {
        if let Err(why) = NodePortAddresses::parse([*entry]) {
            check.flaw(format!("nodePortAddresses[{i}]"), why);
        } else if NodePortAddresses::parse(entries[..=i].iter().copied()).is_err_and(|why| why == format!("{entry:?} is there twice")) {
            check.flaw(format!("nodePortAddresses[{i}]"), format!("{entry:?} is there twice"));
        }
    }
    NodePortAddresses::parse(entries).unwrap_or_default()
}

/// A name of an interface, or the beginning of one.
pub(super) fn interface(name: &str) -> Result<&str, String> {
    let name = name.trim();
    if name.len() > LONGEST_INTERFACE {
        return Err(format!("{name:?} is longer than the {LONGEST_INTERFACE} bytes that interfaces have"));
    }
    let fits = !name.contains(['/', ':', '"']) && !name.chars().any(|c| c.is_whitespace() || c.is_control());
    if fits && !matches!(name, "." | "..") { Ok(name) } else { Err(format!("{name:?} cannot be the name of an interface")) }
}

/// The name of a Node (API-01).
pub(super) fn node(name: &str) -> Result<String, String> {
    let name = name.trim().to_lowercase();
    if name.is_empty() {
        return Err("empty; --hostname-override names the Node".into());
    }
    // It goes into the selector of a watch.
    let fits = name.len() <= 253 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
    if fits { Ok(name) } else { Err(format!("{name:?} cannot be the name of a Node; --hostname-override names the Node")) }
}
