//! The chart's main values and what each must give; all of them are combined with all others.

use std::fmt;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// Values of one release.
#[derive(Clone, Debug)]
pub struct Values {
    name: String,
    pub(super) value: Value,
}

impl fmt::Display for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// One value to set, with a name.
type Choice = (&'static str, fn() -> Value);

/// What there is to choose. Every dimension must keep out of the others' values.
const DIMENSIONS: [&[Choice]; 6] = [
    &[
        ("auto", || json!({"mode": "auto"})),
        ("ebpf", || json!({"mode": "ebpf"})),
        ("nftables", || json!({"mode": "nftables"})),
        ("nftables from ebpf", || json!({"mode": "nftables", "switchFromEbpf": true})),
    ],
    &[
        ("no configuration", || json!({})),
        ("configuration", || {
            json!({
                "kubeProxyConfiguration": {
                    "clusterCIDR": "10.244.0.0/16,fd00::/48", "bindAddress": "::", "nodePortAddresses": ["primary"],
                    "logging": {"format": "json"}, "nftables": {"masqueradeBit": 13, "syncPeriod": "1m"},
                },
                "proxyAgentConfiguration": {"removeKubeProxyRules": true, "logLevel": "debug"},
                "restartOnConfigChange": true,
            })
        }),
        ("kubeadm's ConfigMap", || json!({"existingConfigMap": "kube-proxy", "apiServer": {"host": ""}})),
    ],
    &[("init container", || json!({})), ("no init container", || json!({"initContainer": {"enabled": false}}))],
    &[
        ("no monitoring", || json!({})),
        ("monitoring", || {
            json!({
                "serviceMonitor": {"enabled": true, "labels": {"release": "prometheus"}},
                "prometheusRule": {"enabled": true, "labels": {"release": "prometheus"}},
                "dashboard": {"enabled": true},
            })
        }),
    ],
    &[("in place", || json!({})), ("surge", || json!({"updateStrategy": {"maxUnavailable": 0, "maxSurge": "10%"}}))],
    &[
        ("plain", || json!({})),
        ("adorned", || {
            json!({
                "image": {"digest": format!("sha256:{}", "0".repeat(64)), "pullSecrets": ["registry"]},
                "extraArgs": ["--v=2"], "securityContext": {"extraCapabilities": ["SYS_RESOURCE"], "seLinuxType": "spc_t"},
                "oomScoreAdj": -999, "podAnnotations": {"a": "b"}, "podLabels": {"c": "d"}, "tolerations": [],
                "healthz": {"port": 10356, "host": "192.0.2.7"}, "metrics": {"port": 10349, "bindAddress": "2001:db8::7"},
                "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
                    {"matchExpressions": [{"key": "a", "operator": "Exists"}]}]}}},
                "resources": {"limits": {"memory": "1Gi"}}, "fullnameOverride": "service-proxy",
            })
        }),
    ],
];

/// Every combination.
pub fn all() -> Vec<Values> {
    let mut all = vec![Values { name: String::new(), value: required() }];
    for choices in DIMENSIONS {
        let with = |values: &Values| choices.iter().map(|(name, value)| values.with(name, &value())).collect::<Vec<_>>();
        all = all.iter().flat_map(with).collect();
    }
    all
}

/// Values that must be refused, and words of the reason.
pub fn refused() -> Vec<(Values, &'static str)> {
    let cases = [
        (json!({"mode": "iptables"}), "/mode"),
        (json!({"mod": "ebpf"}), "mod"),
        (json!({"apiServer": {"host": "https://192.0.2.1:6443"}}), "/apiServer/host"),
        (json!({"apiServer": {"host": ""}}), "apiServer.host"),
        (json!({"image": {"repository": ""}}), "image.repository"),
        (json!({"image": {"digest": "sha256:1"}}), "/image/digest"),
        (json!({"updateStrategy": {"maxSurge": 1}}), "maxUnavailable must be 0"),
        (json!({"kubeProxyConfiguration": {"clusterCidr": "10.0.0.0/8"}}), "clusterCidr"),
        (json!({"kubeProxyConfiguration": {"mode": "nftables"}}), "mode"),
        (json!({"kubeProxyConfiguration": {"conntrack": {"udpTimeout": "ten"}}}), "/kubeProxyConfiguration/conntrack/udpTimeout"),
        (json!({"proxyAgentConfiguration": {"bpfPinPath": "/run/pins"}}), "/proxyAgentConfiguration/bpfPinPath"),
        (json!({"securityContext": {"extraCapabilities": ["CAP_SYS_ADMIN"]}}), "/securityContext/extraCapabilities"),
        (json!({"extraArgs": ["v=2"]}), "/extraArgs"),
    ];
    let base = Values { name: String::new(), value: required() };
    cases.into_iter().map(|(value, wanted)| (base.with(&value.to_string(), &value), wanted)).collect()
}

