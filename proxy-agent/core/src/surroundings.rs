//! What is around the Services: the configuration, the agent's own Node, the host's addresses, the ranges of ClusterIPs.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use crate::cidr::Cidr;
use crate::model::{Family, Node, ObjectName};
use crate::settings::{LocalDetection, Settings};

/// Everything but Services and slices that decides about packets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Surroundings {
    settings: Settings,
    node: Option<Node>,
    service_cidrs: BTreeMap<ObjectName, Box<[Cidr]>>,
    host: Box<[IpAddr]>,
}

/// What tells a pod's packet, in one family.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Detection {
    /// Its source is in this range.
    Cidr(Cidr),
    /// It came in by this interface.
    Interface(Arc<str>),
    /// It came in by an interface whose name begins like this.
    InterfacePrefix(Arc<str>),
}

/// The addresses on which NodePorts of one family are served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NodePortScope {
    /// Every address that the host has when the packet comes, except loopback (NP-05, NP-09).
    Any,
    /// These. On loopback addresses they are for the node itself.
    These(BTreeSet<IpAddr>),
}

/// Where a packet comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// From the host itself: its source is one of the host's addresses.
    Host,
    /// From elsewhere, in by this interface.
    Interface(Arc<str>),
}

/// Who sends, as far as it matters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sender {
    /// A pod of the cluster, as far as [`Detection`] tells.
    Pod,
    /// The host, and not a pod.
    Host,
    /// Anybody else.
    Other,
}

impl Surroundings {
    /// What is around with nothing known but the configuration.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// The configuration.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The zone that the Node is in.
    pub fn zone(&self) -> Option<&str> {
        self.node.as_ref()?.zone.as_deref()
    }

    /// The agent's own Node, if there is one.
    pub fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    pub(crate) fn set_node(&mut self, node: Option<Node>) {
        self.node = node;
    }

    pub(crate) fn set_host(&mut self, addresses: Box<[IpAddr]>) {
        self.host = addresses;
    }

    pub(crate) fn set_service_cidr(&mut self, name: ObjectName, cidrs: Option<Box<[Cidr]>>) {
        match cidrs {
            Some(cidrs) => self.service_cidrs.insert(name, cidrs),
            None => self.service_cidrs.remove(&name),
        };
    }

    pub(crate) fn retain_service_cidrs(&mut self, listed: &HashSet<ObjectName>) {
        self.service_cidrs.retain(|name, _| listed.contains(name));
    }

    /// What tells a pod's packet; none where nothing does.
    pub fn detection(&self, family: Family) -> Option<Detection> {
        let of_family = |cidrs: &[Cidr]| cidrs.iter().find(|cidr| cidr.family() == family).copied().map(Detection::Cidr);
        match &self.settings.local {
            LocalDetection::ClusterCidrs(cidrs) => of_family(cidrs),
            LocalDetection::NodeCidrs => of_family(&self.node.as_ref()?.pod_cidrs),
            LocalDetection::Bridge(name) => Some(Detection::Interface(name.clone())),
            LocalDetection::InterfacePrefix(prefix) => Some(Detection::InterfacePrefix(prefix.clone())),
        }
    }

    /// The Node's own address: the one of the configuration (API-03), else as the Node object says. While no Node is known, the first
    /// of the host's that is reached from elsewhere.
    pub fn node_ip(&self, family: Family) -> Option<IpAddr> {
        let of_family = |ip: &&IpAddr| Family::of(**ip) == family;
        if let Some(ip) = self.settings.bind_address.filter(|ip| of_family(&ip)) {
            return Some(ip);
        }
        match &self.node {
            Some(node) => node.ips.iter().find(of_family).copied(),
            None => self.host.iter().filter(of_family).find(|ip| !ip.is_loopback() && !is_link_local(**ip)).copied(),
        }
    }

