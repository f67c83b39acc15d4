//! Every field of the configuration, with its flag and what it does here: the one table that flags, errors and documents come from.

use serde_json::Value;

use super::go;
use super::kube_proxy::KubeProxyConfiguration;
use super::own;
use super::validate;

/// What a flag's value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Any text.
    Text,
    /// A name, in lower case and without blanks around it.
    Name,
    /// Go's words for true and false; the flag alone is true.
    Bool,
    /// A 32-bit number.
    Int,
    /// A number that is not negative.
    Level,
    /// A number with a fraction.
    Float,
    /// Go's durations.
    Duration,
    /// A list, separated by commas; a flag that is there again adds to it.
    List,
    /// `NAME=BOOL`, separated by commas.
    Gates,
    /// `PATTERN=N`, separated by commas.
    Modules,
    /// An address.
    Ip,
    /// An address, with or without a port.
    IpPort,
    /// An amount of bytes.
    Amount,
}

/// One field.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Field {
    /// Its path from the top of its document; ours begins with its kind.
    pub path: &'static str,
    /// Its flag, if it has one.
    pub flag: Option<&'static str>,
    /// What its flag's value is.
    pub form: Form,
    /// Whether it does anything here.
    pub counts: bool,
    /// What it does here, or why nothing.
    pub about: &'static str,
}

const fn field(path: &'static str, flag: &'static str, form: Form, about: &'static str) -> Field {
    Field { path, flag: Some(flag), form, counts: true, about }
}

const fn ignored(path: &'static str, flag: &'static str, form: Form, about: &'static str) -> Field {
    Field { counts: false, ..field(path, flag, form, about) }
}

const fn file_only(path: &'static str, counts: bool, about: &'static str) -> Field {
    Field { path, flag: None, form: Form::Text, counts, about }
}

const NO_IPVS: &str = "Nothing: there is no IPVS here.";
const NO_WINDOWS: &str = "Nothing: for Windows.";
const WATCHES: &str = "Nothing: the agent only watches, four long requests, so that there is no rate to limit.";

