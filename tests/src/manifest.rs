//! Manifests for tests: how they are saved, and, as JSON, Services and EndpointSlices of namespace `default`.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Saves a file as editors do: the folder never holds half of it.
pub fn save(path: &Path, text: &str) -> Result<()> {
    // Hidden, so that nobody takes it for a manifest.
    let new = path.with_file_name(".new");
    fs::write(&new, text).with_context(|| new.display().to_string())?;
    fs::rename(&new, path).with_context(|| path.display().to_string())
}

/// A Service with one port, `main`.
pub fn service(name: &str, ip: &str, port: u16, protocol: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name},
        "spec": {"clusterIP": ip, "ports": [{"name": "main", "port": port, "protocol": protocol}]},
    })
    .to_string()
}

/// The slice `<service>-1` with these endpoints, ready or not, on port 8080.
pub fn slice(service: &str, protocol: &str, endpoints: &[(&str, bool)]) -> String {
    let is_v6 = endpoints.first().is_some_and(|(ip, _)| ip.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6()));
    let endpoints = endpoints.iter().map(|(ip, ready)| json!({"addresses": [ip], "conditions": {"ready": ready}}));
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "addressType": if is_v6 { "IPv6" } else { "IPv4" },
        "ports": [{"name": "main", "port": 8080, "protocol": protocol}],
        "endpoints": endpoints.collect::<Vec<Value>>(),
    })
    .to_string()
}
