//! The objects of scenarios in a real API server.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use proxy_core::model::ObjectName;
use serde_json::{Value, json};

use crate::agent::DEADLINE;
use crate::controlplane::Api;
use crate::controlplane::api::Answer;
use crate::lab::{Seen, wait};
use crate::scenario::object::{NODE, defaults};
use crate::scenario::{Manifest, Object, ObjectKind};

/// The status of an object that the API server does not accept.
const UNPROCESSABLE: u16 = 422;
/// By which kube-proxy knows its Node's zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// What scenarios have written, one after the other.
pub(super) struct Cluster {
    api: Api,
    /// What the scenario's namespaces begin with. kube-proxy may keep something of the objects of others for as long as it runs.
    prefix: String,
    /// Those that have been made.
    namespaces: BTreeSet<String>,
    /// Objects of the scenario that are there, by their names in the API server: what was written of them.
    objects: BTreeMap<(ObjectKind, ObjectName), Value>,
    /// Whether what the API server refuses is written past it.
    past: bool,
    /// How many objects were.
    stored: u32,
    /// How often the Node was deleted.
    deleted_nodes: u32,
}

impl Cluster {
    /// With what every scenario begins with.
    pub(super) fn new(api: Api) -> Result<Self> {
        let (prefix, namespaces, objects) = (String::new(), BTreeSet::new(), BTreeMap::new());
        let mut this = Self { api, prefix, namespaces, objects, past: false, stored: 0, deleted_nodes: 0 };
        this.restore()?;
        Ok(this)
    }

    /// The API server.
    pub(super) fn api(&self) -> &Api {
        &self.api
    }

    /// Deletes the objects of the scenario before, and puts back what it has changed of what is always there.
    pub(super) fn begin(&mut self, scenario: &str, past: bool) -> Result<()> {
        let defaults = defaults().map(|manifest| key_of(&manifest.object));
        let keys: Vec<_> = self.objects.keys().filter(|key| !defaults.contains(&Some((*key).clone()))).cloned().collect();
        // Services before the ranges that their addresses are of.
        for key in keys.into_iter().rev() {
            self.remove(&key)?;
        }
        self.restore()?;
        self.prefix = scenario.replace(' ', "-").to_lowercase();
        (self.past, self.stored) = (past, 0);
        Ok(())
    }

    fn restore(&mut self) -> Result<()> {
        for manifest in defaults() {
            let written = key_of(&manifest.object).and_then(|key| self.objects.get(&key));
            let known = match (&manifest.object, written) {
                (Object::Node(value) | Object::ServiceCidr(value), Some(written)) => written == value,
                _ => false,
            };
            if !known {
                self.write(&manifest)?;
            }
        }
        Ok(())
    }

    /// Whether the API server has taken every object that it was to refuse.
    pub(super) fn needs_no_way_past(&self) -> bool {
        self.past && self.stored == 0
    }

    /// The Node that kube-proxy runs on, as it was written last.
    pub(super) fn node(&self) -> Option<&Value> {
        self.objects.get(&(ObjectKind::Node, ObjectName::new("", NODE)))
    }

    /// What kube-proxy looks at in it.
    pub(super) fn node_facts(&self) -> NodeFacts {
        let node = self.node().unwrap_or(&Value::Null);
        let of = |pointer: &str| node.pointer(pointer).cloned().unwrap_or_default();
        NodeFacts {
            deleted: self.deleted_nodes,
            addresses: of("/status/addresses"),
            pod_cidrs: of("/spec/podCIDRs"),
            zone: node["metadata"]["labels"][ZONE].clone(),
        }
    }

    /// Gives the Node another zone, and back its own.
    pub(super) fn flip_zone(&mut self, away: bool) -> Result<()> {
        let mut node = self.node().context("there is no Node")?.clone();
        if away {
            node["metadata"]["labels"][ZONE] = json!("another-for-a-moment");
        }
        let path = path(ObjectKind::Node, &ObjectName::new("", NODE));
        self.api.request("PUT", &path, Some(&node))?.accepted(&path).map(drop)
    }

    /// The ranges that Services' addresses are of.
    pub(super) fn ranges(&self) -> Vec<String> {
        let cidrs = self.objects.iter().filter(|((kind, _), _)| *kind == ObjectKind::ServiceCidr).map(|(_, value)| &value["spec"]["cidrs"]);
        cidrs.flat_map(|cidrs| cidrs.as_array().into_iter().flatten()).filter_map(|cidr| cidr.as_str().map(String::from)).collect()
    }

