//! What a node answers over HTTP, ours beside the real kube-proxy: one after the other on the same node, asked the same at the same
//! states of the same cluster.

mod metrics;
mod own;
mod proxy;
mod stale;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::Mode;
use proxy_tests::http::Answer;
use proxy_tests::lab;
use proxy_tests::scenario::KubeProxyMode;
use serde_json::{Value, json};

use proxy::{Proxy, Rig};

/// Where both answer health checks.
const HEALTHZ: u16 = 10256;
/// Where a load balancer asks about the Service.
const CHECK: u16 = 30999;
const OTHER_CHECK: u16 = 30998;
/// The addresses of node1.
const NODE: [&str; 2] = ["10.0.0.1", "fd00:10::1"];

/// Fails with the error and its causes.
fn check(result: Result<()>) {
    result.unwrap_or_else(|error| panic!("{error:?}"));
}

#[test]
fn health_checks_of_a_service_are_answered_as_kube_proxy_answers_them() {
    if lab::available() {
        check(same(|rig| rig.balanced()));
    }
}

#[test]
fn health_follows_the_node_as_kube_proxys_does() {
    if lab::available() {
        check(same(|rig| rig.probed()));
    }
}

/// What each proxy answers, state by state: in each of our modes the same as kube-proxy.
fn same(states: impl Fn(&mut Rig) -> Result<Vec<(String, Said)>>) -> Result<()> {
    let mut rig = Rig::new()?;
    rig.start(Proxy::Theirs(KubeProxyMode::Nftables))?;
    let theirs = states(&mut rig).with_context(|| rig.tail()).context("kube-proxy")?;
    rig.end()?;
    for mode in Mode::ALL {
        rig.start(Proxy::Ours(mode))?;
        let ours = states(&mut rig).with_context(|| rig.tail()).with_context(|| mode.to_string())?;
        rig.end()?;
        ensure!(ours.len() == theirs.len(), "{mode}: {ours:#?}\nkube-proxy: {theirs:#?}");
        for (ours, theirs) in ours.iter().zip(&theirs) {
            ensure!(ours == theirs, "{mode}: {ours:#?}\nkube-proxy: {theirs:#?}");
        }
    }
    Ok(())
}

/// What of an answer is compared: times are what they are, and Date too.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Said {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Said {
    fn of(answer: &Answer) -> Self {
        let compared = ["content-type", "x-content-type-options", "x-load-balancing-endpoint-weight"];
        let headers = answer.headers.iter().filter(|(name, _)| compared.contains(&&***name));
        Self { status: answer.status, headers: headers.map(|(n, v)| (n.clone(), v.clone())).collect(), body: timeless(&answer.body) }
    }
}

/// The text with `T` in place of each time of RFC 3339.
fn timeless(body: &str) -> String {
    let is_time = |word: &str| word.len() >= 20 && word.starts_with("20") && word.ends_with('Z') && word.as_bytes().get(10) == Some(&b'T');
    body.split('"').map(|word| if is_time(word) { "T" } else { word }).collect::<Vec<_>>().join("\"")
}

