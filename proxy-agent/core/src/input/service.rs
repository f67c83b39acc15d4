//! Services (SVC-01..12).

use std::collections::HashSet;
use std::net::IpAddr;

use super::{Converted, Report, check_label, object, object_name, parse_ip, parse_port, parse_protocol, port_name};
use crate::cidr::Cidr;
use crate::model::{Change, Family, RemovedEndpoints, Service, ServicePort, TrafficPolicy};

/// Its presence, with any value, gives the Service to another proxy (SVC-01).
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// What becomes of flows to endpoints that are removed: drain, reset or keep.
const REMOVED_ENDPOINTS: &str = "proxy-agent.io/removed-endpoints";
/// How long affinity lasts where the object does not say (`DefaultClientIPServiceAffinitySeconds`), and at most.
const AFFINITY_SECONDS: (u32, u32) = (10_800, 86_400);

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
    let external_ips = external_ips(spec, report);
    let exposed = matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
    let is_balanced = spec.type_.as_deref() == Some("LoadBalancer");
    // SVC-10
    let external = policy("external", spec.external_traffic_policy.as_deref(), report);
    let external = if exposed || !external_ips.is_empty() { external } else { TrafficPolicy::Cluster };
    let health_check_port = if is_balanced && external == TrafficPolicy::Local { health_check_port(spec, report) } else { 0 };
    let service = Service {
        health_check_port,
        ports: ports(spec, exposed, report),
        internal: policy("internal", spec.internal_traffic_policy.as_deref(), report),
        external,
        affinity: affinity(spec, report),
        source_ranges: is_balanced.then(|| source_ranges(spec, report)).flatten(),
        load_balancer_ips: if is_balanced { load_balancer_ips(object, report) } else { Box::default() },
        external_ips,
        cluster_ips: cluster_ips.into(),
        removed: removed_endpoints(&object.metadata, report),
    };
    (!service.cluster_ips.is_empty()).then_some(service)
}

/// SVC-11
fn health_check_port(spec: &object::ServiceSpec, report: &mut Report) -> u16 {
    let parsed = spec.health_check_node_port.filter(|number| *number != 0).map_or(Ok(0), parse_port);
    parsed.unwrap_or_else(|why| {
        report.say(format_args!("spec.healthCheckNodePort: {why}; left out"));
        0
    })
}

fn external_ips(spec: &object::ServiceSpec, report: &mut Report) -> Box<[IpAddr]> {
    let texts = spec.external_ips.iter().enumerate().map(|(i, text)| (format!("spec.externalIPs[{i}]"), text.as_str()));
    // SVC-06: a blank one is no mistake.
    addresses(texts.filter(|(_, text)| !text.trim().is_empty()), report)
}

/// SVC-08, SVC-09.
fn load_balancer_ips(object: &object::Service, report: &mut Report) -> Box<[IpAddr]> {
    let ingress = object.status.load_balancer.ingress.iter().enumerate();
    let ours = ingress.filter(|(_, ingress)| matches!(ingress.ip_mode.as_deref(), None | Some("" | "VIP")));
    let texts = ours.filter_map(|(i, ingress)| Some((format!("status.loadBalancer.ingress[{i}].ip"), ingress.ip.as_deref()?)));
    addresses(texts.filter(|(_, text)| !text.is_empty()), report)
}

/// What can be used of addresses, sorted, each once.
fn addresses<'a>(texts: impl Iterator<Item = (String, &'a str)>, report: &mut Report) -> Box<[IpAddr]> {
    let mut ips = Vec::new();
    for (field, text) in texts {
        match parse_ip(text.trim()) {
            Ok(ip) => ips.push(ip),
            Err(why) => report.say(format_args!("{field}: {text:?} {why}; left out")),
        }
    }
    ips.sort_unstable();
    ips.dedup();
    ips.into()
}

