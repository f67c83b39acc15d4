//! The control plane's programs, which `tests/controlplane/go.mod` pins.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::golang::{Programs, pinned};

/// The packages that make up a control plane, besides the commands of our own module.
const PACKAGES: [&str; 6] = [
    "k8s.io/kubernetes/cmd/kube-apiserver",
    "k8s.io/kubernetes/cmd/kube-proxy",
    "k8s.io/kubernetes/cmd/kubectl",
    "./cmd/etcd",
    "./cmd/fill",
    "./cmd/pki",
];

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// etcd, the API server's storage.
    pub etcd: PathBuf,
    /// The API server.
    pub kube_apiserver: PathBuf,
    /// The command line client.
    pub kubectl: PathBuf,
    /// kube-proxy itself, to compare with.
    pub kube_proxy: PathBuf,
    /// Makes and changes objects by the thousand.
    pub fill: PathBuf,
    /// Makes keys and certificates.
    pub pki: PathBuf,
}

impl Binaries {
    fn in_dir(dir: &Path) -> Self {
        let file = |name| dir.join(name);
        Self {
            etcd: file("etcd"),
            kube_apiserver: file("kube-apiserver"),
            kubectl: file("kubectl"),
            kube_proxy: file("kube-proxy"),
            fill: file("fill"),
            pki: file("pki"),
        }
    }
}

/// The control plane's programs, built now if their sources have changed since the last build: about 6 minutes on two cores the
/// first time, seconds after a change of our own commands, nothing otherwise. Safe to call from several processes at once.
pub fn binaries() -> Result<Binaries> {
    let kubernetes = pinned("controlplane", "k8s.io/kubernetes ")?;
    let what = format!("etcd and Kubernetes {kubernetes} (once; about 6 minutes on two cores)");
    let programs = Programs { module: "controlplane", packages: &PACKAGES, ldflags: ldflags(&kubernetes), what };
    Ok(Binaries::in_dir(&programs.build()?))
}

/// Without these the API server takes itself for v0.0.0 and refuses its own feature gates.
fn ldflags(kubernetes: &str) -> String {
    let mut parts = kubernetes.trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let mut flags = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in [("gitVersion", kubernetes), ("gitMajor", major), ("gitMinor", minor), ("gitTreeState", "clean")] {
            flags += &format!(" -X {package}.{name}={value}");
        }
    }
    flags
}
