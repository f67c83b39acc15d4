//! Connections of Services, as a scrape shows them: each that was led to an endpoint once, whoever has translated it.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::{DEADLINE, Mode};
use proxy_tests::expect::{self, To};
use proxy_tests::http;
use proxy_tests::lab::{Connect, Proto, Seen, to_v6_socket};
use proxy_tests::manifest::{service, slice};
use serde_json::{Value, json};

use super::node::{Rig, both, each};

const NAME: &str = "proxy_agent_service_connections_total";

/// Value by `service:port/protocol/family`.
type Counters = BTreeMap<String, u64>;

fn scrape(rig: &Rig) -> Result<String> {
    Ok(http::get(&rig.lab, "node1", "127.0.0.1:10249".parse()?, "/metrics")?.body)
}

/// What a scrape shows of Services.
fn counters(rig: &Rig) -> Result<Counters> {
    scrape(rig)?.lines().filter_map(|line| line.strip_prefix(NAME)).map(|line| read(line).context(line.to_owned())).collect()
}

/// `{ip_family="IPv4",namespace="default",port="80",protocol="TCP",service="web"} 3`
fn read(line: &str) -> Option<(String, u64)> {
    let (labels, value) = line.strip_prefix('{')?.split_once("} ")?;
    let labels: BTreeMap<&str, &str> = labels.split(',').filter_map(|label| label.split_once('=')).collect();
    let label = |name: &str| Some(labels.get(name)?.trim_matches('"'));
    let service = match (label("namespace")?, label("service")?) {
        ("default", service) => service,
        ("_other", "_other") => "_other",
        _ => return None,
    };
    Some((format!("{service}:{}/{}/{}", label("port")?, label("protocol")?, label("ip_family")?), value.parse().ok()?))
}

/// Waits until the counters are these, whatever others there are.
fn shows(rig: &Rig, wanted: &Counters) -> Result<()> {
    rig.lab.wait(DEADLINE, &format!("counters {wanted:?}"), || {
        let mut found = counters(rig)?;
        found.retain(|name, _| wanted.contains_key(name));
        Ok(if found == *wanted { Seen::Done(()) } else { Seen::not_yet(format!("{found:?}")) })
    })
}

/// Waits until these are all that there are.
fn shows_only(rig: &Rig, wanted: &[(&str, u64)]) -> Result<()> {
    let wanted: Counters = wanted.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
    rig.lab.wait(DEADLINE, &format!("counters {wanted:?} and no others"), || {
        let found = counters(rig)?;
        Ok(if found == wanted { Seen::Done(()) } else { Seen::not_yet(format!("{found:?}")) })
    })
}

/// So many connections, each of which is answered.
fn connect(rig: &Rig, from: &str, to: &str, count: u64) -> Result<()> {
    let To { addr, proto } = to.parse()?;
    let counts = rig.lab.find(from)?.spray(Connect::new(addr, proto), count)?;
    ensure!(counts.answered() == count && counts.failed() == 0, "{from} -> {to}: {counts:?}");
    Ok(())
}

/// Service `app` with every kind of frontend, in both families, TCP and UDP.
fn app() -> String {
    let ips = both("10.96.0.20");
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": "app"},
        "spec": {
            "type": "LoadBalancer", "clusterIP": ips[0], "clusterIPs": ips, "ipFamilies": ["IPv4", "IPv6"],
            "externalIPs": both("10.98.0.20"),
            "ports": [
                {"name": "tcp", "port": 80, "nodePort": 30020, "protocol": "TCP"},
                {"name": "udp", "port": 53, "nodePort": 30053, "protocol": "UDP"},
            ],
        },
        "status": {"loadBalancer": {"ingress": both("10.97.0.20").map(|ip| json!({"ip": ip}))}},
    })
    .to_string()
}

/// The slices of a Service whose ports are `tcp` and `udp`, in both families.
fn endpoints(rig: &Rig, service: &str, pods: &[&str]) -> Result<()> {
    for (i, family) in ["IPv4", "IPv6"].into_iter().enumerate() {
        let endpoint =
            |pod: &&str| json!({"addresses": [rig.lab.pod(pod).addresses()[i]], "conditions": {"ready": true}, "nodeName": "node2"});
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": {"namespace": "default", "name": format!("{service}-{i}"), "labels": {"kubernetes.io/service-name": service}},
            "ports": [{"name": "tcp", "port": 8080, "protocol": "TCP"}, {"name": "udp", "port": 8080, "protocol": "UDP"}],
            "endpoints": pods.iter().map(endpoint).collect::<Vec<Value>>(),
        });
        rig.write(&format!("{service}-{i}.json"), &slice.to_string())?;
    }
    Ok(())
}

