//! Shows what is programmed.

use std::fmt::Write;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use proxy_core::model::Address;
use proxy_core::view::ServiceView;
use serde::Serialize;

use crate::cli::Mode;

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
}

/// What was found, as text; `service` (`namespace/name`) picks one.
///
/// # Errors
///
/// `service` is malformed.
pub fn render(found: Vec<(Mode, Vec<ServiceView>)>, service: Option<&str>, output: Output) -> anyhow::Result<String> {
    let wanted = service.map(|s| s.split_once('/').with_context(|| format!("--service {s:?}: write it as NAMESPACE/NAME"))).transpose()?;
    ensure!(!wanted.is_some_and(|(ns, name)| ns.is_empty() || name.is_empty()), "--service: write it as NAMESPACE/NAME");
    let keep = |view: &ServiceView| wanted.is_none_or(|(namespace, name)| view.namespace == namespace && view.service == name);
    let dataplanes: Vec<Dataplane> = found
        .into_iter()
        .map(|(mode, views)| Dataplane { mode: mode_name(mode), services: views.into_iter().filter(|v| keep(v)).collect() })
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
    let mut rows = vec![["MODE", "NAMESPACE", "SERVICE", "PORT", "PROTOCOL", "FRONTENDS", "BACKENDS"].map(String::from)];
    for dataplane in dataplanes {
        for view in &dataplane.services {
            let port = if view.port.is_empty() { "-".into() } else { view.port.clone() };
            let backends = if view.backends.is_empty() { "none (refused)".into() } else { list(&view.backends) };
            let names = [dataplane.mode.into(), view.namespace.clone(), view.service.clone(), port, view.protocol.clone()];
            let [mode, namespace, service, port, protocol] = names;
            rows.push([mode, namespace, service, port, protocol, list(&view.frontends), backends]);
        }
    }
    let widths: Vec<usize> = (0..7).map(|i| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
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
    text
}

fn list(addresses: &[Address]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}
