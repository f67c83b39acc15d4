//! Conversion: whatever stands in an object, nothing else suffers.

use std::collections::BTreeSet;

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proxy_core::forward::Forwarding;
use proxy_core::input::{Converted, Problem, convert_endpoint_slice, convert_service};
use proxy_core::route::Treatment;
use serde_json::{Value, json};

use super::world::config;

/// A dual-stack Service with two ports.
fn service() -> Value {
    json!({
        "metadata": { "name": "web", "namespace": "default", "labels": { "app": "web" } },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "10.96.0.10",
            "clusterIPs": ["10.96.0.10", "fd00:96::10"],
            "ipFamilies": ["IPv4", "IPv6"],
            "ports": [{ "name": "http", "protocol": "TCP", "port": 80 }, { "name": "dns", "protocol": "UDP", "port": 53 }],
        },
    })
}

/// Its slice for IPv4.
fn slice() -> Value {
    json!({
        "metadata": { "name": "web-4", "namespace": "default", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv4",
        "endpoints": [
            { "addresses": ["10.1.1.2"], "conditions": { "ready": true, "serving": true, "terminating": false } },
            { "addresses": ["10.1.2.2", "10.1.2.3"], "conditions": {} },
        ],
        "ports": [{ "name": "http", "protocol": "TCP", "port": 8080 }, { "name": "dns", "protocol": "UDP", "port": 5353 }],
    })
}

/// Its slice for IPv6.
fn slice_v6() -> Value {
    json!({
        "metadata": { "name": "web-6", "namespace": "default", "labels": { "kubernetes.io/service-name": "web" } },
        "addressType": "IPv6",
        "endpoints": [{ "addresses": ["fd00:1:1::2"] }],
        "ports": [{ "name": "http", "port": 8080 }, { "name": "dns", "protocol": "UDP", "port": 5353 }],
    })
}

/// Decodes and converts. `None`: a field has a type that it cannot have, which the API server never sends and files report.
fn convert(is_service: bool, object: Value) -> Option<Converted> {
    if is_service {
        Some(convert_service(&serde_json::from_value(object).ok()?))
    } else {
        Some(convert_endpoint_slice(&serde_json::from_value(object).ok()?, "node1"))
    }
}

/// What is served, one line per Service port, frontend and backend; and what was reported.
fn outcome(objects: [(bool, Value); 3]) -> (BTreeSet<String>, Vec<Problem>) {
    let mut forwarding = Forwarding::default();
    let mut problems = Vec::new();
    let other = json!({
        "metadata": { "name": "other" },
        "spec": { "clusterIP": "10.96.0.99", "ports": [{ "port": 99 }] },
    });
    let other_slice = json!({
        "metadata": { "name": "other-1", "labels": { "kubernetes.io/service-name": "other" } },
        "addressType": "IPv4",
        "endpoints": [{ "addresses": ["10.1.9.9"] }],
        "ports": [{ "name": "", "port": 999 }],
    });
    for (is_service, object) in [(true, other), (false, other_slice)].into_iter().chain(objects) {
        let Some(converted) = convert(is_service, object) else { continue };
        problems.extend(converted.problems);
        if let Some(change) = converted.change {
            forwarding.apply(change);
        }
    }
    let mut lines = BTreeSet::new();
    let mut names: Vec<_> = forwarding.services().collect();
    names.sort();
    for route in names.into_iter().flat_map(|name| forwarding.routes(name)) {
        for entry in &route.entries {
            let backends = route.cluster.iter().chain(&route.local).map(ToString::to_string);
            let backends = backends.chain((entry.treatment == Treatment::Rejected).then(|| "refused".into()));
            let frontend = std::net::SocketAddr::new(entry.frontend.ip, entry.frontend.port);
            let sources = entry.sources.iter().flat_map(|sources| sources.iter());
            let sources: String = sources.map(|source| format!(" for {source}")).collect();
            lines.extend(backends.map(|backend| format!("{frontend}{sources} => {backend}")));
        }
    }
    (lines, problems)
}

const OTHER: &str = "10.96.0.99:99 => 10.1.9.9:999";

/// One field is wrong: `problem` is what the report starts with (`None`: silent, as the specification has it), and `lost` are the
/// lines that are served no more, by what they contain.
struct Row(&'static str, Value, Option<&'static str>, &'static [&'static str]);

