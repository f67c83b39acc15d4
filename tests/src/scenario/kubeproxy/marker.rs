//! How far kube-proxy has got.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use proxy_core::model::ObjectName;
use serde_json::{Value, json};

use super::cluster::{collection, make_namespace, path};
use crate::controlplane::Api;
use crate::scenario::ObjectKind;

/// A Service that tells how far kube-proxy has got. Services and EndpointSlices reach it in the order in which they were written,
/// each kind by itself, and it programs all that has reached it at once. So it has taken in whatever was written before the marker
/// when connections to the marker's new port (the Service) end at its new backend (the slice): in each family, which are synced
/// one by one.
pub(super) struct Marker {
    step: u16,
}

impl Marker {
    const NAMESPACE: &str = "kube-proxy-marker";
    const ADDRESSES: [&str; 2] = ["10.96.255.1", "fd00:10:96::255:1"];
    /// Two pods that echo on 8080, in turn.
    const BACKENDS: [[&str; 2]; 2] = [["10.1.2.2", "fd00:10:1::2:2"], ["10.1.2.3", "fd00:10:1::2:3"]];

    pub(super) fn new(api: &Api) -> Result<Self> {
        make_namespace(api, Self::NAMESPACE)?;
        let marker = Self { step: 0 };
        for (kind, _, object) in marker.objects() {
            let path = collection(kind, Self::NAMESPACE);
            api.request("POST", &path, Some(&object))?.accepted(&path)?;
        }
        Ok(marker)
    }

    /// Writes its next state. Returns where it is served and by whom, in each family.
    pub(super) fn write(&mut self, api: &Api) -> Result<([SocketAddr; 2], [IpAddr; 2])> {
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