/// What has no default.
fn required() -> Value {
    json!({"image": {"repository": "registry.test/proxy-agent"}, "apiServer": {"host": "192.0.2.1"}})
}

impl Values {
    /// What must be set and nothing else.
    pub fn least() -> Self {
        Self { name: "defaults".to_owned(), value: required() }
    }

    /// The same with more.
    #[must_use]
    pub fn with(&self, name: &str, more: &Value) -> Self {
        let mut value = self.value.clone();
        merge(&mut value, more);
        let name = if self.name.is_empty() { name.to_owned() } else { format!("{}, {name}", self.name) };
        Self { name, value }
    }

    fn is(&self, pointer: &str, wanted: &Value) -> bool {
        self.value.pointer(pointer) == Some(wanted)
    }

    /// Fails unless the agent's container has the rights that its mode needs, and no more.
    pub(super) fn holds(&self, objects: &[Value]) -> Result<()> {
        let set = find(objects, "DaemonSet")?;
        let pod = set.pointer("/spec/template/spec").context("no pod")?;
        let container = pod.pointer("/containers/0").context("no container")?;
        let at = |pointer: &str| container.pointer(&format!("/securityContext{pointer}")).cloned().unwrap_or_default();

        let uses_ebpf = !self.is("/mode", &json!("nftables"));
        let touches_pins = uses_ebpf || self.is("/switchFromEbpf", &json!(true));
        let mut capabilities = vec!["NET_ADMIN"];
        capabilities.extend(if uses_ebpf { &["BPF", "PERFMON"][..] } else { &[] });
        capabilities.extend(self.is("/oomScoreAdj", &json!(-999)).then_some("SYS_RESOURCE"));
        let wanted = json!({"drop": ["ALL"], "add": capabilities});
        ensure!(at("/capabilities") == wanted, "capabilities {}, not {wanted}", at("/capabilities"));
        for (field, wanted) in [
            ("/privileged", Value::Null),
            ("/readOnlyRootFilesystem", json!(true)),
            ("/allowPrivilegeEscalation", json!(false)),
            ("/appArmorProfile/type", json!(if touches_pins { "Unconfined" } else { "RuntimeDefault" })),
        ] {
            ensure!(at(field) == wanted, "securityContext{field}: {}, not {wanted}", at(field));
        }
        let privileged = pod.pointer("/initContainers").and_then(Value::as_array).map_or(0, Vec::len);
        let wanted = usize::from(!self.is("/initContainer/enabled", &json!(false)));
        ensure!(privileged == wanted, "{privileged} init containers, not {wanted}");

        let paths = pod.pointer("/volumes").and_then(Value::as_array).context("no volumes")?;
        let paths: Vec<&str> = paths.iter().filter_map(|volume| volume.pointer("/hostPath/path")?.as_str()).collect();
        let mut wanted = Vec::new();
        wanted.extend(touches_pins.then_some("/sys/fs/bpf"));
        wanted.extend(uses_ebpf.then_some("/sys/fs/cgroup"));
        ensure!(paths == wanted, "paths of the host: {paths:?}, not {wanted:?}");
        Ok(())
    }
}

/// The object of a kind that there is one of.
pub(super) fn find<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    objects.iter().find(|object| object["kind"] == kind).with_context(|| format!("no {kind}"))
}

fn merge(into: &mut Value, more: &Value) {
    match (into, more) {
        (Value::Object(into), Value::Object(more)) => {
            more.iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, more) => *into = more.clone(),
    }
}
