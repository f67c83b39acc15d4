//! The loop over a kernel of maps that can be told to refuse, in virtual time.

mod told;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex};

use proxy_core::input::{convert_endpoint_slice, convert_node, convert_service, convert_service_cidr, object};
use proxy_core::lower::nft::{Key, Nft, Value};
use proxy_core::lower::{ObjectsOf, StepOf};
use proxy_core::model::{Change, Family};
use proxy_core::settings::NodePortAddresses;
use serde_json::json;
use tokio::sync::mpsc::{Sender, channel};

use super::*;
use crate::dataplane::{Dataplane, Disturbance, DisturbanceOf, MOST_KNOWN, Refused};
use crate::programmer::Programmed;

/// What the fake kernel holds and has been asked to do.
#[derive(Default)]
struct Kernel {
    objects: BTreeMap<Key, Value>,
    /// Keys (as text) that are refused.
    refuse: BTreeSet<String>,
    /// Every call fails.
    broken: bool,
    observed: usize,
    commits: Vec<Vec<StepOf<Nft>>>,
    /// Somebody else has changed something.
    disturbance: Option<DisturbanceOf<Nft>>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Kernel>>);

impl Fake {
    fn with<T>(&self, f: impl FnOnce(&mut Kernel) -> T) -> T {
        f(&mut self.0.lock().expect("no test panics while it holds the lock"))
    }

    fn written(&self) -> BTreeSet<String> {
        self.with(|k| k.objects.keys().map(ToString::to_string).collect())
    }
}

impl Dataplane for Fake {
    type L = Nft;

    fn observe(&mut self) -> anyhow::Result<ObjectsOf<Nft>> {
        self.with(|k| {
            k.observed += 1;
            anyhow::ensure!(!k.broken, "made to fail");
            Ok(k.objects.clone())
        })
    }

    fn commit(&mut self, steps: &[StepOf<Nft>]) -> anyhow::Result<Refused<Nft>> {
        self.with(|k| {
            anyhow::ensure!(!k.broken, "made to fail");
            k.commits.push(steps.to_vec());
            let mut refused = Refused::<Nft>::new();
            for step in steps {
                if k.refuse.contains(&step.key().to_string()) {
                    refused.insert(*step.key(), "made to refuse".into());
                    continue;
                }
                assert!(step.apply(&mut k.objects), "{step}: the kernel holds something else");
            }
            Ok(refused)
        })
    }

    fn disturbance(&mut self) -> Option<DisturbanceOf<Nft>> {
        self.with(|k| k.disturbance.take())
    }

    fn remove(&mut self) -> anyhow::Result<()> {
        self.with(|k| k.objects.clear());
        Ok(())
    }
}

/// A running loop over fake kernels.
struct Rig {
    events: Sender<Event>,
    kernels: Vec<Fake>,
    alarm: Alarm,
    telemetry: Telemetry,
    questions: Questions,
    followed: Arc<Mutex<Vec<BTreeSet<ObjectName>>>>,
}

/// Remembers what it was told.
struct Follows(Arc<Mutex<Vec<BTreeSet<ObjectName>>>>);

impl Follower for Follows {
    fn follow(&mut self, _: &Forwarding, services: &BTreeSet<ObjectName>) {
        self.0.lock().expect("no test panics while it holds the lock").push(services.clone());
    }
}

impl Rig {
    fn start(count: usize) -> Self {
        Self::paced(count, Duration::ZERO)
    }