/// A rig whose `app` is served.
fn with_app(mode: Mode, flags: &[&str]) -> Result<Rig> {
    let rig = Rig::with_flags(mode, flags)?;
    endpoints(&rig, "app", &["a2", "b2"])?;
    rig.write("app.json", &app())?;
    rig.reaches(&format!("{}/tcp", to_v6_socket("10.96.0.20:80".parse()?)), &["a2", "b2"])?;
    rig.reaches("10.96.0.20:80/tcp", &["a2", "b2"])?;
    Ok(rig)
}

#[test]
fn each_connection_that_reaches_an_endpoint_is_counted_once() {
    each(|mode| {
        let rig = with_app(mode, &[])?;
        let mut wanted = counters(&rig)?;
        // Who, to what, and how often: a number for each, so that none stands for another. The port says which UDP it is.
        let paths = [
            ("a1", "10.96.0.20:80/tcp", 3),
            ("node1", "10.96.0.20:80/tcp", 5),
            ("client", "10.96.0.20:80/tcp", 7),
            ("client", "10.97.0.20:80/tcp", 11),
            ("a1", "10.98.0.20:80/tcp", 13),
            ("client", "10.0.0.1:30020/tcp", 17),
            ("node1", "10.0.0.1:30020/tcp", 2),
            ("a1", "10.96.0.20:53/udp", 4),
            ("client", "10.96.0.20:53/udp", 3),
            ("client", "10.0.0.1:30053/udp", 6),
            ("node1", "10.98.0.20:53/udp", 1),
        ];
        for (from, to, count) in paths {
            let To { addr, proto } = to.parse()?;
            let (port, name) = if proto == Proto::Tcp { (80, "TCP") } else { (53, "UDP") };
            for (family, addr) in [("IPv4", addr), ("IPv6", to_v6_socket(addr))] {
                connect(&rig, from, &format!("{addr}/{proto}"), count)?;
                *wanted.entry(format!("app:{port}/{name}/{family}")).or_default() += count;
                shows(&rig, &wanted).with_context(|| format!("{from} -> {addr}/{proto}, {count} times\n{}", rig.agent.tail()))?;
            }
        }
        // An unconnected socket's datagrams are one flow, and so are those of a connected one.
        let dns = Connect::new("10.96.0.20:53".parse()?, Proto::Udp);
        for probe in [dns.clone(), dns.unconnected()] {
            let held = rig.lab.pod("a1").hold(probe)?;
            for _ in 0..5 {
                held.echo()?.into_answer()?;
            }
            *wanted.entry("app:53/UDP/IPv4".into()).or_default() += 1;
            shows(&rig, &wanted)?;
        }
        // A Service that keeps clients with their backends.
        let mut sticky: Value = serde_json::from_str(&app())?;
        sticky["spec"]["sessionAffinity"] = "ClientIP".into();
        rig.write("app.json", &sticky.to_string())?;
        rig.lab.wait(DEADLINE, "clients to stay", || {
            let counts = rig.lab.client().spray(Connect::new("10.0.0.1:30020".parse()?, Proto::Tcp), 20)?;
            Ok(if counts.failed() == 0 && counts.servers.len() == 1 { Seen::Done(()) } else { Seen::not_yet(format!("{counts:?}")) })
        })?;
        rig.lab.wait(DEADLINE, "pods to stay", || {
            let counts = rig.lab.pod("a1").spray(Connect::new("10.96.0.20:80".parse()?, Proto::Tcp), 20)?;
            Ok(if counts.failed() == 0 && counts.servers.len() == 1 { Seen::Done(()) } else { Seen::not_yet(format!("{counts:?}")) })
        })?;
        let mut wanted = counters(&rig)?;
        for (from, to, count) in [("client", "10.0.0.1:30020/tcp", 5), ("a1", "10.96.0.20:80/tcp", 8)] {
            connect(&rig, from, to, count)?;
            *wanted.entry("app:80/TCP/IPv4".into()).or_default() += count;
        }
        shows(&rig, &wanted)?;
        // Elements that packets have added are no edits of others.
        let text = scrape(&rig)?;
        ensure!(text.contains("\nproxy_agent_drift_repairs_total 0\n"), "{text}");
        Ok(())
    });
}

