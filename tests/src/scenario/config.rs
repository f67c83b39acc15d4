//! The configuration that a scenario wants the proxy under test to have.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::KubeProxyMode;

/// Where the pods of all nodes are.
const POD_CIDRS: &str = "10.1.0.0/16,fd00:10:1::/48";

/// The fields of KubeProxyConfiguration that matter here, with their names there; for the agent they are flags.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Config {
    /// How local pods are told from others (LOC-01).
    pub detect_local_mode: String,
    /// The pods' addresses, for ClusterCIDR.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    /// Their devices, for the other modes.
    pub detect_local: DetectLocal,
    /// Where NodePorts are served (NP-01); empty is as each mode has it.
    pub node_port_addresses: Vec<String>,
    /// Whether all that goes to ClusterIPs is masqueraded (NAT-03).
    pub masquerade_all: bool,
    /// Whether NodePorts are served on 127.0.0.0/8 (NP-07); none is as each mode has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub localhost_node_ports: Option<bool>,
}

/// The devices of pods.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DetectLocal {
    /// The one that all are behind, for BridgeInterface.
    pub bridge_interface: String,
    /// What the name of each begins with, for InterfaceNamePrefix.
    pub interface_name_prefix: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            detect_local_mode: "ClusterCIDR".into(),
            cluster_cidr: POD_CIDRS.into(),
            detect_local: DetectLocal::default(),
            node_port_addresses: Vec::new(),
            masquerade_all: false,
            localhost_node_ports: None,
        }
    }
}

impl Config {
    /// The flags that give it to the agent.
    pub fn flags(&self) -> Vec<String> {
        let mut flags = vec![format!("--detect-local-mode={}", self.detect_local_mode)];
        let words = [
            ("cluster-cidr", &self.cluster_cidr),
            ("pod-bridge-interface", &self.detect_local.bridge_interface),
            ("pod-interface-name-prefix", &self.detect_local.interface_name_prefix),
            ("nodeport-addresses", &self.node_port_addresses.join(",")),
        ];
        flags.extend(words.iter().filter(|(_, value)| !value.is_empty()).map(|(name, value)| format!("--{name}={value}")));
        flags.extend(self.masquerade_all.then(|| "--masquerade-all".to_owned()));
        flags.extend(self.localhost_node_ports.map(|on| format!("--iptables-localhost-nodeports={on}")));
        flags
    }

    /// Gives it to kube-proxy, whose other configuration this is.
    pub fn add_to(&self, kube_proxy: &mut Value, mode: KubeProxyMode) {
        kube_proxy["detectLocalMode"] = json!(self.detect_local_mode);
        kube_proxy["clusterCIDR"] = json!(self.cluster_cidr);
        kube_proxy["detectLocal"] = json!(self.detect_local);
        kube_proxy["nodePortAddresses"] = json!(self.node_port_addresses);
        kube_proxy[mode.to_string()]["masqueradeAll"] = json!(self.masquerade_all);
        if let Some(on) = self.localhost_node_ports {
            // The other mode has no such field.
            kube_proxy["iptables"]["localhostNodePorts"] = json!(on);
        }
    }
}
