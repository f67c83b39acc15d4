//! What is programmed, as `nft` shows it, and that nobody but the agent itself has programmed it.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::{DEADLINE, Mode};
use proxy_tests::expect;
use proxy_tests::lab::{self, Connect, Proto, Seen};
use serde_json::{Value, json};

use super::node::Rig;

/// Comments of Services.
const COMMENTS: [&str; 4] = ["default/every:main", "default/sticky:main", "default/closed:main", "default/far:main"];

/// Services that together need every kind of object, of this family.
fn services(is_v6: bool) -> String {
    let ip = |v4: &str| match is_v6 {
        true => proxy_tests::lab::to_v6(v4.parse().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED)).to_string(),
        false => v4.to_owned(),
    };
    let suffix = if is_v6 { "-6" } else { "" };
    let mut all = vec![json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16", "fd00:10:96::/48"]},
    })];
    let local = json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"});
    let sticky = json!({"sessionAffinity": "ClientIP"});
    let ranges = json!({"loadBalancerSourceRanges": ["10.0.0.0/8", "fd00::/16"]});
    let each = [
        ("every", 1, vec!["10.1.1.3", "10.1.2.2"], vec![ranges]),
        ("sticky", 2, vec!["10.1.1.3", "10.1.2.2"], vec![sticky.clone()]),
        ("by-source", 3, vec!["10.1.1.3", "10.1.2.2"], vec![local.clone()]),
        ("sticky-by-source", 4, vec!["10.1.1.3", "10.1.2.2"], vec![local.clone(), sticky]),
        ("closed", 5, vec![], vec![]),
        ("far", 6, vec!["10.1.2.2"], vec![local]),
    ];
    for (name, number, endpoints, more) in each {
        let mut spec = json!({
            "type": "LoadBalancer", "clusterIP": ip(&format!("10.96.1.{number}")), "externalIPs": [ip(&format!("10.98.0.{number}"))],
            "ports": [{"name": "main", "port": 80, "protocol": "TCP", "nodePort": 30100 + number}],
        });
        if let Some(spec) = spec.as_object_mut() {
            more.into_iter().filter_map(|more| more.as_object().cloned()).for_each(|more| spec.extend(more));
        }
        let name = format!("{name}{suffix}");
        all.push(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "default", "name": name}, "spec": spec,
            "status": {"loadBalancer": {"ingress": [{"ip": ip(&format!("10.97.0.{number}"))}]}},
        }));
        let endpoints = endpoints.into_iter().map(|v4| {
            let node = if v4.starts_with("10.1.1.") { "node1" } else { "node2" };
            json!({"addresses": [ip(v4)], "nodeName": node})
        });
        all.push(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": if is_v6 { "IPv6" } else { "IPv4" },
            "metadata": {"namespace": "default", "name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"name": "main", "port": 8080, "protocol": "TCP"}], "endpoints": endpoints.collect::<Vec<Value>>(),
        }));
    }
    all.into_iter().skip(usize::from(is_v6)).map(|object| object.to_string()).collect::<Vec<_>>().join("\n---\n")
}

#[test]
fn nft_lists_every_kind_of_object_and_no_process_is_started() {
    if lab::available() {
        listed().unwrap_or_else(|error| panic!("{error:?}"));
    }
}

