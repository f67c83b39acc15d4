use std::path::Path;

use super::super::fields::FIELDS;
use super::*;
use crate::config::Source;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
const OWN: &str = "apiVersion: proxy-agent.io/v1alpha1\nkind: ProxyAgentConfiguration\n";

/// A file with these flags beside it.
fn load(text: &str, flags: &[(&str, Value)]) -> anyhow::Result<Loaded> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("config.conf");
    std::fs::write(&path, text)?;
    launch(&path, flags).load()
}

fn launch(path: &Path, flags: &[(&str, Value)]) -> Launch {
    let field = |flag: &str| FIELDS.iter().find(|field| field.flag == Some(flag)).unwrap_or_else(|| panic!("--{flag}: no field"));
    let given = flags.iter().map(|(flag, value)| (field(flag), value.clone())).collect();
    Launch { file: Some(path.to_owned()), given, beside: Beside::default() }
}

fn good(text: &str, flags: &[(&str, Value)]) -> Loaded {
    load(text, flags).unwrap_or_else(|error| panic!("{text}: {error:#}"))
}

/// CFG-02
#[test]
fn beside_a_file_few_flags_count_and_the_others_are_named() {
    let flags = [
        ("hostname-override", "node7".into()),
        ("v", 5.into()),
        ("logging-format", "json".into()),
        ("proxy-mode", "ebpf".into()),
        ("conntrack-min", 1.into()),
        ("open-unnamed-families", true.into()),
    ];
    let mut loaded = good(&format!("{HEAD}hostnameOverride: node1\nmode: nftables\n"), &flags);
    assert_eq!(&*loaded.config.settings.node, "node7");
    assert_eq!(loaded.log(), (Format::Json, "debug".to_owned()));
    assert_eq!((&*loaded.kube_proxy.mode, loaded.kube_proxy.conntrack.min), ("nftables", Some(131_072)));
    assert!(loaded.config.settings.open_unnamed_families, "ours count");
    loaded.passed_over.sort_unstable();
    assert_eq!(loaded.passed_over, ["conntrack-min", "proxy-mode"]);

    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("config.conf");
    std::fs::write(&path, HEAD).expect("the file");
    let beside = Beside { master: Some("https://192.0.2.1".into()), healthz_port: Some(0), metrics_port: Some(1) };
    let loaded = Launch { beside, ..launch(&path, &[]) }.load().expect("good");
    assert_eq!(loaded.passed_over, ["healthz-port", "metrics-port"]);
    assert!(loaded.config.healthz.is_some(), "CLI-03: only without a file");
    let Source::Kube(kube) = &loaded.config.source else { panic!("{:?}", loaded.config.source) };
    assert_eq!(kube.server.as_deref(), Some("https://192.0.2.1"));
}

#[test]
fn an_empty_file_has_the_defaults() {
    let empty = good(HEAD, &[]);
    let flags = Launch::default().load().expect("no flags");
    assert_eq!(empty.changes(&flags), Vec::<String>::new());
    // A zero counts as nothing said.
    let zeros = good(&format!("{HEAD}iptables: {{syncPeriod: 0s}}\nclientConnection: {{qps: 0, burst: 0}}\nconfigSyncPeriod: 0s\n"), &[]);
    assert_eq!(zeros.changes(&flags), Vec::<String>::new());
    let zeros = good(&format!("{HEAD}conntrack: {{min: 0, tcpEstablishedTimeout: 0s}}\noomScoreAdj: 0\n"), &[]);
    assert_eq!(zeros.changes(&flags), ["conntrack.min", "conntrack.tcpEstablishedTimeout", "oomScoreAdj"], "where it means something");
}

/// CFG-06, CFG-07
#[test]
fn servers_listen_by_the_family_of_the_bind_address() {
    for (text, healthz, metrics) in [
        ("", "0.0.0.0:10256", "127.0.0.1:10249"),
        ("bindAddress: \"::\"\n", "[::]:10256", "[::1]:10249"),
        ("bindAddress: fd00::1\nhealthzBindAddress: fd00::1\nmetricsBindAddress: 192.0.2.1\n", "[fd00::1]:10256", "192.0.2.1:10249"),
        ("healthzBindAddress: \"[fd00::1]:1\"\nmetricsBindAddress: 192.0.2.1:2\n", "[fd00::1]:1", "192.0.2.1:2"),
    ] {
        let config = good(&format!("{HEAD}{text}"), &[]).config;
        let shown = |address: Option<std::net::SocketAddr>| address.map(|address| address.to_string());
        assert_eq!((shown(config.healthz).as_deref(), shown(config.metrics).as_deref()), (Some(healthz), Some(metrics)), "{text:?}");
    }
    let bad = "bindAddress: host\nhealthzBindAddress: \"1.2.3.4:0\"\nmetricsBindAddress: \"fd00::1:x\"\n";
    let error = format!("{:#}", load(&format!("{HEAD}{bad}"), &[]).expect_err("three flaws"));
    for wanted in
        ["bindAddress (--bind-address): \"host\"", "healthzBindAddress (--healthz-bind-address): \"0\" is not a port", "metricsBindAddress"]
    {
        assert!(error.contains(wanted), "{error}, which lacks {wanted}");
    }
}

