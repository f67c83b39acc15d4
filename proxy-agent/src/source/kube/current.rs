//! What the API server has of one Service at this moment, for those who wait until a node has it too.

use std::cmp::Ordering;

use ::kube::api::{Api, ListParams};
use ::kube::{Client, Config};
use anyhow::Context;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use proxy_core::model::ObjectName;

use super::KubeConfig;

/// A `resourceVersion`. Of two of one resource, the greater number is the later one (Kubernetes' API concepts, KEP-5504).
#[derive(Clone, Debug)]
pub struct Version(String);

impl Version {
    /// From an object or a watch.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Self) -> Ordering {
        let digits = |version: &Self| version.0.trim_start_matches('0').to_owned();
        let (a, b) = (digits(self), digits(other));
        a.len().cmp(&b.len()).then_with(|| a.cmp(&b))
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Version {}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The latest versions of a Service and of its EndpointSlices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Current {
    /// The Service's.
    pub service: Version,
    /// The latest of its slices; `None` without slices.
    pub slices: Option<Version>,
}

/// What the API server has of a Service now; `None` if it has none.
///
/// # Errors
///
/// The server cannot be reached, or refuses.
pub async fn current(config: &KubeConfig, name: &ObjectName) -> anyhow::Result<Option<Current>> {
    let client = config.link().await?.client;
    let services: Api<Service> = Api::namespaced(client.clone(), &name.namespace);
    let found = services.list_metadata(&ListParams::default().fields(&format!("metadata.name={}", name.name))).await;
    let Some(service) = found.with_context(|| format!("service {name}"))?.items.into_iter().next() else { return Ok(None) };
    let slices: Api<EndpointSlice> = Api::namespaced(client, &name.namespace);
    let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={}", name.name));
    let slices = slices.list_metadata(&of_service).await.with_context(|| format!("endpointslices of service {name}"))?;
    let versions = slices.items.into_iter().filter_map(|slice| slice.metadata.resource_version.map(Version::new));
    let service = Version::new(service.metadata.resource_version.unwrap_or_default());
    Ok(Some(Current { service, slices: versions.max() }))
}

/// What an agent answers at `path` of its metrics address, a URL such as `http://127.0.0.1:10249`.
///
/// # Errors
///
/// Nobody answers there, or not in JSON.
pub async fn ask_agent(url: &str, path: &str) -> anyhow::Result<serde_json::Value> {
    let config = Config::new(url.parse().with_context(|| format!("{url:?} is not a URL"))?);
    let client = Client::try_from(config)?;
    let request = ::http::Request::get(path).body(Vec::new())?;
    client.request(request).await.with_context(|| format!("the agent at {url}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers_of_any_length() {
        let [a, b, c] = ["999", "1000", "00000000000000000000000000001000"].map(Version::new);
        assert!(a < b);
        assert_eq!(b, c);
        assert!(Version::new("98765432109876543210987654321") > b);
    }
}