    /// With so much time between syncs.
    fn paced(count: usize, least: Duration) -> Self {
        let kernels: Vec<Fake> = (0..count).map(|_| Fake::default()).collect();
        let settings = Settings { node: "node1".into(), node_ports: NodePortAddresses::parse([]).expect("valid"), ..Settings::default() };
        let programmers = kernels
            .iter()
            .map(|kernel| Box::new(Programmed::new("fake", kernel.clone(), Nft::new(Family::V4, &settings))) as Box<dyn Programmer>);
        let (events, receiver) = channel(64);
        let alarm = Alarm::default();
        let telemetry = Telemetry::new(Duration::from_secs(60), false).0;
        let mut agent = Agent::new(settings.clone(), programmers.collect(), Arc::clone(&alarm), telemetry.clone());
        agent.paced(least);
        let (questions, asked) = Questions::new();
        agent.asked_by(asked);
        let followed = Arc::default();
        agent.followed_by(Follows(Arc::clone(&followed)));
        tokio::spawn(agent.run(receiver));
        Self { events, kernels, alarm, telemetry, questions, followed }
    }

    /// Somebody else changes what the first kernel holds.
    async fn disturb(&self, change: impl FnOnce(&mut BTreeMap<Key, Value>)) {
        self.kernels[0].with(|k| {
            change(&mut k.objects);
            (k.disturbance, k.commits) = (Some(by_nft(None)), Vec::new());
        });
        self.alarm.notify_one();
        settle().await;
    }

    /// How often something was repaired, and how many objects.
    fn repairs(&self) -> [u64; 2] {
        self.telemetry.metrics.dataplanes.repairs()
    }

    /// What the first kernel was asked to write since then.
    fn steps(&self) -> Vec<String> {
        self.kernels[0].with(|k| k.commits.concat().iter().map(ToString::to_string).collect())
    }

    async fn say(&self, event: Event) {
        self.events.send(event).await.expect("the loop is running");
    }

