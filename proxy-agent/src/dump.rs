//! Shows what is programmed.

use std::fmt::Write;
use std::net::SocketAddr;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use proxy_core::model::Address;
use proxy_core::route::{Pool, Treatment};
use proxy_core::view::{AroundView, FrontendView, PortView, ServiceView, To};
use serde::Serialize;

use crate::cli::Mode;
use crate::modes::Found;

/// How it is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Output {
    /// Columns
    Table,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
}

/// What one mode has programmed: the same shape for all modes.
#[derive(Debug, Serialize)]
struct Dataplane {
    mode: &'static str,
    services: Vec<ServiceView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    around: Option<AroundView>,
}

/// What was found, as text; `service` (`namespace/name`) picks one.
///
/// # Errors
///
/// `service` is malformed.
pub fn render(found: Vec<Found>, service: Option<&str>, output: Output) -> anyhow::Result<String> {
    let wanted = service.map(|s| s.split_once('/').with_context(|| format!("--service {s:?}: write it as NAMESPACE/NAME"))).transpose()?;
    ensure!(!wanted.is_some_and(|(ns, name)| ns.is_empty() || name.is_empty()), "--service: write it as NAMESPACE/NAME");
    let keep = |view: &ServiceView| wanted.is_none_or(|(namespace, name)| view.namespace == namespace && view.service == name);
    let dataplanes: Vec<Dataplane> = found
        .into_iter()
        .map(|Found { dataplane, services, around }| Dataplane {
            mode: mode_name(dataplane),
            services: services.into_iter().filter(|v| keep(v)).collect(),
            around: around.filter(|_| wanted.is_none()),
        })
        .collect();
    match output {
        Output::Table => Ok(table(&dataplanes)),
        Output::Json => {
            let document = serde_json::json!({ "dataplanes": dataplanes });
            Ok(serde_json::to_string_pretty(&document).context("json")? + "\n")
        }
        Output::Yaml => {
            let document = std::collections::BTreeMap::from([("dataplanes", dataplanes)]);
            Ok(serde_saphyr::to_string(&document).context("yaml")?)
        }
    }
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Ebpf => "ebpf",
        Mode::Nftables => "nftables",
    }
}

fn table(dataplanes: &[Dataplane]) -> String {
    if dataplanes.is_empty() {
        return "nothing is programmed on this node\n".into();
    }
    let head = ["DATAPLANE", "NAMESPACE", "SERVICE", "PORT", "PROTOCOL", "FRONTEND", "TO", "BACKENDS"];
    let mut rows = vec![head.map(String::from)];
    for dataplane in dataplanes {
        for service in &dataplane.services {
            let ServiceView { namespace, service, port, protocol, view } = service;
            for frontend in &view.frontends {
                let [namespace, service, protocol] = [namespace, service, protocol].map(String::clone);
                let port = if port.is_empty() { "-".into() } else { port.clone() };
                let address = address(frontend);
                rows.push([
                    dataplane.mode.into(),
                    namespace,
                    service,
                    port,
                    protocol,
                    address,
                    to(frontend, view),
                    backends(frontend, view),
                ]);
            }
        }
    }
    let widths: Vec<usize> = (0..head.len()).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a String cannot fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    for AroundView { node_port_addresses, pod_ranges, service_ranges } in dataplanes.iter().filter_map(|d| d.around.as_ref()) {
        let addresses: Vec<String> = node_port_addresses.iter().map(ToString::to_string).collect();
        for (what, list) in [("NodePorts on", &addresses), ("pods in", pod_ranges), ("ClusterIPs from", service_ranges)] {
            let list = if list.is_empty() { "-".into() } else { list.join(" ") };
            let _ = writeln!(text, "{what}: {list}");
        }
    }
    text
}

/// A NodePort is on whatever addresses the node serves NodePorts.
fn address(frontend: &FrontendView) -> String {
    match (frontend.ip.is_unspecified(), frontend.ip.is_ipv4()) {
        (false, _) => SocketAddr::new(frontend.ip, frontend.port).to_string(),
        (true, true) => format!("node (IPv4):{}", frontend.port),
        (true, false) => format!("node (IPv6):{}", frontend.port),
    }
}

/// What the frontend does with whose packets.
fn to(frontend: &FrontendView, view: &PortView) -> String {
    let from = |sources: &Vec<String>| if sources.is_empty() { "nobody".into() } else { sources.join(" ") };
    let sources = frontend.sources.as_ref().map(|sources| format!("; only from {}", from(sources)));
    let affinity = view.affinity.map(|seconds| format!("; sticky for {seconds} s"));
    [Some(frontend.to.to_string()), affinity, sources].into_iter().flatten().collect()
}

/// Where its packets may go.
fn backends(frontend: &FrontendView, view: &PortView) -> String {
    let list = |addresses: &[Address]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let local = || if view.local.is_empty() { "none (dropped)".into() } else { list(&view.local) };
    match frontend.to {
        To::Packets(Treatment::Rejected) | To::SocketsRefused => "none (refused)".into(),
        To::Packets(Treatment::Dropped) => "none (dropped)".into(),
        To::Packets(Treatment::BySource) => format!("{} for pods and the node, {} for others", list(&view.backends), local()),
        To::Packets(Treatment::To(Pool::Local, _)) => local(),
        To::Packets(Treatment::To(Pool::Cluster, _)) | To::Sockets => list(&view.backends),
    }
}
