//! EndpointSlices (EP-01..07).

use std::sync::Arc;

use super::{Converted, Report, check_label, object, object_name, parse_ip, parse_port, parse_protocol, port_name};
use crate::model::{Change, Endpoint, EndpointState, Family, NodeHint, ObjectName, Slice, SlicePort};

/// Its presence takes a slice out (EP-01).
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
/// Names the Service of a slice (EP-02).
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// What an EndpointSlice object says, seen from the Node of this name. A slice that is not to be used gives a removal.
pub fn convert_endpoint_slice(object: &object::EndpointSlice, node: &str) -> Converted {
    let name = match object_name("endpointslice", &object.metadata) {
        Ok(name) => name,
        Err(problems) => return Converted { change: None, problems },
    };
    let mut report = Report::new(format!("endpointslice {name}"));
    let slice = if object.metadata.labels.contains_key(HEADLESS_LABEL) { None } else { used(object, &name, node, &mut report) };
    Converted { change: Some(Change::Slice(name, slice)), problems: report.problems }
}

fn used(object: &object::EndpointSlice, name: &ObjectName, node: &str, report: &mut Report) -> Option<Slice> {
    let service = object.metadata.labels.get(SERVICE_NAME_LABEL).and_then(Option::as_deref).unwrap_or_default();
    if service.is_empty() {
        report.say(format_args!("metadata.labels[{SERVICE_NAME_LABEL}]: missing; the slice is ignored"));
        return None;
    }
    let family = match object.address_type.as_deref() {
        Some("IPv4") => Family::V4,
        Some("IPv6") => Family::V6,
        other => {
            report.say(format_args!("addressType: {:?} is not IPv4 or IPv6; the slice is ignored", other.unwrap_or_default()));
            return None;
        }
    };
    let (endpoints, zones) = endpoints(object, family, node, report);
    let service = ObjectName { namespace: name.namespace.clone(), name: service.into() };
    Some(Slice { service, ports: ports(object, report), endpoints, zones })
}

fn ports(object: &object::EndpointSlice, report: &mut Report) -> Box<[SlicePort]> {
    let mut ports = Vec::with_capacity(object.ports.len());
    for (i, port) in object.ports.iter().enumerate() {
        // EP-04: absent name or number means "not this port", which is no mistake.
        let (Some(name), Some(number)) = (port.name.as_deref(), port.port.filter(|&n| n != 0)) else { continue };
        let parsed = check_label(name).map_err(|why| format!("name: {name:?} {why}")).and_then(|()| {
            let number = parse_port(number).map_err(|why| format!("port: {why}"))?;
            let protocol = parse_protocol(port.protocol.as_deref()).map_err(|why| format!("protocol: {why}"))?;
            Ok(SlicePort { name: port_name(name), protocol, port: number })
        });
        match parsed {
            Ok(port) => ports.push(port),
            Err(why) => report.say(format_args!("ports[{i}].{why}; the port is left out")),
        }
    }
    ports.into()
}

/// The zones for which each of a slice's endpoints is.
type Zones = Box<[Box<[Arc<str>]>]>;

fn endpoints(object: &object::EndpointSlice, family: Family, node: &str, report: &mut Report) -> (Box<[Endpoint]>, Zones) {
    let mut endpoints = Vec::with_capacity(object.endpoints.len());
    // Most slices have none.
    let hinted = object.endpoints.iter().any(|endpoint| !endpoint.hints.for_zones.is_empty());
    let mut zones = Vec::new();
    for (i, endpoint) in object.endpoints.iter().enumerate() {
        let Some(address) = endpoint.addresses.first() else {
            report.say(format_args!("endpoints[{i}].addresses: empty; the endpoint is left out"));
            continue;
        };
        match parse_ip(address) {
            Err(why) => report.say(format_args!("endpoints[{i}].addresses[0]: {address:?} {why}; the endpoint is left out")),
            Ok(ip) if Family::of(ip) != family => {
                report.say(format_args!("endpoints[{i}].addresses[0]: {address:?} is not {family}; the endpoint is left out"));
            }
            Ok(ip) => {
                let is_local = !node.is_empty() && endpoint.node_name.as_deref() == Some(node);
                let nodes = node_hint(&endpoint.hints, node);
                endpoints.push(Endpoint { ip, state: state(&endpoint.conditions), is_local, nodes });
                zones.extend(hinted.then(|| names(&endpoint.hints.for_zones).map(Arc::from).collect()));
            }
        }
    }
    (endpoints.into(), zones.into())
}

fn names(named: &[object::Named]) -> impl Iterator<Item = &str> {
    named.iter().filter_map(|named| named.name.as_deref())
}

fn node_hint(hints: &object::EndpointHints, node: &str) -> NodeHint {
    if hints.for_nodes.is_empty() {
        NodeHint::None
    } else if names(&hints.for_nodes).any(|name| name == node) {
        NodeHint::This
    } else {
        NodeHint::Others
    }
}

/// EP-07 with its defaults.
fn state(conditions: &object::EndpointConditions) -> EndpointState {
    match (conditions.ready.unwrap_or(true), conditions.serving.unwrap_or(true), conditions.terminating.unwrap_or(false)) {
        (true, _, false) => EndpointState::Ready,
        (true, _, true) => EndpointState::ReadyLeaving,
        (false, true, true) => EndpointState::Draining,
        (false, false, true) => EndpointState::Gone,
        (false, true, false) => EndpointState::NotReady,
        (false, false, false) => EndpointState::NotServing,
    }
}