/// All fields, in the order of the documents.
pub const FIELDS: &[Field] = &[
    field(
        "featureGates",
        "feature-gates",
        Form::Gates,
        "Names of Kubernetes 1.37 are accepted. KubeProxyIPVS, LoggingAlphaOptions and LoggingBetaOptions are checked where kube-proxy checks them; others change nothing, with a warning.",
    ),
    field(
        "clientConnection.kubeconfig",
        "kubeconfig",
        Form::Text,
        "File that says how to reach the API server; from inside the cluster if empty.",
    ),
    file_only("clientConnection.acceptContentTypes", false, "Nothing: the agent speaks protobuf."),
    ignored("clientConnection.contentType", "kube-api-content-type", Form::Text, "Nothing: the agent speaks protobuf."),
    ignored("clientConnection.qps", "kube-api-qps", Form::Float, WATCHES),
    ignored("clientConnection.burst", "kube-api-burst", Form::Int, WATCHES),
    field("logging.format", "logging-format", Form::Text, "text or json."),
    ignored("logging.flushFrequency", "log-flush-frequency", Form::Duration, "Nothing: each line is written at once."),
    field(
        "logging.verbosity",
        "v",
        Form::Level,
        "0 to 3 are the level info, 4 and 5 debug, 6 and more trace. --log-level comes before it.",
    ),
    ignored("logging.vmodule", "vmodule", Form::Modules, "Nothing: names files of kube-proxy's. --log-level takes a filter."),
    ignored("logging.options.text.splitStream", "log-text-split-stream", Form::Bool, "Nothing: all lines go to standard error."),
    ignored("logging.options.text.infoBufferSize", "log-text-info-buffer-size", Form::Amount, "Nothing: each line is written at once."),
    ignored("logging.options.json.splitStream", "log-json-split-stream", Form::Bool, "Nothing: all lines go to standard error."),
    ignored("logging.options.json.infoBufferSize", "log-json-info-buffer-size", Form::Amount, "Nothing: each line is written at once."),
    field("hostnameOverride", "hostname-override", Form::Name, "Name of this node's Node object; the host's name if empty."),
    field(
        "bindAddress",
        "bind-address",
        Form::Ip,
        "If it is no zero address: the Node's own address of that family, whatever the Node object says. Nothing listens there.",
    ),
    field("healthzBindAddress", "healthz-bind-address", Form::IpPort, "Where health checks are answered; port 10256 if none is named."),
    field("metricsBindAddress", "metrics-bind-address", Form::IpPort, "Where metrics are answered; port 10249 if none is named."),
    field(
        "bindAddressHardFail",
        "bind-address-hard-fail",
        Form::Bool,
        "The agent ends if one of the two cannot be bound, rather than trying again.",
    ),
    field("enableProfiling", "profiling", Form::Bool, "Answer profiling requests beside the metrics."),
    ignored("showHiddenMetricsForVersion", "show-hidden-metrics-for-version", Form::Text, "Checked; no metric is hidden here."),
    field(
        "mode",
        "proxy-mode",
        Form::Text,
        "ebpf, nftables, or auto: eBPF where this host can, else nftables. Empty is auto. iptables becomes nftables and ipvs becomes auto, each with a Warning event.",
    ),
    field(
        "iptables.masqueradeBit",
        "iptables-masquerade-bit",
        Form::Int,
        "Which bit of a packet's mark says that it is to be masqueraded; for every mode but nftables, which has its own. The flag sets both.",
    ),
    field(
        "iptables.masqueradeAll",
        "masquerade-all",
        Form::Bool,
        "Masquerade all that goes to ClusterIPs. The flag is for the mode that is asked for.",
    ),
    ignored(
        "iptables.localhostNodePorts",
        "iptables-localhost-nodeports",
        Form::Bool,
        "Nothing: NodePorts are served on loopback addresses if nodePortAddresses names them (localhost), and not otherwise.",
    ),
    field(
        "iptables.syncPeriod",
        "iptables-sync-period",
        Form::Duration,
        "How old a change that is not in place may be at most; for every mode but nftables and ipvs.",
    ),
    field(
        "iptables.minSyncPeriod",
        "iptables-min-sync-period",
        Form::Duration,
        "The least time from one round to the next. Unlike in kube-proxy the default is none, and 0 is none: a round costs what changes.",
    ),
    file_only("nftables.masqueradeBit", true, "The same in mode nftables."),
    file_only("nftables.masqueradeAll", true, "The same in mode nftables; --masquerade-all sets it there."),
    file_only("nftables.syncPeriod", true, "The same in mode nftables; --iptables-sync-period sets it there."),
    file_only("nftables.minSyncPeriod", true, "The same in mode nftables; --iptables-min-sync-period sets it there."),
    field("ipvs.syncPeriod", "ipvs-sync-period", Form::Duration, "As iptables.syncPeriod, in mode ipvs."),
    field("ipvs.minSyncPeriod", "ipvs-min-sync-period", Form::Duration, "As iptables.minSyncPeriod, in mode ipvs."),
    ignored("ipvs.scheduler", "ipvs-scheduler", Form::Text, NO_IPVS),
    ignored("ipvs.excludeCIDRs", "ipvs-exclude-cidrs", Form::List, NO_IPVS),
    ignored("ipvs.strictARP", "ipvs-strict-arp", Form::Bool, NO_IPVS),
    ignored("ipvs.tcpTimeout", "ipvs-tcp-timeout", Form::Duration, NO_IPVS),
    ignored("ipvs.tcpFinTimeout", "ipvs-tcpfin-timeout", Form::Duration, NO_IPVS),
    ignored("ipvs.udpTimeout", "ipvs-udp-timeout", Form::Duration, NO_IPVS),
    file_only("winkernel.networkName", false, NO_WINDOWS),
    file_only("winkernel.sourceVip", false, NO_WINDOWS),
    file_only("winkernel.enableDSR", false, NO_WINDOWS),
    file_only("winkernel.rootHnsEndpointName", false, NO_WINDOWS),
    file_only("winkernel.forwardHealthCheckVip", false, NO_WINDOWS),
    field(
        "detectLocalMode",
        "detect-local-mode",
        Form::Text,
        "What tells that a packet comes from a pod of the cluster: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix.",
    ),
    field(
        "detectLocal.bridgeInterface",
        "pod-bridge-interface",
        Form::Text,
        "The bridge that all pods of this node are behind, for BridgeInterface.",
    ),
    field(
        "detectLocal.interfaceNamePrefix",
        "pod-interface-name-prefix",
        Form::Text,
        "What the names of all interfaces to pods begin with, for InterfaceNamePrefix.",
    ),
    field(
        "clusterCIDR",
        "cluster-cidr",
        Form::Text,
        "Where the cluster's pods are: one range of addresses, or one of each family, separated by a comma.",
    ),
    field(
        "nodePortAddresses",
        "nodeport-addresses",
        Form::List,
        "On which of this node's addresses NodePorts are served: ranges, primary, localhost, all. Without any: all in the modes iptables, ipvs and empty, as kube-proxy has it there; primary in nftables, ebpf and auto.",
    ),
    field("oomScoreAdj", "oom-score-adj", Form::Int, "How the kernel treats the agent where memory runs out, -1000 to 1000."),
    field(
        "conntrack.maxPerCore",
        "conntrack-max-per-core",
        Form::Int,
        "Entries of connection tracking per processor; 0 leaves the limit as it is.",
    ),
    field("conntrack.min", "conntrack-min", Form::Int, "Entries at least."),
    field(
        "conntrack.tcpEstablishedTimeout",
        "conntrack-tcp-timeout-established",
        Form::Duration,
        "nf_conntrack_tcp_timeout_established; 0 leaves it.",
    ),
    field(
        "conntrack.tcpCloseWaitTimeout",
        "conntrack-tcp-timeout-close-wait",
        Form::Duration,
        "nf_conntrack_tcp_timeout_close_wait; 0 leaves it.",
    ),
    field("conntrack.tcpBeLiberal", "conntrack-tcp-be-liberal", Form::Bool, "Sets nf_conntrack_tcp_be_liberal; false leaves it."),
    field("conntrack.udpTimeout", "conntrack-udp-timeout", Form::Duration, "nf_conntrack_udp_timeout; 0 leaves it."),
    field("conntrack.udpStreamTimeout", "conntrack-udp-timeout-stream", Form::Duration, "nf_conntrack_udp_timeout_stream; 0 leaves it."),
    ignored(
        "configSyncPeriod",
        "config-sync-period",
        Form::Duration,
        "Nothing: watches say what changes, and are started anew where they break.",
    ),
    file_only("portRange", false, "Nothing, as in kube-proxy."),
    file_only("windowsRunAsService", false, NO_WINDOWS),
    file_only(
        "ProxyAgentConfiguration.mode",
        true,
        "ebpf, nftables or auto; comes before mode of KubeProxyConfiguration, so that that document can stay as it is.",
    ),
    field(
        "ProxyAgentConfiguration.bpfPinPath",
        "bpf-pin-path",
        Form::Text,
        "Folder on a bpf file system where eBPF maps and links are pinned.",
    ),
    field(
        "ProxyAgentConfiguration.cgroup",
        "cgroup",
        Form::Text,
        "Serve the processes in this cgroup; all, the root of the cgroup v2 hierarchy, if empty.",
    ),
    field(
        "ProxyAgentConfiguration.openUnnamedFamilies",
        "open-unnamed-families",
        Form::Bool,
        "Where nodePortAddresses or a Service's loadBalancerSourceRanges name nothing of a family, serve all of that family, as kube-proxy does.",
    ),
    field(
        "ProxyAgentConfiguration.removeKubeProxyRules",
        "remove-kube-proxy-rules",
        Form::Bool,
        "Remove the rules that kube-proxy has left, once ours are in place; otherwise they are only reported.",
    ),
    field(
        "ProxyAgentConfiguration.manifests",
        "manifests",
        Form::Text,
        "Serve the Services and EndpointSlices in the files of this folder instead of a cluster's; Node and ServiceCIDRs too.",
    ),
    field(
        "ProxyAgentConfiguration.serviceConnectionSeries",
        "service-connection-series",
        Form::Level,
        "Count the connections of Services, as series of a metric for so many Service ports at most; others are summed in one. 0: not at all.",
    ),
    field(
        "ProxyAgentConfiguration.logLevel",
        "log-level",
        Form::Text,
        "Which log lines are written: error, warn, info, debug, trace, or a filter of the tracing crate; comes before logging.verbosity.",
    ),
];