fn service_rows() -> Vec<Row> {
    let all: &[&str] = &["10.96.0.10", "fd00:96::10"];
    let (v4, v6, http): (&[&str], &[&str], &[&str]) = (&["10.96.0.10"], &["fd00:96::10"], &["10:80", "]:80"]);
    let dns: &[&str] = &["10:53", "]:53"];
    vec![
        Row("/metadata", Value::Null, Some("service default/?: metadata.name"), all),
        Row("/metadata/name", Value::Null, Some("service default/?: metadata.name"), all),
        Row("/metadata/name", json!(""), Some("service default/?: metadata.name"), all),
        Row("/metadata/name", json!("a/b"), Some("service default/a/b: metadata.name"), all),
        Row("/metadata/namespace", json!("a b"), Some("service a b/web: metadata.namespace"), all),
        Row("/metadata/labels", json!({ "service.kubernetes.io/service-proxy-name": null }), None, all),
        Row("/spec", Value::Null, None, all),
        Row("/spec/type", json!("Other"), Some("service default/web: spec.type"), &[]),
        Row("/spec/type", json!("ExternalName"), None, all),
        Row("/spec/clusterIP", json!("None"), None, all),
        Row("/spec/clusterIPs", Value::Null, None, v6),
        Row("/spec/clusterIPs/0", Value::Null, Some("service default/web: spec.clusterIPs[0]"), v4),
        Row("/spec/clusterIPs/0", json!(""), Some("service default/web: spec.clusterIPs[0]"), v4),
        Row("/spec/clusterIPs/0", json!("10.96.0.256"), Some("service default/web: spec.clusterIPs[0]"), v4),
        Row("/spec/clusterIPs/0", json!("10.96.0"), Some("service default/web: spec.clusterIPs[0]"), v4),
        Row("/spec/clusterIPs/0", json!("0.0.0.0"), Some("service default/web: spec.clusterIPs[0]"), v4),
        Row("/spec/clusterIPs/0", json!("255.255.255.255"), Some("service default/web: spec.clusterIPs[0]"), v4),
        Row("/spec/clusterIPs/1", json!("ff02::1"), Some("service default/web: spec.clusterIPs[1]"), v6),
        Row("/spec/clusterIPs/1", json!("fd00:96::10%eth0"), Some("service default/web: spec.clusterIPs[1]"), v6),
        Row("/spec/clusterIPs/1", json!("10.96.0.11"), Some("service default/web: spec.clusterIPs[1]"), v6),
        Row("/spec/ipFamilies/0", json!("IPv5"), Some("service default/web: spec.ipFamilies[0]"), &[]),
        Row("/spec/ports", Value::Null, None, all),
        Row("/spec/ports/0", Value::Null, Some("service default/web: spec.ports[0].port"), http),
        Row("/spec/ports/0/port", Value::Null, Some("service default/web: spec.ports[0].port"), http),
        Row("/spec/ports/0/port", json!(0), Some("service default/web: spec.ports[0].port"), http),
        Row("/spec/ports/0/port", json!(-1), Some("service default/web: spec.ports[0].port"), http),
        Row("/spec/ports/0/port", json!(65_536), Some("service default/web: spec.ports[0].port"), http),
        Row("/spec/ports/0/protocol", json!("ICMP"), Some("service default/web: spec.ports[0].protocol"), http),
        Row("/spec/ports/0/name", json!("a:b"), Some("service default/web: spec.ports[0].name"), http),
        Row("/spec/ports/0/name", json!("x".repeat(64)), Some("service default/web: spec.ports[0].name"), http),
        Row("/spec/ports/1", json!({ "name": "more", "port": 80 }), Some("service default/web: spec.ports[1].port"), dns),
        Row("/spec/ports/1", json!({ "name": "http", "port": 53 }), Some("service default/web: spec.ports[1].name"), dns),
    ]
}

