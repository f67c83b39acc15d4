//! The Helm chart, held against what reads it: helm itself, a real API server with the Prometheus operator's definitions, and
//! Prometheus' own parser.

mod combinations;
mod monitoring;
mod validate;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::golang::{Programs, pinned};
pub use combinations::{Values, all, refused};
pub use validate::Validator;

/// Where the chart is installed.
pub const NAMESPACE: &str = "kube-system";
/// The name of the release.
pub const RELEASE: &str = "proxy-agent";

/// The programs that check the chart; built now if that has not been done.
pub struct Helm {
    programs: PathBuf,
    /// The definitions of the Prometheus operator's resources.
    definitions: PathBuf,
    chart: PathBuf,
}

/// What was checked.
#[derive(Debug, Default)]
pub struct Summary {
    /// Combinations of values that were rendered.
    pub combinations: usize,
    /// Different objects that an API server accepted.
    pub objects: usize,
    /// Values that were refused as they should.
    pub refused: usize,
    /// Metrics that alerts and the dashboard read.
    pub metrics: Vec<String>,
}

impl Helm {
    /// Builds helm from source, about 7 minutes on two cores the first time, nothing afterwards.
    pub fn get() -> Result<Self> {
        let what = format!("helm {} (once; about 7 minutes on two cores)", pinned("chart", "helm.sh/helm/v4 ")?);
        let packages = &["helm.sh/helm/v4/cmd/helm", "./cmd/promcheck"];
        let programs = Programs { module: "chart", packages, ldflags: "-s -w".to_owned(), what };
        let operator = programs.files_of("github.com/prometheus-operator/prometheus-operator")?;
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("charts").join("proxy-agent");
        Ok(Self { programs: programs.build()?, definitions: operator.join("example/prometheus-operator-crd"), chart })
    }

    /// The objects that the chart gives with these values.
    pub fn template(&self, values: &Values) -> Result<Vec<Value>> {
        let output = self.run("template", values)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "helm template: {errors}");
        let text = String::from_utf8(output.stdout).context("what helm printed")?;
        documents(&text)
    }

    /// What helm says against these values; `None` if it renders them.
    pub fn refusal(&self, values: &Values) -> Result<Option<String>> {
        let output = self.run("template", values)?;
        Ok((!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned()))
    }

    /// `helm lint --strict`.
    pub fn lint(&self, values: &Values) -> Result<()> {
        let output = self.run("lint", values)?;
        let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "helm lint: {said}{errors}");
        // It lets a value that a template demands be missing, with a warning.
        ensure!(!errors.contains("level=WARN"), "helm lint: {errors}");
        Ok(())
    }

    fn run(&self, command: &str, values: &Values) -> Result<Output> {
        let mut file = tempfile::Builder::new().suffix(".json").tempfile().context("a file of values")?;
        serde_json::to_writer(&mut file, &values.value).context("a file of values")?;
        let mut helm = Command::new(self.programs.join("helm"));
        // Settings and plug-ins of the user are none of ours.
        let home = file.path().with_extension("home");
        for name in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(name, &home);
        }
        helm.arg(command);
        match command {
            "lint" => helm.arg("--strict").arg(&self.chart),
            _ => helm.arg(RELEASE).arg(&self.chart),
        };
        helm.args(["--namespace", NAMESPACE, "--values"]).arg(file.path());
        helm.output().context("cannot run helm")
    }

    fn definition(&self, plural: &str) -> Result<String> {
        let path = self.definitions.join(format!("monitoring.coreos.com_{plural}.yaml"));
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }
}

/// Checks the chart with every combination of its main values.
pub fn check() -> Result<Summary> {
    let helm = Helm::get()?;
    let mut validator = Validator::start(&helm)?;
    let mut summary = Summary::default();
    for values in all() {
        helm.lint(&values).with_context(|| values.to_string())?;
        let objects = helm.template(&values).with_context(|| values.to_string())?;
        for object in &objects {
            summary.objects += usize::from(validator.accepts(object).with_context(|| values.to_string())?);
        }
        values.holds(&objects).with_context(|| values.to_string())?;
        let metrics = monitoring::metrics(&helm.programs, &objects).with_context(|| values.to_string())?;
        summary.metrics.extend(metrics);
        summary.combinations += 1;
    }
    for (values, wanted) in refused() {
        let said = helm.refusal(&values)?.with_context(|| format!("{values}: is accepted, but {wanted:?} was to be expected"))?;
        ensure!(said.contains(wanted), "{values}: {said:?} does not say {wanted:?}");
        summary.refused += 1;
    }
    summary.metrics.sort();
    summary.metrics.dedup();
    ensure!(!summary.metrics.is_empty(), "no alert and no dashboard was looked into");
    Ok(summary)
}

/// The documents of a YAML file.
fn documents(text: &str) -> Result<Vec<Value>> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line == "---" {
            documents.push(String::new());
        } else if let Some(document) = documents.last_mut() {
            *document += line;
            *document += "\n";
        }
    }
    let has_object = |text: &&String| text.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#'));
    let parse = |text: &String| serde_saphyr::from_str(text).map_err(|error| anyhow::anyhow!("{error}\n{text}"));
    documents.iter().filter(has_object).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart_by_lines() -> Result<()> {
        let text = "---\n# nothing\n---\na: |\n  ---\n  b\n---\nc: 1\n";
        assert_eq!(documents(text)?, [serde_json::json!({"a": "---\nb\n"}), serde_json::json!({"c": 1})]);
        Ok(())
    }
}
