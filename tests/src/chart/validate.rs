//! What a real API server says to an object, with unknown and duplicate fields as errors.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{Helm, NAMESPACE};
use crate::controlplane::{Api, ControlPlane, Options};
use crate::lab::wait;

/// How long a control plane may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);

/// An API server that has the Prometheus operator's resources.
pub struct Validator {
    // Ends before the server does.
    api: Api,
    _plane: ControlPlane,
    seen: HashSet<String>,
}

impl Validator {
    /// Starts it.
    pub fn start(helm: &Helm) -> Result<Self> {
        let mut plane = ControlPlane::start(Options::default())?;
        plane.wait_ready(START)?;
        for plural in ["servicemonitors", "prometheusrules"] {
            plane.kubectl(&["create", "-f", "-"], Some(&helm.definition(plural)?))?;
        }
        let this = Self { api: plane.api()?, _plane: plane, seen: HashSet::new() };
        wait(START, "the operator's resources to be served", || {
            let served = this.api.request("GET", "/apis/monitoring.coreos.com/v1/servicemonitors", None)?.status == 200;
            let served = served && this.api.request("GET", "/apis/monitoring.coreos.com/v1/prometheusrules", None)?.status == 200;
            Ok(served.then_some(()))
        })?;
        Ok(this)
    }

    /// Whether this is the first time that the object is seen; an error if it is refused.
    pub fn accepts(&mut self, object: &Value) -> Result<bool> {
        if !self.seen.insert(object.to_string()) {
            return Ok(false);
        }
        let what = format!("{} {}", object["kind"], object["metadata"]["name"]);
        let path = format!("{}?dryRun=All&fieldValidation=Strict", collection(object)?);
        self.api.request("POST", &path, Some(object))?.accepted(&what).with_context(|| format!("{object:#}"))?;
        Ok(true)
    }
}

/// Where objects of a kind are made.
fn collection(object: &Value) -> Result<String> {
    let (version, kind) = (object["apiVersion"].as_str().unwrap_or_default(), object["kind"].as_str().unwrap_or_default());
    let group = if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") };
    // An object that says no namespace, or another one, would not be installed where the release is.
    let namespace = object["metadata"]["namespace"].as_str();
    let plural = format!("{}s", kind.to_lowercase());
    Ok(match (kind, namespace) {
        ("ClusterRole" | "ClusterRoleBinding", None) => format!("{group}/{plural}"),
        ("ServiceAccount" | "ConfigMap" | "DaemonSet" | "Service" | "ServiceMonitor" | "PrometheusRule", Some(NAMESPACE)) => {
            format!("{group}/namespaces/{NAMESPACE}/{plural}")
        }
        _ => bail!("{version} {kind} in namespace {namespace:?}: not to be expected of the chart"),
    })
}