fn slice_rows() -> Vec<Row> {
    let all: &[&str] = &["=> 10.1.1.2", "=> 10.1.2.2"];
    let (first, http): (&[&str], &[&str]) = (&["=> 10.1.1.2"], &["=> 10.1.1.2:8080", "=> 10.1.2.2:8080"]);
    let label = Some("endpointslice default/web-4: metadata.labels[kubernetes.io/service-name]");
    let family = Some("endpointslice default/web-4: addressType");
    let address = Some("endpointslice default/web-4: endpoints[0].addresses");
    vec![
        Row("/metadata/name", Value::Null, Some("endpointslice default/?: metadata.name"), all),
        Row("/metadata/labels", Value::Null, label, all),
        Row("/metadata/labels/kubernetes.io~1service-name", json!(""), label, all),
        Row("/metadata/labels/kubernetes.io~1service-name", Value::Null, label, all),
        Row("/metadata/labels/kubernetes.io~1service-name", json!("nobody"), None, all),
        Row("/addressType", Value::Null, family, all),
        Row("/addressType", json!("FQDN"), family, all),
        Row("/addressType", json!("ipv4"), family, all),
        Row("/addressType", json!("IPv6"), address, all),
        Row("/endpoints", Value::Null, None, all),
        Row("/endpoints/0", Value::Null, address, first),
        Row("/endpoints/0/addresses", Value::Null, address, first),
        Row("/endpoints/0/addresses", json!([]), address, first),
        Row("/endpoints/0/addresses/0", Value::Null, address, first),
        Row("/endpoints/0/addresses/0", json!("web.example.org"), address, first),
        Row("/endpoints/0/addresses/0", json!("fd00::1"), address, first),
        Row("/endpoints/0/addresses/0", json!("0.0.0.0"), address, first),
        Row("/endpoints/0/conditions", Value::Null, None, &[]),
        Row("/ports", Value::Null, None, all),
        Row("/ports/0", Value::Null, None, http),
        Row("/ports/0/name", Value::Null, None, http),
        Row("/ports/0/name", json!("a/b"), Some("endpointslice default/web-4: ports[0].name"), http),
        Row("/ports/0/port", Value::Null, None, http),
        Row("/ports/0/port", json!(0), None, http),
        Row("/ports/0/port", json!(65_536), Some("endpointslice default/web-4: ports[0].port"), http),
        Row("/ports/0/port", json!(-8080), Some("endpointslice default/web-4: ports[0].port"), http),
        Row("/ports/0/protocol", json!("icmp"), Some("endpointslice default/web-4: ports[0].protocol"), http),
    ]
}

#[test]
fn every_field_may_be_wrong() {
    let (base, problems) = outcome([(true, service()), (false, slice()), (false, slice_v6())]);
    assert_eq!(problems, []);
    assert!(base.contains(OTHER));
    let mut failures = Vec::new();
    for (is_service, rows) in [(true, service_rows()), (false, slice_rows())] {
        for Row(pointer, value, problem, lost) in rows {
            let (mut a_service, mut a_slice) = (service(), slice());
            let field = if is_service { a_service.pointer_mut(pointer) } else { a_slice.pointer_mut(pointer) };
            *field.expect("the field is there") = value.clone();
            let (mut lines, problems) = outcome([(true, a_service), (false, a_slice), (false, slice_v6())]);
            // A frontend that lost its last backend is still answered.
            lines.retain(|line| !line.ends_with("refused"));
            let expected: BTreeSet<_> = base.iter().filter(|line| !lost.iter().any(|l| line.contains(l))).cloned().collect();
            let said = problem.is_none_or(|problem| problems.iter().any(|p| p.to_string().starts_with(problem)));
            if lines != expected || !said || (problem.is_none() && !problems.is_empty()) {
                failures.push(format!("{pointer} = {value}:\n  served {lines:#?}\n  expected {expected:#?}\n  reported {problems:#?}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let texts = [
        "",
        "None",
        "10.96.0.77",
        "010.1.1.1",
        "999.1.1.1",
        "0.0.0.0",
        "::",
        "::1",
        "fd00::1",
        "::ffff:10.0.0.1",
        "1.2.3.4.5",
        "1..2.3",
        "TCP",
        "tcp",
        "SCTP",
        "ICMP",
        "IPv4",
        "IPv6",
        "FQDN",
        "ExternalName",
        "a/b",
        "a:b",
        "ünïcode",
        "\u{0}",
        "http",
        "web",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1i64..70_000).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        select(texts.to_vec()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        (50usize..300).prop_map(|n| Value::from("0".repeat(n))),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![vec(inner.clone(), 0..3).prop_map(Value::from), btree_map(".{0,3}", inner, 0..3).prop_map(|m| json!(m))]
    })
}

/// Every place in a value.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_string());
    match value {
        Value::Array(items) => items.iter().enumerate().for_each(|(i, item)| pointers(item, &format!("{at}/{i}"), found)),
        Value::Object(fields) => {
            fields.iter().for_each(|(name, field)| pointers(field, &format!("{at}/{}", name.replace('/', "~1")), found));
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn anything_may_stand_anywhere(places in vec((any::<bool>(), any::<Index>(), any_json()), 1..5)) {
        let (mut a_service, mut a_slice) = (service(), slice());
        for (in_service, place, value) in places {
            let object = if in_service { &mut a_service } else { &mut a_slice };
            let mut found = Vec::new();
            pointers(object, "", &mut found);
            if let Some(field) = object.pointer_mut(place.get(&found).as_str()) {
                *field = value;
            }
        }
        let (lines, _) = outcome([(true, a_service), (false, a_slice), (false, slice_v6())]);
        prop_assert!(lines.contains(OTHER), "{:?}", lines);
    }
}
