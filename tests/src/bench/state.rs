//! The objects of the API server, filled once per size and kept between runs: each run starts with a copy.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::plan::Plan;
use super::rig::{FLOWS, FLOWS_SLICE, NODE, PROBE, PROBE_SLICE, endpoint, silent_endpoint};
use crate::controlplane::binaries::binaries;
use crate::controlplane::{ControlPlane, Options};
use crate::golang::{cache_dir, lock};
use crate::lab::Lab;

/// How long the API server may take to serve.
pub(super) const READY: Duration = Duration::from_secs(120);
/// To be raised when what is filled in changes.
const VERSION: u32 = 2;

/// The objects of `services` Services and of the probe's, made now if that has not been done.
pub(super) fn saved(lab: &Lab, options: &Options, services: usize, plan: &Plan) -> Result<PathBuf> {
    let binaries = binaries()?;
    // The folder of the control plane's programs is named after their sources.
    let sources = binaries.etcd.ancestors().nth(2).and_then(Path::file_name).context("the folder of the control plane")?;
    let all = cache_dir()?.join("bench");
    let key = format!("{}-{VERSION}-{}", sources.display(), plan.endpoints);
    let dir = all.join(&key).join(services.to_string());
    // One run fills at a time; others wait for it.
    let _lock = lock(&all)?;
    if !dir.exists() {
        remove_others(&all, &key)?;
        let parent = all.join(&key);
        fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;
        let unfinished = tempfile::Builder::new().prefix("unfinished-").tempdir_in(&parent).context("a folder for the objects")?;
        let data = unfinished.path().join("etcd");
        fill(lab, options, services, plan)?.save(&data)?;
        fs::rename(&data, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    Ok(dir)
}

/// What other versions of the sources have filled takes hundreds of megabytes.
fn remove_others(all: &Path, key: &str) -> Result<()> {
    for entry in fs::read_dir(all).with_context(|| all.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() && entry.file_name() != key {
            fs::remove_dir_all(entry.path()).with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

fn fill(lab: &Lab, options: &Options, services: usize, plan: &Plan) -> Result<ControlPlane> {
    eprintln!("bench: filling an API server with {services} Services (once)");
    let mut plane = ControlPlane::start(options.clone())?;
    plane.wait_ready(READY)?;
    plane.add_node(NODE, &[lab.node(1).v4().into()])?;
    // Before the others: each Service that the API server makes costs it more the more there are.
    for (name, protocol) in [(PROBE, "TCP"), (FLOWS, "UDP")] {
        plane.kubectl(&["apply", "-f", "-"], Some(&service(name, protocol)))?;
        plane.kubectl(&["apply", "-f", "-"], Some(&slice(name, protocol)))?;
    }
    plane.update_slice(PROBE_SLICE, &[endpoint(0).into()])?;
    plane.update_slice(FLOWS_SLICE, &[silent_endpoint(0).into()])?;
    plane.fill(services, plan.endpoints, &[])?;
    Ok(plane)
}

/// As `fill update` calls it when it changes the port.
const PORT: &str = "http";

fn service(name: &str, protocol: &str) -> String {
    let port = json!({"name": PORT, "protocol": protocol, "port": 80, "targetPort": 8080});
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv4"], "ports": [port]},
    })
    .to_string()
}

/// The first slice of a Service, without endpoints.
fn slice(name: &str, protocol: &str) -> String {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": format!("{name}-0"), "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4", "ports": [{"name": PORT, "protocol": protocol, "port": 8080}], "endpoints": [],
    })
    .to_string()
}