    /// Writes an object.
    pub(super) fn write(&mut self, manifest: &Manifest) -> Result<()> {
        let name = manifest.object.name().context("an object without a name")?;
        let key = (manifest.object.kind(), self.in_api_server(manifest.object.kind(), &name));
        let mut object: Value = serde_saphyr::from_str(&manifest.text).context("an object")?;
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            // Which of several writers was last is no question here.
            metadata.remove("resourceVersion");
            if key.0.is_namespaced() {
                metadata.insert("namespace".into(), (*key.1.namespace).into());
            }
        }
        if key.0.is_namespaced() && self.namespaces.insert(key.1.namespace.to_string()) {
            make_namespace(&self.api, &key.1.namespace)?;
        }
        let one = path(key.0, &key.1);
        let answer = self.put(&key, &object)?;
        if answer.status == UNPROCESSABLE && self.past {
            self.store(&key, &object)?;
        } else {
            let written = answer.accepted(&one)?;
            self.write_status(&key, &object, written)?;
        }
        self.objects.insert(key, object);
        Ok(())
    }

    fn put(&mut self, key: &(ObjectKind, ObjectName), object: &Value) -> Result<Answer> {
        let (one, all) = (path(key.0, &key.1), collection(key.0, &key.1.namespace));
        // What belongs to the cluster may have been there before we were.
        let exists = self.objects.contains_key(key) || (!key.0.is_namespaced() && self.api.request("GET", &one, None)?.status < 300);
        if !exists {
            return self.create(&all, object);
        }
        let answer = self.api.request("PUT", &one, Some(object))?;
        if answer.status == UNPROCESSABLE {
            // Some fields never change: whoever wants to change them deletes the object and makes it again.
            self.remove(key)?;
            return self.create(&all, object);
        }
        Ok(answer)
    }

    /// Makes an object. The API server gives out the addresses of a ServiceCIDR a moment after it has taken that.
    fn create(&self, all: &str, object: &Value) -> Result<Answer> {
        wait(DEADLINE, "the API server to give out addresses of a new ServiceCIDR", || {
            let answer = self.api.request("POST", all, Some(object))?;
            let message = answer.body["message"].as_str().unwrap_or_default();
            Ok(if message.contains("does not match the current range") { Seen::not_yet(message) } else { Seen::Done(answer) })
        })
    }

    /// The status is an object of its own to the API server.
    fn write_status(&mut self, key: &(ObjectKind, ObjectName), object: &Value, mut written: Value) -> Result<()> {
        let part = match key.0 {
            ObjectKind::Service => "loadBalancer",
            ObjectKind::Node => "addresses",
            ObjectKind::Slice | ObjectKind::ServiceCidr => return Ok(()),
        };
        let wanted = object["status"][part].clone();
        let wanted = if wanted.is_null() && key.0 == ObjectKind::Service { json!({}) } else { wanted };
        if written["status"][part] == wanted {
            return Ok(());
        }
        written["status"][part] = wanted;
        let to = format!("{}/status", path(key.0, &key.1));
        let answer = self.api.request("PUT", &to, Some(&written))?;
        if answer.status == UNPROCESSABLE && self.past { self.store(key, &written) } else { answer.accepted(&to).map(drop) }
    }

    fn store(&mut self, key: &(ObjectKind, ObjectName), object: &Value) -> Result<()> {
        self.stored += 1;
        self.api.store(&stored(key.0, &key.1), object)
    }

    /// Deletes one of the scenario's objects.
    pub(super) fn delete(&mut self, kind: ObjectKind, name: &ObjectName) -> Result<()> {
        let key = (kind, self.in_api_server(kind, name));
        ensure!(self.objects.contains_key(&key), "there is no {} to delete", path(kind, &key.1));
        self.remove(&key)
    }

    fn remove(&mut self, key: &(ObjectKind, ObjectName)) -> Result<()> {
        let path = path(key.0, &key.1);
        self.api.request("DELETE", &path, None)?.accepted(&path)?;
        self.objects.remove(key);
        self.deleted_nodes += u32::from(*key == (ObjectKind::Node, ObjectName::new("", NODE)));
        Ok(())
    }

    /// The name of the scenario's object there.
    fn in_api_server(&self, kind: ObjectKind, name: &ObjectName) -> ObjectName {
        if kind.is_namespaced() { ObjectName::new(format!("{}-{}", self.prefix, name.namespace), &*name.name) } else { name.clone() }
    }
}

/// What kube-proxy looks at in its Node.
#[derive(PartialEq)]
pub(super) struct NodeFacts {
    deleted: u32,
    addresses: Value,
    pod_cidrs: Value,
    zone: Value,
}

impl NodeFacts {
    /// Whether kube-proxy ends when it sees that these have become those, so that it starts anew (API-04).
    pub(super) fn end_kube_proxy(&self, now: &Self, looks_at_pod_cidrs: bool) -> bool {
        let ends = self.deleted != now.deleted || self.addresses != now.addresses;
        ends || (looks_at_pod_cidrs && self.pod_cidrs != now.pod_cidrs)
    }

    /// Whether it brings everything up to date (TOP-08).
    pub(super) fn move_zone(&self, now: &Self) -> bool {
        self.zone != now.zone
    }
}

fn key_of(object: &Object) -> Option<(ObjectKind, ObjectName)> {
    Some((object.kind(), object.name()?))
}

pub(super) fn make_namespace(api: &Api, name: &str) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    api.request("POST", "/api/v1/namespaces", Some(&namespace))?.accepted(name).map(drop)
}

pub(super) fn collection(kind: ObjectKind, namespace: &str) -> String {
    match kind {
        ObjectKind::Service => format!("/api/v1/namespaces/{namespace}/services"),
        ObjectKind::Slice => format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
        ObjectKind::Node => "/api/v1/nodes".to_owned(),
        ObjectKind::ServiceCidr => "/apis/networking.k8s.io/v1/servicecidrs".to_owned(),
    }
}

pub(super) fn path(kind: ObjectKind, name: &ObjectName) -> String {
    format!("{}/{}", collection(kind, &name.namespace), name.name)
}

/// Where the API server keeps it.
fn stored(kind: ObjectKind, name: &ObjectName) -> String {
    match kind {
        ObjectKind::Service => format!("/registry/services/specs/{}/{}", name.namespace, name.name),
        ObjectKind::Slice => format!("/registry/endpointslices/{}/{}", name.namespace, name.name),
        ObjectKind::Node => format!("/registry/minions/{}", name.name),
        ObjectKind::ServiceCidr => format!("/registry/servicecidrs/{}", name.name),
    }
}