#[test]
fn what_reaches_no_endpoint_is_not_counted() {
    each(|mode| {
        let rig = with_app(mode, &[])?;
        let one = |name: &str, ip: &str, more: Value| {
            let mut service: Value = serde_json::from_str(&app()).expect("JSON");
            service["metadata"]["name"] = name.into();
            let spec = json!({
                "clusterIP": format!("10.96.0.{ip}"), "clusterIPs": [format!("10.96.0.{ip}")], "ipFamilies": ["IPv4"],
                "externalIPs": [format!("10.98.0.{ip}")],
                "ports": [{"name": "tcp", "port": 80, "nodePort": 30000 + ip.parse::<u16>().expect("a number"), "protocol": "TCP"}],
            });
            service["spec"].as_object_mut().expect("a map").extend(spec.as_object().expect("a map").clone());
            service["spec"].as_object_mut().expect("a map").extend(more.as_object().expect("a map").clone());
            service["status"]["loadBalancer"]["ingress"] = json!([{"ip": format!("10.97.0.{ip}")}]);
            rig.write(&format!("{name}.json"), &service.to_string())
        };
        one("refused", "30", json!({}))?;
        let local = json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"});
        one("dropped", "31", local)?;
        one("denied", "32", json!({"loadBalancerSourceRanges": ["192.0.2.0/24"]}))?;
        endpoints(&rig, "dropped", &["a2"])?;
        endpoints(&rig, "denied", &["a2"])?;
        expect::reaches(&rig.lab, "client", "10.98.0.32:80/tcp", &["a2"])?;
        for to in ["10.96.0.30:80/tcp", "10.97.0.30:80/tcp", "10.0.0.1:30030/tcp"] {
            expect::refused(&rig.lab, "client", to)?;
        }
        for from in ["a1", "node1"] {
            expect::refused(&rig.lab, from, "10.96.0.30:80/tcp")?;
            expect::untouched(&rig.lab, from, "10.96.0.31:80/tcp")?;
        }
        for to in ["10.96.0.31:80/tcp", "10.97.0.31:80/tcp", "10.0.0.1:30031/tcp"] {
            expect::untouched(&rig.lab, "client", to)?;
        }
        let denied = counters(&rig)?;
        expect::untouched(&rig.lab, "client", "10.97.0.32:80/tcp")?;
        // A last one that is counted, so that what was before has been as well.
        let mut wanted = counters(&rig)?;
        connect(&rig, "client", "10.96.0.20:80/tcp", 1)?;
        *wanted.entry("app:80/TCP/IPv4".into()).or_default() += 1;
        wanted.extend(["refused", "dropped"].map(|name| (format!("{name}:80/TCP/IPv4"), 0)));
        let name = "denied:80/TCP/IPv4";
        wanted.insert(name.into(), denied[name]);
        shows(&rig, &wanted)
    });
}

