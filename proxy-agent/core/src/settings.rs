//! How the operator wants Services to be served: what of the configuration decides about packets.

use std::net::IpAddr;
use std::sync::Arc;

use crate::cidr::Cidr;
use crate::model::Family;

/// The configuration, fixed for the life of an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// The name of the agent's own Node (API-01).
    pub node: Arc<str>,
    /// What tells that a packet comes from a pod of the cluster (LOC-01).
    pub local: LocalDetection,
    /// Masquerade all that goes to ClusterIPs (NAT-03).
    pub masquerade_all: bool,
    /// The addresses on which NodePorts are served (NP-01).
    pub node_ports: NodePortAddresses,
    /// Leave a family open for which a list names nothing, as kube-proxy does: NodePort addresses without one of a family are all
    /// addresses of that family (NP-03), source ranges without one of a family let everyone of that family in (LBR-03).
    pub open_unnamed_families: bool,
    /// The bit of a packet's mark that says "masquerade" (NAT-08).
    pub masquerade_bit: u8,
    /// An address that counts as the Node's own in its family, whatever the Node object says (API-03).
    pub bind_address: Option<IpAddr>,
    /// Connections that are led to endpoints are counted by Service port.
    pub counts_connections: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            node: "".into(),
            local: LocalDetection::default(),
            masquerade_all: false,
            node_ports: NodePortAddresses::default(),
            open_unnamed_families: false,
            masquerade_bit: 14,
            bind_address: None,
            counts_connections: true,
        }
    }
}

impl Settings {
    /// The packet mark that says "masquerade".
    pub fn masquerade_mark(&self) -> u32 {
        1u32.checked_shl(self.masquerade_bit.into()).unwrap_or(0)
    }
}

/// What tells that a packet comes from a pod of the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LocalDetection {
    /// Its source is in the first of these ranges of its family (LOC-02). Without one of its family, nothing tells.
    ClusterCidrs(Vec<Cidr>),
    /// Its source is in the range that the Node object gives to the node's pods (LOC-03).
    NodeCidrs,
    /// It came in by the interface of this name (LOC-04).
    Bridge(Arc<str>),
    /// It came in by an interface whose name begins like this (LOC-04).
    InterfacePrefix(Arc<str>),
}

impl Default for LocalDetection {
    fn default() -> Self {
        LocalDetection::ClusterCidrs(Vec::new())
    }
}

/// The addresses on which NodePorts are served.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodePortAddresses {
    /// Of each family the Node's own address (NP-02).
    pub primary: bool,
    /// Those of the host that are in one of these ranges (NP-06); all if one is a whole family (NP-04).
    pub cidrs: Vec<Cidr>,
}

impl NodePortAddresses {
    /// Reads `nodePortAddresses` (NP-01). The default is the node's own addresses.
    ///
    /// # Errors
    ///
    /// An entry is neither a range nor a keyword, or a keyword is there twice: names the entry.
    pub fn parse<'a>(entries: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let (mut addresses, mut keywords, mut any) = (Self::default(), Vec::new(), false);
        for entry in entries {
            any = true;
            let cidrs: &[&str] = match entry {
                "primary" => &[],
                "localhost" => &["127.0.0.0/8", "::1/128"],
                "all" => &["0.0.0.0/0", "::/0"],
                range => &[range],
            };
            if cidrs != [entry] {
                if keywords.contains(&entry) {
                    return Err(format!("{entry:?} is there twice"));
                }
                keywords.push(entry);
            }
            addresses.primary |= entry == "primary";
            for range in cidrs {
                let cidr = range.parse().map_err(|why| format!("{entry:?} {why}, nor one of primary, localhost, all"))?;
                addresses.cidrs.push(cidr);
            }
        }
        addresses.primary |= !any;
        Ok(addresses)
    }

    /// Whether it is every address of a family (NP-04).
    pub fn is_any(&self, family: Family) -> bool {
        self.of(family).any(Cidr::is_all)
    }

    /// Whether an entry names loopback addresses, rather than every address: NodePorts are served there, for the node itself (NP-07).
    pub fn names_loopback(&self, family: Family) -> bool {
        !self.is_any(family) && self.of(family).any(|cidr| cidr.contains(family.loopback()))
    }

    /// The ranges of a family.
    pub fn of(&self, family: Family) -> impl Iterator<Item = &Cidr> {
        self.cidrs.iter().filter(move |cidr| cidr.family() == family)
    }
}
