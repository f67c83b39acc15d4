//! What a scrape gets, and that documentation has all of it.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use hyper::Method;
use proxy_core::ledger::Step;
use proxy_core::model::Family;
use serde_json::json;

use super::*;
use crate::http::{Asked, Site};
use crate::programmed::{Questions, ServiceStatus};

/// docs/operations.md
const DOCS: &str = include_str!("../../../docs/operations.md");

/// The row of a metric in the documentation.
fn row(Entry { name, kind, labels, help }: &Entry) -> String {
    let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
    format!("| `{name}` | {kind} | {labels} | {help} |")
}

#[test]
fn every_metric_is_documented_and_nothing_else_is() {
    let there: BTreeSet<String> = Metrics::default().entries().iter().map(row).collect();
    let is_metric = |line: &&str| ["counter", "gauge", "histogram"].iter().any(|kind| line.contains(&format!("` | {kind} | ")));
    let documented: BTreeSet<String> = DOCS.lines().filter(is_metric).map(str::to_owned).collect();
    let missing: Vec<_> = there.difference(&documented).collect();
    let too_many: Vec<_> = documented.difference(&there).collect();
    assert!(missing.is_empty() && too_many.is_empty(), "docs/operations.md lacks {missing:#?}\nand has too many: {too_many:#?}");
}

#[test]
fn buckets_are_kube_proxys() {
    let metrics = Metrics::default();
    metrics.syncs.took(Family::V4, Duration::from_millis(3), true);
    metrics.syncs.programmed(Family::V6, SystemTime::now() - Duration::from_secs(3600));
    let text = metrics.text();
    let bounds = |name: &str| {
        let of = format!("{name}_bucket{{");
        let lines = text.lines().filter(|line| line.starts_with(&of));
        lines.filter_map(|line| line.split_once("le=\"")?.1.split_once('"').map(|(le, _)| le.to_owned())).collect::<Vec<_>>()
    };
    let full: Vec<String> = bounds("kubeproxy_sync_full_proxy_rules_duration_seconds");
    // Both families, 15 bounds and infinity.
    assert_eq!((full.len(), &*full[0], &*full[14], &*full[15]), (32, "0.001", "16.384", "+Inf"));
    let latency = bounds("kubeproxy_network_programming_duration_seconds");
    assert_eq!(latency.len(), 2 + 59 + 12 + 7 + 1);
    assert_eq!((&*latency[0], &*latency[2], &*latency[61], &*latency[73], &*latency[79]), ("0.25", "1", "60", "120", "300"));
    assert!(text.contains("kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv6\"} 1\n"), "{text}");
}

#[test]
fn objects_are_counted_by_kind_as_they_come_and_go() {
    let metrics = Metrics::default();
    let mut measured = metrics.dataplanes.measured("fake");
    measured.holds(["a", "a", "b"].into_iter());
    measured.did(&Step::Add(1, 1), "a");
    measured.did(&Step::Replace(1, 2, 1), "a");
    measured.did(&Step::Delete(3, 1), "b");
    let text = metrics.text();
    for line in [
        "proxy_agent_objects{dataplane=\"fake\",kind=\"a\"} 3\n",
        "proxy_agent_objects{dataplane=\"fake\",kind=\"b\"} 0\n",
        "proxy_agent_steps_total{dataplane=\"fake\",operation=\"add\"} 1\n",
        "proxy_agent_steps_total{dataplane=\"fake\",operation=\"replace\"} 1\n",
        "proxy_agent_steps_total{dataplane=\"fake\",operation=\"delete\"} 1\n",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    // What the kernel is found to hold replaces what was believed.
    measured.holds(["b"].into_iter());
    let text = metrics.text();
    assert!(text.contains("kind=\"a\"} 0\n") && text.contains("kind=\"b\"} 1\n"), "{text}");
}

#[test]
fn the_process_is_read_from_the_kernel() -> Result<()> {
    let text = Metrics::default().text();
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse::<f64>().ok()).with_context(|| format!("no {name} in {text}"))
    };
    let now = sync::now();
    let start = value("process_start_time_seconds")?;
    assert!(start <= now + 1.0 && start > now - 86_400.0, "started at {start}, and it is {now}");
    let (resident, mapped) = (value("process_resident_memory_bytes")?, value("process_virtual_memory_bytes")?);
    assert!(resident > 1e6 && resident < mapped, "{resident} of {mapped}");
    assert!(value("process_open_fds")? >= 3.0 && value("process_max_fds")? > value("process_open_fds")?);
    assert!(value("process_cpu_seconds_total")? >= 0.0);
    Ok(())
}

