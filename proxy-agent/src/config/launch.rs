//! What the agent was started with, and what that comes to now: the file is read anew for each change of it.

use std::path::PathBuf;

use anyhow::Context;
use serde_json::Value;
use tracing::{info, warn};

use super::fields::Field;
use super::kube_proxy::KubeProxyConfiguration;
use super::own::ProxyAgentConfiguration;
use super::resolve::{self, Beside};
use super::{Config, read};
use crate::log::Format;

/// The command line of a run.
#[derive(Clone, Default, Debug)]
pub struct Launch {
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// The flags of fields that were given, with their values.
    pub given: Vec<(&'static Field, Value)>,
    /// The other flags.
    pub beside: Beside,
}

/// What a command line and its file come to.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// kube-proxy's document, with defaults and flags in.
    pub kube_proxy: KubeProxyConfiguration,
    /// Our document, with flags in.
    pub own: ProxyAgentConfiguration,
    /// What is to be done.
    pub config: Config,
    /// What the file has that does not count.
    warnings: Vec<String>,
    /// Flags that do not count beside the file.
    passed_over: Vec<&'static str>,
}

impl Launch {
    /// Reads the file and puts defaults and flags in.
    ///
    /// # Errors
    ///
    /// What cannot be used, with its field.
    pub fn load(&self) -> anyhow::Result<Loaded> {
        let read::File { mut kube_proxy, mut own, warnings } = match &self.file {
            Some(path) => read::file(path)?,
            None => read::File { kube_proxy: KubeProxyConfiguration::empty(), ..read::File::default() },
        };
        kube_proxy.set_defaults();
        let counts = |field: &Field| self.file.is_none() || field.counts_beside_file();
        self.overlay(&mut kube_proxy, &mut own, counts)?;
        let mut passed_over: Vec<_> = self.given.iter().filter(|(field, _)| !counts(field)).filter_map(|(field, _)| field.flag).collect();
        let mut beside = self.beside.clone();
        if self.file.is_some() {
            passed_over.extend(beside.healthz_port.take().map(|_| "healthz-port"));
            passed_over.extend(beside.metrics_port.take().map(|_| "metrics-port"));
        }
        kube_proxy.complete(&beside);
        let config = resolve::resolve(&kube_proxy, &own, &beside)?;
        Ok(Loaded { kube_proxy, own, config, warnings, passed_over })
    }

    /// Puts the values of flags into the documents. The mode comes first: some flags are for the section of the mode.
    fn overlay(
        &self,
        kube_proxy: &mut KubeProxyConfiguration,
        own: &mut ProxyAgentConfiguration,
        counts: impl Fn(&Field) -> bool,
    ) -> anyhow::Result<()> {
        let mut documents = (serde_json::to_value(&*kube_proxy)?, serde_json::to_value(&*own)?);
        let mut given: Vec<_> = self.given.iter().filter(|(field, _)| counts(field)).collect();
        given.sort_by_key(|(field, _)| field.path != "mode");
        for (field, value) in given {
            field.set(value.clone(), &mut documents.0, &mut documents.1);
        }
        *kube_proxy = serde_json::from_value(documents.0).context("flags")?;
        *own = serde_json::from_value(documents.1).context("flags")?;
        Ok(())
    }
}

impl KubeProxyConfiguration {
    /// What flags may leave open.
    fn complete(&mut self, beside: &Beside) {
        if self.detect_local_mode.is_empty() {
            "ClusterCIDR".clone_into(&mut self.detect_local_mode);
        }
        if self.mode == "nftables" && self.node_port_addresses.is_empty() {
            self.node_port_addresses.push("primary".into());
        }
        self.name_ports(beside.healthz_port, beside.metrics_port);
    }
}

impl Loaded {
    /// Says what of it does not count, and what the operator may not expect.
    pub fn report(&self) {
        for warning in &self.warnings {
            warn!("{warning}");
        }
        for flag in &self.passed_over {
            warn!("--{flag} does not count beside --config: the file says it");
        }
        resolve::report(&self.kube_proxy, &self.config);
    }

    /// The configuration as a file: kube-proxy's document, and ours if there is anything in it.
    ///
    /// # Errors
    ///
    /// None is known.
    pub fn file(&self) -> anyhow::Result<String> {
        let yaml = |value: Value| serde_saphyr::to_string(&value).context("writing YAML");
        let mut text = yaml(serde_json::to_value(&self.kube_proxy)?)?;
        if self.own != ProxyAgentConfiguration::default() {
            text = format!("{text}---\n{}", yaml(serde_json::to_value(&self.own)?)?);
        }
        Ok(text)
    }

    /// How log lines are written, and which.
    pub fn log(&self) -> (Format, String) {
        let format = if self.kube_proxy.logging.format == "json" { Format::Json } else { Format::Text };
        let level = match (&*self.own.log_level, self.kube_proxy.logging.verbosity) {
            ("", 0..=3) => "info",
            ("", 4..=5) => "debug",
            ("", _) => "trace",
            (level, _) => level,
        };
        (format, level.to_owned())
    }

    /// The paths of fields that are otherwise in the other.
    pub fn changes(&self, other: &Loaded) -> Vec<String> {
        let documents = |loaded: &Loaded| {
            let kube_proxy = serde_json::to_value(&loaded.kube_proxy).unwrap_or_default();
            let own = serde_json::to_value(&loaded.own).unwrap_or_default();
            (kube_proxy, own)
        };
        let ((before, own_before), (after, own_after)) = (documents(self), documents(other));
        let mut paths = Vec::new();
        differing("", &before, &after, &mut paths);
        differing(super::own::KIND, &own_before, &own_after, &mut paths);
        paths
    }

    /// Flags and version, as kube-proxy has them in its log (CLI-06).
    pub fn introduce(&self, launch: &Launch) {
        let given: Vec<String> = launch.given.iter().filter_map(|(field, value)| Some(format!("--{}={value}", field.flag?))).collect();
        let file = launch.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
        info!(
            version = env!("CARGO_PKG_VERSION"),
            config = file,
            "flags: {}",
            if given.is_empty() { "none".into() } else { given.join(" ") }
        );
    }
}

fn differing(path: &str, before: &Value, after: &Value, paths: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(a), Value::Object(b)) => {
            let names: std::collections::BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                differing(&path, &before[name], &after[name], paths);
            }
        }
        (a, b) if a != b => paths.push(path.to_owned()),
        _ => {}
    }
}

#[cfg(test)]
#[path = "launch_tests.rs"]
mod tests;