    async fn service(&self, name: &str, ip: &str) {
        let object = json!({"metadata": {"name": name}, "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
        let object: object::Service = serde_json::from_value(object).expect("a Service");
        self.say(Event::Object(convert_service(&object))).await;
    }

    async fn slice(&self, service: &str, addresses: &[&str]) {
        let endpoints: Vec<_> = addresses.iter().map(|a| json!({"addresses": [a]})).collect();
        let object = json!({
            "metadata": {"name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": endpoints,
        });
        let object: object::EndpointSlice = serde_json::from_value(object).expect("an EndpointSlice");
        self.say(Event::Object(convert_endpoint_slice(&object, "node1"))).await;
    }

    async fn listed(&self, kind: Kind, names: &[&str]) {
        self.say(Event::Listed(kind, names.iter().map(|n| ObjectName::new("default", *n)).collect::<HashSet<_>>())).await;
    }

    /// What the agent's own Node is.
    async fn node(&self, ip: &str) {
        let object = json!({"metadata": {"name": "node1"}, "status": {"addresses": [{"type": "InternalIP", "address": ip}]}});
        self.say(Event::Object(convert_node(&serde_json::from_value(object).expect("a Node")))).await;
    }

    /// The addresses that the host has.
    async fn host(&self, ips: &[&str]) {
        let ips = ips.iter().map(|ip| ip.parse().expect("an address")).collect();
        self.say(Event::Object(Converted { change: Some(Change::HostAddresses(ips)), problems: Vec::new() })).await;
    }

    async fn service_cidr(&self, cidr: &str) {
        let object = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": [cidr]}});
        self.say(Event::Object(convert_service_cidr(&serde_json::from_value(object).expect("a ServiceCIDR")))).await;
    }

    /// Two Services, the second with two backends, and both lists.
    async fn fill(&self) {
        self.service("web", "10.96.0.1").await;
        self.service("dns", "10.96.0.2").await;
        self.slice("dns", &["10.1.0.1", "10.1.0.2"]).await;
        self.listed(Kind::Service, &["web", "dns"]).await;
        self.listed(Kind::Slice, &["dns-1"]).await;
        settle().await;
    }
}

/// Lets the loop take in all that was said, without letting time pass that it does not wait for.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

async fn pass(time: Duration) {
    tokio::time::advance(time).await;
    settle().await;
}

const FULL: [&str; 10] = [
    "base",
    "cluster-ips { 10.96.0.1 }",
    "cluster-ips { 10.96.0.2 }",
    "endpoints { 10.1.0.1 . tcp . 8080 }",
    "endpoints { 10.1.0.2 . tcp . 8080 }",
    "pick-2",
    "refused { 10.96.0.1 . tcp . 80 }",
    "services { 10.96.0.2 . tcp . 80 }",
    "slots { 10.96.0.2 . tcp . 80 . 0 }",
    "slots { 10.96.0.2 . tcp . 80 . 1 }",
];

fn full() -> BTreeSet<String> {
    FULL.iter().map(ToString::to_string).collect()
}

#[tokio::test(start_paused = true)]
async fn nothing_is_read_or_written_before_both_lists_are_complete() {
    let rig = Rig::start(1);
    rig.service("web", "10.96.0.1").await;
    rig.listed(Kind::Service, &["web"]).await;
    rig.slice("web", &["10.1.0.1"]).await;
    settle().await;
    pass(Duration::from_secs(3600)).await;
    assert_eq!(rig.kernels[0].with(|k| (k.observed, k.commits.len())), (0, 0));
    rig.listed(Kind::Slice, &["web-1"]).await;
    settle().await;
    assert_eq!(rig.kernels[0].with(|k| (k.observed, k.commits.len())), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_around_the_services_is_not_waited_for_and_begins_nothing() {
    let rig = Rig::start(1);
    rig.node("10.0.0.1").await;
    rig.listed(Kind::Node, &["node1"]).await;
    rig.listed(Kind::ServiceCidr, &[]).await;
    rig.listed(Kind::Service, &[]).await;
    settle().await;
    assert_eq!(rig.kernels[0].with(|k| (k.observed, k.commits.len())), (0, 0));
    rig.listed(Kind::Slice, &[]).await;
    settle().await;
    assert_eq!(rig.kernels[0].written(), BTreeSet::from(["base".to_owned()]));

    let other = Rig::start(1);
    other.fill().await;
    assert_eq!(other.kernels[0].written(), full(), "without any of it");
}

#[tokio::test(start_paused = true)]
async fn a_change_of_what_is_around_the_services_is_written_though_it_touches_none() {
    let rig = Rig::start(1);
    rig.host(&["127.0.0.1", "10.0.0.1", "10.0.0.7"]).await;
    rig.fill().await;
    let with = |more: &[&str]| full().into_iter().chain(more.iter().map(ToString::to_string)).collect::<BTreeSet<_>>();
    assert_eq!(rig.kernels[0].written(), with(&["node-addresses { 10.0.0.1 }"]), "the first, as long as no Node is known");
    rig.node("10.0.0.7").await;
    settle().await;
    assert_eq!(rig.kernels[0].written(), with(&["node-addresses { 10.0.0.7 }"]));
    rig.host(&["127.0.0.1", "10.0.0.1"]).await;
    settle().await;
    assert_eq!(rig.kernels[0].written(), full());
    rig.host(&["127.0.0.1", "10.0.0.1", "10.0.0.7"]).await;
    rig.service_cidr("10.96.0.0/16").await;
    settle().await;
    assert_eq!(rig.kernels[0].written(), with(&["node-addresses { 10.0.0.7 }", "service-cidrs { 10.96.0.0/16 }"]));
    let commits = rig.kernels[0].with(|k| k.commits.len());
    rig.host(&["127.0.0.1", "10.0.0.7"]).await;
    rig.service_cidr("10.96.0.0/16").await;
    settle().await;
    assert_eq!(rig.kernels[0].with(|k| k.commits[commits..].concat()), [], "an address that serves nothing went");
    rig.listed(Kind::ServiceCidr, &[]).await;
    rig.listed(Kind::Node, &[]).await;
    settle().await;
    assert_eq!(rig.kernels[0].written(), with(&["node-addresses { 10.0.0.7 }"]));
}

#[tokio::test(start_paused = true)]
async fn an_update_of_one_slice_writes_only_objects_of_its_service() {
    let rig = Rig::start(1);
    rig.fill().await;
    assert_eq!(rig.kernels[0].written(), full());
    rig.kernels[0].with(|k| k.commits.clear());
    rig.slice("dns", &["10.1.0.1", "10.1.0.9"]).await;
    settle().await;
    let steps = rig.kernels[0].with(|k| std::mem::take(&mut k.commits));
    let keys: Vec<String> = steps.iter().flatten().map(|step| step.key().to_string()).collect();
    let wanted = ["endpoints { 10.1.0.9 . tcp . 8080 }", "slots { 10.96.0.2 . tcp . 80 . 1 }", "endpoints { 10.1.0.2 . tcp . 8080 }"];
    assert_eq!(keys, wanted, "{steps:?}");
    // The same again, as a resync brings it: nothing at all.
    rig.slice("dns", &["10.1.0.9", "10.1.0.1"]).await;
    settle().await;
    assert_eq!(rig.kernels[0].with(|k| k.commits.concat()), []);
}

#[tokio::test(start_paused = true)]
async fn what_a_complete_list_does_not_name_is_gone() {
    let rig = Rig::start(1);
    rig.fill().await;
    rig.listed(Kind::Service, &["web"]).await;
    settle().await;
    assert!(!rig.kernels[0].written().contains("services { 10.96.0.2 . tcp . 80 }"));
    assert!(rig.kernels[0].written().contains("refused { 10.96.0.1 . tcp . 80 }"));
}

#[tokio::test(start_paused = true)]
async fn slots_out_of_use_go_once_packets_on_their_way_have_passed() {
    let rig = Rig::start(1);
    rig.fill().await;
    let hole = "slots { 10.96.0.2 . tcp . 80 . 1 }".to_string();
    rig.slice("dns", &["10.1.0.1"]).await;
    settle().await;
    assert!(rig.kernels[0].written().contains(&hole), "it lingers");
    pass(SWEEP_AFTER).await;
    assert!(!rig.kernels[0].written().contains(&hole), "it is swept");
    assert!(!rig.kernels[0].written().contains("pick-2"));
    // Out of use and in use again before its time: it stays.
    rig.slice("dns", &["10.1.0.1", "10.1.0.2"]).await;
    settle().await;
    rig.slice("dns", &["10.1.0.1"]).await;
    settle().await;
    rig.slice("dns", &["10.1.0.1", "10.1.0.2"]).await;
    settle().await;
    pass(SWEEP_AFTER * 5).await;
    assert!(rig.kernels[0].written().contains(&hole));
}

#[tokio::test(start_paused = true)]
async fn a_refused_object_stops_no_other_and_is_tried_again() {
    let rig = Rig::start(1);
    let refused = "services { 10.96.0.2 . tcp . 80 }".to_string();
    rig.kernels[0].with(|k| k.refuse.insert(refused.clone()));
    rig.fill().await;
    let mut others = full();
    others.remove(&refused);
    assert_eq!(rig.kernels[0].written(), others);
    pass(RETRY.0).await;
    assert_eq!(rig.kernels[0].with(|k| k.commits.last().map(Vec::len)), Some(1), "only the refused one is tried again");
    rig.kernels[0].with(|k| k.refuse.clear());
    let before = rig.kernels[0].with(|k| k.commits.len());
    pass(RETRY.0).await;
    assert_eq!(rig.kernels[0].with(|k| k.commits.len()), before, "the pause has doubled");
    pass(RETRY.0).await;
    assert_eq!(rig.kernels[0].written(), full());
    let settled = rig.kernels[0].with(|k| k.commits.len());
    pass(RETRY.1 * 3).await;
    assert_eq!(rig.kernels[0].with(|k| k.commits.len()), settled, "nothing is left to try");
}

#[tokio::test(start_paused = true)]
async fn a_refused_object_that_nobody_wants_any_more_is_forgotten() {
    let rig = Rig::start(1);
    rig.kernels[0].with(|k| k.refuse.insert("refused { 10.96.0.1 . tcp . 80 }".into()));
    rig.fill().await;
    rig.listed(Kind::Service, &["dns"]).await;
    settle().await;
    let before = rig.kernels[0].with(|k| k.commits.len());
    pass(RETRY.1 * 10).await;
    assert!(rig.kernels[0].with(|k| k.commits[before..].iter().all(Vec::is_empty)));
    let quiet = rig.kernels[0].with(|k| k.commits.len());
    pass(RETRY.1 * 10).await;
    assert_eq!(rig.kernels[0].with(|k| k.commits.len()), quiet, "it is not tried for ever");
}

#[tokio::test(start_paused = true)]
async fn a_dataplane_that_fails_starts_over_and_holds_up_no_other() {
    let rig = Rig::start(2);
    rig.kernels[0].with(|k| k.broken = true);
    rig.fill().await;
    assert_eq!(rig.kernels[1].written(), full());
    assert_eq!(rig.kernels[0].written(), BTreeSet::new());
    rig.slice("dns", &["10.1.0.1"]).await;
    settle().await;
    assert_eq!(rig.kernels[0].with(|k| k.observed), 1, "it is left alone until its time");
    rig.slice("dns", &["10.1.0.1", "10.1.0.2"]).await;
    rig.kernels[0].with(|k| k.broken = false);
    pass(RETRY.0).await;
    assert_eq!(rig.kernels[0].written(), full());
    // Fails in the middle of its life: reads back, and writes only what differs.
    rig.kernels[0].with(|k| k.broken = true);
    rig.service("new", "10.96.0.3").await;
    settle().await;
    rig.kernels[0].with(|k| (k.broken, k.commits) = (false, Vec::new()));
    pass(RETRY.1).await;
    let keys = rig.kernels[0].with(|k| k.commits.concat().iter().map(|s| s.key().to_string()).collect::<Vec<_>>());
    assert_eq!(keys, ["refused { 10.96.0.3 . tcp . 80 }", "cluster-ips { 10.96.0.3 }"]);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_broke_is_repaired_and_nothing_else() {
    let rig = Rig::start(2);
    rig.disturb(|_| ()).await;
    assert_eq!(rig.kernels[0].with(|k| k.observed), 0, "before the first sync there is nothing to repair");
    rig.fill().await;
    rig.slice("dns", &["10.1.0.1"]).await;
    settle().await;
    let stray: Key = Key::Refused("10.96.7.7:80".parse::<std::net::SocketAddr>().map(frontend).expect("an address"));
    rig.disturb(|objects| {
        objects.retain(|key, _| key.to_string() != "services { 10.96.0.2 . tcp . 80 }");
        objects.insert(stray, Value::Label("".into()));
    })
    .await;
    assert_eq!(rig.steps(), ["+ services { 10.96.0.2 . tcp . 80 } = pick-1 (default/dns)", "- refused { 10.96.7.7 . tcp . 80 } (was ())"]);
    assert_eq!(rig.repairs(), [1, 2]);
    assert_eq!(rig.kernels[1].with(|k| k.observed), 1, "only the one that was disturbed is read");
    let lingering = "slots { 10.96.0.2 . tcp . 80 . 1 }".to_owned();
    assert!(rig.kernels[0].written().contains(&lingering), "what lingers does so for its full time");
    pass(SWEEP_AFTER).await;
    assert!(!rig.kernels[0].written().contains(&lingering));
    // Nothing is broken.
    pass(Duration::from_secs(60)).await;
    rig.disturb(|_| ()).await;
    assert_eq!((rig.steps(), rig.repairs()), (Vec::new(), [1, 2]));
    // All is gone.
    pass(Duration::from_secs(60)).await;
    let before = rig.kernels[0].written();
    rig.disturb(BTreeMap::clear).await;
    assert_eq!((rig.kernels[0].written(), rig.repairs()), (before.clone(), [2, 2 + before.len() as u64]));
}

#[tokio::test(start_paused = true)]
async fn somebody_who_keeps_on_is_repaired_less_and_less_often() {
    let rig = Rig::start(1);
    rig.fill().await;
    let mut looks = Vec::new();
    let start = Instant::now();
    for _ in 0..1000 {
        let before = rig.kernels[0].with(|k| k.observed);
        rig.disturb(|objects| drop(objects.pop_last())).await;
        pass(Duration::from_millis(100)).await;
        if rig.kernels[0].with(|k| k.observed) > before {
            looks.push(start.elapsed().as_millis() / 100);
        }
    }
    // The first is at once, and seen a tenth of a second later.
    assert_eq!(looks, [1, 10, 30, 70, 150, 310, 610, 910]);
    // Once he has stopped, the last of it is repaired, and the next one at once.
    pass(Duration::from_secs(60)).await;
    assert_eq!(rig.kernels[0].written(), full());
    pass(Duration::from_secs(60)).await;
    rig.disturb(|objects| drop(objects.pop_last())).await;
    assert_eq!(rig.kernels[0].written(), full());
}

#[tokio::test(start_paused = true)]
async fn a_table_that_is_gone_is_repaired_before_the_next_try() {
    let rig = Rig::start(1);
    rig.fill().await;
    rig.kernels[0].with(|k| (k.broken, k.objects) = (true, BTreeMap::new()));
    rig.slice("dns", &["10.1.0.1"]).await;
    settle().await;
    rig.kernels[0].with(|k| k.broken = false);
    rig.disturb(|_| ()).await;
    assert!(rig.kernels[0].written().contains("services { 10.96.0.2 . tcp . 80 }"));
    let observed = rig.kernels[0].with(|k| k.observed);
    pass(RETRY.1).await;
    assert_eq!(rig.kernels[0].with(|k| k.observed), observed, "nothing is left to try");
}

#[tokio::test(start_paused = true)]
async fn what_is_known_to_be_broken_is_repaired_without_reading_all() {
    let rig = Rig::start(1);
    rig.fill().await;
    let of = |text: &str| rig.kernels[0].with(|k| k.objects.keys().find(|key| key.to_string() == text).copied()).expect("a key");
    let (gone, same) = (of("slots { 10.96.0.2 . tcp . 80 . 1 }"), of("slots { 10.96.0.2 . tcp . 80 . 0 }"));
    rig.kernels[0].with(|k| {
        k.objects.remove(&gone);
        let objects = [(gone, None), (same, k.objects.get(&same).cloned())].into();
        (k.disturbance, k.commits) = (Some(by_nft(Some(objects))), Vec::new());
    });
    rig.alarm.notify_one();
    settle().await;
    assert_eq!(rig.steps(), ["+ slots { 10.96.0.2 . tcp . 80 . 1 } = 10.1.0.2 . 8080"]);
    assert_eq!((rig.kernels[0].with(|k| k.observed), rig.repairs()), (1, [1, 1]));
}

#[test]
fn disturbances_add_up() {
    let key = |port| Key::Refused(frontend(std::net::SocketAddr::from(([10, 96, 0, 1], port))));
    let mut all = by_nft(Some([(key(1), None), (key(2), None)].into()));
    all.merge(by_nft(Some([(key(2), Some(Value::Label("".into())))].into())));
    assert_eq!(all, by_nft(Some([(key(1), None), (key(2), Some(Value::Label("".into())))].into())));
    let mut many = all.clone();
    many.merge(by_nft(Some((0..=MOST_KNOWN as u16).map(|port| (key(port), None)).collect())));
    assert_eq!(many.objects, None, "too many to list");
    all.merge(Disturbance { by: vec!["firewalld (pid 8)".into()], objects: None });
    assert_eq!(all, Disturbance { by: vec!["nft (pid 7)".into(), "firewalld (pid 8)".into()], objects: None });
}

fn by_nft(objects: Option<BTreeMap<Key, Option<Value>>>) -> DisturbanceOf<Nft> {
    Disturbance { by: vec!["nft (pid 7)".into()], objects }
}

fn frontend(at: std::net::SocketAddr) -> proxy_core::model::Frontend {
    proxy_core::model::Frontend { ip: at.ip(), port: at.port(), protocol: proxy_core::model::Protocol::Tcp }
}

#[test]
fn a_problem_is_said_once_for_as_long_as_it_stays() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || Lines(writer.clone())).finish();
    let bad = json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.96.0.1.9", "ports": [{"port": 80}]}});
    let bad = convert_service(&serde_json::from_value(bad).expect("a Service"));
    let good = json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}});
    let good = convert_service(&serde_json::from_value(good).expect("a Service"));
    tracing::subscriber::with_default(subscriber, || {
        let mut reporter = Reporter::new("node1", Telemetry::new(Duration::from_secs(60), false).0.recorder);
        for converted in [&bad, &bad, &good, &good, &bad] {
            reporter.report(converted.change.as_ref(), converted.problems.clone());
        }
    });
    let text = String::from_utf8(log.lock().expect("not poisoned").clone()).expect("text");
    let said = |what: &str| text.lines().filter(|line| line.contains(what)).count();
    assert_eq!(said("service default/web: spec.clusterIP: \"10.96.0.1.9\" is not an IP address"), 2, "{text}");
    assert_eq!(said("service default/web: can be used in full again"), 1, "{text}");
}

#[test]
fn problems_of_what_is_around_the_services_are_said_and_unsaid() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || Lines(writer.clone())).finish();
    let node = |cidr: &str| {
        let object = json!({"metadata": {"name": "node1"}, "spec": {"podCIDRs": [cidr]}});
        convert_node(&serde_json::from_value(object).expect("a Node"))
    };
    let ranges = |cidr: &str| {
        let object = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": [cidr]}});
        convert_service_cidr(&serde_json::from_value(object).expect("a ServiceCIDR"))
    };
    tracing::subscriber::with_default(subscriber, || {
        let mut reporter = Reporter::new("node1", Telemetry::new(Duration::from_secs(60), false).0.recorder);
        for converted in [node("10.1.0.0"), ranges("10.96"), node("10.1.0.0/24"), ranges("10.96.0.0/16")] {
            reporter.report(converted.change.as_ref(), converted.problems);
        }
    });
    let text = String::from_utf8(log.lock().expect("not poisoned").clone()).expect("text");
    for object in ["node node1", "servicecidr kubernetes"] {
        let said: Vec<&str> = text.lines().filter(|line| line.contains(object)).collect();
        assert!(
            matches!(said[..], [wrong, right] if wrong.contains("is not a range") && right.contains("can be used in full again")),
            "{text}"
        );
    }
}

/// SYNC-03
#[tokio::test(start_paused = true)]
async fn changes_wait_for_their_time_together_and_not_longer_than_to_the_end() {
    let rig = Rig::paced(1, Duration::from_secs(10));
    rig.fill().await;
    assert_eq!(rig.kernels[0].written(), full(), "the first sync waits for nothing");
    rig.kernels[0].with(|k| k.commits.clear());
    for ip in ["10.96.0.3", "10.96.0.4"] {
        rig.service(ip, ip).await;
        settle().await;
    }
    assert_eq!(rig.kernels[0].with(|k| k.commits.len()), 0, "before the time");
    pass(Duration::from_secs(10)).await;
    assert_eq!(rig.kernels[0].with(|k| k.commits.len()), 1, "both at once");
    rig.service("last", "10.96.0.5").await;
    settle().await;
    let kernel = rig.kernels[0].clone();
    drop(rig);
    settle().await;
    assert!(kernel.written().contains("refused { 10.96.0.5 . tcp . 80 }"), "{:#?}", kernel.written());
}

/// Collects log lines.
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("not poisoned").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
