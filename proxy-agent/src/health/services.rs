//! The ports on which load balancers ask whether this node has endpoints of a Service (HC-07..12): a server for each Service that
//! wants one, in each family that it is served in.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proxy_core::forward::Forwarding;
use proxy_core::model::{Family, ObjectName};
use proxy_core::surroundings::NodePortScope;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::Health;
use crate::agent::Follower;
use crate::http::{Answer, Asked, Site, listen_on, serve};
use crate::recorder::{Recorder, Severity};

/// A port that another Service has just given up may be taken for a moment: how often that is waited for, and how long.
const SOON: (u32, Duration) = (4, Duration::from_millis(100));
/// How often it is tried again afterwards.
const LATER: Duration = Duration::from_secs(5);

/// All servers there are.
pub struct ServiceHealth {
    health: Arc<Health>,
    recorder: Recorder,
    servers: HashMap<(ObjectName, Family), Server>,
    /// With the surroundings as they were at this epoch.
    epoch: Option<u64>,
}

/// One server; it ends when this is dropped.
struct Server {
    port: u16,
    addresses: BTreeSet<IpAddr>,
    count: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ServiceHealth {
    /// None yet.
    pub fn new(health: Arc<Health>, recorder: Recorder) -> Self {
        Self { health, recorder, servers: HashMap::new(), epoch: None }
    }

    fn update(&mut self, forwarding: &Forwarding, name: &ObjectName, family: Family) {
        let key = (name.clone(), family);
        let check = forwarding.health_check(name);
        let wanted = check.and_then(|check| Some((check.port, check.of(family)?)));
        let Some((port, count)) = wanted else {
            if self.servers.remove(&key).is_some() {
                info!("service {name}: no health checks are answered in {family} any more");
            }
            return;
        };
        let addresses = addresses(forwarding, family);
        match self.servers.get(&key) {
            Some(server) if server.port == port && server.addresses == addresses => server.count.store(count, Ordering::Relaxed),
            _ => {
                self.servers.remove(&key);
                let server = self.open(name, port, addresses, count);
                self.servers.insert(key, server);
            }
        }
    }

    fn open(&self, name: &ObjectName, port: u16, addresses: BTreeSet<IpAddr>, count: usize) -> Server {
        let count = Arc::new(AtomicUsize::new(count));
        let site = Arc::new(ServiceSite { name: name.clone(), count: Arc::clone(&count), health: Arc::clone(&self.health) });
        let places: Vec<SocketAddr> = addresses.iter().map(|ip| SocketAddr::new(*ip, port)).collect();
        let task = tokio::spawn(run(places, site, self.recorder.clone()));
        Server { port, addresses, count, task }
    }
}

impl Follower for ServiceHealth {
    fn follow(&mut self, forwarding: &Forwarding, services: &BTreeSet<ObjectName>) {
        let mut services: BTreeSet<ObjectName> = services.clone();
        if self.epoch.replace(forwarding.epoch()) != Some(forwarding.epoch()) {
            // W-14: the node's addresses may be others.
            services.extend(self.servers.keys().map(|(name, _)| name.clone()));
        }
        // A port may pass from one Service to another: first those that close.
        let (opening, closing): (Vec<_>, Vec<_>) = services.iter().partition(|name| forwarding.health_check(name).is_some());
        for name in closing.into_iter().chain(opening) {
            for family in Family::ALL {
                self.update(forwarding, name, family);
            }
        }
    }
}

/// HC-11: where NodePorts are served.
fn addresses(forwarding: &Forwarding, family: Family) -> BTreeSet<IpAddr> {
    match forwarding.surroundings().node_ports(family) {
        NodePortScope::Any => [family.unspecified()].into(),
        NodePortScope::These(addresses) => addresses,
    }
}

/// HC-12
async fn run(places: Vec<SocketAddr>, site: Arc<ServiceSite>, recorder: Recorder) {
    let mut said = None;
    for tries in 1.. {
        let listeners: std::io::Result<Vec<TcpListener>> = places.iter().map(|place| listen_on(*place)).collect();
        match listeners {
            Ok(listeners) => {
                info!("service {}: health checks are answered at {}", site.name, listed(&places));
                return serve(listeners, site).await;
            }
            Err(_) if tries < SOON.0 => tokio::time::sleep(SOON.1).await,
            Err(error) => {
                let text = format!("health checks cannot be answered at {}: {error}", listed(&places));
                if said.as_ref() != Some(&text) {
                    warn!("service {}: {text}; end what listens there, it is tried again every {LATER:?}", site.name);
                    recorder.service(&site.name, Severity::Warning, "FailedToStartServiceHealthcheck", &text);
                    said = Some(text);
                }
                tokio::time::sleep(LATER).await;
            }
        }
    }
}

fn listed(places: &[SocketAddr]) -> String {
    places.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ")
}

/// What one server says.
struct ServiceSite {
    name: ObjectName,
    /// Ready endpoints on this node.
    count: Arc<AtomicUsize>,
    health: Arc<Health>,
}

impl Site for ServiceSite {
    /// HC-07: whatever is asked.
    async fn answer(&self, _: Asked) -> Answer {
        let (count, healthy) = (self.count.load(Ordering::Relaxed), self.health.is_healthy());
        let status = if count > 0 && healthy { 200 } else { 503 };
        Answer::json(status, body(&self.name, count, healthy)).with("x-load-balancing-endpoint-weight", count)
    }
}

/// HC-10, byte for byte as kube-proxy writes it.
fn body(ObjectName { namespace, name }: &ObjectName, count: usize, healthy: bool) -> String {
    format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\"localEndpoints\": {count},\n\
         \t\"serviceProxyHealthy\": {healthy}\n}}"
    )
}
