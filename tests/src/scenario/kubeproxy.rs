//! The executor that is kube-proxy itself: the real program on node1 of a [lab](crate::lab), objects in a real API server, real
//! connections. What it answers is what a cluster's users have today.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use proxy_core::model::ObjectName;
use serde_json::{Value, json};

use super::probing::Probing;
use super::run::{Probe, run};
use super::{AddressChange, Executor, KubeProxy, KubeProxyMode, Manifest, ObjectKind, Observed, Scenario};
use crate::agent::DEADLINE;
use crate::controlplane::process::{Netns, free_ports};
use crate::controlplane::{Api, ControlPlane, Options};
use crate::lab::{Connect, Outcome, Program, Proto, Seen};

/// How long a control plane may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);

/// The status of an object that the API server does not accept.
const UNPROCESSABLE: u16 = 422;

/// All that scenarios may give to Services: 10.96.a.b, and fd00:10:96::a:b for it.
const SERVICE_RANGES: &str = "10.96.0.0/16,fd00:10:96::/96";

/// kube-proxy with a control plane of its own: one for many scenarios, one after the other.
pub struct Reference {
    // Fields are dropped in this order.
    running: Option<Program>,
    api: Api,
    plane: ControlPlane,
    probing: Probing,
    mode: KubeProxyMode,
    marker: Marker,
    /// What the scenario's namespaces begin with. kube-proxy may keep something of the objects of others for as long as it runs.
    prefix: String,
    /// Those that have been made.
    namespaces: BTreeSet<String>,
    /// Objects of the scenario that are there, by their names in the API server.
    objects: BTreeSet<(ObjectKind, ObjectName)>,
    /// Whether what the API server refuses is written past it.
    past: bool,
    /// How many objects were.
    stored: u32,
    /// Whether kube-proxy may not have taken everything in yet.
    pending: bool,
}

impl Reference {
    /// A lab, a control plane on its node1, and kube-proxy there.
    pub fn new(mode: KubeProxyMode) -> Result<Self> {
        let probing = Probing::new()?;
        let node = probing.lab().node(1);
        let (netns, addresses) = (Some(node.netns().to_owned()), node.addresses().to_vec());
        let service_ranges = SERVICE_RANGES.to_owned();
        let mut plane = ControlPlane::start(Options { netns, addresses, service_ranges, ..Options::default() })?;
        plane.wait_ready(START)?;
        plane.add_node("node1", &node.addresses())?;
        let api = plane.api()?;
        let marker = Marker::new(&api)?;
        let (prefix, namespaces, objects) = (String::new(), BTreeSet::new(), BTreeSet::new());
        let (past, stored, pending) = (false, 0, true);
        let mut this = Self { running: None, api, plane, probing, mode, marker, prefix, namespaces, objects, past, stored, pending };
        fs::write(this.config(), this.configuration()?.to_string()).with_context(|| this.config().display().to_string())?;
        this.start_program()?;
        Ok(this)
    }

    /// Carries a scenario out.
    pub fn carry_out(&mut self, scenario: &Scenario) -> Result<()> {
        self.begin(scenario)?;
        run(scenario, self)?;
        ensure!(self.stored > 0 || !self.past, "{scenario}: the API server takes every object: it needs no \"past the API server\"");
        Ok(())
    }

    /// Puts away what a scenario before has left, and gets ready for this one.
    fn begin(&mut self, scenario: &Scenario) -> Result<()> {
        for (kind, name) in std::mem::take(&mut self.objects) {
            self.api.request("DELETE", &path(kind, &name), None)?.accepted("clean-up")?;
        }
        self.prefix = scenario.to_string().replace(' ', "-").to_lowercase();
        (self.past, self.stored) = (matches!(scenario.kube_proxy, KubeProxy::PastApiServer(_)), 0);
        self.pending = true;
        if self.running.is_some() { Ok(()) } else { self.start_program() }
    }

    fn config(&self) -> PathBuf {
        self.plane.path().join("kube-proxy.json")
    }

    fn configuration(&self) -> Result<Value> {
        let ports = free_ports(&Netns::open(self.probing.lab().node(1).netns())?)?;
        Ok(self.plane.kube_proxy_config(&self.mode.to_string(), "node1", "10.1.0.0/16,fd00:10:1::/48", ports))
    }

    fn start_program(&mut self) -> Result<()> {
        let mut command = Command::new(&self.plane.binaries().kube_proxy);
        command.arg("--config").arg(self.config());
        self.running = Some(self.probing.lab().spawn_on_node(1, command)?);
        self.pending = true;
        Ok(())
    }

