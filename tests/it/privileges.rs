//! The rights that the chart gives to the agent's container: with them each mode works, and without any one of them it does not.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use proxy_tests::agent::{Agent, DEADLINE, Mode, Source};
use proxy_tests::chart::{Helm, Values};
use proxy_tests::expect;
use proxy_tests::lab::{self, Lab, LabOptions, Program};
use proxy_tests::manifest::{save, service, slice};
use serde_json::{Value, json};

/// What the agent says once it serves.
const FIRST_SYNC: &str = "first sync";

#[test]
fn ebpf_works_with_the_charts_capabilities_and_not_with_fewer() {
    check(Mode::Ebpf);
}

#[test]
fn nftables_works_with_the_charts_capabilities_and_not_with_fewer() {
    check(Mode::Nftables);
}

fn check(mode: Mode) {
    if lab::available() {
        run(mode).unwrap_or_else(|error| panic!("{mode}: {error:?}"));
    }
}

fn run(mode: Mode) -> Result<()> {
    let capabilities = capabilities(mode)?;
    let lab = Lab::new(LabOptions::default())?;
    let dir = tempfile::tempdir()?;
    save(&dir.path().join("web.json"), &service("web", "10.96.0.10", 80, "TCP"))?;
    save(&dir.path().join("slice.json"), &slice("web", "TCP", &[("10.1.1.3", true), ("10.1.2.2", true)]))?;
    let agent = Agent::new(1, mode, Source::Manifests(dir.path().to_path_buf()))?;
    for without in &capabilities {
        let fewer: Vec<&String> = capabilities.iter().filter(|capability| *capability != without).collect();
        let Err(error) = limited(&lab, &agent, &fewer)?.wait_for_log(DEADLINE, FIRST_SYNC) else {
            bail!("{mode} needs no {without}: the chart gives more than the least");
        };
        let said = format!("{error:#}");
        ensure!(["Operation not permitted", "EPERM", "!root"].iter().any(|why| said.contains(why)), "without {without}: {said}");
    }
    let mut running = limited(&lab, &agent, &capabilities.iter().collect::<Vec<_>>())?;
    running.wait_for_log(DEADLINE, FIRST_SYNC)?;
    ["a1", "node1"].into_iter().try_for_each(|from| expect::reaches(&lab, from, "10.96.0.10:80/tcp", &["b1", "a2"]))?;
    running.stop(DEADLINE)?;
    agent.cleanup(&lab)
}

/// The capabilities that the chart gives to the agent in a mode.
fn capabilities(mode: Mode) -> Result<Vec<String>> {
    let objects = Helm::get()?.template(&Values::least().with("", &json!({"mode": mode.to_string()})))?;
    let set = objects.iter().find(|object| object["kind"] == "DaemonSet").context("no DaemonSet")?;
    let added = set.pointer("/spec/template/spec/containers/0/securityContext/capabilities/add").and_then(Value::as_array);
    added.context("no capabilities")?.iter().map(|name| name.as_str().map(str::to_owned).context("a name")).collect()
}

/// The agent, running with these capabilities alone: as root in a container, which has no others in its bounding set.
fn limited(lab: &Lab, agent: &Agent, capabilities: &[&String]) -> Result<Program> {
    let whole = agent.command_to_run(lab, "info");
    let bounding: String = capabilities.iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
    let mut command = Command::new("setpriv");
    command.arg(format!("--bounding-set=-all{bounding}")).args(["--inh-caps=-all", "--no-new-privs"]);
    command.arg(whole.get_program()).args(whole.get_args());
    lab.spawn_on_node(1, command)
}
