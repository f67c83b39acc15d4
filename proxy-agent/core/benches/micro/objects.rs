//! Services and EndpointSlices as the API server sends them: most of an object is metadata that nobody here reads.

use std::net::Ipv4Addr;

/// Endpoints of each Service, all in one slice.
pub(crate) const ENDPOINTS: u32 = 10;

/// The Service, as it is after `kubectl apply`.
pub(crate) fn service(i: u32) -> String {
    let name = name(i);
    let ip = Ipv4Addr::from(0x0a60_0000 + i + 1);
    let uid = uid(i, 1);
    let version = 100_000 + i;
    format!(
        r##"{{"kind":"Service","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"team-{team}","uid":"{uid}","resourceVersion":"{version}","creationTimestamp":"2025-03-01T12:00:00Z","labels":{{"app.kubernetes.io/instance":"{name}","app.kubernetes.io/managed-by":"Helm","app.kubernetes.io/name":"{name}","app.kubernetes.io/version":"1.14.2"}},"annotations":{{"kubectl.kubernetes.io/last-applied-configuration":"{{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{{\"annotations\":{{}},\"name\":\"{name}\",\"namespace\":\"team-{team}\"}},\"spec\":{{\"ports\":[{{\"name\":\"http\",\"port\":80,\"protocol\":\"TCP\",\"targetPort\":8080}}],\"selector\":{{\"app.kubernetes.io/name\":\"{name}\"}}}}}}\n"}},"managedFields":[{{"manager":"kubectl-client-side-apply","operation":"Update","apiVersion":"v1","time":"2025-03-01T12:00:00Z","fieldsType":"FieldsV1","fieldsV1":{{"f:metadata":{{"f:annotations":{{".":{{}},"f:kubectl.kubernetes.io/last-applied-configuration":{{}}}},"f:labels":{{".":{{}},"f:app.kubernetes.io/name":{{}}}}}},"f:spec":{{"f:internalTrafficPolicy":{{}},"f:ports":{{".":{{}},"k:{{\"port\":80,\"protocol\":\"TCP\"}}":{{".":{{}},"f:name":{{}},"f:port":{{}},"f:protocol":{{}},"f:targetPort":{{}}}}}},"f:selector":{{}},"f:sessionAffinity":{{}},"f:type":{{}}}}}}}}]}},"spec":{{"ports":[{{"name":"http","protocol":"TCP","port":80,"targetPort":8080}}],"selector":{{"app.kubernetes.io/name":"{name}"}},"clusterIP":"{ip}","clusterIPs":["{ip}"],"type":"ClusterIP","sessionAffinity":"None","ipFamilies":["IPv4"],"ipFamilyPolicy":"SingleStack","internalTrafficPolicy":"Cluster"}},"status":{{"loadBalancer":{{}}}}}}"##,
        team = team(i),
    )
}

/// Its EndpointSlice, as the EndpointSlice controller writes it. In a later `generation`, another pod has taken one pod's place.
pub(crate) fn slice(i: u32, generation: u32) -> String {
    let name = name(i);
    let endpoints: Vec<String> = (0..ENDPOINTS).map(|e| endpoint(i, e, if e == REPLACED { generation } else { 0 })).collect();
    let (uid, owner) = (uid(i, 2), uid(i, 1));
    let version = 200_000 + i + generation;
    format!(
        r##"{{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{{"name":"{name}-x{i:04x}","generateName":"{name}-","namespace":"team-{team}","uid":"{uid}","resourceVersion":"{version}","generation":{generation},"creationTimestamp":"2025-03-01T12:00:01Z","labels":{{"app.kubernetes.io/name":"{name}","endpointslice.kubernetes.io/managed-by":"endpointslice-controller.k8s.io","kubernetes.io/service-name":"{name}"}},"annotations":{{"endpoints.kubernetes.io/last-change-trigger-time":"2025-03-01T12:00:09Z"}},"ownerReferences":[{{"apiVersion":"v1","kind":"Service","name":"{name}","uid":"{owner}","controller":true,"blockOwnerDeletion":true}}],"managedFields":[{{"manager":"kube-controller-manager","operation":"Update","apiVersion":"discovery.k8s.io/v1","time":"2025-03-01T12:00:09Z","fieldsType":"FieldsV1","fieldsV1":{{"f:addressType":{{}},"f:endpoints":{{}},"f:metadata":{{"f:annotations":{{".":{{}},"f:endpoints.kubernetes.io/last-change-trigger-time":{{}}}},"f:generateName":{{}},"f:labels":{{".":{{}},"f:endpointslice.kubernetes.io/managed-by":{{}},"f:kubernetes.io/service-name":{{}}}},"f:ownerReferences":{{".":{{}},"k:{{\"uid\":\"{owner}\"}}":{{}}}}}},"f:ports":{{}}}}}}]}},"addressType":"IPv4","endpoints":[{endpoints}],"ports":[{{"name":"http","protocol":"TCP","port":8080}}]}}"##,
        team = team(i),
        endpoints = endpoints.join(","),
    )
}

/// The endpoint whose pod is exchanged.
const REPLACED: u32 = 3;

fn endpoint(i: u32, e: u32, generation: u32) -> String {
    // Generations do not share addresses.
    let ip = Ipv4Addr::from(0x0a80_0000 + generation * 0x0020_0000 + i * ENDPOINTS + e);
    let (uid, name) = (uid(i, 100 + e + generation * ENDPOINTS), name(i));
    let node = (i + e) % 500;
    format!(
        r#"{{"addresses":["{ip}"],"conditions":{{"ready":true,"serving":true,"terminating":false}},"targetRef":{{"kind":"Pod","namespace":"team-{team}","name":"{name}-7c5ddbdf54-{e:04x}{generation}","uid":"{uid}"}},"nodeName":"node-{node:03}"}}"#,
        team = team(i),
    )
}

fn name(i: u32) -> String {
    format!("checkout-{i:05}")
}

/// Some hundreds of Services share a namespace.
fn team(i: u32) -> u32 {
    i % 100
}

fn uid(i: u32, what: u32) -> String {
    format!("{i:08x}-5f0c-4b7e-9d3a-{what:012x}")
}
