//! Flags that say how Services are served: kube-proxy's, with its names and meanings.

use anyhow::{Context, anyhow, ensure};
use clap::{Args, ValueEnum};
use proxy_core::cidr::Cidr;
use proxy_core::model::Family;
use proxy_core::settings::{LocalDetection, NodePortAddresses, Settings};
use tracing::{info, warn};

/// The longest name of an interface that the kernel has.
const LONGEST_INTERFACE: usize = 15;

/// How Services are served.
#[derive(Clone, Debug, Args)]
pub(super) struct Serving {
    /// Name of this node's Node object (default: the host's name)
    #[arg(long, value_name = "NAME")]
    hostname_override: Option<String>,
    /// Where the cluster's pods are: one range of addresses, or one of each family, separated by a comma
    #[arg(long, value_name = "CIDRS", default_value = "")]
    cluster_cidr: String,
    /// What tells that a packet comes from a pod of the cluster
    #[arg(long, value_enum, default_value_t = LocalMode::ClusterCidr)]
    detect_local_mode: LocalMode,
    /// The bridge that all pods of this node are behind, for --detect-local-mode=BridgeInterface
    #[arg(long, value_name = "NAME", default_value = "")]
    pod_bridge_interface: String,
    /// What the names of all interfaces to pods begin with, for --detect-local-mode=InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX", default_value = "")]
    pod_interface_name_prefix: String,
    /// On which of this node's addresses NodePorts are served: ranges, `primary`, `localhost` or `all`, separated by commas (default:
    /// primary, the addresses that the Node object names first)
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    nodeport_addresses: Vec<String>,
    /// Masquerade all that goes to ClusterIPs
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    masquerade_all: bool,
    /// Which bit of a packet's mark says that it is to be masqueraded
    #[arg(long, value_name = "BIT", default_value_t = 14, value_parser = clap::value_parser!(u8).range(0..=31))]
    iptables_masquerade_bit: u8,
    /// Where --nodeport-addresses or a Service's loadBalancerSourceRanges name nothing of a family, serve all of that family, as
    /// kube-proxy does (default: none)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true")]
    open_unnamed_families: bool,
}

/// What tells that a packet comes from a pod of the cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum LocalMode {
    /// Its source is in --cluster-cidr
    #[value(name = "ClusterCIDR")]
    ClusterCidr,
    /// Its source is in the range that the Node object names for this node's pods
    #[value(name = "NodeCIDR")]
    NodeCidr,
    /// It comes in by --pod-bridge-interface
    #[value(name = "BridgeInterface")]
    Bridge,
    /// It comes in by an interface whose name begins with --pod-interface-name-prefix
    #[value(name = "InterfaceNamePrefix")]
    InterfacePrefix,
}

impl Serving {
    /// What the flags mean.
    ///
    /// # Errors
    ///
    /// Names the flag and what in it cannot be used.
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let node_ports = self.nodeport_addresses.iter().map(|entry| entry.trim()).filter(|entry| !entry.is_empty());
        Ok(Settings {
            node: self.node()?.into(),
            local: self.local()?,
            masquerade_all: self.masquerade_all,
            node_ports: NodePortAddresses::parse(node_ports).map_err(|why| anyhow!("--nodeport-addresses: {why}"))?,
            open_unnamed_families: self.open_unnamed_families,
            masquerade_bit: self.iptables_masquerade_bit,
        })
    }

    /// API-01
    fn node(&self) -> anyhow::Result<String> {
        let (name, from) = match &self.hostname_override {
            Some(name) => (name.clone(), "--hostname-override"),
            None => {
                let name = nix::unistd::gethostname().context("the host's name; --hostname-override names the Node")?;
                (name.to_string_lossy().into_owned(), "the host's name")
            }
        };
        let name = name.trim().to_lowercase();
        ensure!(!name.is_empty(), "{from}: empty; --hostname-override names the Node");
        // It goes into the selector of a watch.
        let fits = name.len() <= 253 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.');
        ensure!(fits, "{from}: {name:?} cannot be the name of a Node; --hostname-override names the Node");
        Ok(name)
    }

    fn local(&self) -> anyhow::Result<LocalDetection> {
        // What another mode would need is checked all the same.
        let cidrs = self.cluster_cidrs()?;
        let bridge = interface("--pod-bridge-interface", &self.pod_bridge_interface)?;
        let prefix = interface("--pod-interface-name-prefix", &self.pod_interface_name_prefix)?;
        Ok(match self.detect_local_mode {
            LocalMode::ClusterCidr => LocalDetection::ClusterCidrs(cidrs),
            LocalMode::NodeCidr => LocalDetection::NodeCidrs,
            LocalMode::Bridge => {
                ensure!(!bridge.is_empty(), "--pod-bridge-interface: missing; --detect-local-mode=BridgeInterface needs it");
                LocalDetection::Bridge(bridge.into())
            }
            LocalMode::InterfacePrefix => {
                ensure!(!prefix.is_empty(), "--pod-interface-name-prefix: missing; --detect-local-mode=InterfaceNamePrefix needs it");
                LocalDetection::InterfacePrefix(prefix.into())
            }
        })
    }

    fn cluster_cidrs(&self) -> anyhow::Result<Vec<Cidr>> {
        if self.cluster_cidr.trim().is_empty() {
            return Ok(Vec::new());
        }
        let parse = |text: &str| text.trim().parse().map_err(|why| anyhow!("--cluster-cidr: {text:?} {why}"));
        let cidrs: Vec<Cidr> = self.cluster_cidr.split(',').map(parse).collect::<anyhow::Result<_>>()?;
        let is_pair = |cidrs: &[Cidr]| matches!(cidrs, [a, b] if a.family() != b.family());
        let text = &self.cluster_cidr;
        ensure!(cidrs.len() == 1 || is_pair(&cidrs), "--cluster-cidr: {text:?} is neither one range nor one of each family");
        Ok(cidrs)
    }
}

fn interface<'a>(flag: &str, name: &'a str) -> anyhow::Result<&'a str> {
    let name = name.trim();
    ensure!(name.len() <= LONGEST_INTERFACE, "{flag}: {name:?} is longer than the {LONGEST_INTERFACE} bytes that interfaces have");
    let fits = !name.contains(['/', ':', '"']) && !name.chars().any(|c| c.is_whitespace() || c.is_control());
    ensure!(fits && !matches!(name, "." | ".."), "{flag}: {name:?} cannot be the name of an interface");
    Ok(name)
}

/// Says what the operator may not expect of the configuration.
pub(super) fn report(settings: &Settings) {
    if let LocalDetection::ClusterCidrs(cidrs) = &settings.local {
        // LOC-02
        for family in Family::ALL.into_iter().filter(|family| !cidrs.iter().any(|cidr| cidr.family() == *family)) {
            info!("--cluster-cidr: names nothing of {family}, so that {family} pods are not told from others");
        }
    }
    let addresses = &settings.node_ports;
    for family in Family::ALL.into_iter().filter(|family| !addresses.primary && addresses.of(*family).next().is_none()) {
        let what = if settings.open_unnamed_families { "on all of them" } else { "on none; --open-unnamed-families opens them" };
        warn!("--nodeport-addresses: names nothing of {family}: its NodePorts are served {what}");
    }
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
