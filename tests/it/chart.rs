//! The Helm chart: every combination of its main values against what reads it, and its rights against what the agent asks for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::{Agent, DEADLINE, Mode, Source};
use proxy_tests::chart::{self, Helm, NAMESPACE, RELEASE, Values};
use proxy_tests::controlplane::{ControlPlane, Options};
use proxy_tests::expect;
use proxy_tests::lab::{self, Lab, LabOptions, Seen};
use proxy_tests::manifest::{service, slice};
use serde_json::{Value, json};

/// How long a control plane may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);

/// What the chart grants and the agent does not come to here: it counts an Event up where the same thing happens again.
const NOT_YET: [(&str, &str, &str); 1] = [("events.k8s.io", "events", "patch")];

#[test]
fn the_chart_is_accepted_with_every_combination_of_values() {
    if lab::available() {
        let summary = chart::check().unwrap_or_else(|error| panic!("{error:?}"));
        assert!(summary.combinations > 100 && summary.objects > 100 && summary.refused > 10, "{summary:?}");
        let unknown = undocumented(&summary.metrics);
        assert!(unknown.is_empty(), "alerts or the dashboard read metrics that docs/operations.md does not have: {unknown:?}");
    }
}

#[test]
fn the_charts_configuration_is_taken_without_a_complaint() -> Result<()> {
    let (helm, dir) = (Helm::get()?, tempfile::tempdir()?);
    let (file, out) = (dir.path().join("config.conf"), dir.path().join("out.yaml"));
    let program = Agent::new(1, Mode::Nftables, Source::Manifests(dir.path().to_path_buf()))?.program().to_path_buf();
    let mut seen = BTreeSet::new();
    for values in chart::all() {
        let objects = helm.template(&values)?;
        let Some(text) = objects.iter().find_map(|object| object["data"]["config.conf"].as_str()) else { continue };
        if !seen.insert(text.to_owned()) {
            continue;
        }
        fs::write(&file, text)?;
        let mut agent = Command::new(&program);
        agent.args(["run", "--hostname-override=node1", "--config"]).arg(&file).arg("--write-config-to").arg(&out);
        let output = agent.output().context("the agent")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && !said.contains("WARN"), "{values}: {said}\n{text}");
        let written = fs::read_to_string(&out)?;
        let mode = |text: &str| text.lines().find(|line| line.starts_with("mode:")).map(str::to_owned);
        ensure!(mode(&written).is_some() && mode(&written) == mode(text), "{values}: {text}\nbecame\n{written}");
    }
    ensure!(seen.len() > 10, "{} configurations", seen.len());
    Ok(())
}

#[test]
fn the_charts_rights_are_what_the_agent_uses() {
    if lab::available() {
        rights().unwrap_or_else(|error| panic!("{error:?}"));
    }
}

/// Those of the metrics that are neither in the list of the agent's metrics nor Prometheus' own.
fn undocumented(metrics: &[String]) -> Vec<&String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("docs").join("operations.md");
    let Ok(text) = fs::read_to_string(path) else { return Vec::new() };
    let known = |name: &str| name == "up" || text.contains(&format!("`{}`", name.trim_end_matches("_bucket")));
    metrics.iter().filter(|name| !known(name)).collect()
}

/// A right or a use of one: group, resource and verb.
type Right = (String, String, String);

