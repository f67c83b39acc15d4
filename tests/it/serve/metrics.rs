//! Metrics: every name that kube-proxy has is there with its type and labels, or listed with the reason why not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::{DEADLINE, Mode};
use proxy_tests::lab::{self, Seen};
use proxy_tests::scenario::KubeProxyMode;

use super::proxy::{Proxy, Rig};
use super::{CHECK, NODE, Said, check, on, service, slice};

/// Type and labels of each metric, by name.
type Shape = BTreeMap<String, (String, BTreeSet<String>)>;

#[test]
fn every_name_of_kube_proxys_metrics_is_there_or_listed_with_its_reason() {
    if lab::available() {
        check(compared());
    }
}

fn compared() -> Result<()> {
    let mut rig = Rig::new()?;
    let mut theirs = Shape::new();
    let (mut pages, mut short) = (BTreeMap::new(), Vec::new());
    for mode in [KubeProxyMode::Iptables, KubeProxyMode::Nftables] {
        rig.start(Proxy::Theirs(mode))?;
        theirs.extend(rig.measured().with_context(|| rig.tail())?);
        (pages, short) = (rig.pages()?, rig.short().with_context(|| rig.tail())?);
        rig.end()?;
    }
    let (mut absent, mut differ) = (BTreeSet::new(), Vec::new());
    for mode in Mode::ALL {
        rig.start(Proxy::Ours(mode))?;
        let ours = rig.measured().with_context(|| rig.tail())?;
        for (name, shape) in &theirs {
            match ours.get(name) {
                None => drop(absent.insert(name.clone())),
                Some(found) if found != shape => differ.push(format!("{mode}: {name}: {found:?}, kube-proxy has {shape:?}")),
                Some(_) => {}
            }
        }
        let found = rig.pages()?;
        for (path, page) in &pages {
            if found.get(path) != Some(page) {
                differ.push(format!("{mode}: {path}: {:?}, kube-proxy has {page:?}", found.get(path)));
            }
        }
        rig.asked(mode)?;
        let found = rig.short().with_context(|| rig.tail())?;
        if found != short {
            differ.push(format!("{mode}: {found:#?}, kube-proxy has {short:#?}"));
        }
        rig.end()?;
    }
    let listed = listed()?;
    let covers = |pattern: &str, name: &str| pattern.strip_suffix('*').map_or(pattern == name, |prefix| name.starts_with(prefix));
    let unlisted: Vec<_> = absent.iter().filter(|name| !listed.iter().any(|pattern| covers(pattern, name))).collect();
    let needless: Vec<_> = listed.iter().filter(|pattern| !absent.iter().any(|name| covers(pattern, name))).collect();
    ensure!(
        unlisted.is_empty() && needless.is_empty(),
        "docs/operations.md does not list {unlisted:#?}\nand lists for nothing {needless:#?}"
    );
    Ok(())
}

/// The first column of the table of what kube-proxy has and we do not.
fn listed() -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let section = text.split("## kube-proxy's metrics that are not here").nth(1).context("docs/operations.md has no such section")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    Ok(section.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned())).collect())
}

/// The shape of a scrape.
fn shape(text: &str) -> Shape {
    let mut shape = Shape::new();
    for line in text.lines() {
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            shape.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        }
    }
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once('{').map_or((line.split(' ').next().unwrap_or_default(), ""), |(name, rest)| (name, rest));
        let family =
            ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix).filter(|base| shape.contains_key(*base)));
        let Some((_, known)) = shape.get_mut(family.unwrap_or(name)) else { continue };
        let labels = labels.split_once("\"} ").map_or("", |(labels, _)| labels);
        let names = labels.split("\",").filter_map(|label| label.split_once("=\"").map(|(name, _)| name.to_owned()));
        known.extend(names.filter(|label| label != "le"));
    }
    shape
}