fn removed_endpoints(metadata: &object::Metadata, report: &mut Report) -> RemovedEndpoints {
    match metadata.annotations.get(REMOVED_ENDPOINTS).and_then(Option::as_deref).map(str::trim) {
        None => RemovedEndpoints::AsUsual,
        Some("keep") => RemovedEndpoints::Keep,
        Some("drain") => RemovedEndpoints::Drain,
        Some("reset") => RemovedEndpoints::Reset,
        Some(other) => {
            report.say(format_args!("metadata.annotations[{REMOVED_ENDPOINTS}]: {other:?} is not drain, reset or keep; it does not count"));
            RemovedEndpoints::AsUsual
        }
    }
}

fn policy(which: &str, text: Option<&str>, report: &mut Report) -> TrafficPolicy {
    match text {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            report.say(format_args!("spec.{which}TrafficPolicy: {other:?} is not Cluster or Local; Cluster is taken"));
            TrafficPolicy::Cluster
        }
    }
}

/// AFF-02
fn affinity(spec: &object::ServiceSpec, report: &mut Report) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            report.say(format_args!("spec.sessionAffinity: {other:?} is not None or ClientIP; there is none"));
            return None;
        }
    }
    let (default, most) = AFFINITY_SECONDS;
    let Some(seconds) = spec.session_affinity_config.client_ip.timeout_seconds else { return Some(default) };
    let usable = u32::try_from(seconds).ok().filter(|seconds| (1..=most).contains(seconds));
    if usable.is_none() {
        report.say(format_args!(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds: {seconds} is not between 1 and {most}; {default} is taken"
        ));
    }
    Some(usable.unwrap_or(default))
}

/// Who is let in; none where everyone is. What cannot be used lets nobody in (LBR-01).
fn source_ranges(spec: &object::ServiceSpec, report: &mut Report) -> Option<Box<[Cidr]>> {
    let mut ranges = Vec::with_capacity(spec.load_balancer_source_ranges.len());
    for (i, text) in spec.load_balancer_source_ranges.iter().enumerate() {
        match text.trim().parse() {
            Ok(cidr) => ranges.push(cidr),
            Err(why) => report.say(format_args!("spec.loadBalancerSourceRanges[{i}]: {text:?} {why}; left out")),
        }
    }
    (!spec.load_balancer_source_ranges.is_empty()).then(|| ranges.into())
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

fn ports(spec: &object::ServiceSpec, exposed: bool, report: &mut Report) -> Box<[ServicePort]> {
    let mut ports = Vec::with_capacity(spec.ports.len());
    let (mut numbers, mut names) = (HashSet::new(), HashSet::new());
    for (i, port) in spec.ports.iter().enumerate() {
        match one_port(port, exposed) {
            Err(why) => report.say(format_args!("spec.ports[{i}].{why}; the port is left out")),
            Ok(port) if numbers.contains(&(port.port, port.protocol)) => {
                report.say(format_args!("spec.ports[{i}].port: {}/{} is there twice; the first counts", port.port, port.protocol));
            }
            Ok(port) if !names.insert((port.name.clone(), port.protocol)) => {
                report.say(format_args!("spec.ports[{i}].name: {:?} is there twice; the first counts", &*port.name));
            }
            Ok(port) => {
                numbers.insert((port.port, port.protocol));
                ports.push(port);
            }
        }
    }
    ports.into()
}

fn one_port(port: &object::ServicePort, exposed: bool) -> Result<ServicePort, String> {
    let name = port.name.as_deref().unwrap_or_default();
    check_label(name).map_err(|why| format!("name: {name:?} {why}"))?;
    let number = port.port.ok_or_else(|| "port: missing".to_string())?;
    let number = parse_port(number).map_err(|why| format!("port: {why}"))?;
    let protocol = parse_protocol(port.protocol.as_deref()).map_err(|why| format!("protocol: {why}"))?;
    // One that a ClusterIP Service has left over from another type counts for nothing.
    let node_port = port.node_port.filter(|number| exposed && *number != 0);
    let node_port = node_port.map_or(Ok(0), parse_port).map_err(|why| format!("nodePort: {why}"))?;
    Ok(ServicePort { name: port_name(name), protocol, port: number, node_port })
}
