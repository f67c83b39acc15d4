//! Alerts and dashboard: what Prometheus says to them, and which metrics they read.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

/// What Grafana puts in place of its variables.
const VARIABLES: [(&str, &str); 3] = [("$__rate_interval", "5m"), ("$job", ".+"), ("$node", ".+")];

#[derive(Deserialize)]
struct Checked {
    errors: Vec<String>,
    metrics: Vec<String>,
}

/// The metrics that alerts and dashboard among `objects` read; an error if Prometheus would refuse one of their queries.
pub(super) fn metrics(programs: &Path, objects: &[Value]) -> Result<Vec<String>> {
    let rules = objects.iter().find(|object| object["kind"] == "PrometheusRule").map(|object| object["spec"].to_string());
    let queries = objects.iter().filter_map(|object| object["data"]["proxy-agent.json"].as_str()).map(queries);
    let queries: Vec<String> = queries.collect::<Result<Vec<_>>>()?.concat();
    if rules.is_none() && queries.is_empty() {
        return Ok(Vec::new());
    }
    let input = json!({"rules": rules.context("a dashboard without alerts")?, "queries": queries});
    let mut child =
        Command::new(programs.join("promcheck")).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot run promcheck")?;
    child.stdin.take().context("no standard input")?.write_all(input.to_string().as_bytes()).context("promcheck")?;
    let output = child.wait_with_output().context("promcheck")?;
    ensure!(output.status.success(), "promcheck: {}", output.status);
    let checked: Checked = serde_json::from_slice(&output.stdout).context("what promcheck printed")?;
    ensure!(checked.errors.is_empty(), "Prometheus refuses: {:#?}", checked.errors);
    Ok(checked.metrics)
}

/// The queries of a dashboard.
fn queries(dashboard: &str) -> Result<Vec<String>> {
    let dashboard: Value = serde_json::from_str(dashboard).context("the dashboard is not JSON")?;
    let panels = dashboard["panels"].as_array().context("a dashboard without panels")?;
    let mut queries = Vec::new();
    for panel in panels {
        let targets = panel["targets"].as_array().with_context(|| format!("panel {} asks nothing", panel["title"]))?;
        for target in targets {
            let query = target["expr"].as_str().with_context(|| format!("panel {}", panel["title"]))?;
            queries.push(VARIABLES.iter().fold(query.to_owned(), |query, (name, value)| query.replace(name, value)));
        }
    }
    Ok(queries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in() -> Result<()> {
        let panel = json!({"title": "t", "targets": [{"expr": "rate(a{job=~\"$job\"}[$__rate_interval])"}]});
        assert_eq!(queries(&json!({"panels": [panel]}).to_string())?, ["rate(a{job=~\".+\"}[5m])"]);
        Ok(())
    }
}