impl Rig {
    /// A Service through all that its health check depends on.
    fn balanced(&mut self) -> Result<Vec<(String, Said)>> {
        let mut said = Vec::new();
        let v4 = |endpoints: &[Value]| slice("lb", "IPv4", endpoints);
        let v6 = |endpoints: &[Value]| slice("lb-6", "IPv6", endpoints);
        self.apply(&service("Local", CHECK))?;
        for (ip, counts) in [(NODE[0], 0), (NODE[1], 0)] {
            said.push((format!("{ip}: no endpoints"), self.weighs(ip, CHECK, counts)?));
        }
        // Two of three are here, and one of these is not ready; two ports make no more of one address.
        self.apply(&v4(&[on("node1", "10.1.1.3", "ready"), on("node1", "10.1.1.4", "starting"), on("node2", "10.1.2.2", "ready")]))?;
        said.push(("one here".into(), self.weighs(NODE[0], CHECK, 1)?));
        said.push(("none of the other family".into(), self.weighs(NODE[1], CHECK, 0)?));
        self.apply(&v6(&[on("node1", "fd00:10:1:1::3", "ready"), on("node1", "fd00:10:1:1::4", "ready")]))?;
        said.push(("two of the other family".into(), self.weighs(NODE[1], CHECK, 2)?));
        // HC-09: what is served while it ends is not counted.
        self.apply(&v4(&[on("node1", "10.1.1.3", "ending"), on("node1", "10.1.1.4", "ending")]))?;
        said.push(("those here end".into(), self.weighs(NODE[0], CHECK, 0)?));
        // HC-07: whatever is asked.
        for (method, path) in [("POST", "/"), ("GET", "/a/b?c"), ("PUT", "/healthz")] {
            said.push((format!("{method} {path}"), Said::of(&self.ask(NODE[1], CHECK, method, path)?)));
        }
        // HC-12: another port, and none.
        self.kubectl(&["delete", "service", "lb"])?;
        self.apply(&service("Local", OTHER_CHECK))?;
        said.push(("another port".into(), self.weighs(NODE[1], OTHER_CHECK, 2)?));
        self.closed(NODE[1], CHECK)?;
        self.apply(&service("Cluster", 0))?;
        self.closed(NODE[1], OTHER_CHECK)?;
        self.forget()?;
        Ok(said)
    }

    /// The Node through all that its health depends on.
    fn probed(&mut self) -> Result<Vec<(String, Said)>> {
        let mut said = Vec::new();
        let mut see = |rig: &Rig, what: &str, status: u16| -> Result<()> {
            said.push((format!("/healthz {what}"), rig.answers(NODE[0], HEALTHZ, "/healthz", status)?));
            said.push((format!("/livez {what}"), rig.answers(NODE[1], HEALTHZ, "/livez", 200)?));
            Ok(())
        };
        see(self, "at the start", 200)?;
        // HC-02: these do not count.
        self.kubectl(&["cordon", "node1"])?;
        self.kubectl(&["taint", "node", "node1", "DeletionCandidateOfClusterAutoscaler=1:PreferNoSchedule", "example.com/x=:NoExecute"])?;
        see(self, "other taints", 200)?;
        self.kubectl(&["taint", "node", "node1", "ToBeDeletedByClusterAutoscaler=1:NoSchedule"])?;
        see(self, "to be deleted", 503)?;
        self.kubectl(&["taint", "node", "node1", "ToBeDeletedByClusterAutoscaler-"])?;
        see(self, "stays", 200)?;
        self.kubectl(&["patch", "node", "node1", "--type=merge", "-p", r#"{"metadata": {"finalizers": ["example.com/wait"]}}"#])?;
        self.kubectl(&["delete", "node", "node1", "--wait=false"])?;
        see(self, "deleted, and waited for", 503)?;
        for path in ["/", "/healthz/", "/metrics"] {
            said.push((path.into(), Said::of(&self.ask(NODE[0], HEALTHZ, "GET", path)?)));
        }
        self.node_goes()?;
        Ok(said)
    }
}

/// A LoadBalancer Service of both families with two ports.
fn service(policy: &str, check: u16) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "lb"},
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": policy, "allocateLoadBalancerNodePorts": false,
            "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{"name": "a", "port": 80}, {"name": "b", "port": 81}],
        },
    });
    if check != 0 {
        service["spec"]["healthCheckNodePort"] = check.into();
    }
    service
}

fn slice(name: &str, family: &str, endpoints: &[Value]) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family, "endpoints": endpoints,
        "metadata": {"namespace": "default", "name": name, "labels": {"kubernetes.io/service-name": "lb"}},
        "ports": [{"name": "a", "port": 8080}, {"name": "b", "port": 8081}],
    })
}

fn on(node: &str, address: &str, state: &str) -> Value {
    let (ready, serving, terminating) = (state == "ready", state != "starting", state == "ending");
    let conditions = json!({"ready": ready, "serving": serving, "terminating": terminating});
    json!({"addresses": [address], "nodeName": node, "conditions": conditions})
}