/// CFG-13
#[test]
fn what_is_of_another_family_than_the_node_is_named() {
    let mismatches = |text: &str| {
        let loaded = good(&format!("{HEAD}{text}"), &[]);
        resolve::family_mismatches(&loaded.kube_proxy, &loaded.config)
    };
    let others = "metricsBindAddress: 127.0.0.1\nhealthzBindAddress: 192.0.2.1\nclusterCIDR: 10.1.0.0/16\n";
    assert_eq!(mismatches(others), Vec::<String>::new(), "nothing tells the Node's family");
    assert_eq!(mismatches(&format!("{others}bindAddress: 192.0.2.2\n")), Vec::<String>::new());
    let found = mismatches(&format!("{others}bindAddress: fd00::1\n"));
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("healthzBindAddress: 192.0.2.1:10256 is not of family IPv6, but bindAddress is fd00::1"), "{found:?}");
    assert!(found[2].starts_with("clusterCIDR: 10.1.0.0/16 has nothing of family IPv6"), "{found:?}");
    // Ranges of both families, and addresses that are all of one.
    let dual = "bindAddress: fd00::1\nclusterCIDR: \"10.1.0.0/16,fd00::/48\"\nhealthzBindAddress: 0.0.0.0\n";
    assert_eq!(mismatches(dual), Vec::<String>::new());
}

/// CFG-05, CFG-08
#[test]
fn the_section_of_the_mode_counts() {
    let text = "iptables: {syncPeriod: 1m, minSyncPeriod: 2s, masqueradeAll: true, masqueradeBit: 1}\n\
                nftables: {syncPeriod: 3m, minSyncPeriod: 4s, masqueradeBit: 2}\nipvs: {syncPeriod: 5m, minSyncPeriod: 6s}\n";
    for (mode, period, least, all, bit) in [
        ("", 60, 2, true, 1),
        ("iptables", 60, 2, true, 1),
        ("ebpf", 60, 2, true, 1),
        ("nftables", 180, 4, false, 2),
        ("ipvs", 300, 6, true, 1),
    ] {
        let config = good(&format!("{HEAD}mode: \"{mode}\"\n{text}"), &[]).config;
        let found = (
            config.sync_period.as_secs(),
            config.min_sync_period.as_secs(),
            config.settings.masquerade_all,
            config.settings.masquerade_bit,
        );
        assert_eq!(found, (period, least, all, bit), "{mode:?}");
    }
}

#[test]
fn our_mode_comes_before_kube_proxys() {
    let loaded = good(&format!("{HEAD}mode: iptables\n---\n{OWN}mode: ebpf\n"), &[]);
    assert_eq!((loaded.config.mode, loaded.config.notices.len()), (Some(crate::cli::Mode::Ebpf), 0));
    assert!(loaded.config.settings.node_ports.primary, "NP-01 as that mode has it");
    assert_eq!(good(&format!("{HEAD}mode: nftables\n---\n{OWN}mode: auto\n"), &[]).config.mode, None);
}

/// CLI-04
#[test]
fn what_is_written_reads_back_the_same() {
    let file = format!(
        "{HEAD}mode: nftables\nnodePortAddresses: [primary, 10.0.0.0/8]\nlogging: {{vmodule: [{{filePattern: a, verbosity: 3}}]}}\nfeatureGates: \
         {{WatchList: false}}\nbindAddress: \"fd00::1\"\nconntrack: {{udpTimeout: 90s}}\n---\n{OWN}logLevel: warn\ncgroup: /a b\n"
    );
    for loaded in [good(&file, &[]), good(HEAD, &[]), Launch::default().load().expect("no flags")] {
        let written = loaded.file().expect("text");
        let again = good(&written, &[]);
        assert_eq!(loaded.changes(&again), Vec::<String>::new(), "{written}");
        assert_eq!(format!("{:?}", loaded.config), format!("{:?}", again.config), "{written}");
        assert!(again.warnings.is_empty(), "{:?}", again.warnings);
    }
    let text = good(HEAD, &[]).file().expect("text");
    assert!(!text.contains("---"), "without settings of ours it is kube-proxy's alone:\n{text}");
}

#[test]
fn changes_have_the_paths_of_their_fields() {
    let before = good(HEAD, &[]);
    let after = good(&format!("{HEAD}conntrack: {{min: 1}}\nnodePortAddresses: [all]\n---\n{OWN}mode: ebpf\n"), &[]);
    assert_eq!(before.changes(&after), ["conntrack.min", "nodePortAddresses", "ProxyAgentConfiguration.mode"]);
}

/// Each field of both documents has its line in the table, and each line its field.
#[test]
fn the_table_has_every_field() {
    let mut loaded = good(HEAD, &[]);
    loaded.kube_proxy.windows_run_as_service = true;
    loaded.kube_proxy.feature_gates.insert("WatchList".into(), true);
    loaded.kube_proxy.logging.vmodule.push(super::super::kube_proxy::VModule::default());
    for stream in [&mut loaded.kube_proxy.logging.options.text, &mut loaded.kube_proxy.logging.options.json] {
        stream.split_stream = true;
    }
    let mut found = Vec::new();
    leaves("", &serde_json::to_value(&loaded.kube_proxy).expect("a document"), &mut found);
    leaves(super::super::own::KIND, &serde_json::to_value(&loaded.own).expect("a document"), &mut found);
    found.retain(|path| !path.ends_with("apiVersion") && !path.ends_with("kind"));
    found.sort();
    let mut table: Vec<String> = FIELDS.iter().map(|field| field.path.to_owned()).collect();
    table.sort();
    assert_eq!(found, table);
}

fn leaves(path: &str, value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) if path != "featureGates" => {
            for (name, value) in fields {
                leaves(&if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, value, out);
            }
        }
        _ => out.push(path.to_owned()),
    }
}
