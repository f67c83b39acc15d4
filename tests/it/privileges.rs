//! The rights that the chart gives to the agent's container: with them each mode works, and without any one of them it does not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use proxy_tests::agent::{Agent, Mode, Source};
use proxy_tests::chart::{Helm, Values};
use proxy_tests::demo;
use proxy_tests::lab::{self, Lab, LabOptions};
use serde_json::{Value, json};

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
    let dir = tempfile::tempdir()?;
    demo::run(mode, Some(limited(dir.path(), &capabilities)?), false).with_context(|| format!("with {capabilities:?}"))?;
    let lab = Lab::new(LabOptions::default())?;
    for without in &capabilities {
        let fewer: Vec<String> = capabilities.iter().filter(|capability| *capability != without).cloned().collect();
        let mut agent = Agent::with_program(limited(dir.path(), &fewer)?, 1, mode, Source::Manifests(dir.path().to_path_buf()));
        // It waits for the first sync, so that who cannot write the kernel is not taken for somebody who can.
        agent.start(&lab).with_context(|| format!("without {without}: cannot be started"))?;
        let Err(error) = agent.running()?.wait_for_log(proxy_tests::agent::DEADLINE, "first sync") else {
            bail!("{mode} needs no {without}: the chart gives more than the least");
        };
        let said = format!("{error:#}");
        ensure!(said.contains("Operation not permitted") || said.contains("EPERM") || said.contains("!root"), "without {without}: {said}");
    }
    Ok(())
}

/// The capabilities that the chart gives to the agent in a mode.
fn capabilities(mode: Mode) -> Result<Vec<String>> {
    let objects = Helm::get()?.template(&Values::least().with("", &json!({"mode": mode.to_string()})))?;
    let set = objects.iter().find(|object| object["kind"] == "DaemonSet").context("no DaemonSet")?;
    let added = set.pointer("/spec/template/spec/containers/0/securityContext/capabilities/add").and_then(Value::as_array);
    added.context("no capabilities")?.iter().map(|name| name.as_str().map(str::to_owned).context("a name")).collect()
}

/// A program that is the agent with these capabilities alone: as root in a container, which has no others in its bounding set.
fn limited(dir: &Path, capabilities: &[String]) -> Result<PathBuf> {
    let agent = Agent::new(1, Mode::Nftables, Source::Manifests(dir.to_path_buf()))?;
    let list: String = capabilities.iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
    let path = dir.join(format!("agent-with{}", list.replace([',', '+'], "-")));
    let script = format!(
        "#!/bin/sh\nexec setpriv --bounding-set=-all{list} --inh-caps=-all --no-new-privs '{}' \"$@\"\n",
        agent.program().display()
    );
    fs::write(&path, script).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755))).context("a script")?;
    Ok(path)
}
