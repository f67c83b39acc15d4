use proxy_core::model::{Change, Protocol};
use serde_json::{Value, json};

use super::*;

/// As an API server writes it, with what nobody here needs.
fn service(name: &str) -> Value {
    json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {
            "name": name, "namespace": "shop", "uid": "3c2f", "resourceVersion": "4711",
            "creationTimestamp": "2025-01-01T00:00:00Z", "labels": {"app": name}, "ownerReferences": null,
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{\"kind\":\"Service\"}\n"},
            "managedFields": [{"manager": "kubectl", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": {"f:ports": {".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {"f:port": {}}}}}}]
        },
        "spec": {
            "ports": [{"name": "web", "protocol": "TCP", "port": 80, "targetPort": "http"}, {"port": 53, "protocol": "UDP"}],
            "selector": {"app": name}, "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"], "type": "ClusterIP",
            "sessionAffinity": "None", "externalIPs": null, "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster"
        },
        "status": {"loadBalancer": {}}
    })
}

fn slice() -> Value {
    json!({
        "kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": "web-x7", "namespace": "shop", "resourceVersion": "4712", "managedFields": [{"manager": "kcm"}],
            "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.1.0.1"], "conditions": {"ready": true, "serving": null}, "nodeName": "a", "zone": "z",
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": "web-1", "uid": "9"}, "hints": {"forZones": [{"name": "z"}]}},
            {"addresses": ["10.1.0.2"], "conditions": {}}
        ],
        "ports": [{"name": "web", "protocol": "TCP", "port": 8080, "appProtocol": null}]
    })
}

fn watched<R: Resource>(kind: &str, object: Value) -> serde_json::Result<Line> {
    line::<R>(serde_json::to_string(&json!({"type": kind, "object": object}))?.as_bytes())
}

fn listed<R: Resource>(items: Value) -> serde_json::Result<Page> {
    let list = json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "99", "continue": "token"}, "items": items});
    page::<R>(&list.to_string())
}

fn web() -> ObjectName {
    ObjectName::new("shop", "web")
}

#[test]
fn an_object_of_a_watch_gives_its_change_and_version() -> serde_json::Result<()> {
    let Line::Object(seen, version) = watched::<Services>("ADDED", service("web"))? else { panic!("not an object") };
    assert_eq!((version.as_str(), seen.name), ("4711", Some(web())));
    assert_eq!(seen.converted.problems, []);
    let Some(Change::Service(_, Some(service))) = seen.converted.change else { panic!("not served") };
    let ports: Vec<_> = service.ports.iter().map(|port| (&*port.name, port.protocol, port.port)).collect();
    assert_eq!(ports, [("web", Protocol::Tcp, 80), ("", Protocol::Udp, 53)]);

    let Line::Object(seen, version) = watched::<EndpointSlices>("MODIFIED", slice())? else { panic!("not an object") };
    assert_eq!(version, "4712");
    let Some(Change::Slice(_, Some(slice))) = seen.converted.change else { panic!("not used") };
    assert_eq!((slice.service, slice.endpoints.len(), slice.ports[0].port), (web(), 2, 8080));
    Ok(())
}

#[test]
fn a_deletion_needs_no_more_than_the_name() -> serde_json::Result<()> {
    let mut object = service("web");
    object["spec"]["ports"] = json!("gone");
    let Line::Gone(seen, _) = watched::<Services>("DELETED", object)? else { panic!("not gone") };
    assert_eq!(seen.converted, removal(Kind::Service, web()));
    Ok(())
}

#[test]
fn bookmarks_errors_and_types_to_come() -> serde_json::Result<()> {
    let bookmark = |annotations: Value| {
        let metadata = json!({"resourceVersion": "12", "annotations": annotations, "creationTimestamp": null});
        watched::<Services>("BOOKMARK", json!({"kind": "Service", "apiVersion": "v1", "metadata": metadata, "spec": {}}))
    };
    assert_eq!(bookmark(Value::Null)?, Line::Bookmark("12".into(), false));
    assert_eq!(bookmark(json!({"k8s.io/initial-events-end": "true"}))?, Line::Bookmark("12".into(), true));
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "too old", "code": 410});
    assert_eq!(watched::<Services>("ERROR", status)?, Line::Failed(Status { code: 410, message: "too old".into() }));
    assert_eq!(watched::<Services>("SOMETHING", json!({}))?, Line::Unknown);
    Ok(())
}

#[test]
fn an_object_that_does_not_decode_is_a_problem_with_its_name_and_the_watch_goes_on() -> serde_json::Result<()> {
    let mut object = service("web");
    object["spec"]["ports"][0]["port"] = json!("http");
    let Line::Object(seen, version) = watched::<Services>("ADDED", object)? else { panic!("not an object") };
    assert_eq!((version.as_str(), seen.name, &seen.converted.change), ("4711", Some(web()), &None));
    let text = seen.converted.problems[0].to_string();
    assert!(text.starts_with("service shop/web: cannot be decoded") && text.contains("http"), "{text}");
    Ok(())
}

#[test]
fn a_list_survives_an_item_that_does_not_decode() -> serde_json::Result<()> {
    let mut broken = service("broken");
    broken["spec"]["clusterIPs"] = json!({"not": "a list"});
    let nameless = json!({"metadata": 5});
    let page = listed::<Services>(json!([service("a"), broken, nameless, service("b")]))?;
    assert_eq!((page.version.as_str(), page.next.as_str()), ("99", "token"));
    let names: Vec<_> = page.objects.iter().map(|seen| seen.name.as_ref().map(|name| name.name.to_string())).collect();
    assert_eq!(names, [Some("a".into()), Some("broken".into()), None, Some("b".into())]);
    let served: Vec<_> = page.objects.iter().map(|seen| seen.converted.change.is_some()).collect();
    assert_eq!(served, [true, false, false, true]);
    assert!(page.objects[1].converted.problems[0].to_string().starts_with("service shop/broken: "));
    Ok(())
}

#[test]
fn a_list_without_items_is_empty() -> serde_json::Result<()> {
    assert_eq!(listed::<EndpointSlices>(Value::Null)?.objects, []);
    assert_eq!(listed::<EndpointSlices>(json!([slice()]))?.objects.len(), 1);
    assert!(page::<Services>("<html>").is_err());
    Ok(())
}
