//! Flags, from the command line to what they come to.

use clap::Parser;
use proxy_core::cidr::Cidr;
use proxy_core::settings::{LocalDetection, NodePortAddresses, Settings};

use super::*;
use crate::cli::{Cli, Command, Mode, arguments};
use crate::config::fields::{FIELDS, at};

fn launch(flags: &[&str]) -> anyhow::Result<Launch> {
    let words = ["proxy-agent", "run"].iter().chain(flags).map(Into::into);
    match Cli::try_parse_from(arguments(words))?.command {
        Command::Run(args) => Ok(args.launch()),
        other => panic!("{flags:?}: {other:?}"),
    }
}

fn loaded(flags: &[&str]) -> anyhow::Result<Loaded> {
    launch(flags)?.load()
}

fn good(flags: &[&str]) -> Loaded {
    loaded(flags).unwrap_or_else(|error| panic!("{flags:?}: {error:#}"))
}

fn bad(flags: &[&str]) -> String {
    match loaded(flags) {
        Err(error) => format!("{error:#}"),
        Ok(loaded) => panic!("{flags:?}: {:?}", loaded.config),
    }
}

fn cidrs(texts: &[&str]) -> Vec<Cidr> {
    texts.iter().map(|text| text.parse().expect("a range")).collect()
}

#[test]
fn without_flags_it_is_as_kube_proxy_has_it() {
    let host = nix::unistd::gethostname().expect("the host's name").to_string_lossy().trim().to_lowercase();
    let node_ports = NodePortAddresses { primary: true, cidrs: Vec::new() };
    let config = good(&["--proxy-mode=nftables"]).config;
    assert_eq!(config.settings, Settings { node: host.into(), node_ports, ..Settings::default() });
    assert_eq!(config.healthz.map(|a| a.to_string()).as_deref(), Some("0.0.0.0:10256"));
    assert_eq!(config.metrics.map(|a| a.to_string()).as_deref(), Some("127.0.0.1:10249"));
    assert_eq!((config.sync_period, config.oom_score_adj), (Duration::from_secs(30), Some(-999)));
    assert_eq!(config.conntrack, crate::config::ConntrackSettings::default());
}