fn listed() -> Result<()> {
    let mut rig = Rig::with_flags(Mode::Nftables, &["--hostname-override=node1", "--cluster-cidr=10.1.0.0/16,fd00:10:1::/48"])?;
    rig.write("v4.yaml", &services(false))?;
    rig.write("v6.yaml", &services(true))?;
    for vip in ["10.96.1.2:80", "[fd00:10:96::1:2]:80", "10.0.0.1:30102", "[fd00:10::1]:30102"] {
        // A pin and counts, which are objects too.
        rig.lab.wait(DEADLINE, vip, || rig.lab.pod("a1").connect(vip.parse()?, Proto::Tcp)?.into_answer().map(Some))?;
    }
    let (listed, as_json) = rig.lab.wait(DEADLINE, "an element in each set and map", || {
        let as_json: Value = serde_json::from_str(&nft(&rig, &["-j", "list", "ruleset"])?)?;
        let empty = empty(&as_json)?;
        Ok(if empty.is_empty() { Seen::Done((nft(&rig, &["list", "ruleset"])?, as_json)) } else { Seen::not_yet(format!("{empty:?}")) })
    })?;
    for family in ["ip", "ip6"] {
        ensure!(listed.contains(&format!("table {family} proxy-agent {{")), "no table of {family}:\n{listed}");
    }
    for comment in COMMENTS {
        let commented = listed.matches(&format!("comment \"{comment}\"")).count();
        ensure!(commented > 0, "{comment} is in no comment:\n{listed}");
    }
    // Rules are all of expressions that nft knows.
    ensure!(!listed.contains("unknown"), "{listed}");
    ensure!(as_json.to_string().contains("masquerade"), "no rule masquerades: {as_json}");

    // Whatever is done: changes, a deletion, a repair, an end and a start.
    let agent = rig.agent.running()?.pid();
    rig.write("v6.yaml", "")?;
    expect::untouched(&rig.lab, "a1", "[fd00:10:98::2]:80/tcp")?;
    rig.lab.nft("node1", "flush ruleset")?;
    rig.agent.running()?.wait_for_log(DEADLINE, "somebody else changed what is programmed: it is repaired")?;
    rig.lab.wait(DEADLINE, "what was flushed", || {
        rig.lab.pod("a1").probe(Connect::new("10.96.1.2:80".parse()?, Proto::Tcp))?.into_answer().map(Some)
    })?;
    started_none(agent).context("the agent that has made all this")?;
    rig.agent.stop()?;
    rig.agent.start(&rig.lab)?;
    rig.agent.running()?.wait_for_log(DEADLINE, "first sync")?;
    started_none(rig.agent.running()?.pid()).context("the agent that has found it")?;
    // Who starts one is told from who does not.
    let mut shell = Command::new("sh");
    shell.args(["-c", "nft list tables; sleep 1000"]);
    let shell = rig.lab.spawn_on_node(1, shell)?;
    rig.lab.wait(DEADLINE, "a process that has started nft", || {
        Ok(started_none(shell.pid()).map_or_else(|_| Seen::Done(()), |()| Seen::not_yet("none")))
    })
}

fn nft(rig: &Rig, args: &[&str]) -> Result<String> {
    let mut nft = Command::new("nft");
    nft.args(args);
    let output = rig.lab.output_on_node(1, nft)?;
    ensure!(output.status.success(), "nft {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Sets and maps in which there is nothing, by family and name.
fn empty(listed: &Value) -> Result<BTreeSet<String>> {
    let objects = listed["nftables"].as_array().context("no objects")?;
    let sets = objects.iter().filter_map(|object| object.get("set").or_else(|| object.get("map")));
    let ours: Vec<&Value> = sets.filter(|set| set["table"] == "proxy-agent").collect();
    ensure!(ours.len() > 40, "{} sets and maps in two tables", ours.len());
    let empty = ours.iter().filter(|set| set["elem"].as_array().is_none_or(Vec::is_empty));
    Ok(empty.map(|set| format!("{} {}", set["family"], set["name"])).collect())
}

/// An error if a process has started another one since it began: one that runs is a child, and one that has ended has left what
/// it used in the account of its parent.
fn started_none(pid: u32) -> Result<()> {
    /// The page faults of children that were waited for, counted from the field after the name (proc_pid_stat(5)).
    const FAULTS_OF_CHILDREN: usize = 8;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let children = fs::read_to_string(task?.path().join("children"))?;
        ensure!(children.trim().is_empty(), "child processes: {children}");
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit_once(") ").context("a name in /proc/PID/stat")?.1;
    let faults = after_name.split(' ').nth(FAULTS_OF_CHILDREN).context("a short /proc/PID/stat")?;
    ensure!(faults == "0", "child processes that have ended: {faults} page faults");
    Ok(())
}
