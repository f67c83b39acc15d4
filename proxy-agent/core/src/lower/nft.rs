//! Objects of the nftables dataplane, one table per family: elements of flat data maps. Changing them makes the kernel check
//! nothing but the elements, so that a change costs the same at 10 and at 50,000 Services. There is no chain per Service or
//! backend, only one per number of backends and kind of frontend.
//!
//! ```text
//! services: address . protocol . port          -> class: which chain
//! slots:    address . protocol . port . slot   -> backend
//! classes:  class                              -> goto pick-<k>: dnat to slots[… . random mod k]
//! refused:  address . protocol . port
//! ```
//!
//! A frontend whose backends depend on who sends (`externalTrafficPolicy: Local`) goes through chain `by-source`; one with session
//! affinity through `stick-<seconds>`, where pins are kept by the identity of the Service port. [`Key`] lists all there is.

mod object;

pub use object::{Class, Key, LOCAL_SLOTS, Pick, Target, Value, stick_pick};

use std::sync::Arc;

use crate::model::Family;
use crate::settings::{LocalDetection, Settings};

/// The version of the table's chains, rules and sets. A table of another version is replaced.
pub const LAYOUT: u32 = 2;

/// The table of one family: what of the configuration its rules depend on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nft {
    /// The family.
    pub family: Family,
    /// How a pod's packet is told.
    pub pods: PodMatch,
    /// NodePorts are served on whatever address the host has when a packet comes; else on those of set `node-addresses`.
    pub any_node_port: bool,
    /// The bits of a packet's mark that say "masquerade".
    pub masquerade_mark: u32,
    /// The kernel has the two fields of a packet that session affinity takes; without, there is no affinity.
    pub is_sticky: bool,
}

/// How a pod's packet is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PodMatch {
    /// Its source is in set `pods`.
    Source,
    /// It came in by this interface.
    Interface(Arc<str>),
    /// It came in by an interface whose name begins like this.
    InterfacePrefix(Arc<str>),
}

impl Nft {
    /// The table of a family as the operator wants it.
    pub fn new(family: Family, settings: &Settings) -> Self {
        let pods = match &settings.local {
            LocalDetection::ClusterCidrs(_) | LocalDetection::NodeCidrs => PodMatch::Source,
            LocalDetection::Bridge(name) => PodMatch::Interface(name.clone()),
            LocalDetection::InterfacePrefix(prefix) => PodMatch::InterfacePrefix(prefix.clone()),
        };
        let (any_node_port, masquerade_mark) = (settings.node_ports.is_any(family), settings.masquerade_mark());
        Self { family, pods, any_node_port, masquerade_mark, is_sticky: true }
    }
}