impl Field {
    /// Whether it is in our own document.
    pub fn is_own(&self) -> bool {
        self.path.starts_with(own::KIND)
    }

    /// Whether its flag counts beside a file (CFG-02).
    pub fn counts_beside_file(&self) -> bool {
        self.is_own() || self.path == "hostnameOverride" || self.path.starts_with("logging.")
    }

    /// Reads a value of its flag.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        Ok(match self.form {
            Form::Text => text.into(),
            Form::Name => match &*text.trim().to_lowercase() {
                "" if !text.is_empty() => return Err("empty".into()),
                name => name.into(),
            },
            Form::Bool => go::boolean(text)?.into(),
            Form::Int => text.parse::<i32>().map_err(|_| format!("{text:?} is not a whole number of 32 bits"))?.into(),
            Form::Level => text.parse::<u32>().map_err(|_| format!("{text:?} is not a number"))?.into(),
            Form::Float => text.parse::<f32>().map_err(|_| format!("{text:?} is not a number"))?.into(),
            Form::Duration => text.parse::<go::GoDuration>()?.to_string().into(),
            Form::List => text.split(',').filter(|item| !item.is_empty()).collect(),
            Form::Gates => pairs(text, |name, value| Ok((name.to_owned(), Value::Bool(go::boolean(value)?))))?.into_iter().collect(),
            Form::Modules => pairs(text, |pattern, level| {
                let level: u32 = level.parse().map_err(|_| format!("{level:?} is not a number"))?;
                Ok(serde_json::json!({"filePattern": pattern, "verbosity": level}))
            })?
            .into(),
            Form::Ip => validate::ip(text).map(|_| text.into()).ok_or_else(|| format!("{text:?} is not an IP address"))?,
            Form::IpPort => match text {
                "" => text.into(),
                _ if validate::ip(text).is_some() => text.into(),
                _ => validate::listen(text).map(|_| text.into())?,
            },
            Form::Amount => go::amount(text).map(|_| text.into())?,
        })
    }

    /// Puts a value of its flag into the documents.
    pub fn set(&self, value: Value, kube_proxy: &mut Value, own: &mut Value) {
        if let Some(path) = self.path.strip_prefix(own::KIND) {
            return put(own, path.trim_start_matches('.'), value);
        }
        let name = self.path.strip_prefix("iptables.").filter(|name| *name != "localhostNodePorts");
        match name {
            Some("masqueradeBit") => put(kube_proxy, "nftables.masqueradeBit", value.clone()),
            // CLI-02
            Some(name) if kube_proxy["mode"] == "nftables" => return put(kube_proxy, &format!("nftables.{name}"), value),
            _ => {}
        }
        put(kube_proxy, self.path, value);
    }
}