fn site(profiling: bool) -> (MetricsSite, crate::programmed::Asked) {
    let (questions, asked) = Questions::new();
    let site = MetricsSite {
        metrics: std::sync::Arc::default(),
        mode: "nftables".into(),
        config: Box::new(|| json!({"kubeproxy.config.k8s.io": {"kind": "KubeProxyConfiguration"}})),
        flags: [("proxy-mode".to_owned(), "nftables".to_owned())].into(),
        profiling,
        questions,
        connections: None,
        started: SystemTime::now() - Duration::from_secs(3725),
    };
    (site, asked)
}

async fn ask(site: &MetricsSite, method: Method, path: &str, body: &str) -> (u16, String) {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let answer = site.answer(Asked { method, path: path.into(), query: query.into(), body: body.into() }).await;
    (answer.status, String::from_utf8_lossy(&answer.body).into_owned())
}

#[tokio::test]
async fn every_page_says_what_it_is_asked_for() {
    let (site, _asked) = site(false);
    let get = |path: &'static str| ask(&site, Method::GET, path, "");
    assert_eq!(get("/proxyMode").await, (200, "nftables".into()));
    assert_eq!(get("/healthz").await, (200, "ok".into()));
    assert_eq!(get("/healthz?verbose").await, (200, "[+]ping ok\nhealthz check passed\n".into()));
    assert_eq!(get("/configz").await, (200, r#"{"kubeproxy.config.k8s.io":{"kind":"KubeProxyConfiguration"}}"#.into()));
    let (status, flags) = get("/flagz").await;
    assert!(status == 200 && flags.contains("\nproxy-mode=nftables\n"), "{flags}");
    let (status, page) = get("/statusz").await;
    assert!(status == 200 && page.contains("Up: 1 hr 02 min 05 sec\n") && page.contains("Mode: nftables\n"), "{page}");
    for path in ["/debug/pprof/", "/debug/flags/v", "/", "/metric"] {
        assert_eq!(get(path).await.0, 404, "{path}");
    }
}

#[tokio::test]
async fn slis_begin_with_the_first_probe_and_can_be_reset() {
    let (site, _asked) = site(false);
    assert_eq!(ask(&site, Method::GET, "/metrics/slis", "").await.1, "");
    for _ in 0..2 {
        ask(&site, Method::GET, "/healthz", "").await;
    }
    let (_, text) = ask(&site, Method::GET, "/metrics/slis", "").await;
    assert!(text.contains("kubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n"), "{text}");
    assert!(text.contains("kubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 2\n"), "{text}");
    ask(&site, Method::DELETE, "/metrics/slis", "").await;
    assert_eq!(ask(&site, Method::GET, "/metrics/slis", "").await.1, "");
}

#[tokio::test]
async fn profiling_is_answered_where_it_is_on() {
    let (site, _asked) = site(true);
    let (status, text) = ask(&site, Method::GET, "/debug/pprof/heap", "").await;
    assert!(status == 501 && text.contains("perf record"), "{text}");
    assert_eq!(ask(&site, Method::GET, "/debug/flags/v", "").await.0, 406);
    // Without a log that has been started, and with nonsense.
    assert_eq!(ask(&site, Method::PUT, "/debug/flags/v", "loud=very").await.0, 400);
    assert_eq!(ask(&site, Method::GET, "/debug/else", "").await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn a_loop_that_is_busy_is_not_waited_for_without_end() {
    let (site, _asked) = site(false);
    let (status, text) = ask(&site, Method::GET, "/programmed?service=a/b", "").await;
    assert!(status == 503 && text.contains("busy"), "{text}");
}

#[tokio::test]
async fn whether_a_service_is_programmed_is_asked_of_the_loop() -> Result<()> {
    let (site, mut asked) = site(false);
    assert_eq!(ask(&site, Method::GET, "/programmed?service=web", "").await.0, 400);
    let answering = tokio::spawn(async move {
        let question = asked.recv().await.context("a question")?;
        let name = question.service().to_string();
        question.answer(ServiceStatus { known: true, slices_resource_version: Some("7".into()), ..ServiceStatus::default() });
        anyhow::Ok(name)
    });
    let (status, text) = ask(&site, Method::GET, "/programmed?service=default%2Fweb", "").await;
    assert_eq!(answering.await??, "default/web");
    let expected = r#"{"known":true,"programmed":false,"services_resource_version":null,"slices_resource_version":"7","refused":[]}"#;
    assert_eq!((status, &*text), (200, expected));
    assert_eq!(ask(&site, Method::GET, "/programmed?service=a/b", "").await.0, 503, "the loop has ended");
    Ok(())
}
