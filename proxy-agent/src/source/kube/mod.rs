//! Services, EndpointSlices, the own Node and ServiceCIDRs from a Kubernetes API server. The only module that names a Kubernetes client.

mod current;
mod events;
mod failure;
mod list;
mod proto;
mod resource;
mod watch;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ::kube::config::{KubeConfigOptions, Kubeconfig};
use ::kube::{Client, Config};
use anyhow::Context;
use http::Request;
use tokio::time::timeout;

use self::resource::{EndpointSlices, OwnNode, ServiceCidrs, Services};
use self::watch::Watch;
use super::Sender;
use crate::metrics::Client as Metrics;
pub use current::{Current, Version, ask_agent, current};
pub use events::post;

/// How long Services wait for what is around them. A server that answers at all does so within milliseconds.
const AROUND_FIRST: Duration = Duration::from_secs(60);

/// How long who prepares a node waits for its Node object.
const REACH: Duration = Duration::from_secs(30);

/// How to reach the API server. The default is the ServiceAccount of the pod that the agent runs in.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct KubeConfig {
    /// A kubeconfig file. Its current context counts.
    pub kubeconfig: Option<PathBuf>,
    /// URL of the API server, in place of the one that the kubeconfig or the pod's environment names.
    pub server: Option<String>,
}

/// Sends the Node of this name, all ServiceCIDRs, Services and EndpointSlices, and then what changes, until the channel closes. An
/// API server that cannot be reached, or refuses, is tried again for ever; only a configuration that cannot work is an error.
pub async fn watch(config: KubeConfig, node: Arc<str>, events: Sender, metrics: &Metrics) -> anyhow::Result<()> {
    let link = config.link().await?;
    let mut own_node = Watch::new(OwnNode::new(&node), config.clone(), link.clone(), events.clone(), metrics);
    let mut cidrs = Watch::new(ServiceCidrs, config.clone(), link.clone(), events.clone(), metrics);
    let services = Watch::new(Services, config.clone(), link.clone(), events.clone(), metrics);
    let slices = Watch::new(EndpointSlices { node }, config, link, events, metrics);
    let (node_answered, cidrs_answered) = (own_node.answered(), cidrs.answered());
    let served = async {
        // So that an agent that starts again does not first program Services as if it did not know its Node.
        let around = async { tokio::join!(node_answered, cidrs_answered) };
        let _ = timeout(AROUND_FIRST, around).await;
        tokio::join!(services.run(), slices.run())
    };
    tokio::join!(own_node.run(), cidrs.run(), served);
    Ok(())
}

/// Waits until the API server has answered for the Node of this name, as it does for who starts to serve (CLI-05).
///
/// # Errors
///
/// The configuration cannot work, or there was no answer in [`REACH`], with the last reason.
pub async fn reach(config: &KubeConfig, node: &str) -> anyhow::Result<()> {
    let Link { client, server } = config.link().await?;
    let deadline = tokio::time::Instant::now() + REACH;
    let mut said = false;
    loop {
        let request = Request::get(format!("/api/v1/nodes/{node}")).body(Vec::new())?;
        let answer = match tokio::time::timeout_at(deadline, client.request_text(request)).await {
            Ok(Ok(_)) => return Ok(()),
            // No such Node yet: the kubelet makes it.
            Ok(Err(::kube::Error::Api(status))) => anyhow::anyhow!("{}: {}", status.code, status.message),
            Ok(Err(error)) => error.into(),
            Err(_) => anyhow::anyhow!("no answer"),
        };
        if !std::mem::replace(&mut said, true) {
            tracing::info!("node {node}: waiting for it ({answer:#})");
        }
        if tokio::time::Instant::now() >= deadline {
            return Err(answer).with_context(|| format!("node {node} at {server}"));
        }
        tokio::time::sleep(REACH / 30).await;
    }
}

/// A client and the server that it speaks to.
#[derive(Clone)]
struct Link {
    client: Client,
    server: String,
}

impl KubeConfig {
    /// Reads the files anew.
    async fn link(&self) -> anyhow::Result<Link> {
        let mut config = self.load().await?;
        // The watch has its own ways of waiting and of saying so.
        config.default_retry = false;
        let agent = concat!("proxy-agent/", env!("CARGO_PKG_VERSION"));
        config.headers.push(("user-agent".parse()?, agent.parse()?));
        let server = config.cluster_url.to_string();
        let client = Client::try_from(config).with_context(|| format!("cannot set up a client for {server}"))?;
        Ok(Link { client, server })
    }

    async fn load(&self) -> anyhow::Result<Config> {
        let mut config = match (&self.kubeconfig, &self.server) {
            (Some(path), _) => {
                let name = path.display();
                let file = Kubeconfig::read_from(path).with_context(|| format!("kubeconfig {name} cannot be read"))?;
                let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await;
                config.with_context(|| format!("kubeconfig {name} cannot be used"))?
            }
            (None, None) => Config::incluster().context(
                "no --kubeconfig, and this is not a pod with a ServiceAccount: name a kubeconfig, or use --manifests DIR to run without a \
                 cluster",
            )?,
            // In a pod the server's address is all that differs; elsewhere it is all that is known.
            (None, Some(server)) => match Config::incluster_dns() {
                Ok(config) => config,
                Err(_) => Config::new(server.parse().with_context(|| format!("{server:?} is not a URL"))?),
            },
        };
        if let Some(server) = &self.server {
            config.cluster_url = server.parse().with_context(|| format!("{server:?} is not a URL"))?;
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "k", "cluster": {"server": "https://192.0.2.1:6443"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}]}"#;

    #[tokio::test]
    async fn the_server_of_a_kubeconfig_can_be_overridden() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("kubeconfig");
        std::fs::write(&path, FILE)?;
        let mut config = KubeConfig { kubeconfig: Some(path), server: None };
        assert_eq!(config.load().await?.cluster_url.host(), Some("192.0.2.1"));
        config.server = Some("https://[2001:db8::1]:6443".into());
        assert_eq!(config.load().await?.cluster_url.host(), Some("[2001:db8::1]"));
        assert_eq!(config.link().await?.server, "https://[2001:db8::1]:6443/");
        Ok(())
    }

    #[tokio::test]
    async fn a_configuration_that_cannot_work_is_an_error_with_a_way_out() {
        let (events, _receiver) = tokio::sync::mpsc::channel(1);
        // The tests may themselves run in a pod.
        if Config::incluster().is_err() {
            let error = watch(KubeConfig::default(), "node1".into(), events.clone(), &crate::metrics::Metrics::default().client)
                .await
                .expect_err("not in a pod");
            assert!(format!("{error:#}").contains("--manifests"), "{error:#}");
        }
        let config = KubeConfig { kubeconfig: Some("/nowhere/kubeconfig".into()), server: None };
        let error = watch(config, "node1".into(), events, &crate::metrics::Metrics::default().client).await.expect_err("no such file");
        assert!(format!("{error:#}").contains("/nowhere/kubeconfig"), "{error:#}");
    }

    #[tokio::test]
    async fn ends_when_nobody_listens_even_without_a_server() -> anyhow::Result<()> {
        let (events, receiver) = tokio::sync::mpsc::channel(1);
        let config = KubeConfig { kubeconfig: None, server: Some("http://127.0.0.1:9".into()) };
        let running = tokio::spawn(async move { watch(config, "node1".into(), events, &crate::metrics::Metrics::default().client).await });
        drop(receiver);
        tokio::time::timeout(std::time::Duration::from_secs(10), running).await???;
        Ok(())
    }
}