    /// Waits until kube-proxy has taken everything in, if it runs.
    fn settle(&mut self) -> Result<()> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let (address, server) = self.marker.write(&self.api)?;
        let lab = self.probing.lab();
        for (to, server) in address.into_iter().zip(server) {
            let probe = Connect::new(to, Proto::Tcp).timeout_ms(50);
            let settled = lab.wait(DEADLINE, &format!("{to} to lead to {server}"), || {
                if let Some(status) = running.ended()? {
                    return Ok(Seen::Done(Some(status)));
                }
                match lab.host(1).probe(probe.clone())? {
                    Outcome::Ok(answer) if answer.server.ip().to_canonical() == server => Ok(Seen::Done(None)),
                    other => Ok(Seen::not_yet(other)),
                }
            });
            if let Some(status) = settled.with_context(|| running.tail())? {
                bail!("kube-proxy ended by itself ({status})\n{}", running.tail());
            }
        }
        self.pending = false;
        Ok(())
    }

    fn write(&mut self, manifest: &Manifest) -> Result<()> {
        let kind = manifest.object.kind();
        let name = self.in_api_server(&manifest.object.name().context("an object without a name")?);
        let mut object: Value = serde_saphyr::from_str(&manifest.text).context("an object")?;
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("namespace".into(), (*name.namespace).into());
            // Which of several writers was last is no question here.
            metadata.remove("resourceVersion");
        }
        if self.namespaces.insert(name.namespace.to_string()) {
            make_namespace(&self.api, &name.namespace)?;
        }
        let (one, all) = (path(kind, &name), collection(kind, &name.namespace));
        let key = (kind, name);
        let (method, to) = if self.objects.contains(&key) { ("PUT", &one) } else { ("POST", &all) };
        let mut answer = self.api.request(method, to, Some(&object))?;
        if answer.status == UNPROCESSABLE && self.objects.remove(&key) {
            // Some fields never change: whoever wants to change them deletes the object and makes it again.
            self.api.request("DELETE", &one, None)?.accepted(&one)?;
            answer = self.api.request("POST", &all, Some(&object))?;
        }
        if answer.status == UNPROCESSABLE && self.past {
            self.api.store(&stored(kind, &key.1), &object)?;
            self.stored += 1;
        } else {
            answer.accepted(&one)?;
        }
        self.objects.insert(key);
        Ok(())
    }

    /// The name of the scenario's object there.
    fn in_api_server(&self, name: &ObjectName) -> ObjectName {
        ObjectName::new(format!("{}-{}", self.prefix, name.namespace), &*name.name)
    }
}

fn make_namespace(api: &Api, name: &str) -> Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    api.request("POST", "/api/v1/namespaces", Some(&namespace))?.accepted(name).map(drop)
}

fn collection(kind: ObjectKind, namespace: &str) -> String {
    match kind {
        ObjectKind::Service => format!("/api/v1/namespaces/{namespace}/services"),
        ObjectKind::Slice => format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"),
        ObjectKind::Node => "/api/v1/nodes".to_owned(),
        ObjectKind::ServiceCidr => "/apis/networking.k8s.io/v1/servicecidrs".to_owned(),
    }
}

fn path(kind: ObjectKind, name: &ObjectName) -> String {
    format!("{}/{}", collection(kind, &name.namespace), name.name)
}

/// Where the API server keeps it.
fn stored(kind: ObjectKind, name: &ObjectName) -> String {
    let folder = match kind {
        ObjectKind::Service => "services/specs",
        ObjectKind::Slice => "endpointslices",
        ObjectKind::Node => return format!("/registry/minions/{}", name.name),
        ObjectKind::ServiceCidr => return format!("/registry/servicecidrs/{}", name.name),
    };
    format!("/registry/{folder}/{}/{}", name.namespace, name.name)
}

/// A Service that tells how far kube-proxy has got. Services and EndpointSlices reach it in the order in which they were written,
/// each kind by itself, and it programs all that has reached it at once. So it has taken in whatever was written before the marker
/// when connections to the marker's new port (the Service) end at its new backend (the slice): in each family, which are synced
/// one by one.
struct Marker {
    step: u16,
}

impl Marker {
    const NAMESPACE: &str = "kube-proxy-marker";
    const ADDRESSES: [&str; 2] = ["10.96.255.1", "fd00:10:96::255:1"];
    /// Two pods that echo on 8080, in turn.
    const BACKENDS: [[&str; 2]; 2] = [["10.1.2.2", "fd00:10:1::2:2"], ["10.1.2.3", "fd00:10:1::2:3"]];

