//! What the loop tells others of itself.

use std::time::SystemTime;

use super::*;
use crate::programmed::ServiceStatus;
use crate::source::Trigger;

impl Rig {
    async fn programmed(&self, service: &str) -> ServiceStatus {
        self.questions.ask(ObjectName::new("default", service)).await.expect("the loop is running")
    }

    /// The value of a line of the metrics, `name{labels}`.
    fn metric(&self, line: &str) -> Option<f64> {
        let text = self.telemetry.metrics.text();
        text.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' ')?.parse().ok())
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_is_programmed_up_to_the_version_that_every_dataplane_has() {
    let rig = Rig::start(2);
    assert_eq!(rig.programmed("dns").await, ServiceStatus::default(), "before the lists");
    rig.say(Event::Version(Kind::Slice, "6".into())).await;
    settle().await;
    assert_eq!(rig.programmed("dns").await.slices_resource_version, None);
    rig.fill().await;
    let answer = rig.programmed("dns").await;
    assert_eq!((answer.known, answer.programmed, answer.slices_resource_version.as_deref()), (true, true, Some("6")));
    assert!(!rig.programmed("nobody").await.programmed);

    rig.kernels[1].with(|k| k.broken = true);
    rig.slice("dns", &["10.1.0.9"]).await;
    rig.say(Event::Version(Kind::Slice, "7".into())).await;
    settle().await;
    let answer = rig.programmed("dns").await;
    assert_eq!((answer.known, answer.programmed, answer.slices_resource_version.as_deref()), (true, false, Some("6")));
    rig.kernels[1].with(|k| k.broken = false);
    pass(RETRY.0).await;
    let answer = rig.programmed("dns").await;
    assert_eq!((answer.programmed, answer.slices_resource_version.as_deref()), (true, Some("7")));
    // A bookmark brings no object.
    rig.say(Event::Version(Kind::Service, "8".into())).await;
    settle().await;
    assert_eq!(rig.programmed("dns").await.services_resource_version.as_deref(), Some("8"));
}

#[tokio::test(start_paused = true)]
async fn what_the_kernel_refuses_of_a_service_is_said_of_it_alone() {
    let rig = Rig::start(1);
    rig.kernels[0].with(|k| k.refuse.insert("services { 10.96.0.2 . tcp . 80 }".into()));
    rig.fill().await;
    let answer = rig.programmed("dns").await;
    assert!(answer.known && !answer.programmed, "{answer:?}");
    assert_eq!(answer.refused, ["fake: services { 10.96.0.2 . tcp . 80 }: made to refuse"]);
    let answer = rig.programmed("web").await;
    assert!(answer.programmed && answer.refused.is_empty(), "{answer:?}");
    assert_eq!(rig.metric("proxy_agent_objects_refused{dataplane=\"fake\"}"), Some(1.0));
    assert!(rig.telemetry.health.is_healthy(), "the others are served");
}

#[tokio::test(start_paused = true)]
async fn health_counts_from_the_oldest_change_that_a_dataplane_lacks() {
    let rig = Rig::start(2);
    rig.fill().await;
    pass(Duration::from_secs(3600)).await;
    assert!(rig.telemetry.health.is_healthy(), "nothing to do");
    rig.kernels[1].with(|k| k.broken = true);
    for n in 0..4 {
        assert!(rig.telemetry.health.is_healthy(), "{n}");
        rig.slice("dns", &[&format!("10.1.0.{}", 3 + n)]).await;
        settle().await;
        pass(Duration::from_secs(15)).await;
    }
    assert!(!rig.telemetry.health.is_healthy());
    let failures = rig.metric("kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"}");
    assert!(failures.is_some_and(|count| count >= 3.0), "{failures:?}");
    assert_eq!(rig.metric("proxy_agent_dataplane_down{dataplane=\"fake\"}"), Some(1.0));
    assert_eq!(rig.metric("kubeproxy_sync_proxy_rules_endpoint_changes_pending"), Some(4.0));
    rig.kernels[1].with(|k| k.broken = false);
    pass(RETRY.1).await;
    assert!(rig.telemetry.health.is_healthy());
    assert_eq!(rig.metric("kubeproxy_sync_proxy_rules_endpoint_changes_pending"), Some(0.0));
    assert_eq!(rig.metric("kubeproxy_sync_proxy_rules_endpoint_changes_total"), Some(5.0));
    assert_eq!(rig.metric("kubeproxy_sync_proxy_rules_service_changes_total"), Some(2.0));
}

#[tokio::test(start_paused = true)]
async fn network_programming_is_counted_once_for_each_change_since_the_start() {
    let rig = Rig::start(1);
    let count = || rig.metric("kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}");
    rig.fill().await;
    let slice = |address: &str| {
        let object = json!({
            "metadata": {"name": "dns-1", "labels": {"kubernetes.io/service-name": "dns"}},
            "addressType": "IPv4", "ports": [{"name": "", "port": 8080}], "endpoints": [{"addresses": [address]}],
        });
        convert_endpoint_slice(&serde_json::from_value(object).expect("an EndpointSlice"), "node1")
    };
    let now = SystemTime::now();
    let before = now - Duration::from_secs(3600);
    rig.say(Event::Endpoints(slice("10.1.0.3"), Trigger { family: Family::V4, at: before })).await;
    settle().await;
    assert_eq!(count(), None, "changed before the start");
    rig.say(Event::Endpoints(slice("10.1.0.4"), Trigger { family: Family::V4, at: now })).await;
    settle().await;
    assert_eq!(count(), Some(1.0));
    // The same again, as a list after a failure says it.
    rig.say(Event::Endpoints(slice("10.1.0.4"), Trigger { family: Family::V4, at: now })).await;
    settle().await;
    assert_eq!(count(), Some(1.0));
    // What cannot be written has not been programmed.
    rig.kernels[0].with(|k| k.broken = true);
    rig.say(Event::Endpoints(slice("10.1.0.5"), Trigger { family: Family::V4, at: now })).await;
    settle().await;
    assert_eq!(count(), Some(1.0));
    rig.kernels[0].with(|k| k.broken = false);
    pass(RETRY.0).await;
    assert_eq!(count(), Some(2.0));
}

#[tokio::test(start_paused = true)]
async fn followers_learn_of_services_once_they_are_written_and_of_the_surroundings() {
    let rig = Rig::start(1);
    let told = || std::mem::take(&mut *rig.followed.lock().expect("no test panics while it holds the lock"));
    let names = |names: &[&str]| names.iter().map(|name| ObjectName::new("default", *name)).collect::<BTreeSet<_>>();
    rig.fill().await;
    assert_eq!(told(), [names(&["dns", "web"])]);
    rig.kernels[0].with(|k| k.broken = true);
    rig.slice("dns", &["10.1.0.3"]).await;
    rig.slice("web", &["10.1.0.4"]).await;
    settle().await;
    assert_eq!(told(), [] as [BTreeSet<_>; 0], "not written");
    rig.kernels[0].with(|k| k.broken = false);
    pass(RETRY.0).await;
    assert_eq!(told(), [names(&["dns", "web"])]);
    rig.node("10.0.0.1").await;
    settle().await;
    assert_eq!(told(), [names(&[])]);
}
