//! A gate: waits until the agent of this node has programmed a Service as the API server has it now.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use proxy_core::model::ObjectName;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::source::kube::{Current, KubeConfig, Version, ask_agent, current};

/// Between two questions.
const AGAIN: Duration = Duration::from_millis(50);

/// What is waited for.
#[derive(Debug, Args)]
pub struct WaitArgs {
    /// The Service that this node must have programmed
    #[arg(long, value_name = "NAMESPACE/NAME")]
    service: String,
    /// How long to wait at most, in seconds; 0: for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
    /// Where the agent of this node answers (its --metrics-bind-address)
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:10249")]
    agent: String,
    /// How to reach the API server (default: from inside the cluster)
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Address of the API server, instead of the one in the kubeconfig
    #[arg(long, value_name = "URL")]
    master: Option<String>,
    /// Do not ask an API server: whatever the agent knows of the Service is what is waited for
    #[arg(long, conflicts_with_all = ["kubeconfig", "master"])]
    any: bool,
}

/// Returns once the agent has programmed the Service, in the state that the API server had when this was called.
///
/// # Errors
///
/// The time is over: says what was missing last.
pub async fn wait(args: WaitArgs) -> anyhow::Result<()> {
    let Some((namespace, name)) = args.service.split_once('/') else {
        bail!("--service {:?}: is not NAMESPACE/NAME", args.service);
    };
    let name = ObjectName::new(namespace, name);
    let start = Instant::now();
    let kube = KubeConfig { kubeconfig: args.kubeconfig.clone(), server: args.master.clone() };
    let mut wanted = None;
    loop {
        let missing = match missing(&args, &kube, &name, &mut wanted).await {
            Ok(None) => return Ok(()),
            Ok(Some(missing)) => missing,
            Err(error) => format!("{error:#}"),
        };
        if args.timeout > 0 && start.elapsed() >= Duration::from_secs(args.timeout) {
            bail!("service {name}: not programmed on this node within {} s: {missing}", args.timeout);
        }
        sleep(AGAIN).await;
    }
}

/// What is missing; `None` if nothing is. `wanted` is asked for once.
async fn missing(args: &WaitArgs, kube: &KubeConfig, name: &ObjectName, wanted: &mut Option<Current>) -> anyhow::Result<Option<String>> {
    if !args.any && wanted.is_none() {
        *wanted = current(kube, name).await?;
        if wanted.is_none() {
            return Ok(Some("the API server has no such Service".to_owned()));
        }
    }
    let answer = ask_agent(&args.agent, &format!("/programmed?service={name}")).await?;
    if let Some(Current { service, slices }) = wanted {
        let is_there =
            |key: &str, wanted: &Version| answer.get(key).and_then(Value::as_str).is_some_and(|has| Version::new(has) >= *wanted);
        let behind = [
            ("Services", !is_there("services_resource_version", service)),
            ("EndpointSlices", slices.as_ref().is_some_and(|slices| !is_there("slices_resource_version", slices))),
        ];
        if let Some((what, _)) = behind.into_iter().find(|(_, behind)| *behind) {
            return Ok(Some(format!("the agent has not come to the latest version of its {what}")));
        }
    }
    let programmed = answer.get("programmed").and_then(Value::as_bool).context("the agent does not say whether it is programmed")?;
    Ok((!programmed).then(|| format!("the agent says: {answer}")))
}
