use bytes::BufMut;
use proxy_core::cluster::Kind;
use proxy_core::model::{Change, Family, NodeHint, Protocol, RemovedEndpoints, TrafficPolicy};

use super::super::list::List;
use super::super::resource::{EndpointSlices, OwnNode, ServiceCidrs, Services};
use super::*;

/// A field with bytes in it: a text, or a message of such fields. Written by hand, so that the tags are said twice.
fn field(tag: u32, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_key(tag, prost::encoding::WireType::LengthDelimited, &mut out);
    prost::encoding::encode_varint(content.len() as u64, &mut out);
    out.put_slice(content);
    out
}

fn text(tag: u32, content: &str) -> Vec<u8> {
    field(tag, content.as_bytes())
}

fn number(tag: u32, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::encode_key(tag, prost::encoding::WireType::Varint, &mut out);
    prost::encoding::encode_varint(value, &mut out);
    out
}

fn entry(tag: u32, key: &str, value: &str) -> Vec<u8> {
    field(tag, &[text(1, key), text(2, value)].concat())
}

/// With fields that nobody here needs, and tags that a later version may bring.
fn metadata(name: &str, version: &str, label: (&str, &str)) -> Vec<u8> {
    let (uid, made) = (text(5, "3c2f"), field(8, &number(1, 1_735_689_600)));
    let managed = field(17, &[text(1, "kubectl"), field(7, &text(1, r#"{"f:spec":{}}"#))].concat());
    let names = [text(1, name), text(2, ""), text(3, "shop"), text(4, ""), uid, text(6, version), number(7, 0), made];
    let annotations =
        [entry(12, "kubectl.kubernetes.io/last-applied-configuration", "{}"), entry(12, "proxy-agent.io/removed-endpoints", "drain")];
    let rest = [entry(11, label.0, label.1), annotations.concat(), managed, text(99, "?")];
    field(1, &[names.concat(), rest.concat()].concat())
}

fn service(name: &str) -> Vec<u8> {
    let port = |name: &str, protocol: &str, number: u64| {
        let target = field(4, &[self::number(1, 1), self::number(2, 0), text(3, "http")].concat());
        field(1, &[text(1, name), text(2, protocol), self::number(3, number), target, self::number(5, 0)].concat())
    };
    let ports = [port("web", "TCP", 80), port("", "UDP", 53)].concat();
    let rest =
        [entry(2, "app", name), text(3, "10.96.0.10"), text(4, "ClusterIP"), text(7, "None"), number(13, 0), text(17, "SingleStack")];
    let spec = [ports, rest.concat(), text(18, "10.96.0.10"), text(19, "IPv4"), text(22, "Cluster")].concat();
    [metadata(name, "4711", ("app", name)), field(2, &spec), field(3, &field(1, &[]))].concat()
}

fn slice() -> Vec<u8> {
    let pod = field(4, &[text(1, "Pod"), text(2, "shop"), text(3, "web-1")].concat());
    let hints = field(8, &[field(1, &text(1, "z")), field(2, &text(1, "b")), field(2, &text(1, "c"))].concat());
    let first = [text(1, "10.1.0.1"), field(2, &number(1, 1)), pod, text(6, "a"), text(7, "z"), hints].concat();
    let second = [text(1, "10.1.0.2"), field(2, &[number(1, 0), number(2, 1), number(3, 1)].concat())].concat();
    let port = [text(1, "web"), text(2, "TCP"), number(3, 8080)].concat();
    let labels = ("kubernetes.io/service-name", "web");
    [metadata("web-x7", "4712", labels), field(2, &first), field(2, &second), field(3, &port), text(4, "IPv4")].concat()
}

/// A Service with everything that decides about packets.
fn balanced() -> Vec<u8> {
    let port = [text(1, "web"), text(2, "TCP"), number(3, 80), number(5, 30080), text(6, "http")].concat();
    let affinity = field(14, &field(1, &number(1, 600)));
    let addresses = [text(3, "10.96.0.10"), text(18, "10.96.0.10"), text(5, "192.0.2.1"), text(5, "192.0.2.2"), text(8, "192.0.2.9")];
    let ranges = [text(9, "198.51.100.0/24"), text(9, "203.0.113.7/32")].concat();
    let policies = [text(11, "Local"), text(22, "Local"), text(23, "PreferClose")].concat();
    let spec = [field(1, &port), text(4, "LoadBalancer"), text(7, "ClientIP"), addresses.concat(), ranges, policies, affinity].concat();
    let status = |number: u64| field(4, &[self::number(1, number), text(2, "TCP")].concat());
    let ingress = [[text(1, "192.0.2.3"), text(3, "VIP"), status(80)].concat(), [text(1, "192.0.2.4"), text(3, "Proxy")].concat()];
    let ingress: Vec<u8> = ingress.iter().chain([&text(2, "lb.example")]).flat_map(|ingress| field(1, ingress)).collect();
    let condition = field(2, &[text(1, "Ready"), text(2, "True")].concat());
    [metadata("web", "4713", ("app", "web")), field(2, &spec), field(3, &[field(1, &ingress), condition].concat())].concat()
}

fn node(name: &str) -> Vec<u8> {
    let spec = [text(1, "10.1.1.0/24"), text(3, "cloud://7"), text(7, "10.1.1.0/24"), text(7, "fd00:10:1::/112")].concat();
    let address = |kind: &str, address: &str| field(5, &[text(1, kind), text(2, address)].concat());
    let capacity = field(1, &[text(1, "cpu"), field(2, &text(1, "4"))].concat());
    let image = field(8, &[text(1, "registry.example/app:1"), number(2, 1 << 30)].concat());
    let addresses = [address("Hostname", name), address("InternalIP", "10.0.0.1"), address("InternalIP", "fd00:10::1")].concat();
    let metadata = metadata(name, "4714", ("topology.kubernetes.io/zone", "a"));
    [metadata, field(2, &spec), field(3, &[capacity, text(3, "Running"), addresses, image].concat())].concat()
}

fn service_cidr() -> Vec<u8> {
    let name = field(1, &[text(1, "kubernetes"), text(6, "4715")].concat());
    let ready = field(3, &field(1, &[text(1, "Ready"), text(2, "True")].concat()));
    [name, field(2, &[text(1, "10.96.0.0/16"), text(1, "fd00:10:96::/112")].concat()), ready].concat()
}

fn wrapped(object: &[u8]) -> Vec<u8> {
    let kind = field(1, &[text(1, "v1"), text(2, "Service")].concat());
    [MAGIC, &kind, &field(2, object), &text(3, ""), &text(4, "")].concat()
}

fn watched<R: Resource>(resource: &R, kind: &str, object: &[u8]) -> Result<Frame, Garbled> {
    frame(resource, [text(1, kind), field(2, &field(1, &wrapped(object)))].concat().into())
}

fn list(items: &[&[u8]]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|item| field(2, item)).collect();
    let metadata = field(1, &[text(1, ""), text(2, "99"), text(3, "token"), number(4, 7)].concat());
    wrapped(&[metadata, items].concat())
}

/// Reads a list in pieces of so many bytes.
fn listed<R: Resource>(resource: &R, bytes: &[u8], piece: usize) -> Result<(Vec<Seen>, String), Garbled> {
    let (mut list, mut objects) = (List::default(), Vec::new());
    for piece in bytes.chunks(piece) {
        list.push(piece);
        while let Some(seen) = list.next(resource)? {
            objects.push(seen);
        }
    }
    Ok((objects, list.end()?))
}

fn slices() -> EndpointSlices {
    EndpointSlices { node: "a".into() }
}

fn web() -> ObjectName {
    ObjectName::new("shop", "web")
}

/// An object whose name can be read, and no more.
fn broken(name: &str) -> Vec<u8> {
    [metadata(name, "4711", ("app", name)), field(2, &field(1, &field(1, b"\xff\xfe")))].concat()
}

#[test]
fn an_object_of_a_watch_gives_its_change_and_version() -> Result<(), Garbled> {
    let Frame::Object(seen, version) = watched(&Services, "ADDED", &service("web"))? else { panic!("not an object") };
    assert_eq!((version.as_str(), seen.name), ("4711", Some(web())));
    assert_eq!(seen.converted.problems, []);
    let Some(Change::Service(_, Some(service))) = seen.converted.change else { panic!("not served") };
    let ports: Vec<_> = service.ports.iter().map(|port| (&*port.name, port.protocol, port.port)).collect();
    assert_eq!(ports, [("web", Protocol::Tcp, 80), ("", Protocol::Udp, 53)]);
    assert_eq!(service.cluster_ips[..], [std::net::IpAddr::from([10, 96, 0, 10])]);

    let Frame::Object(seen, version) = watched(&slices(), "MODIFIED", &slice())? else { panic!("not an object") };
    assert_eq!(version, "4712");
    let Some(Change::Slice(_, Some(slice))) = seen.converted.change else { panic!("not used") };
    assert_eq!((slice.service, slice.endpoints.len(), slice.ports[0].port), (web(), 2, 8080));
    let ready: Vec<_> = slice.endpoints.iter().map(|endpoint| endpoint.state.is_ready()).collect();
    assert_eq!(ready, [true, false]);
    Ok(())
}

#[test]
fn everything_that_decides_about_packets_is_read() -> Result<(), Garbled> {
    let Frame::Object(seen, _) = watched(&Services, "ADDED", &balanced())? else { panic!("not an object") };
    assert_eq!(seen.converted.problems, []);
    let Some(Change::Service(_, Some(service))) = seen.converted.change else { panic!("not served") };
    assert_eq!((service.ports[0].port, service.ports[0].node_port), (80, 30080));
    let ips = |ips: &[std::net::IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(ips(&service.external_ips), ["192.0.2.1", "192.0.2.2"]);
    assert_eq!(ips(&service.load_balancer_ips), ["192.0.2.3"], "neither the one of mode Proxy nor the host name");
    assert_eq!((service.internal, service.external), (TrafficPolicy::Local, TrafficPolicy::Local));
    assert_eq!((service.affinity, service.removed), (Some(600), RemovedEndpoints::Drain));
    let ranges: Vec<_> = service.source_ranges.iter().flatten().map(ToString::to_string).collect();
    assert_eq!(ranges, ["198.51.100.0/24", "203.0.113.7/32"]);

    let slice_on = |node: &str| match watched(&EndpointSlices { node: node.into() }, "ADDED", &slice()) {
        Ok(Frame::Object(Seen { converted: Converted { change: Some(Change::Slice(_, Some(slice))), .. }, .. }, _)) => slice,
        other => panic!("{other:?}"),
    };
    let of_first = |node: &str| (slice_on(node).endpoints[0].is_local, slice_on(node).endpoints[0].nodes);
    assert_eq!((of_first("a"), of_first("b")), ((true, NodeHint::Others), (false, NodeHint::This)));
    let zones: Vec<_> = slice_on("a").zones.iter().map(|zones| zones.concat()).collect();
    assert_eq!(zones, ["z", ""]);
    Ok(())
}

#[test]
fn what_health_and_latency_hang_on_is_read() -> Result<(), Garbled> {
    // A load balancer that asks, as `balanced` but for the port.
    let mut asking = balanced();
    asking.extend(field(2, &number(12, 30_999)));
    let Frame::Object(seen, _) = watched(&Services, "ADDED", &asking)? else { panic!("not an object") };
    let Some(Change::Service(_, Some(service))) = seen.converted.change else { panic!("not served") };
    assert_eq!(service.health_check_port, 30_999);

    let leaving = |more: &[u8]| match watched(&OwnNode::new("node1"), "MODIFIED", &[&*self::node("node1"), more].concat()) {
        Ok(Frame::Object(Seen { converted: Converted { change: Some(Change::Node(Some(node))), .. }, .. }, _)) => node.is_leaving,
        other => panic!("{other:?}"),
    };
    let taint = |key: &str| field(2, &field(5, &[text(1, key), text(3, "NoSchedule")].concat()));
    assert!(!leaving(&[]) && !leaving(&taint("node.kubernetes.io/unschedulable")));
    assert!(leaving(&taint("ToBeDeletedByClusterAutoscaler")));
    assert!(leaving(&field(1, &field(9, &number(1, 1_735_689_600)))), "asked to go");

    let annotated = |key: &str, value: &str| [slice(), field(1, &entry(12, key, value))].concat();
    let trigger = |object: &[u8]| match watched(&slices(), "MODIFIED", object) {
        Ok(Frame::Object(seen, _)) => seen.trigger,
        other => panic!("{other:?}"),
    };
    let key = "endpoints.kubernetes.io/last-change-trigger-time";
    let at = std::time::UNIX_EPOCH + std::time::Duration::new(1_735_689_600, 250_000_000);
    assert_eq!(trigger(&annotated(key, "2025-01-01T00:00:00.25Z")), Some(Trigger { family: Family::V4, at }));
    assert_eq!(trigger(&annotated(key, "yesterday")), None);
    assert_eq!(trigger(&annotated("example.com/time", "2025-01-01T00:00:00Z")), None);
    Ok(())
}

#[test]
fn a_node_and_a_servicecidr_have_names_without_a_namespace() -> Result<(), Garbled> {
    let Frame::Object(seen, version) = watched(&OwnNode::new("node1"), "MODIFIED", &node("node1"))? else { panic!("not an object") };
    assert_eq!((version.as_str(), seen.name), ("4714", Some(ObjectName::new("", "node1"))));
    let Some(Change::Node(Some(node))) = seen.converted.change else { panic!("no Node") };
    let texts = |list: &[&dyn std::fmt::Display]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(node.zone.as_deref(), Some("a"));
    assert_eq!(texts(&[&node.ips[0], &node.ips[1]]), ["10.0.0.1", "fd00:10::1"]);
    assert_eq!(texts(&[&node.pod_cidrs[0], &node.pod_cidrs[1]]), ["10.1.1.0/24", "fd00:10:1::/112"]);

    let (objects, _) = listed(&ServiceCidrs, &list(&[&service_cidr()]), 7)?;
    let name = ObjectName::new("", "kubernetes");
    assert_eq!(objects[0].name, Some(name.clone()));
    let Some(Change::ServiceCidr(_, Some(cidrs))) = &objects[0].converted.change else { panic!("no ServiceCIDR") };
    assert_eq!(texts(&[&cidrs[0], &cidrs[1]]), ["10.96.0.0/16", "fd00:10:96::/112"]);

    let gone = watched(&ServiceCidrs, "DELETED", &service_cidr())?;
    let converted = removal(Kind::ServiceCidr, name.clone());
    assert_eq!(gone, Frame::Gone(Seen { name: Some(name), converted, trigger: None }, "4715".into()));
    let Frame::Gone(seen, _) = watched(&OwnNode::new("node1"), "DELETED", &self::node("node1"))? else { panic!("not gone") };
    assert_eq!(seen.converted.change, Some(Change::Node(None)));
    Ok(())
}

#[test]
fn a_deletion_needs_no_more_than_the_name() -> Result<(), Garbled> {
    let Frame::Gone(seen, _) = watched(&Services, "DELETED", &broken("web"))? else { panic!("not gone") };
    assert_eq!(seen.converted, removal(Kind::Service, web()));
    Ok(())
}

#[test]
fn bookmarks_errors_and_types_to_come() -> Result<(), Garbled> {
    let bookmark = watched(&Services, "BOOKMARK", &field(1, &[text(6, "12"), entry(12, "k8s.io/anything", "true")].concat()))?;
    assert_eq!(bookmark, Frame::Bookmark("12".into()));
    let status = [text(2, "Failure"), text(3, "too old"), text(4, "Expired"), number(6, 410)].concat();
    assert_eq!(watched(&Services, "ERROR", &status)?, Frame::Failed(Status { code: 410, message: "too old".into() }));
    assert_eq!(watched(&Services, "SOMETHING", &[])?, Frame::Unknown);
    Ok(())
}

#[test]
fn an_object_that_does_not_decode_is_a_problem_with_its_name_and_the_watch_goes_on() -> Result<(), Garbled> {
    let Frame::Object(seen, version) = watched(&Services, "ADDED", &broken("web"))? else { panic!("not an object") };
    assert_eq!((version.as_str(), seen.name, &seen.converted.change), ("4711", Some(web()), &None));
    let text = seen.converted.problems[0].to_string();
    assert!(text.starts_with("service shop/web: cannot be decoded") && text.contains("UTF-8"), "{text}");
    Ok(())
}

#[test]
fn a_list_survives_an_item_that_does_not_decode() -> Result<(), Garbled> {
    let nameless = field(1, b"\xff");
    let bytes = list(&[&service("a"), &broken("broken"), &nameless, &service("b")]);
    let (objects, version) = listed(&Services, &bytes, usize::MAX)?;
    assert_eq!(version, "99");
    let names: Vec<_> = objects.iter().map(|seen| seen.name.as_ref().map(|name| name.name.to_string())).collect();
    assert_eq!(names, [Some("a".into()), Some("broken".into()), None, Some("b".into())]);
    let served: Vec<_> = objects.iter().map(|seen| seen.converted.change.is_some()).collect();
    assert_eq!(served, [true, false, false, true]);
    assert!(objects[1].converted.problems[0].to_string().starts_with("service shop/broken: "));
    Ok(())
}

#[test]
fn a_list_is_read_in_any_pieces() -> Result<(), Garbled> {
    let bytes = list(&[&slice(), &slice(), &broken("broken")]);
    let whole = listed(&slices(), &bytes, usize::MAX)?;
    assert_eq!(whole.0.len(), 3);
    for piece in [1, 2, 3, 7, 100, 1000] {
        assert_eq!(listed(&slices(), &bytes, piece)?, whole, "{piece}");
    }
    assert_eq!(listed(&slices(), &list(&[]), 1)?, (Vec::new(), "99".to_owned()));
    Ok(())
}

/// What is not in a list counts as gone: a list that was cut off must not be taken for a complete one.
#[test]
fn a_list_that_was_cut_off_is_none() {
    let bytes = list(&[&slice(), &slice()]);
    // What follows the list are empty texts.
    let complete = bytes.len() - 4;
    for end in 0..complete {
        let Err(Garbled(why)) = listed(&slices(), &bytes[..end], usize::MAX) else { panic!("complete after {end} bytes") };
        assert!(why.contains("before the list was complete"), "{end}: {why}");
    }
    assert!(listed(&slices(), &bytes[..complete], usize::MAX).is_ok());
    for (no_list, reason) in [(&b"<html>"[..], "<html>"), (&[MAGIC, &number(2, 1), &[0]].concat(), "wire type 0")] {
        let Err(Garbled(why)) = listed(&Services, no_list, usize::MAX) else { panic!("a list") };
        assert!(why.contains(reason), "{why}");
    }
}

#[test]
fn frames_are_taken_when_they_are_complete() {
    let mut read = BytesMut::new();
    let bytes = [&[0, 0, 0, 2][..], b"ab", &[0, 0, 0, 0], &[0, 0, 0, 1], b"c"].concat();
    let mut frames = Vec::new();
    for byte in bytes {
        read.put_u8(byte);
        frames.extend(take_frame(&mut read).expect("frames"));
    }
    assert_eq!(frames, ["ab", "", "c"].map(Bytes::from));
    assert!(take_frame(&mut BytesMut::from(&b"{\"type\":\"ADDED\"}"[..])).is_err(), "the length of JSON is beyond belief");
}

/// A refusal is told in the words of whoever refuses.
#[test]
fn refusals_in_any_form() {
    let status = wrapped(&[text(3, "services is forbidden"), number(6, 403)].concat());
    assert_eq!(refusal(403, status.into()), Status { code: 403, message: "services is forbidden".into() });
    assert_eq!(refusal(502, " Bad Gateway\n".into()), Status { code: 502, message: "Bad Gateway".into() });
}
