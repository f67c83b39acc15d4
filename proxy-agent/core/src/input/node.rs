//! The agent's own Node, and ServiceCIDRs.

use std::net::IpAddr;

use super::{Converted, Problem, Report, object, parse_ip};
use crate::cidr::Cidr;
use crate::model::{Change, Family, Node, ObjectName};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";
/// What the cluster autoscaler puts on a node that it is about to take away.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

/// What the agent's own Node object says.
pub fn convert_node(object: &object::Node) -> Converted {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let mut report = Report::new(format!("node {name}"));
    let zone = object.metadata.labels.get(ZONE_LABEL).and_then(Option::as_deref).filter(|zone| !zone.is_empty());
    let pod_cidrs = cidrs("spec.podCIDRs", &object.spec.pod_cidrs, &mut report);
    let node = Node { zone: zone.map(Into::into), ips: ips(object, &mut report), pod_cidrs, is_leaving: is_leaving(object) };
    Converted { change: Some(Change::Node(Some(node))), problems: report.problems }
}

/// HC-02: no other taint counts.
fn is_leaving(object: &object::Node) -> bool {
    let is_deleted = object.metadata.deletion_timestamp.as_deref().is_some_and(|time| !time.is_empty());
    is_deleted || object.spec.taints.iter().any(|taint| taint.key.as_deref() == Some(LEAVING_TAINT))
}

/// API-02: the first InternalIP, else the first ExternalIP, and the first one of the other family.
fn ips(object: &object::Node, report: &mut Report) -> Box<[IpAddr]> {
    let mut usable: Vec<IpAddr> = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        for (i, address) in object.status.addresses.iter().enumerate().filter(|(_, address)| address.type_.as_deref() == Some(wanted)) {
            let text = address.address.as_deref().unwrap_or_default();
            match parse_ip(text) {
                Ok(ip) => usable.push(ip),
                Err(why) => report.say(format_args!("status.addresses[{i}].address: {text:?} {why}; left out")),
            }
        }
    }
    let first = usable.first().copied();
    let other = usable.iter().find(|ip| first.is_some_and(|first| Family::of(first) != Family::of(**ip))).copied();
    first.into_iter().chain(other).collect()
}

/// What a ServiceCIDR object says.
pub fn convert_service_cidr(object: &object::ServiceCidr) -> Converted {
    let Some(name) = object.metadata.name.as_deref().filter(|name| !name.is_empty()) else {
        let text = "metadata.name: missing; the object is ignored".into();
        return Converted { change: None, problems: vec![Problem { object: "servicecidr ?".into(), text }] };
    };
    let mut report = Report::new(format!("servicecidr {name}"));
    let cidrs = cidrs("spec.cidrs", &object.spec.cidrs, &mut report);
    Converted { change: Some(Change::ServiceCidr(ObjectName::new("", name), Some(cidrs))), problems: report.problems }
}

fn cidrs(field: &str, texts: &[String], report: &mut Report) -> Box<[Cidr]> {
    let mut cidrs = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        match text.parse() {
            Ok(cidr) => cidrs.push(cidr),
            Err(why) => report.say(format_args!("{field}[{i}]: {text:?} {why}; left out")),
        }
    }
    cidrs.into()
}