impl Rig {
    /// Metrics after a Service was programmed, and a probe answered.
    fn measured(&self) -> Result<Shape> {
        self.apply(&service("Local", CHECK))?;
        let mut endpoints = slice("lb", "IPv4", &[on("node1", "10.1.1.3", "ready")]);
        self.apply(&endpoints)?;
        self.weighs(NODE[0], CHECK, 1)?;
        // Changed after the start, as the controller says.
        let now = now_text();
        endpoints["metadata"]["annotations"] = serde_json::json!({"endpoints.kubernetes.io/last-change-trigger-time": now});
        endpoints["endpoints"] = serde_json::json!([on("node1", "10.1.1.3", "ready"), on("node1", "10.1.1.4", "ready")]);
        self.apply(&endpoints)?;
        self.weighs(NODE[0], CHECK, 2)?;
        self.answers(NODE[0], super::HEALTHZ, "/livez", 200)?;
        self.ask_metrics("GET", "/healthz", "")?;
        let text = self.lab.wait(DEADLINE, "the time that programming took", || {
            let text = self.ask_metrics("GET", "/metrics", "")?.body;
            let is_there = text.contains("kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}");
            Ok(if is_there { Seen::Done(text) } else { Seen::not_yet(text) })
        })?;
        let mut shape = shape(&text);
        shape.extend(self::shape(&self.ask_metrics("GET", "/metrics/slis", "")?.body));
        self.forget()?;
        Ok(shape)
    }

    /// MET-07: what is said of a Service with two ports, whose policies are Local, and whose endpoints are elsewhere in one family.
    fn short(&self) -> Result<Vec<String>> {
        const NAME: &str = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        let mut both = service("Local", CHECK);
        both["spec"]["internalTrafficPolicy"] = "Local".into();
        self.apply(&both)?;
        self.apply(&slice("lb", "IPv4", &[on("node2", "10.1.2.2", "ready")]))?;
        self.apply(&slice("lb-6", "IPv6", &[on("node1", "fd00:10:1:1::3", "ready")]))?;
        let lines = self.lab.wait(DEADLINE, "ports in want of a local endpoint", || {
            let text = self.ask_metrics("GET", "/metrics", "")?.body;
            let lines: Vec<String> = text.lines().filter(|line| line.starts_with(NAME)).map(str::to_owned).collect();
            let v6_is_not = lines.iter().filter(|line| line.contains("IPv6") && line.ends_with(" 0")).count() == 2;
            let is_short = lines.iter().filter(|line| line.contains("IPv4") && line.ends_with(" 2")).count() == 2;
            Ok(if is_short && v6_is_not { Seen::Done(lines) } else { Seen::not_yet(lines.join("\n")) })
        })?;
        self.forget()?;
        Ok(lines)
    }

    /// What other pages say, as far as it must be the same.
    fn pages(&self) -> Result<BTreeMap<&'static str, Said>> {
        let mut pages = BTreeMap::new();
        for path in ["/healthz", "/healthz?verbose", "/configz", "/flagz", "/statusz", "/proxyMode", "/nothing"] {
            let mut said = Said::of(&self.ask_metrics("GET", path, "")?);
            if matches!(path, "/flagz" | "/statusz") {
                // Ours forbids to guess the type there too.
                said.headers.retain(|(name, _)| name == "content-type");
            }
            said.body = match path {
                // Made for people, by each program for itself.
                "/flagz" | "/statusz" => said.body.lines().nth(2).unwrap_or_default().to_owned(),
                "/configz" => kind(&said.body)?,
                "/proxyMode" => said.body.split_whitespace().count().to_string(),
                _ => said.body,
            };
            pages.insert(path, said);
        }
        Ok(pages)
    }

    /// What only ours answers.
    fn asked(&self, mode: Mode) -> Result<()> {
        ensure!(self.ask_metrics("GET", "/proxyMode", "")?.body == mode.to_string());
        let asked = |service: &str| self.ask_metrics("GET", &format!("/programmed?service={service}"), "")?.json();
        let answer = asked("default/kubernetes")?;
        ensure!(answer["known"] == true && answer["programmed"] == true, "{answer}");
        let versions = ["services_resource_version", "slices_resource_version"];
        ensure!(versions.iter().all(|key| answer[key].as_str().is_some_and(|version| version.parse::<u64>().is_ok())), "{answer}");
        ensure!(asked("default/nobody")?["known"] == false);
        Ok(())
    }
}

/// Under which key, and as what, a component says its configuration.
fn kind(body: &str) -> Result<String> {
    let body: serde_json::Value = serde_json::from_str(body).context("/configz")?;
    let config = &body["kubeproxy.config.k8s.io"];
    Ok(format!("{} {}", config["apiVersion"], config["kind"]))
}

/// The time now, as Kubernetes writes it.
fn now_text() -> String {
    let output = std::process::Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"]).output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