fn rights() -> Result<()> {
    let lab = Lab::new(LabOptions::default())?;
    let dir = tempfile::tempdir()?;
    let log = dir.path().join("audit.log");
    let mut plane = ControlPlane::start(Options {
        netns: Some(lab.node(1).netns().to_owned()),
        addresses: lab.node(1).addresses().to_vec(),
        extra_args: audit(dir.path(), &log)?,
        ..Options::default()
    })?;
    plane.wait_ready(START)?;
    plane.add_node("node1", &lab.node(1).addresses())?;
    let granted = install(&plane)?;

    let kubeconfig = plane.service_account_kubeconfig(NAMESPACE, RELEASE)?;
    let agent = Agent::new(1, Mode::Nftables, Source::Kubeconfig(kubeconfig.clone()))?;
    let mut agent = agent.with_flags(vec!["--hostname-override=node1".to_owned()]);
    let program = agent.program().to_path_buf();
    // The init container; what belongs to the whole machine stays as it is.
    let left = ["max-per-core=0", "tcp-timeout-established=0", "tcp-timeout-close-wait=0"].map(|flag| format!("--conntrack-{flag}"));
    let beside = |args: &[&str]| -> Result<()> {
        let mut command = Command::new(&program);
        command.args(args).arg("--kubeconfig").arg(&kubeconfig);
        let output = lab.output_on_node(1, command)?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    beside(&["run", "--init-only", "--hostname-override=node1", &left[0], &left[1], &left[2]])?;
    agent.start(&lab)?;
    plane.kubectl(&["apply", "-f", "-"], Some(&service("web", "10.96.0.10", 80, "TCP")))?;
    plane.kubectl(&["apply", "-f", "-"], Some(&slice("web", "TCP", &[("10.1.1.3", true)])))?;
    expect::reaches(&lab, "a1", "10.96.0.10:80/tcp", &["b1"]).with_context(|| agent.tail())?;
    beside(&["wait", "--service=default/web"]).with_context(|| agent.tail())?;

    let unused_yet: BTreeSet<Right> = NOT_YET.map(|(group, resource, verb)| (group.into(), resource.into(), verb.into())).into();
    let wanted: BTreeSet<Right> = granted.difference(&unused_yet).cloned().collect();
    lab.wait(DEADLINE, "every right to be used", || {
        let (used, refused) = requests(&log)?;
        ensure!(refused.is_empty(), "the API server refuses what the agent asks for: {refused:#?}");
        let unused: Vec<&Right> = wanted.difference(&used).collect();
        Ok(if unused.is_empty() { Seen::Done(()) } else { Seen::not_yet(format!("not used: {unused:?}")) })
    })
    .with_context(|| agent.tail())?;
    agent.stop()?;
    let (used, refused) = requests(&log)?;
    ensure!(refused.is_empty(), "the API server refuses what the agent asks for: {refused:#?}");
    ensure!(used.is_subset(&granted), "rights from elsewhere are used: {:?}", used.difference(&granted).collect::<Vec<_>>());
    let by_now: Vec<_> = used.intersection(&unused_yet).collect();
    ensure!(by_now.is_empty(), "used by now, so that they must go from the list of what is not: {by_now:?}");
    Ok(())
}

/// Has every request logged once it is decided; a watch, when it begins.
fn audit(dir: &Path, log: &Path) -> Result<Vec<String>> {
    let policy = json!({
        "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata", "userGroups": ["system:serviceaccounts"]}],
    });
    let file = dir.join("policy.json");
    fs::write(&file, policy.to_string()).context("the audit policy")?;
    Ok(vec![format!("--audit-policy-file={}", file.display()), format!("--audit-log-path={}", log.display())])
}

/// Installs the chart's account and rights; returns these.
fn install(plane: &ControlPlane) -> Result<BTreeSet<Right>> {
    let mut granted = BTreeSet::new();
    for object in Helm::get()?.template(&Values::least())? {
        let kind = object["kind"].as_str().unwrap_or_default();
        if !["ServiceAccount", "ClusterRole", "ClusterRoleBinding"].contains(&kind) {
            continue;
        }
        plane.kubectl(&["apply", "-f", "-"], Some(&object.to_string()))?;
        for rule in object["rules"].as_array().into_iter().flatten() {
            for group in words(&rule["apiGroups"])? {
                for resource in words(&rule["resources"])? {
                    granted.extend(words(&rule["verbs"])?.into_iter().map(|verb| (group.clone(), resource.clone(), verb)));
                }
            }
        }
    }
    ensure!(!granted.is_empty(), "the chart grants nothing");
    Ok(granted)
}

fn words(list: &Value) -> Result<Vec<String>> {
    let list = list.as_array().context("not a list in a rule")?;
    list.iter().map(|word| word.as_str().map(str::to_owned).context("not a word in a rule")).collect()
}

/// What the agent has asked for so far: what was allowed, and what was not.
fn requests(log: &Path) -> Result<(BTreeSet<Right>, Vec<Value>)> {
    let user = format!("system:serviceaccount:{NAMESPACE}:{RELEASE}");
    let text = fs::read_to_string(log).with_context(|| log.display().to_string())?;
    let (mut used, mut refused) = (BTreeSet::new(), Vec::new());
    // The last line may be half written.
    for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        if line["user"]["username"] != user.as_str() {
            continue;
        }
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let object = &line["objectRef"];
        if line["annotations"]["authorization.k8s.io/decision"] == "allow" && object["resource"].is_string() {
            used.insert((word(&object["apiGroup"]), word(&object["resource"]), word(&line["verb"])));
        } else {
            refused.push(line);
        }
    }
    Ok((used, refused))
}