    fn new(api: &Api) -> Result<Self> {
        make_namespace(api, Self::NAMESPACE)?;
        let marker = Self { step: 0 };
        for (kind, _, object) in marker.objects() {
            let path = collection(kind, Self::NAMESPACE);
            api.request("POST", &path, Some(&object))?.accepted(&path)?;
        }
        Ok(marker)
    }

    /// Writes its next state. Returns where it is served and by whom, in each family.
    fn write(&mut self, api: &Api) -> Result<([SocketAddr; 2], [IpAddr; 2])> {
        self.step += 1;
        ensure!(self.step < 10_000, "more steps than the marker has ports for");
        for (kind, name, object) in self.objects() {
            let path = path(kind, &ObjectName::new(Self::NAMESPACE, &*name));
            api.request("PUT", &path, Some(&object))?.accepted(&path)?;
        }
        let (v4, v6) = (Self::ADDRESSES[0].parse::<IpAddr>()?, Self::ADDRESSES[1].parse::<IpAddr>()?);
        let [b4, b6] = self.backends();
        Ok(([v4, v6].map(|address| SocketAddr::new(address, self.port())), [b4.parse()?, b6.parse()?]))
    }

    fn port(&self) -> u16 {
        20_000 + self.step
    }

    fn backends(&self) -> [&'static str; 2] {
        Self::BACKENDS[usize::from(self.step % 2)]
    }

    fn objects(&self) -> Vec<(ObjectKind, String, Value)> {
        let [v4, v6] = Self::ADDRESSES;
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "marker"},
            "spec": {
                "clusterIP": v4, "clusterIPs": [v4, v6], "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
                "ports": [{"port": self.port()}],
            },
        });
        let slice = |(family, backend): (&str, &str)| {
            let name = format!("marker-{}", family.to_lowercase());
            let object = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "marker"}},
                "addressType": family, "ports": [{"name": "", "port": 8080}], "endpoints": [{"addresses": [backend]}],
            });
            (ObjectKind::Slice, name, object)
        };
        let slices = ["IPv4", "IPv6"].into_iter().zip(self.backends()).map(slice);
        [(ObjectKind::Service, "marker".to_owned(), service)].into_iter().chain(slices).collect()
    }
}

impl Executor for Reference {
    fn apply(&mut self, manifests: &[Manifest]) -> Result<()> {
        manifests.iter().try_for_each(|manifest| self.write(manifest))?;
        self.settle()
    }

    fn delete(&mut self, objects: &[(ObjectKind, ObjectName)]) -> Result<()> {
        for (kind, name) in objects {
            let name = self.in_api_server(name);
            let path = path(*kind, &name);
            ensure!(self.objects.remove(&(*kind, name)), "there is no {path} to delete");
            self.api.request("DELETE", &path, None)?.accepted(&path)?;
        }
        self.settle()
    }

    fn address(&mut self, changes: &[AddressChange]) -> Result<()> {
        self.probing.address(changes)?;
        self.settle()
    }

    fn wait(&mut self, duration: Duration) -> Result<()> {
        thread::sleep(duration);
        Ok(())
    }

    fn stop(&mut self, killed: bool) -> Result<()> {
        let program = self.running.take().context("kube-proxy does not run")?;
        // It does not catch the signal, so its status is no success.
        if killed { program.kill() } else { program.stop(DEADLINE).map(drop) }
    }

    fn start(&mut self) -> Result<()> {
        ensure!(self.running.is_none(), "kube-proxy runs already");
        self.start_program()?;
        self.settle()
    }

    fn observe(&mut self, probes: &[Probe]) -> Result<Vec<Observed>> {
        if self.pending {
            self.settle()?;
        }
        self.probing.observe(probes, self.kube_proxy())
    }

    fn state(&mut self) -> String {
        let command = match self.mode {
            KubeProxyMode::Iptables => "iptables-save; ip6tables-save",
            KubeProxyMode::Nftables => "nft list ruleset",
        };
        let mut shell = Command::new("sh");
        shell.args(["-c", command]);
        let listing = self.probing.lab().output_on_node(1, shell);
        let listing = listing.map_or_else(|error| format!("{error:#}"), |output| String::from_utf8_lossy(&output.stdout).into_owned());
        let said = self.running.as_ref().map_or_else(|| "kube-proxy does not run".into(), Program::tail);
        format!("programmed:\n{listing}\n{said}")
    }

    fn kube_proxy(&self) -> Option<KubeProxyMode> {
        Some(self.mode)
    }
}