    /// The addresses on which NodePorts are served (NP-01..07).
    pub fn node_ports(&self, family: Family) -> NodePortScope {
        let addresses = &self.settings.node_ports;
        let primary = if addresses.primary { self.node_ip(family).filter(|ip| !ip.is_loopback()) } else { None };
        if addresses.is_any(family) {
            return NodePortScope::Any;
        }
        let cidrs: Vec<Cidr> = addresses.of(family).copied().chain(primary.map(Cidr::host)).collect();
        let open = cidrs.is_empty() && self.settings.open_unnamed_families;
        // NP-07: loopback addresses only where they are named. One of each family is always there.
        let loopback = addresses.names_loopback(family).then(|| family.loopback());
        let may_serve = |ip: &&IpAddr| Family::of(**ip) == family && (!ip.is_loopback() || loopback.is_some());
        let serves = |ip: &&IpAddr| (open && !ip.is_loopback()) || cidrs.iter().any(|cidr| cidr.contains(**ip));
        NodePortScope::These(self.host.iter().filter(may_serve).filter(serves).copied().chain(loopback).collect())
    }

    /// The addresses on which NodePorts are served now, one by one.
    pub fn node_port_addresses(&self, family: Family) -> BTreeSet<IpAddr> {
        match self.node_ports(family) {
            NodePortScope::These(addresses) => addresses,
            NodePortScope::Any => self.host.iter().filter(|ip| Family::of(**ip) == family && !ip.is_loopback()).copied().collect(),
        }
    }

    /// The ranges from which ClusterIPs are taken, none within another.
    pub fn service_cidrs(&self, family: Family) -> Vec<Cidr> {
        Cidr::minimal(self.service_cidrs.values().flatten().filter(|cidr| cidr.family() == family).copied())
    }

    /// Who sends a packet with this source.
    pub fn sender(&self, source: IpAddr, origin: &Origin) -> Sender {
        let is_pod = match (self.detection(Family::of(source)), origin) {
            (Some(Detection::Cidr(cidr)), _) => cidr.contains(source),
            (Some(Detection::Interface(name)), Origin::Interface(interface)) => name == *interface,
            (Some(Detection::InterfacePrefix(prefix)), Origin::Interface(interface)) => interface.starts_with(&*prefix),
            // LOC-04
            (Some(_), Origin::Host) | (None, _) => false,
        };
        match origin {
            _ if is_pod => Sender::Pod,
            Origin::Host => Sender::Host,
            Origin::Interface(_) => Sender::Other,
        }
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::NodePortAddresses;

    /// API-03
    #[test]
    fn the_bind_address_is_the_nodes_in_its_family() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let around = |bind_address: Option<IpAddr>| {
            let node_ports = NodePortAddresses { primary: true, cidrs: Vec::new() };
            let mut around = Surroundings::new(Settings { bind_address, node_ports, ..Settings::default() });
            around.set_node(Some(Node { ips: [ip("10.0.0.1"), ip("fd00::1")].into(), ..Node::default() }));
            around.set_host([ip("10.0.0.1"), ip("10.0.0.2"), ip("fd00::1")].into());
            let served = |family| match around.node_ports(family) {
                NodePortScope::These(addresses) => addresses.into_iter().collect::<Vec<_>>(),
                NodePortScope::Any => panic!("everywhere"),
            };
            (Family::ALL.map(|family| around.node_ip(family)), Family::ALL.map(served))
        };
        let by_node = around(None);
        assert_eq!(by_node, ([Some(ip("10.0.0.1")), Some(ip("fd00::1"))], [vec![ip("10.0.0.1")], vec![ip("fd00::1")]]));
        let overridden = around(Some(ip("10.0.0.2")));
        assert_eq!(overridden, ([Some(ip("10.0.0.2")), Some(ip("fd00::1"))], [vec![ip("10.0.0.2")], vec![ip("fd00::1")]]));
        // One that the host does not have serves no NodePort.
        assert_eq!(around(Some(ip("fd00::2"))).1, [vec![ip("10.0.0.1")], vec![]]);
    }
}