#[test]
fn counts_go_on_over_restarts_and_go_with_their_service() {
    each(|mode| {
        let mut rig = with_app(mode, &[])?;
        let mut wanted = counters(&rig)?;
        let mut more = |rig: &Rig, from: &str, to: &str, count: u64| {
            *wanted.entry("app:80/TCP/IPv4".into()).or_default() += count;
            connect(rig, from, to, count).map(|()| wanted.clone())
        };
        for crash in [false, true] {
            if crash {
                rig.agent.kill()?
            } else {
                rig.agent.stop()?
            };
            more(&rig, "a1", "10.96.0.20:80/tcp", 4)?;
            let wanted = more(&rig, "client", "10.0.0.1:30020/tcp", 5)?;
            rig.agent.start(&rig.lab)?;
            rig.agent.running()?.wait_for_log(DEADLINE, "first sync")?;
            shows(&rig, &wanted)?;
        }
        // Others change what is ours: the counters do not go back.
        rig.lab.nft("node1", "flush set ip proxy-agent connections\nflush set ip proxy-agent node-connections")?;
        more(&rig, "client", "10.96.0.20:80/tcp", 2)?;
        let wanted = more(&rig, "client", "10.0.0.1:30020/tcp", 3)?;
        shows(&rig, &wanted)?;
        let text = scrape(&rig)?;
        ensure!(text.contains("\nproxy_agent_drift_repairs_total 0\n"), "{text}");
        // The Service goes while no agent runs; then another one does, whose address the next has.
        let former = wanted["app:80/TCP/IPv4"];
        ensure!(former > 19, "{wanted:?}");
        rig.agent.kill()?;
        rig.write("app.json", "")?;
        rig.agent.start(&rig.lab)?;
        rig.agent.running()?.wait_for_log(DEADLINE, "first sync")?;
        let found = counters(&rig)?;
        ensure!(found.keys().eq(["dns:53/UDP/IPv4", "web:80/TCP/IPv4"]), "a Service that is gone is shown: {found:?}");
        forgotten(&rig, "10.96.0.20")?;
        rig.write("web.json", "")?;
        rig.lab.wait(DEADLINE, "the series of web to go", || {
            let found = counters(&rig)?;
            Ok(if found.contains_key("web:80/TCP/IPv4") { Seen::not_yet(format!("{found:?}")) } else { Seen::Done(()) })
        })?;
        forgotten(&rig, "10.96.0.10")?;
        // The endpoint first, so that no connection is refused.
        rig.write("next-1.json", &slice("next", "TCP", &[("10.1.2.2", true)]))?;
        rig.write("next.json", &service("next", "10.96.0.10", 80, "TCP"))?;
        rig.lab.wait(DEADLINE, "the series of next", || {
            let found = counters(&rig)?;
            Ok(if found.contains_key("next:80/TCP/IPv4") { Seen::Done(()) } else { Seen::not_yet(format!("{found:?}")) })
        })?;
        connect(&rig, "client", "10.96.0.10:80/tcp", 3)?;
        connect(&rig, "a1", "10.96.0.10:80/tcp", 2)?;
        shows(&rig, &[("next:80/TCP/IPv4".to_owned(), 5)].into())
    });
}

/// Waits until no set of the table has counts of an address. (Nobody asks for metrics for that.)
fn forgotten(rig: &Rig, address: &str) -> Result<()> {
    rig.lab.wait(DEADLINE, &format!("the counts of {address} to be forgotten"), || {
        let listed = set(rig)?.context("no set")?;
        Ok(if listed.contains(address) { Seen::not_yet(listed) } else { Seen::Done(()) })
    })
}

/// The set of counts as nft lists it, if there is one.
fn set(rig: &Rig) -> Result<Option<String>> {
    let mut nft = Command::new("nft");
    nft.args(["list", "set", "ip", "proxy-agent", "connections"]);
    let output = rig.lab.output_on_node(1, nft)?;
    Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
}

#[test]
fn there_are_no_more_series_than_wanted() {
    each(|mode| {
        let rig = Rig::with_flags(mode, &["--service-connection-series=3"])?;
        connect(&rig, "client", "10.96.0.53:53/udp", 2)?;
        let web = counters(&rig)?["web:80/TCP/IPv4"];
        shows_only(&rig, &[("dns:53/UDP/IPv4", 2), ("web:80/TCP/IPv4", web)])?;
        for (name, ip) in [("aaa", "10.96.0.41"), ("bbb", "10.96.0.42")] {
            rig.write(&format!("{name}-1.json"), &slice(name, "TCP", &[("10.1.2.2", true)]))?;
            rig.write(&format!("{name}.json"), &service(name, ip, 80, "TCP"))?;
        }
        let other = "_other:_other/_other/_other";
        shows_only(&rig, &[(other, 0), ("dns:53/UDP/IPv4", 2), ("web:80/TCP/IPv4", web)])?;
        connect(&rig, "a1", "10.96.0.42:80/tcp", 4)?;
        shows_only(&rig, &[(other, 0), ("bbb:80/TCP/IPv4", 4), ("dns:53/UDP/IPv4", 2), ("web:80/TCP/IPv4", web)])?;
        connect(&rig, "client", "10.96.0.41:80/tcp", 5)?;
        connect(&rig, "client", "10.96.0.42:80/tcp", 1)?;
        shows_only(&rig, &[(other, 5), ("bbb:80/TCP/IPv4", 5), ("dns:53/UDP/IPv4", 2), ("web:80/TCP/IPv4", web)])?;
        drop(rig);
        // None at all: the table has nothing that counts.
        let rig = Rig::with_flags(mode, &["--service-connection-series=0"])?;
        ensure!(!scrape(&rig)?.contains(NAME), "it is off");
        ensure!(set(&rig)?.is_none(), "a set counts for nobody");
        Ok(())
    });
}
