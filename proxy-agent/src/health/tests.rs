//! In virtual time.

use anyhow::{Context, Result};
use hyper::Method;
use serde_json::Value;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(60);

fn site() -> HealthSite {
    HealthSite { health: Arc::new(Health::new(TIMEOUT, false)), metrics: Arc::default() }
}

async fn ask(site: &HealthSite, path: &str) -> Result<(u16, Value)> {
    let asked = Asked { method: Method::GET, path: path.into(), query: String::new(), body: String::new() };
    let answer = site.answer(asked).await;
    let text = std::str::from_utf8(&answer.body)?;
    Ok((answer.status, serde_json::from_str(text).with_context(|| text.to_owned())?))
}

fn node(is_leaving: bool) -> Node {
    Node { is_leaving, ..Node::default() }
}

#[tokio::test(start_paused = true)]
async fn a_family_whose_change_waits_for_too_long_is_not_healthy_until_it_is_written() -> Result<()> {
    let site = site();
    site.health.node(Some(&node(false)));
    assert_eq!(ask(&site, "/healthz").await?.0, 200, "it starts");
    site.health.waits(Family::V6);
    tokio::time::advance(Duration::from_secs(40)).await;
    // Later ones do not put the time off.
    site.health.waits(Family::V6);
    tokio::time::advance(Duration::from_secs(19)).await;
    assert_eq!(ask(&site, "/healthz").await?.0, 200, "in time");
    tokio::time::advance(Duration::from_secs(1)).await;
    for path in ["/healthz", "/livez"] {
        let (status, body) = ask(&site, path).await?;
        assert_eq!(status, 503, "{path}");
        assert_eq!(body["healthy"], false, "{body}");
        assert_eq!((&body["status"]["IPv4"]["healthy"], &body["status"]["IPv6"]["healthy"]), (&true.into(), &false.into()), "{body}");
    }
    assert!(!site.health.is_healthy());
    site.health.synced(Family::V6);
    assert_eq!(ask(&site, "/healthz").await?.0, 200, "written");
    // Nothing to do is no illness.
    tokio::time::advance(TIMEOUT * 100).await;
    assert_eq!(ask(&site, "/livez").await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn a_node_that_goes_or_is_not_known_counts_for_load_balancers_alone() -> Result<()> {
    let site = site();
    for (node, eligible) in [(None, false), (Some(node(false)), true), (Some(node(true)), false), (None, false)] {
        site.health.node(node.as_ref());
        let (status, body) = ask(&site, "/healthz").await?;
        assert_eq!(status, if eligible { 200 } else { 503 }, "{node:?}");
        assert_eq!((&body["nodeEligible"], &body["healthy"]), (&eligible.into(), &true.into()), "{body}");
        let (status, body) = ask(&site, "/livez").await?;
        assert_eq!((status, body.get("nodeEligible")), (200, None), "{body}");
        assert!(site.health.is_healthy());
    }
    let without = Health::new(TIMEOUT, true);
    without.node(None);
    assert!(without.report(true).0, "files name no Node");
    without.node(Some(&node(true)));
    assert!(!without.report(true).0);
    Ok(())
}

#[tokio::test]
async fn the_body_has_kube_proxys_fields_in_its_order_and_times_in_utc() -> Result<()> {
    let site = site();
    site.health.node(Some(&node(false)));
    let asked = Asked { method: Method::GET, path: "/healthz".into(), query: String::new(), body: String::new() };
    let answer = site.answer(asked).await;
    let text = String::from_utf8(answer.body.to_vec())?;
    let time = |text: &str| text.ends_with('Z') && text.parse::<jiff::Timestamp>().is_ok();
    let body: Value = serde_json::from_str(&text)?;
    assert!(["lastUpdated", "currentTime"].iter().all(|key| body[key].as_str().is_some_and(time)), "{text}");
    assert!(body["status"]["IPv4"]["lastUpdated"].as_str().is_some_and(time), "{text}");
    let places = ["{\"lastUpdated\":", "\"currentTime\":", "\"nodeEligible\":", "\"healthy\":", "\"status\":{\"IPv4\":{\"lastUpdated\":"];
    let places: Vec<Option<usize>> = places.iter().map(|key| text.find(key)).collect();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{places:?} in {text}");
    // HC-05: now where all is well, else when something was last written.
    assert_eq!(body["lastUpdated"], body["currentTime"], "{text}");
    site.health.node(None);
    let (_, body) = ask(&site, "/healthz").await?;
    assert_eq!(body["lastUpdated"], body["status"]["IPv4"]["lastUpdated"], "{body}");
    Ok(())
}

#[tokio::test]
async fn answers_are_counted_and_other_paths_are_not_there() -> Result<()> {
    let site = site();
    ask(&site, "/healthz").await?;
    ask(&site, "/livez").await?;
    let text = site.metrics.text();
    assert!(text.contains("kubeproxy_proxy_healthz_total{code=\"503\"} 1\n"), "{text}");
    assert!(text.contains("kubeproxy_proxy_livez_total{code=\"200\"} 1\n"), "{text}");
    for path in ["/", "/healthz/", "/metrics"] {
        let asked = Asked { method: Method::GET, path: path.into(), query: String::new(), body: String::new() };
        assert_eq!(site.answer(asked).await.status, 404, "{path}");
    }
    Ok(())
}