/// Each flag with a value that is not its default, where the value goes, and what is there then.
const SET: &[(&str, &str, &str)] = &[
    ("--feature-gates=AllAlpha=true,WatchList=F", "featureGates", r#"{"AllAlpha":true,"WatchList":false}"#),
    ("--kubeconfig=/a/b", "clientConnection.kubeconfig", r#""/a/b""#),
    ("--kube-api-content-type=application/json", "clientConnection.contentType", r#""application/json""#),
    ("--kube-api-qps=7.5", "clientConnection.qps", "7.5"),
    ("--kube-api-burst=11", "clientConnection.burst", "11"),
    ("--logging-format=json", "logging.format", r#""json""#),
    ("--log-flush-frequency=1s", "logging.flushFrequency", r#""1s""#),
    ("-v=4", "logging.verbosity", "4"),
    ("--vmodule=a=1,b*=2", "logging.vmodule", r#"[{"filePattern":"a","verbosity":1},{"filePattern":"b*","verbosity":2}]"#),
    ("--hostname-override= Node1 ", "hostnameOverride", r#""node1""#),
    ("--bind-address=192.0.2.1", "bindAddress", r#""192.0.2.1""#),
    ("--healthz-bind-address=::1", "healthzBindAddress", r#""[::1]:10256""#),
    ("--metrics-bind-address=192.0.2.1:1", "metricsBindAddress", r#""192.0.2.1:1""#),
    ("--bind-address-hard-fail", "bindAddressHardFail", "true"),
    ("--profiling=t", "enableProfiling", "true"),
    ("--show-hidden-metrics-for-version=1.36", "showHiddenMetricsForVersion", r#""1.36""#),
    ("--proxy-mode=nftables", "mode", r#""nftables""#),
    ("--iptables-masquerade-bit=0", "iptables.masqueradeBit", "0"),
    ("--masquerade-all", "iptables.masqueradeAll", "true"),
    ("--iptables-localhost-nodeports=false", "iptables.localhostNodePorts", "false"),
    ("--iptables-sync-period=1m", "iptables.syncPeriod", r#""1m0s""#),
    ("--iptables-min-sync-period=500ms", "iptables.minSyncPeriod", r#""500ms""#),
    ("--ipvs-sync-period=1m", "ipvs.syncPeriod", r#""1m0s""#),
    ("--ipvs-min-sync-period=2s", "ipvs.minSyncPeriod", r#""2s""#),
    ("--ipvs-scheduler=rr", "ipvs.scheduler", r#""rr""#),
    ("--ipvs-exclude-cidrs=10.0.0.0/8,10.1.0.0/16", "ipvs.excludeCIDRs", r#"["10.0.0.0/8","10.1.0.0/16"]"#),
    ("--ipvs-strict-arp", "ipvs.strictARP", "true"),
    ("--ipvs-tcp-timeout=1s", "ipvs.tcpTimeout", r#""1s""#),
    ("--ipvs-tcpfin-timeout=1s", "ipvs.tcpFinTimeout", r#""1s""#),
    ("--ipvs-udp-timeout=1s", "ipvs.udpTimeout", r#""1s""#),
    ("--detect-local-mode=NodeCIDR", "detectLocalMode", r#""NodeCIDR""#),
    ("--pod-bridge-interface=cni0", "detectLocal.bridgeInterface", r#""cni0""#),
    ("--pod-interface-name-prefix=veth", "detectLocal.interfaceNamePrefix", r#""veth""#),
    ("--cluster-cidr=10.1.0.0/16,fd00::/48", "clusterCIDR", r#""10.1.0.0/16,fd00::/48""#),
    ("--nodeport-addresses=primary,10.0.0.0/8", "nodePortAddresses", r#"["primary","10.0.0.0/8"]"#),
    ("--oom-score-adj=-1000", "oomScoreAdj", "-1000"),
    ("--conntrack-max-per-core=0", "conntrack.maxPerCore", "0"),
    ("--conntrack-min=0", "conntrack.min", "0"),
    ("--conntrack-tcp-timeout-established=0", "conntrack.tcpEstablishedTimeout", r#""0s""#),
    ("--conntrack-tcp-timeout-close-wait=1m", "conntrack.tcpCloseWaitTimeout", r#""1m0s""#),
    ("--conntrack-tcp-be-liberal=1", "conntrack.tcpBeLiberal", "true"),
    ("--conntrack-udp-timeout=30s", "conntrack.udpTimeout", r#""30s""#),
    ("--conntrack-udp-timeout-stream=3m0s", "conntrack.udpStreamTimeout", r#""3m0s""#),
    ("--config-sync-period=1h", "configSyncPeriod", r#""1h0m0s""#),
    ("--bpf-pin-path=/a", "bpfPinPath", r#""/a""#),
    ("--cgroup=/b", "cgroup", r#""/b""#),
    ("--open-unnamed-families", "openUnnamedFamilies", "true"),
    ("--remove-kube-proxy-rules=true", "removeKubeProxyRules", "true"),
    ("--manifests=/c", "manifests", r#""/c""#),
    ("--service-connection-series=7", "serviceConnectionSeries", "7"),
    ("--log-level=proxy_agent=debug,warn", "logLevel", r#""proxy_agent=debug,warn""#),
];

/// What needs another gate to be on.
const GATED: &[(&str, &str, &str)] = &[
    ("--log-text-split-stream", "logging.options.text.splitStream", "true"),
    ("--log-text-info-buffer-size=64Ki", "logging.options.text.infoBufferSize", r#""64Ki""#),
    ("--log-json-split-stream", "logging.options.json.splitStream", "true"),
    ("--log-json-info-buffer-size=1k", "logging.options.json.infoBufferSize", r#""1k""#),
];

#[test]
fn every_flag_goes_to_its_field_and_nowhere_else() {
    let gate = "--feature-gates=LoggingAlphaOptions=true";
    let cases = SET.iter().map(|case| (case, None)).chain(GATED.iter().map(|case| (case, Some(gate))));
    let mut seen = Vec::new();
    for ((flag, path, wanted), gate) in cases {
        let (before, after) = (good(gate.as_slice()), good(&gate.into_iter().chain([*flag]).collect::<Vec<_>>()));
        let own = serde_json::to_value(&after.own).expect("ours");
        let kube_proxy = serde_json::to_value(&after.kube_proxy).expect("kube-proxy's");
        let name = flag.trim_start_matches('-').split('=').next().expect("a name");
        let field = FIELDS.iter().find(|field| field.flag == Some(name)).unwrap_or_else(|| panic!("{name}: no field"));
        let found = at(if field.is_own() { &own } else { &kube_proxy }, path);
        assert_eq!(found.to_string(), *wanted, "{flag}");
        let both = *path == "iptables.masqueradeBit";
        let changes = before.changes(&after);
        assert!(changes.len() == 1 + usize::from(both) || ["featureGates", "mode"].contains(path), "{flag}: {changes:?}");
        seen.push(name);
    }
    let missing: Vec<_> = FIELDS.iter().filter_map(|field| field.flag).filter(|flag| !seen.contains(flag)).collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}

#[test]
fn flags_have_the_forms_of_kube_proxys() {
    let settings = |flags: &[&str]| good(flags).config.settings;
    let set = settings(&[
        "--hostname-override= Node1 ",
        "--cluster_cidr=10.1.0.0/16,fd00:10:1::/48",
        "--nodeport-addresses=10.0.0.0/24,fd00::/64",
        "--nodeport-addresses",
        "primary",
        "--masquerade-all=true",
        "--iptables_masquerade_bit",
        "0",
        "--open-unnamed-families",
        "--proxy-mode=ebpf",
    ]);
    let node_ports = NodePortAddresses { primary: true, cidrs: cidrs(&["10.0.0.0/24", "fd00::/64"]) };
    let local = LocalDetection::ClusterCidrs(cidrs(&["10.1.0.0/16", "fd00:10:1::/48"]));
    let wanted = Settings {
        node: "node1".into(),
        local,
        masquerade_all: true,
        node_ports,
        open_unnamed_families: true,
        masquerade_bit: 0,
        bind_address: None,
        counts_connections: true,
    };
    assert_eq!(set, wanted);
    assert!(!settings(&["--masquerade-all", "--masquerade-all=false"]).masquerade_all, "the last one counts");
    assert!(settings(&["--nodeport-addresses=", "--proxy-mode=nftables"]).node_ports.primary, "as if it were not there");
    for (flags, level) in [(&["-v=2"][..], "info"), (&["-v", "4"], "debug"), (&["--v=9"], "trace"), (&["-v=9", "--log-level=warn"], "warn")]
    {
        assert_eq!(good(flags).log().1, level, "{flags:?}");
    }
    assert_eq!(settings(&["--bind-address=192.0.2.1"]).bind_address, Some("192.0.2.1".parse().expect("an address")), "API-03");
    assert_eq!(settings(&["--bind-address=::"]).bind_address, None, "API-03");
    // CLI-02
    let periods = ["--iptables-sync-period=1m", "--iptables-min-sync-period=2s", "--proxy-mode=nftables", "--masquerade-all"];
    let config = good(&periods).config;
    assert_eq!((config.sync_period, config.min_sync_period), (Duration::from_secs(60), Duration::from_secs(2)));
    assert!(config.settings.masquerade_all);
    // CLI-03
    assert_eq!(good(&["--healthz-port=0"]).config.healthz, None);
    assert_eq!(good(&["--metrics-port=0"]).config.metrics, None);
    assert_eq!(good(&["--healthz-port=1", "--healthz-bind-address=192.0.2.1"]).kube_proxy.healthz_bind_address, "192.0.2.1:1");
}

#[test]
fn what_tells_a_pod() {
    let local = |flags: &[&str]| good(flags).config.settings.local;
    assert_eq!(local(&["--detect-local-mode=NodeCIDR"]), LocalDetection::NodeCidrs);
    let bridge = local(&["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"]);
    assert_eq!(bridge, LocalDetection::Bridge("cni0".into()));
    let prefix = local(&["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=veth"]);
    assert_eq!(prefix, LocalDetection::InterfacePrefix("veth".into()));
    assert_eq!(local(&["--detect-local-mode="]), LocalDetection::ClusterCidrs(Vec::new()));
}

#[test]
fn modes_of_kube_proxy_become_ours_with_a_warning() {
    let mode = |mode: &str| {
        let config = good(&[&format!("--proxy-mode={mode}")]).config;
        (config.mode, config.notices.iter().map(|notice| notice.reason).collect::<Vec<_>>())
    };
    assert_eq!(mode("nftables"), (Some(Mode::Nftables), vec![]));
    assert_eq!(mode("ebpf"), (Some(Mode::Ebpf), vec![]));
    assert_eq!(mode("iptables"), (Some(Mode::Nftables), vec!["KubeProxyModeReplaced"]));
    assert_eq!((mode("auto"), mode("")), ((None, vec![]), (None, vec![])));
    assert_eq!(mode("ipvs"), (None, vec!["KubeProxyModeReplaced"]));
    // NP-01: without entries, NodePorts are where the mode that is asked for has them.
    for (mode, primary) in [("", false), ("iptables", false), ("ipvs", false), ("nftables", true), ("ebpf", true), ("auto", true)] {
        let addresses = good(&[&format!("--proxy-mode={mode}")]).config.settings.node_ports;
        assert_eq!(addresses.primary, primary, "{mode:?}");
        assert_eq!(addresses.is_any(proxy_core::model::Family::V6), !primary, "{mode:?}");
    }
}

#[test]
fn errors_name_the_field_the_flag_and_the_entry() {
    for (flags, wanted) in [
        (&["--hostname-override=a,b"][..], "hostnameOverride (--hostname-override): \"a,b\" cannot be the name of a Node"),
        (&["--cluster-cidr=10.1.0.0/16,10.2.0.0/33"], "clusterCIDR (--cluster-cidr): \"10.2.0.0/33\" is not a range"),
        (&["--cluster-cidr=10.1.0.0/16,10.2.0.0/16"], "\"10.1.0.0/16,10.2.0.0/16\" is neither one range nor"),
        (&["--cluster-cidr=10.1.0.0/16,fd00::/64,fd01::/64"], "--cluster-cidr"),
        (&["--detect-local-mode=NodeIP"], "detectLocalMode (--detect-local-mode): \"NodeIP\" is none of"),
        (&["--detect-local-mode=BridgeInterface"], "detectLocal.bridgeInterface (--pod-bridge-interface): missing"),
        (&["--detect-local-mode=InterfaceNamePrefix"], "detectLocal.interfaceNamePrefix (--pod-interface-name-prefix): missing"),
        (&["--pod-bridge-interface=a-name-of-16-byte"], "\"a-name-of-16-byte\" is longer"),
        (&["--pod-interface-name-prefix=a/b"], "\"a/b\" cannot be"),
        (&["--nodeport-addresses=10.0.0.0/24,node"], "nodePortAddresses[1] (--nodeport-addresses): \"node\" is not a range"),
        (&["--nodeport-addresses=primary,all,primary"], "nodePortAddresses[2] (--nodeport-addresses): \"primary\" is there twice"),
        (&["--iptables-masquerade-bit=32"], "iptables.masqueradeBit (--iptables-masquerade-bit): 32 is not from 0 to 31"),
        (&["--proxy-mode=kernelspace"], "mode (--proxy-mode): \"kernelspace\" is none of"),
        (&["--proxy-mode=ipvs", "--feature-gates=KubeProxyIPVS=false"], "feature gate KubeProxyIPVS"),
        (&["--proxy-mode=ipvs", "--ipvs-exclude-cidrs=x"], "ipvs.excludeCIDRs[0] (--ipvs-exclude-cidrs): \"x\""),
        (&["--proxy-mode=ipvs", "--ipvs-tcp-timeout=-1s"], "ipvs.tcpTimeout (--ipvs-tcp-timeout): -1s is negative"),
        (&["--iptables-sync-period=0"], "iptables.syncPeriod (--iptables-sync-period): 0s is not more than 0s"),
        (&["--iptables-sync-period=1s", "--iptables-min-sync-period=2s"], "minSyncPeriod (--iptables-min-sync-period): 2s is more than"),
        (&["--iptables-min-sync-period=-2s"], "-2s is negative"),
        (&["--config-sync-period=0"], "configSyncPeriod"),
        (&["--oom-score-adj=1001"], "oomScoreAdj (--oom-score-adj): 1001 is not from -1000 to 1000"),
        (&["--conntrack-min=-1"], "conntrack.min (--conntrack-min): -1 is not 0 or more"),
        (&["--conntrack-max-per-core=-1"], "conntrack.maxPerCore"),
        (&["--conntrack-tcp-timeout-established=-1s"], "conntrack.tcpEstablishedTimeout"),
        (&["--conntrack-tcp-timeout-close-wait=-1s"], "conntrack.tcpCloseWaitTimeout"),
        (&["--conntrack-udp-timeout=-1s"], "conntrack.udpTimeout"),
        (&["--conntrack-udp-timeout-stream=-1s"], "conntrack.udpStreamTimeout"),
        (&["--kube-api-burst=-1"], "clientConnection.burst"),
        (&["--feature-gates=Nonsense=true"], "featureGates[Nonsense] (--feature-gates): is no feature gate"),
        (&["--show-hidden-metrics-for-version=1.35"], "showHiddenMetricsForVersion (--show-hidden-metrics-for-version): \"1.35\""),
        (&["--logging-format=xml"], "logging.format (--logging-format): \"xml\""),
        (&["--logging-format=json", "--feature-gates=LoggingBetaOptions=false"], "feature gate LoggingBetaOptions"),
        (&["--logging-format=json", "--vmodule=a=1"], "logging.vmodule (--vmodule): is for the format text only"),
        (&["--log-text-split-stream"], "logging.options.text.splitStream (--log-text-split-stream)"),
        (&["--log-json-info-buffer-size=1k"], "logging.options.json.infoBufferSize"),
        (&["--log-flush-frequency=0"], "logging.flushFrequency"),
        (&["-v=3000000000"], "logging.verbosity (--v): 3000000000 is more than"),
        (&["--log-level=a=b=c"], "ProxyAgentConfiguration.logLevel (--log-level)"),
    ] {
        let text = bad(flags);
        assert!(text.contains(wanted), "{flags:?}: {text}, which lacks {wanted}");
    }
    let all = bad(&["--cluster-cidr=x", "--oom-score-adj=2000", "--proxy-mode=y"]);
    assert!(["clusterCIDR", "oomScoreAdj", "mode"].iter().all(|path| all.contains(path)), "{all}");
}

#[test]
fn values_that_cannot_be_read_name_the_flag() {
    for (flag, wanted) in [
        ("--hostname-override= ", "empty"),
        ("--masquerade-all=maybe", "\"maybe\" is neither true nor false"),
        ("--conntrack-min=x", "\"x\" is not a whole number"),
        ("--iptables-sync-period=3", "\"3\" is not a duration"),
        ("--bind-address=host", "\"host\" is not an IP address"),
        ("--healthz-bind-address=192.0.2.1:70000", "\"70000\" is not a port"),
        ("--metrics-bind-address=host", "\"host\" is not IP:port"),
        ("--feature-gates=A", "\"A\" is not NAME=VALUE"),
        ("--feature-gates=A=x", "\"x\" is neither true nor false"),
        ("--kube-api-qps=x", "\"x\" is not a number"),
        ("--healthz-port=x", "healthz-port"),
        ("--no-such-flag", "--no-such-flag"),
    ] {
        let text = bad(&[flag]);
        assert!(text.contains(wanted) && text.contains(flag.split('=').next().expect("a name")), "{flag}: {text}");
    }
}

#[test]
fn what_is_called_as_kube_proxy_is_run() {
    let line = |words: &[&str]| arguments(words.iter().map(Into::into)).join(" ".as_ref()).into_string().expect("text");
    for (given, wanted) in [
        (
            &["/usr/local/bin/kube-proxy", "--config=/a_b", "--hostname_override=n_1"][..],
            "/usr/local/bin/kube-proxy run --config=/a_b --hostname-override=n_1",
        ),
        (&["kube-proxy"], "kube-proxy run"),
        (&["kube-proxy", "dump"], "kube-proxy run dump"),
        (&["proxy-agent", "-v=2"], "proxy-agent run -v=2"),
        (&["proxy-agent", "--version"], "proxy-agent run --version"),
        (&["proxy-agent", "--help"], "proxy-agent --help"),
        (&["proxy-agent"], "proxy-agent"),
        (&["proxy-agent", "run", "--proxy_mode", "a_b"], "proxy-agent run --proxy-mode a_b"),
        (&["proxy-agent", "dump", "--service=a_b"], "proxy-agent dump --service=a_b"),
    ] {
        assert_eq!(line(given), wanted);
    }
    let error = loaded(&["positional"]).map(|_| ());
    assert!(error.is_ok(), "clap takes it, `run` refuses it: {error:?}");
    let Command::Run(args) = Cli::parse_from(["proxy-agent", "run", "", "positional"]).command else { panic!("run") };
    let error = format!("{:#}", args.run().expect_err("CLI-06"));
    assert!(error.contains("flags only") && error.contains("positional"), "{error}");
}

#[test]
fn completions_and_man_pages_have_every_flag() {
    use clap::CommandFactory;

    Cli::command().debug_assert();
    let mut completions = Vec::new();
    clap_complete::generate(clap_complete::Shell::Bash, &mut Cli::command(), "proxy-agent", &mut completions);
    let completions = String::from_utf8(completions).expect("text");
    let dir = tempfile::tempdir().expect("a temporary folder");
    clap_mangen::generate_to(Cli::command(), dir.path()).expect("man pages");
    let page = fs::read_to_string(dir.path().join("proxy-agent-run.1")).expect("the page of run").replace('\\', "");
    for flag in FIELDS.iter().filter_map(|field| field.flag).chain(["config", "write-config-to", "cleanup", "init-only", "master"]) {
        let flag = format!("--{flag}");
        assert!(completions.contains(&flag) && page.contains(&flag), "{flag}");
    }
}
