//! kube-proxy's command line and files, held against kube-proxy itself: what it takes, the agent takes, and both make the same of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use proxy_tests::controlplane;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Where ours is not what kube-proxy writes, whatever is asked for: the field, ours, kube-proxy's, and why.
const DIFFERENCES: &[(&str, &str, &str, &str)] = &[
    ("mode", r#""""#, r#""iptables""#, "empty is auto here"),
    ("iptables.minSyncPeriod", r#""0s""#, r#""1s""#, "there is no default pause: a round costs what changes"),
    ("nftables.minSyncPeriod", r#""0s""#, r#""1s""#, "the same"),
    ("ipvs.minSyncPeriod", r#""0s""#, r#""1s""#, "the same"),
    ("portRange", r#""1-2""#, r#""""#, "kube-proxy forgets what it does not use"),
];

/// Fields of sections that are not the mode's: kube-proxy forgets what it read there, and writes zeros.
const FORGOTTEN: &[&str] = &["syncPeriod", "minSyncPeriod", "masqueradeAll"];

/// What every configuration begins with.
const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// The feature gates that we know: name, default, `locked` if it has that for good, stage.
const GATES: &str = include_str!("../../proxy-agent/src/config/gates.txt");

struct Both {
    dir: TempDir,
    agent: PathBuf,
    kube_proxy: PathBuf,
}

impl Both {
    fn new() -> Result<Self> {
        let agent = proxy_tests::agent::program()?;
        Ok(Self { dir: tempfile::tempdir()?, agent, kube_proxy: controlplane::binaries()?.kube_proxy })
    }

    /// What a program writes for these arguments.
    fn written(&self, program: &Path, args: &[String]) -> Result<Value> {
        Ok(self.written_and_said(program, args)?.0)
    }

    /// The same, and what it said.
    fn written_and_said(&self, program: &Path, args: &[String]) -> Result<(Value, String)> {
        let file = self.dir.path().join("written.yaml");
        let _ = fs::remove_file(&file);
        let mut command = Command::new(program);
        // The program's own name must not matter: the agent is called as kube-proxy is.
        command.args(args).arg("--write-config-to").arg(&file);
        let output = command.output().with_context(|| program.display().to_string())?;
        let said = String::from_utf8_lossy(&output.stderr);
        // kube-proxy shows its help first.
        let reason = said.trim_end().lines().last().unwrap_or_default();
        ensure!(output.status.success(), "{command:?}: {}\n{reason}", output.status);
        let text = fs::read_to_string(&file).with_context(|| format!("{command:?}\n{said}"))?;
        Ok((serde_saphyr::from_str(&text).with_context(|| text.clone())?, said.into_owned()))
    }

    /// Fields in which the two differ, but for those that are meant to.
    fn compare(&self, args: &[String]) -> Result<Vec<String>> {
        let (ours, kube_proxys) = (self.written(&self.agent, args)?, self.written(&self.kube_proxy, args)?);
        let active = match kube_proxys["mode"].as_str() {
            Some("nftables") => "nftables",
            Some("ipvs") => "ipvs",
            _ => "iptables",
        };
        let (ours, kube_proxys) = (leaves(&ours), leaves(&kube_proxys));
        let json = |value: &Option<&Value>| value.map(Value::to_string).unwrap_or_default();
        let paths = ours.keys().chain(kube_proxys.keys()).collect::<std::collections::BTreeSet<_>>();
        let differing = paths.into_iter().filter(|path| {
            let (a, b) = (&ours.get(*path), &kube_proxys.get(*path));
            let meant =
                DIFFERENCES.iter().any(|(field, ours, kube_proxys, _)| path == field && json(a) == *ours && json(b) == *kube_proxys);
            let forgotten = path.split_once('.').is_some_and(|(section, field)| {
                // In mode ipvs, masqueradeAll is that of the section iptables.
                let section_counts = section == active || (field == "masqueradeAll" && active == "ipvs" && section == "iptables");
                FORGOTTEN.contains(&field) && ["iptables", "ipvs", "nftables"].contains(&section) && !section_counts
            });
            a != b && !meant && !(forgotten && b.is_some_and(is_zero))
        });
        Ok(differing.map(|path| format!("{path}: ours {:?}, kube-proxy's {:?}", ours.get(path), kube_proxys.get(path))).collect())
    }
}

fn is_zero(value: &Value) -> bool {
    *value == json!("0s") || *value == json!(false)
}

/// All values by their paths. An empty list and an empty map are null to kube-proxy; a number is one number however it is written.
fn leaves(document: &Value) -> BTreeMap<String, Value> {
    fn walk(path: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    walk(&if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, value, out);
                }
            }
            Value::Array(items) if items.is_empty() => drop(out.insert(path.to_owned(), Value::Null)),
            // kube-proxy writes nanoseconds where it has read nanoseconds.
            Value::Number(number) if path == "logging.flushFrequency" => {
                drop(out.insert(path.to_owned(), json!(format!("{}s", number.as_f64().unwrap_or_default() / 1e9))));
            }
            Value::Number(number) => drop(out.insert(path.to_owned(), json!(number.as_f64()))),
            other => drop(out.insert(path.to_owned(), other.clone())),
        }
    }
    let mut out = BTreeMap::new();
    walk("", document, &mut out);
    out
}

/// The flags that a program's help names, by their long names.
fn flags(help: &str) -> Vec<String> {
    let lines = help.lines().filter_map(|line| {
        let line = line.trim_start();
        let start = if line.starts_with('-') { line.find("--")? } else { return None };
        let name: String = line[start + 2..].chars().take_while(|c| c.is_ascii_lowercase() || *c == '-' || c.is_ascii_digit()).collect();
        (!name.is_empty()).then_some(name)
    });
    lines.collect()
}

fn help(program: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| program.display().to_string())?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// CLI-01
#[test]
fn every_flag_of_kube_proxy_is_one_of_ours() {
    let both = Both::new().unwrap_or_else(|error| panic!("{error:?}"));
    let kube_proxys = flags(&help(&both.kube_proxy, &["--help"]).expect("kube-proxy's help"));
    let ours = flags(&help(&both.agent, &["run", "--help"]).expect("our help"));
    // Deprecated ones are not in kube-proxy's help.
    let hidden = ["healthz-port", "metrics-port"].map(str::to_owned);
    let missing: Vec<_> = kube_proxys.iter().chain(&hidden).filter(|flag| !ours.contains(flag)).collect();
    assert!(missing.is_empty(), "we lack {missing:?}");
    assert!(kube_proxys.len() > 50, "read {} flags only: {kube_proxys:?}", kube_proxys.len());
}

/// CFG-15
#[test]
fn feature_gates_are_those_of_kube_proxy() {
    let both = Both::new().unwrap_or_else(|error| panic!("{error:?}"));
    let help = help(&both.kube_proxy, &["--help"]).expect("kube-proxy's help");
    // Its help has those that may still change; it takes the others too.
    let named: Vec<&str> = help.lines().filter_map(|line| line.trim().split_once("=true|false").map(|(name, _)| name)).collect();
    assert!(named.len() > 100, "{named:?}");
    let known: Vec<(&str, &str)> = GATES.lines().filter_map(|line| line.split_once(' ')).collect();
    let missing: Vec<_> = named.iter().filter(|name| !known.iter().any(|(known, _)| known == *name)).collect();
    assert!(missing.is_empty(), "we lack {missing:?}");
    // Each is of the same stage and has the same default.
    let wrong = known.iter().filter(|(name, rest)| {
        let (default, stage) = rest.split_once(' ').unwrap_or_default();
        let line = format!("{name}=true|false ({stage} - default={default})");
        ["ALPHA", "BETA"].contains(&stage) && !help.contains(&line)
    });
    let wrong: Vec<_> = wrong.collect();
    assert!(wrong.is_empty(), "not so for kube-proxy: {wrong:?}");
    // It takes every one of ours as it is by default.
    let set = |(name, rest): &(&str, &str), other: bool| format!("{name}={}", rest.starts_with("true") != other);
    let all: Vec<String> = known.iter().map(|gate| set(gate, false)).collect();
    let all = format!("--feature-gates={}", all.join(","));
    both.written(&both.kube_proxy, &[all]).expect("kube-proxy takes all of them");
    // What is locked for us is for kube-proxy.
    for gate in known.iter().filter(|(_, rest)| rest.contains("locked")).take(3) {
        let args = [format!("--feature-gates={}", set(gate, true))];
        assert!(both.written(&both.kube_proxy, &args).is_err() && both.written(&both.agent, &args).is_err(), "{args:?}");
    }
}

/// Flags, one set a line.
const FLAGS: &[&str] = &[
    "",
    "--proxy-mode=nftables",
    "--proxy-mode=iptables --masquerade-all",
    "--proxy-mode=nftables --masquerade-all=true --iptables-sync-period=1m --iptables-min-sync-period=2s",
    "--iptables-sync-period=90s --iptables-min-sync-period=1500ms --iptables-localhost-nodeports=false",
    "--proxy-mode=ipvs --ipvs-sync-period=1h --ipvs-min-sync-period=3s --ipvs-scheduler=rr --ipvs-strict-arp --ipvs-exclude-cidrs=10.0.0.0/8,10.1.0.0/16",
    "--proxy-mode=ipvs --ipvs-tcp-timeout=1s --ipvs-tcpfin-timeout=2s --ipvs-udp-timeout=3s --masquerade-all",
    "--cluster-cidr=10.1.0.0/16,fd00::/48 --detect-local-mode=ClusterCIDR",
    "--detect-local-mode=NodeCIDR --hostname-override=Node1",
    "--detect-local-mode=BridgeInterface --pod-bridge-interface=cni0",
    "--detect-local-mode=InterfaceNamePrefix --pod-interface-name-prefix=veth",
    "--nodeport-addresses=primary,10.0.0.0/8 --nodeport-addresses=fd00::/64",
    "--bind-address=192.0.2.1 --bind-address-hard-fail --healthz-bind-address=192.0.2.1:1 --metrics-bind-address=[::1]:2 --profiling",
    "--oom-score-adj=-5 --conntrack-max-per-core=0 --conntrack-min=0 --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=61s",
    "--conntrack-tcp-be-liberal --conntrack-udp-timeout=30s --conntrack-udp-timeout-stream=2m1s --config-sync-period=1h30m",
    "--kubeconfig=/a --master=https://192.0.2.1 --kube-api-qps=7.5 --kube-api-burst=11 --kube-api-content-type=application/json",
    "-v=2 --vmodule=a=1,b=2 --log-flush-frequency=1s",
    "--logging-format=json --v 3",
    "--feature-gates=LoggingAlphaOptions=true,WatchList=F --log-text-split-stream --log-text-info-buffer-size=64Ki",
    "--feature-gates=LoggingAlphaOptions=1 --log_json_split_stream --log-json-info-buffer-size=1k",
    "--show-hidden-metrics-for-version=1.36 --healthz-port=0 --metrics_port=0",
    "--iptables_sync_period=1m --masquerade-all=T --cleanup=false --init-only=0",
];

/// What is in a file, beside the head.
const FILES: &[&str] = &[
    "",
    "mode: nftables\nnftables: {syncPeriod: 1m, minSyncPeriod: 2s, masqueradeAll: true, masqueradeBit: 3}\n",
    "mode: iptables\niptables: {syncPeriod: 1m, minSyncPeriod: 2s, masqueradeAll: true, masqueradeBit: 3, localhostNodePorts: false}\n",
    "mode: ipvs\nipvs: {syncPeriod: 1m, minSyncPeriod: 2s, scheduler: rr, excludeCIDRs: [10.0.0.0/8], strictARP: true, tcpTimeout: 1s}\n",
    "bindAddress: \"::\"\n",
    "bindAddress: fd00::1\nhealthzBindAddress: fd00::2\nmetricsBindAddress: 192.0.2.1\n",
    "clusterCIDR: \"10.1.0.0/16,fd00::/48\"\nhostnameOverride: node1\nnodePortAddresses: [localhost, all]\noomScoreAdj: 0\nportRange: 1-2\n",
    "conntrack: {maxPerCore: 0, min: 1, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 1m, tcpBeLiberal: true, udpTimeout: 1s, udpStreamTimeout: 2s}\n",
    "detectLocalMode: InterfaceNamePrefix\ndetectLocal: {bridgeInterface: a, interfaceNamePrefix: b}\nconfigSyncPeriod: 1m\n",
    "clientConnection: {kubeconfig: /a, acceptContentTypes: b, contentType: c, qps: 0.5, burst: 7}\nenableProfiling: true\nbindAddressHardFail: true\n",
    "logging: {format: json, flushFrequency: 7000000000, verbosity: 3, options: {json: {infoBufferSize: \"0\"}}}\n",
    "featureGates: {WatchList: false, KubeProxyNFTablesLocalhostNodePorts: true}\nshowHiddenMetricsForVersion: \"1.36\"\n",
    "winkernel: {networkName: a, sourceVip: 192.0.2.1, enableDSR: true, rootHnsEndpointName: b, forwardHealthCheckVip: true}\nwindowsRunAsService: true\n",
    "mode: nftables\nspeed: high\nmode: iptables\nconntrack: {min: 1, min: 2, most: 3}\n",
];

/// CFG-02..16, CLI-02, CLI-04
#[test]
fn both_write_the_same_configuration() {
    let both = Both::new().unwrap_or_else(|error| panic!("{error:?}"));
    let mut cases: Vec<(String, Vec<String>)> = FLAGS
        .iter()
        .map(|flags| ((*flags).to_owned(), flags.split(' ').filter(|flag| !flag.is_empty()).map(str::to_owned).collect()))
        .collect();
    let mut files: Vec<String> = FILES.iter().map(|file| format!("{HEAD}{file}")).collect();
    files.push(super::kubeadm::CONFIGURATION.to_owned());
    for (number, file) in files.into_iter().enumerate() {
        let path = both.dir.path().join(format!("{number}.conf"));
        fs::write(&path, &file).expect("the file");
        let config = format!("--config={}", path.display());
        // Beside a file these two count.
        cases.push((format!("{file}with flags"), vec![config.clone(), "--hostname-override= Node7 ".into(), "-v=4".into()]));
        cases.push((file, vec![config]));
    }
    let (mut differing, count) = (Vec::new(), cases.len());
    for (name, args) in cases {
        let found = both.compare(&args).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        differing.extend(found.into_iter().map(|line| format!("{name}: {line}")));
    }
    assert!(differing.is_empty(), "{} fields differ:\n{}", differing.len(), differing.join("\n"));
    println!("{count} configurations are written alike");
}

/// CFG-04..12, CLI-06
#[test]
fn what_kube_proxy_refuses_is_refused() {
    let both = Both::new().unwrap_or_else(|error| panic!("{error:?}"));
    for flags in [
        "positional",
        "--no-such-flag",
        "--proxy-mode=kernelspace",
        "--cluster-cidr=10.1.0.0/33",
        "--cluster-cidr=10.1.0.0/16,10.2.0.0/16",
        "--detect-local-mode=Other",
        "--detect-local-mode=BridgeInterface",
        "--detect-local-mode=InterfaceNamePrefix",
        "--nodeport-addresses=node",
        "--nodeport-addresses=all,all",
        "--iptables-masquerade-bit=32",
        "--iptables-masquerade-bit=-1",
        "--oom-score-adj=1001",
        "--conntrack-min=-1",
        "--conntrack-max-per-core=-1",
        "--conntrack-tcp-timeout-established=-1s",
        "--conntrack-udp-timeout=-1s",
        "--config-sync-period=0",
        "--iptables-sync-period=0",
        "--iptables-sync-period=3",
        "--iptables-sync-period=1s --iptables-min-sync-period=2s",
        "--bind-address=host",
        "--healthz-bind-address=192.0.2.1:0",
        "--healthz-bind-address=host:1",
        "--metrics-bind-address=192.0.2.1:70000",
        "--masquerade-all=maybe",
        "--masquerade-all maybe",
        "--kube-api-burst=-1",
        "--feature-gates=Nonsense=true",
        "--proxy-mode=ipvs --feature-gates=KubeProxyIPVS=false",
        "--proxy-mode=ipvs --ipvs-tcp-timeout=-1s",
        "--show-hidden-metrics-for-version=1.35",
        "--logging-format=xml",
        "--logging-format=json --vmodule=a=1",
        "--log-text-split-stream",
        "--log-json-info-buffer-size=1k",
        "--config=/nowhere/config.conf",
    ] {
        let args: Vec<String> = flags.split(' ').map(str::to_owned).collect();
        for program in [&both.kube_proxy, &both.agent] {
            // Called by another name the agent takes a word for a command.
            let args = if program == &both.agent { std::iter::once("run".to_owned()).chain(args.clone()).collect() } else { args.clone() };
            assert!(both.written(program, &args).is_err(), "{}: takes {flags}", program.display());
        }
    }
    for text in ["kind: ConfigMap\n", "conntrack: {min: x}\n", "iptables: {syncPeriod: 30}\n", "mode: 7m\n", "oomScoreAdj: -1001\n"] {
        let path = both.dir.path().join("bad.conf");
        fs::write(&path, if text.starts_with("kind") { format!("apiVersion: v1\n{text}") } else { format!("{HEAD}{text}") })
            .expect("the file");
        let args = [format!("--config={}", path.display())];
        assert!(both.written(&both.kube_proxy, &args).is_err() && both.written(&both.agent, &args).is_err(), "{text}");
    }
}

/// What kube-proxy writes is a configuration of ours, with nothing in it that is not known.
#[test]
fn what_kube_proxy_writes_is_read() {
    let both = Both::new().unwrap_or_else(|error| panic!("{error:?}"));
    let path = both.dir.path().join("defaults.yaml");
    let output = Command::new(&both.kube_proxy).arg("--write-config-to").arg(&path).output().expect("kube-proxy");
    assert!(output.status.success(), "{output:?}");
    let (_, said) = both.written_and_said(&both.agent, &[format!("--config={}", path.display())]).expect("the agent reads it");
    assert!(!said.contains("no field") && !said.contains("more than once"), "{said}");
    // And what we write is one of kube-proxy's.
    let ours = both.dir.path().join("ours.yaml");
    let output = Command::new(&both.agent).args(["--proxy-mode=nftables", "--write-config-to"]).arg(&ours).output().expect("the agent");
    assert!(output.status.success(), "{output:?}");
    let again = both.written_and_said(&both.kube_proxy, &[format!("--config={}", ours.display())]);
    let (again, said) = again.expect("kube-proxy reads it");
    assert!(!said.contains("lenient"), "{said}");
    assert_eq!(again["mode"], "nftables");
}
