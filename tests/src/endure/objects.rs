//! The Services that change, and what becomes of them.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::controlplane::Api;
use crate::random::random;

/// Endpoints that a Service has at most.
const ENDPOINTS: u64 = 10;

/// A Service port: where it is served, and by whom.
type Programmed = BTreeMap<String, (String, Vec<String>)>;

/// The Services by their numbers. What is created, deleted and written here may not be taken: the API server may be away.
pub(super) struct Objects {
    there: BTreeSet<usize>,
    seed: u64,
}

impl Objects {
    pub(super) fn new(seed: u64) -> Self {
        Self { there: BTreeSet::new(), seed }
    }

    pub(super) fn seed(&mut self) -> &mut u64 {
        &mut self.seed
    }

    fn below(&mut self, limit: u64) -> u64 {
        random(&mut self.seed) % limit
    }

    pub(super) fn any_address(&mut self) -> Option<String> {
        let nth = self.below(self.there.len().max(1) as u64) as usize;
        self.there.iter().nth(nth).map(|index| address(*index))
    }

    pub(super) fn create(&mut self, api: &Api, index: usize) -> Result<()> {
        let ports = json!([{"name": "main", "port": 80, "protocol": if index.is_multiple_of(8) { "UDP" } else { "TCP" }}]);
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name(index)},
            "spec": {"clusterIP": address(index), "ports": ports},
        });
        ask(api, "POST", "/api/v1/namespaces/default/services", Some(&service))?;
        self.there.insert(index);
        let slice = self.slice(index);
        ask(api, "POST", SLICES, Some(&slice)).map(drop)
    }

    fn delete(&mut self, api: &Api, index: usize) -> Result<()> {
        // The slice first: nobody collects it here.
        let gone = ask(api, "DELETE", &format!("{SLICES}/{}-1", name(index)), None);
        let service = ask(api, "DELETE", &format!("/api/v1/namespaces/default/services/{}", name(index)), None);
        gone.and(service)?;
        self.there.remove(&index);
        Ok(())
    }

    /// One random change of one of so many Services: mostly of endpoints, as in a cluster.
    pub(super) fn change(&mut self, api: &Api, services: usize) -> Result<()> {
        let index = self.below(services as u64) as usize;
        match self.below(20) {
            _ if !self.there.contains(&index) => self.create(api, index),
            0 => self.delete(api, index),
            1 => self.policy(api, index),
            _ => {
                let slice = self.slice(index);
                ask(api, "PUT", &format!("{SLICES}/{}-1", name(index)), Some(&slice)).map(drop)
            }
        }
    }

    fn policy(&mut self, api: &Api, index: usize) -> Result<()> {
        let path = format!("/api/v1/namespaces/default/services/{}", name(index));
        let mut service = ask(api, "GET", &path, None)?;
        let affinity = if self.below(2) == 0 { "None" } else { "ClientIP" };
        service["spec"]["sessionAffinity"] = affinity.into();
        if affinity == "None" {
            service["spec"]["sessionAffinityConfig"] = Value::Null;
        }
        ask(api, "PUT", &path, Some(&service)).map(drop)
    }

    /// A slice with random endpoints, of which some are not ready.
    fn slice(&mut self, index: usize) -> Value {
        let count = self.below(ENDPOINTS + 1);
        let endpoints: Vec<Value> = (0..count)
            .map(|_| {
                let (node, host) = (1 + self.below(200), 1 + self.below(250));
                json!({"addresses": [format!("10.2.{node}.{host}")], "conditions": {"ready": self.below(10) > 0}})
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "default", "name": format!("{}-1", name(index)), "labels": {"kubernetes.io/service-name": name(index)}},
            "addressType": "IPv4",
            "ports": [{"name": "main", "port": 8080, "protocol": if index.is_multiple_of(8) { "UDP" } else { "TCP" }}],
            "endpoints": endpoints,
        })
    }
}

const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

fn name(index: usize) -> String {
    format!("churned-{index}")
}

fn address(index: usize) -> String {
    format!("10.96.{}.{}", 1 + index / 250, 1 + index % 250)
}

fn ask(api: &Api, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
    api.request(method, path, body)?.accepted(path)
}

/// What the API server's objects of this test come to.
pub(super) fn wanted(api: &Api) -> Result<Programmed> {
    let list = |path: &str| -> Result<Vec<Value>> {
        let list = ask(api, "GET", path, None)?;
        Ok(list["items"].as_array().context("items")?.clone())
    };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut backends: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for slice in list(SLICES)? {
        let of = backends.entry(text(&slice["metadata"]["labels"]["kubernetes.io/service-name"])).or_default();
        let ready = slice["endpoints"].as_array().into_iter().flatten().filter(|e| e["conditions"]["ready"] == true);
        of.extend(ready.map(|endpoint| format!("{}:8080", text(&endpoint["addresses"][0]))));
    }
    let services = list("/api/v1/namespaces/default/services")?;
    let ours = services.iter().filter(|service| text(&service["metadata"]["name"]).starts_with("churned-"));
    let wanted: Programmed = ours
        .map(|service| {
            let name = text(&service["metadata"]["name"]);
            let backends = backends.get(&name).into_iter().flatten().cloned().collect();
            (name, (format!("{}:80", text(&service["spec"]["clusterIP"])), backends))
        })
        .collect();
    ensure!(!wanted.is_empty(), "there are no Services");
    Ok(wanted)
}

/// What the kernel holds of them, from what `dump` shows.
pub(super) fn programmed(dump: &Value) -> Result<Programmed> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let address = |value: &Value| format!("{}:{}", text(&value["ip"]), value["port"]);
    let services = dump.as_array().context("no services in the dump")?;
    let ours = services.iter().filter(|view| text(&view["service"]).starts_with("churned-"));
    Ok(ours
        .map(|view| {
            let frontend = &view["frontends"][0];
            let mut backends: Vec<String> = view["backends"].as_array().into_iter().flatten().map(address).collect();
            backends.sort();
            (text(&view["service"]), (address(frontend), backends))
        })
        .collect())
}