fn pairs<T>(text: &str, read: impl Fn(&str, &str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let items = text.split(',').filter(|item| !item.is_empty());
    let pair = |item: &str| {
        let (name, value) = item.split_once('=').ok_or_else(|| format!("{item:?} is not NAME=VALUE"))?;
        read(name.trim(), value.trim()).map_err(|why| format!("{name}: {why}"))
    };
    items.map(pair).collect()
}

fn put(document: &mut Value, path: &str, value: Value) {
    let mut place = document;
    for name in path.split('.') {
        place = &mut place[name];
    }
    *place = value;
}

/// The flag of a field.
pub fn flag_of(path: &str) -> Option<&'static str> {
    FIELDS.iter().find(|field| field.path == path)?.flag
}

/// What is at a path.
pub fn at<'a>(document: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(document, |place, name| &place[name])
}

/// Fields that are set to something and do nothing here.
pub fn without_effect(config: &KubeProxyConfiguration) -> Vec<&'static str> {
    let mut defaults = KubeProxyConfiguration::empty();
    defaults.set_defaults();
    let (Ok(config), Ok(defaults)) = (serde_json::to_value(config), serde_json::to_value(defaults)) else { return Vec::new() };
    let idle = FIELDS.iter().filter(|field| !field.counts && !field.is_own());
    idle.map(|field| field.path).filter(|path| at(&config, path) != at(&defaults, path)).collect()
}
