//! From Kubernetes objects to the vocabulary of [`model`](crate::model). A value that cannot be used is reported as a
//! [`Problem`] and left out; what remains of the object is served. Nothing here can fail or panic.

mod endpoint_slice;
mod node;
pub mod object;
mod service;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

pub use endpoint_slice::convert_endpoint_slice;
pub use node::{convert_node, convert_service_cidr};
pub use service::convert_service;

use crate::model::{Change, ObjectName, Protocol};

/// Something in an object that cannot be used: what is wrong, where, and what becomes of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Problem {
    /// `service ns/name`, `endpointslice ns/name`, `node name` or `servicecidr name`.
    pub object: String,
    /// Path of the field and what is wrong with it, for the operator.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.text)
    }
}

/// What an object says, and what in it could not be used. `change` is `None` where the object has no name to act on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Converted {
    /// What to apply.
    pub change: Option<Change>,
    /// What to report.
    pub problems: Vec<Problem>,
}

/// Collects the problems of one object.
struct Report {
    object: String,
    problems: Vec<Problem>,
}

impl Report {
    fn new(object: String) -> Self {
        Self { object, problems: Vec::new() }
    }

    fn say(&mut self, text: impl fmt::Display) {
        self.problems.push(Problem { object: self.object.clone(), text: text.to_string() });
    }
}

/// Namespace and name of an object; without a name there is nothing to act on. The namespace defaults as in `kubectl`.
fn object_name(kind: &str, metadata: &object::Metadata) -> Result<ObjectName, Vec<Problem>> {
    let namespace = metadata.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or("default");
    match metadata.name.as_deref() {
        Some(name) if !name.is_empty() => Ok(ObjectName::new(namespace, name)),
        _ => {
            let object = format!("{kind} {namespace}/?");
            Err(vec![Problem { object, text: "metadata.name: missing; the object is ignored".into() }])
        }
    }
}

/// Why a name cannot be a namespace, Service or port name here: names become labels in the kernel, where `/` and `:` separate.
fn check_label(name: &str) -> Result<(), &'static str> {
    if name.len() > 63 {
        Err("is longer than 63 characters")
    } else if name.contains(['/', ':']) || name.chars().any(|c| c.is_control() || c.is_whitespace()) {
        Err("has a character that no name may have")
    } else {
        Ok(())
    }
}

/// Parses an address. Legacy IPv4 with leading zeros is decimal (SVC-07); a v4-mapped IPv6 address is IPv4, as in Go's
/// `net.ParseIP`. Addresses that no packet may be sent to or from a host are refused.
fn parse_ip(text: &str) -> Result<IpAddr, &'static str> {
    let ip = text.parse::<IpAddr>().ok().or_else(|| parse_legacy_v4(text)).ok_or("is not an IP address")?.to_canonical();
    let broadcast = ip == IpAddr::V4(Ipv4Addr::BROADCAST);
    if ip.is_unspecified() || ip.is_multicast() || broadcast { Err("is not the address of a host") } else { Ok(ip) }
}

fn parse_legacy_v4(text: &str) -> Option<IpAddr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || part.len() > 16 || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        *octet = part.trim_start_matches('0').parse().or_else(|e| if part.bytes().all(|b| b == b'0') { Ok(0) } else { Err(e) }).ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

/// A port number that can be connected to.
fn parse_port(port: i64) -> Result<u16, String> {
    u16::try_from(port).ok().filter(|&p| p != 0).ok_or_else(|| format!("{port} is not a port number (1-65535)"))
}

/// A protocol; Kubernetes defaults a missing one to TCP.
fn parse_protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("") => Ok(Protocol::Tcp),
        Some(text) => text.parse().map_err(|()| format!("{text:?} is not TCP, UDP or SCTP")),
    }
}

/// The name of a port; most objects use few, and the empty one needs no allocation per object.
fn port_name(name: &str) -> Arc<str> {
    Arc::from(name)
}
