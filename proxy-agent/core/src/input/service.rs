//! Services (SVC-01..05).

use std::collections::HashSet;

use super::{Converted, Report, check_label, object, object_name, parse_ip, parse_port, parse_protocol, port_name};
use crate::model::{Change, Family, Protocol, Service, ServicePort};

/// Its presence, with any value, gives the Service to another proxy (SVC-01).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// What a Service object says. A Service that is not to be served gives a removal.
pub fn convert_service(object: &object::Service) -> Converted {
    let name = match object_name("service", &object.metadata) {
        Ok(name) => name,
        Err(problems) => return Converted { change: None, problems },
    };
    let mut report = Report::new(format!("service {name}"));
    let mut service = is_served(object).then(|| served(object, &mut report)).flatten();
    for (field, value) in [("namespace", &name.namespace), ("name", &name.name)] {
        if let (Some(_), Err(why)) = (&service, check_label(value)) {
            report.say(format_args!("metadata.{field}: {value:?} {why}; the Service is not served"));
            service = None;
        }
    }
    Converted { change: Some(Change::Service(name, service)), problems: report.problems }
}

/// SVC-01, SVC-03: what the API server's selectors leave out is left out here as well, since files come without selectors.
fn is_served(object: &object::Service) -> bool {
    let spec = &object.spec;
    let no_ip = |ip: &str| ip.is_empty() || ip == "None";
    let headless = match (&spec.cluster_ip, spec.cluster_ips.first()) {
        (Some(ip), _) => no_ip(ip),
        (None, Some(ip)) => no_ip(ip),
        (None, None) => true,
    };
    !headless && spec.type_.as_deref() != Some("ExternalName") && !object.metadata.labels.contains_key(PROXY_NAME_LABEL)
}

fn served(object: &object::Service, report: &mut Report) -> Option<Service> {
    let spec = &object.spec;
    if let Some(type_) = spec.type_.as_deref().filter(|t| !matches!(*t, "" | "ClusterIP" | "NodePort" | "LoadBalancer")) {
        report.say(format_args!("spec.type: {type_:?} is not known; its ClusterIPs are served"));
    }
    let mut cluster_ips = Vec::new();
    for (field, text, family) in cluster_ips_of(spec, report) {
        match parse_ip(text) {
            Err(why) => report.say(format_args!("{field}: {text:?} {why}; left out")),
            Ok(ip) if family.is_some_and(|f| f != Family::of(ip)) => {
                report.say(format_args!("{field}: {text:?} is not of the family that spec.ipFamilies gives; left out"));
            }
            Ok(ip) if cluster_ips.iter().any(|other| Family::of(*other) == Family::of(ip)) => {
                report.say(format_args!("{field}: {text:?} is a second address of its family; left out"));
            }
            Ok(ip) => cluster_ips.push(ip),
        }
    }
    cluster_ips.sort_unstable();
    let ports = ports(spec, report);
    (!cluster_ips.is_empty()).then_some(Service { cluster_ips: cluster_ips.into(), ports })
}

/// SVC-05: the addresses with the families that `ipFamilies` gives them, if it does.
fn cluster_ips_of<'a>(spec: &'a object::ServiceSpec, report: &mut Report) -> Vec<(String, &'a str, Option<Family>)> {
    if spec.cluster_ips.is_empty() {
        return spec.cluster_ip.iter().map(|ip| ("spec.clusterIP".to_string(), ip.as_str(), family_at(spec, 0, report))).collect();
    }
    let ips = spec.cluster_ips.iter().enumerate();
    ips.map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip.as_str(), family_at(spec, i, report))).collect()
}

fn family_at(spec: &object::ServiceSpec, index: usize, report: &mut Report) -> Option<Family> {
    match spec.ip_families.get(index)?.as_str() {
        "IPv4" => Some(Family::V4),
        "IPv6" => Some(Family::V6),
        other => {
            report.say(format_args!("spec.ipFamilies[{index}]: {other:?} is not IPv4 or IPv6; the address decides"));
            None
        }
    }
}

fn ports(spec: &object::ServiceSpec, report: &mut Report) -> Box<[ServicePort]> {
    let mut ports = Vec::with_capacity(spec.ports.len());
    let (mut numbers, mut names) = (HashSet::new(), HashSet::new());
    for (i, port) in spec.ports.iter().enumerate() {
        let name = port.name.as_deref().unwrap_or_default();
        let parsed = check_label(name).map_err(|why| format!("name: {name:?} {why}")).and_then(|()| {
            let number = port.port.ok_or_else(|| "port: missing".to_string());
            let number = number.and_then(|n| parse_port(n).map_err(|why| format!("port: {why}")))?;
            let protocol = parse_protocol(port.protocol.as_deref()).map_err(|why| format!("protocol: {why}"))?;
            Ok(ServicePort { name: port_name(name), protocol, port: number })
        });
        match parsed {
            Err(why) => report.say(format_args!("spec.ports[{i}].{why}; the port is left out")),
            Ok(port) if numbers.contains(&(port.port, port.protocol)) => {
                report.say(format_args!("spec.ports[{i}].port: {}/{} is there twice; the first counts", port.port, port.protocol));
            }
            Ok(port) if !names.insert((port.name.clone(), port.protocol)) => {
                report.say(format_args!("spec.ports[{i}].name: {:?} is there twice; the first counts", &*port.name));
            }
            Ok(port) => {
                if port.protocol == Protocol::Sctp {
                    report.say(format_args!("spec.ports[{i}].protocol: SCTP is not served yet; the port is left out"));
                }
                numbers.insert((port.port, port.protocol));
                ports.push(port);
            }
        }
    }
    ports.into()
}
