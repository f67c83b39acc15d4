//! ProxyAgentConfiguration, proxy-agent.io/v1alpha1: what kube-proxy has no name for. A document of its own, in the same file.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// `apiVersion` of our own document.
pub const API_VERSION: &str = "proxy-agent.io/v1alpha1";
/// `kind` of our own document.
pub const KIND: &str = "ProxyAgentConfiguration";
/// Where eBPF objects are pinned if nothing else is said.
pub const PIN_PATH: &str = "/sys/fs/bpf/proxy-agent";

/// The whole document.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyAgentConfiguration {
    /// As it stands there.
    pub api_version: String,
    /// As it stands there.
    pub kind: String,
    /// How the kernel is programmed; comes before `mode` of KubeProxyConfiguration.
    pub mode: String,
    /// Folder on a bpf file system where eBPF maps and links are pinned.
    pub bpf_pin_path: PathBuf,
    /// The cgroup whose processes are served; none: the root of the hierarchy.
    pub cgroup: Option<PathBuf>,
    /// Leave a family open for which a list names nothing.
    pub open_unnamed_families: bool,
    /// Remove the rules that kube-proxy has left.
    pub remove_kube_proxy_rules: bool,
    /// Read Services from the files of this folder instead of a cluster.
    pub manifests: Option<PathBuf>,
    /// So many Service ports have a series of their connections at most; 0: they are not counted.
    pub service_connection_series: u32,
    /// A level, or a filter of the tracing crate; comes before `logging.verbosity`.
    pub log_level: String,
}

impl Default for ProxyAgentConfiguration {
    fn default() -> Self {
        Self {
            api_version: API_VERSION.into(),
            kind: KIND.into(),
            mode: String::new(),
            bpf_pin_path: PIN_PATH.into(),
            cgroup: None,
            open_unnamed_families: false,
            remove_kube_proxy_rules: false,
            manifests: None,
            service_connection_series: 1000,
            log_level: String::new(),
        }
    }
}
