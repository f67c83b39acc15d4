//! The lab does what it says: every test makes one of its own, and needs root.

use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::*;

const PROTOS: [Proto; 2] = [Proto::Tcp, Proto::Udp];
const VIP: &str = "10.96.0.10:80";
/// For probes that are to find nobody.
const SHORT_MS: u64 = 150;

/// A lab, or none where there can be none.
fn lab() -> Result<Option<Lab>> {
    if available() { Lab::new(LabOptions::default()).map(Some) } else { Ok(None) }
}

/// An address in both families.
fn both(address: &str) -> [SocketAddr; 2] {
    let v4: SocketAddr = address.parse().expect("an address");
    [v4, to_v6_socket(v4)]
}

fn same_family(addresses: [IpAddr; 2], as_this: SocketAddr) -> IpAddr {
    addresses[usize::from(as_this.is_ipv6())]
}

/// Redirects [`VIP`], TCP and UDP, to this backend in a node, for pods, for the outside and for the node itself.
fn redirect(lab: &Lab, node: &str, backend: &str) -> Result<()> {
    let [vip4, vip6] = both(VIP);
    let [backend4, backend6] = both(backend);
    let rules = format!(
        "ip daddr {} meta l4proto {{ tcp, udp }} th dport 80 dnat ip to {backend4}
         ip6 daddr {} meta l4proto {{ tcp, udp }} th dport 80 dnat ip6 to {backend6}",
        vip4.ip(),
        vip6.ip()
    );
    let hook = |name: &str| format!("chain {name} {{ type nat hook {name} priority -100; {rules}\n}}\n");
    lab.nft(node, &format!("table inet test {{\n{}{}}}", hook("prerouting"), hook("output")))
}

#[test]
fn addresses_map_to_ipv6_and_back() {
    for (v4, v6) in [("10.1.1.2", "fd00:10:1::1:2"), ("10.96.0.10", "fd00:10:96::0:10"), ("10.0.0.254", "fd00:10::254")] {
        let (v4, v6): (Ipv4Addr, Ipv6Addr) = (v4.parse().expect("v4"), v6.parse().expect("v6"));
        assert_eq!((to_v6(v4), to_v4(v6)), (v6, Some(v4)));
    }
    assert_eq!(to_v4("fd00:10:1::1:a".parse().expect("v6")), None, "not decimal digits");
    assert_eq!(to_v4("fd00:10:1::1:256".parse().expect("v6")), None, "no octet");
}

#[test]
fn everyone_reaches_everyone_and_the_source_is_kept() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    for peer in [lab.host(1), lab.host(2), lab.client()] {
        PROTOS.into_iter().try_for_each(|proto| peer.listen(proto, 8080))?;
    }
    for from in lab.peers() {
        for to in lab.peers() {
            for (address, proto) in to.addresses().into_iter().flat_map(|a| PROTOS.map(|p| (SocketAddr::new(a, 8080), p))) {
                let what = || format!("{} -> {} {address}/{proto}", from.name(), to.name());
                let answer = from.connect(address, proto)?.into_answer().with_context(what)?;
                ensure!(answer.name == to.name() && answer.server == address, "{}: {answer:?}", what());
                ensure!(answer.seen_source.ip() == same_family(from.addresses(), address), "{}: {answer:?}", what());
                ensure!(answer.peer == Some(address) && answer.local == answer.seen_source, "{}: {answer:?}", what());
            }
        }
    }
    assert_eq!(lab.lost()?, [0, 0]);
    Ok(())
}

#[test]
fn listeners_open_and_close() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    let (from, to) = (lab.pod("a1"), lab.pod("a2"));
    for proto in PROTOS {
        for port in [8080, 9090] {
            for address in to.addresses().map(|address| SocketAddr::new(address, port)) {
                let expect_refused = port == 9090;
                assert_eq!(from.connect(address, proto)? == Outcome::Refused, expect_refused, "{address}/{proto}");
            }
        }
        let address = SocketAddr::new(to.v4().into(), 9090);
        to.listen(proto, 9090)?;
        assert!(to.listen(proto, 9090).is_err(), "twice");
        let held = from.hold(Connect::new(address, proto))?;
        to.unlisten(proto, 9090)?;
        assert_eq!(from.connect(address, proto)?, Outcome::Refused, "{address}/{proto}");
        let still_works = held.echo()?.answer().is_some();
        assert_eq!(still_works, proto == Proto::Tcp, "an accepted connection outlives its listener");
        let refused = from.probe(Connect::new(address, proto).unconnected())?;
        assert_eq!(refused, Outcome::Refused, "an unconnected socket learns of it too");
    }
    Ok(())
}

#[test]
fn virtual_addresses_meet_the_hooks_of_a_node() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    redirect(&lab, "node1", "10.1.2.2:8080")?;
    for from in [lab.pod("a1"), lab.host(1), lab.client()] {
        for (vip, proto) in both(VIP).into_iter().flat_map(|vip| PROTOS.map(|proto| (vip, proto))) {
            let answer = from.connect(vip, proto)?.into_answer().with_context(|| format!("{} -> {vip}/{proto}", from.name()))?;
            assert_eq!((answer.name.as_str(), answer.peer), ("a2", Some(vip)), "{}", from.name());
            assert_eq!(answer.seen_source.ip(), same_family(from.addresses(), vip), "{}", from.name());
            if proto == Proto::Udp {
                assert_eq!(answer.reply_source, Some(vip), "{}", from.name());
            }
        }
    }
    assert_eq!(lab.lost()?, [0, 0]);
    Ok(())
}

#[test]
fn the_client_can_be_behind_any_node() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    redirect(&lab, "node2", "10.1.1.2:8080")?;
    lab.host(1).listen(Proto::Tcp, 9090)?;
    lab.route_client(2)?;
    for (vip, proto) in both(VIP).into_iter().flat_map(|vip| PROTOS.map(|proto| (vip, proto))) {
        let answer = lab.client().connect(vip, proto)?.into_answer().with_context(|| format!("{vip}/{proto}"))?;
        assert_eq!((answer.name.as_str(), answer.seen_source.ip()), ("a1", same_family(lab.client().addresses(), vip)));
    }
    for address in both("10.0.0.1:9090") {
        assert_eq!(lab.client().connect(address, Proto::Tcp)?.into_answer()?.name, "node1");
    }
    lab.route_client(1)?;
    assert_eq!(lab.client().probe(Connect::new(VIP.parse()?, Proto::Tcp).timeout_ms(SHORT_MS))?, Outcome::Timeout);
    Ok(())
}

#[test]
fn what_nobody_translates_is_lost_and_counted() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    for from in [lab.pod("a1"), lab.host(1), lab.pod("a2"), lab.client()] {
        for (vip, proto) in both(VIP).into_iter().flat_map(|vip| PROTOS.map(|proto| (vip, proto))) {
            let before = lab.lost()?;
            let outcome = from.probe(Connect::new(vip, proto).timeout_ms(SHORT_MS))?;
            assert_eq!(outcome, Outcome::Timeout, "{} -> {vip}/{proto}", from.name());
            let after = lab.lost()?;
            let family = usize::from(vip.is_ipv6());
            assert_eq!((after[family], after[1 - family]), (before[family] + 1, before[1 - family]), "{} -> {vip}", from.name());
        }
    }
    Ok(())
}

#[test]
fn wrong_checksums_show() -> Result<()> {
    if !available() {
        return Ok(());
    }
    for pod_offload in [true, false] {
        let lab = Lab::new(LabOptions { pod_offload, ..LabOptions::default() })?;
        let rules = "tcp dport 8080 tcp checksum set 0x1234; udp dport 8080 udp checksum set 0x1234";
        let chain = format!("chain wrong {{ type filter hook forward priority 0; {rules}; }}");
        lab.nft("node1", &format!("table inet test {{\n{chain}\n}}"))?;
        for (from, to) in [("a1", "10.1.1.3:8080"), ("a1", "10.1.2.2:8080"), ("client", "10.1.1.3:8080")] {
            for (dst, proto) in both(to).into_iter().flat_map(|dst| PROTOS.map(|proto| (dst, proto))) {
                let outcome = lab.find(from)?.probe(Connect::new(dst, proto).timeout_ms(SHORT_MS))?;
                assert_eq!(outcome, Outcome::Timeout, "{from} -> {dst}/{proto}, offload {pod_offload}");
            }
        }
    }
    Ok(())
}

#[test]
fn held_connections_show_when_they_break() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    redirect(&lab, "node1", "10.1.2.2:8080")?;
    let held = lab.pod("a1").hold(Connect::new(VIP.parse()?, Proto::Tcp))?;
    let first = held.first().context("the first answer")?.clone();
    assert_eq!(held.echo()?, Outcome::Ok(first), "the same connection");
    lab.pod("a2").reset_accepted()?;
    assert_eq!(held.echo()?, Outcome::Error("ECONNRESET".to_owned()));

    let from: SocketAddr = SocketAddr::new(lab.pod("a1").v4().into(), 40_000);
    let answer = lab.pod("a1").probe(Connect::new("10.1.2.3:8080".parse()?, Proto::Tcp).from(from))?.into_answer()?;
    assert_eq!(answer.seen_source, from, "the source that was asked for");
    Ok(())
}

#[test]
fn unconnected_udp_from_every_kind_of_socket() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    redirect(&lab, "node1", "10.1.2.2:8080")?;
    let [vip4, vip6] = both(VIP);
    let [pod4, pod6] = both("10.1.2.3:8080");
    for (source, destinations) in [("0.0.0.0:0", vec![vip4, pod4]), ("[::]:0", vec![vip6, pod6, to_mapped(vip4), to_mapped(pod4)])] {
        let socket = lab.pod("a1").udp(source.parse()?)?;
        for dst in destinations.iter().chain(&destinations) {
            let answer = socket.send(*dst)?.into_answer().with_context(|| format!("{source} -> {dst}"))?;
            let expected = if dst.port() == 80 { "a2" } else { "b2" };
            assert_eq!((answer.name.as_str(), answer.peer, answer.reply_source), (expected, None, Some(*dst)));
            assert_eq!(answer.seen_source.port(), socket.local().port(), "one socket");
        }
    }
    let mapped = lab.pod("a1").connect(to_mapped(vip4), Proto::Tcp)?.into_answer()?;
    assert_eq!((mapped.name.as_str(), mapped.peer), ("a2", Some(to_mapped(vip4))));
    Ok(())
}

#[test]
fn sprays_and_traffic_are_counted() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    let server: SocketAddr = "10.1.2.2:8080".parse()?;
    let a1 = lab.pod("a1");
    for proto in PROTOS {
        let counts = a1.spray(Connect::new(server, proto), 200)?;
        assert_eq!((counts.servers.get(&server), counts.failed()), (Some(&200), 0), "{proto}: {counts:?}");
    }
    assert_eq!(a1.spray(Connect::new("10.1.2.2:9".parse()?, Proto::Tcp), 20)?.refused, 20);

    let fresh = a1.traffic(Connect::new(server, Proto::Tcp), Duration::from_millis(1))?;
    let kept = a1.traffic(Connect { hold: true, ..Connect::new(server, Proto::Tcp) }, Duration::from_millis(1))?;
    std::thread::sleep(Duration::from_millis(100));
    lab.pod("a2").unlisten(Proto::Tcp, 8080)?;
    std::thread::sleep(Duration::from_millis(100));
    lab.pod("a2").listen(Proto::Tcp, 8080)?;
    std::thread::sleep(Duration::from_millis(100));
    let (fresh, kept) = (fresh.stop()?, kept.stop()?);
    assert!(fresh.counts.answered() > 10 && fresh.counts.refused > 10, "{fresh:?}");
    assert_eq!(fresh.counts.failed(), fresh.failures.len() as u64);
    assert!(fresh.failures.windows(2).all(|pair| pair[0].at_us <= pair[1].at_us));
    assert!((100_000..fresh.duration_us).contains(&fresh.longest_gap_us), "{fresh:?}");
    assert!(kept.counts.answered() > 10 && kept.failures.is_empty(), "{kept:?}");
    Ok(())
}

#[test]
fn pods_come_and_go() -> Result<()> {
    let Some(mut lab) = lab()? else { return Ok(()) };
    let spec = PodSpec::new("c2", 2, 9);
    let (netns, cgroup) = {
        let pod = lab.add_pod(&spec)?;
        (pod.netns().to_owned(), pod.cgroup().to_owned())
    };
    for server in both("10.1.2.9:8080") {
        assert_eq!(lab.pod("a1").connect(server, Proto::Tcp)?.into_answer()?.name, "c2");
    }
    assert!(lab.add_pod(&spec).is_err(), "twice");
    lab.remove_pod("c2")?;
    assert!(!cgroup.exists() && !netns::path(&netns).exists());
    assert!(lab.find("10.1.2.9").is_err() && lab.find("fd00:10:1::2:2")?.name() == "a2" && lab.find("node2").is_ok());
    Ok(())
}

#[test]
fn programs_run_on_nodes() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    let script = |text: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        command
    };
    let output = lab.output_on_node(2, script("cat /proc/self/cgroup; ip -4 -brief address"))?;
    let text = String::from_utf8(output.stdout)?;
    assert!(text.contains(&format!("/{}/node2/host", lab.name())) && text.contains("10.0.0.2/24"), "{text}");
    assert!(lab.node(2).cgroup().join("cgroup.procs").exists() && lab.node(2).bpffs().is_dir());

    // A grandchild must not outlive the lab either. The trap is there before the line that is waited for.
    let mut program = lab.spawn_on_node(1, script("trap 'exit 7' TERM; sleep 1000 & echo pid $!; wait"))?;
    program.wait_for_log(Duration::from_secs(5), "pid")?;
    let grandchild: u32 = program.log().trim().trim_start_matches("pid ").parse()?;
    assert_eq!(program.stop(Duration::from_secs(5))?.code(), Some(7));
    assert!(running(grandchild));
    drop(lab);
    assert!(!running(grandchild));
    Ok(())
}

/// Whether a process runs: one that has ended may not have been waited for.
fn running(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

/// Traces of a lab of this name.
fn traces(name: &str) -> Result<Vec<String>> {
    let mut traces = netns::with_prefix(name)?;
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    traces.extend(mounts.lines().filter(|line| line.contains(name)).map(str::to_owned));
    let paths = [cgroup::mount()?.join(name), owner::directory(name)];
    traces.extend(paths.iter().filter(|path| path.exists()).map(|path| path.display().to_string()));
    Ok(traces)
}

#[test]
fn nothing_is_left_of_a_lab() -> Result<()> {
    let Some(lab) = lab()? else { return Ok(()) };
    let name = lab.name().to_owned();
    assert!(traces(&name)?.len() > 8);
    drop(lab);
    assert_eq!(traces(&name)?, [""; 0]);
    Ok(())
}

#[test]
fn a_killed_process_leaves_what_the_next_lab_removes() -> Result<()> {
    let Some(living) = lab()? else { return Ok(()) };
    let mut child = Command::new(program()?).arg("up").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().context("stdout")?).read_line(&mut line)?;
    let name = line.trim().trim_start_matches("lab ").trim_end_matches(':').to_owned();
    ensure!(name.starts_with("pa-") && Path::new("/run/proxy-lab").join(&name).exists(), "unexpected: {line:?}");
    child.kill()?;
    // Ended, which a kill alone does not wait for, but not reaped: it counts as ended all the same. Another test's lab may clean up right now.
    waitid(Id::Pid(Pid::from_raw(child.id().try_into()?)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    let next = Lab::new(LabOptions { pods: Vec::new(), ..LabOptions::default() })?;
    wait(Duration::from_secs(5), "removal", || {
        let left = traces(&name)?;
        Ok(if left.is_empty() { Seen::Done(()) } else { Seen::not_yet(left.join("; ")) })
    })?;
    child.wait()?;
    for lab in [&next, &living] {
        ensure!(traces(lab.name())?.len() > 4, "a living lab was removed");
    }
    assert_eq!(living.pod("a1").connect("10.1.1.3:8080".parse()?, Proto::Tcp)?.into_answer()?.name, "b1");
    Ok(())
}

#[test]
fn waiting_tells_what_was_seen() {
    let mut tries = 0;
    let error = wait::<(), _>(Duration::from_millis(20), "the impossible", || {
        tries += 1;
        Ok(Seen::not_yet(format!("try {tries}")))
    });
    let text = error.expect_err("impossible").to_string();
    assert!(text.contains("the impossible") && text.contains(&format!("last seen: try {tries}")), "{text}");
    let started = Instant::now();
    assert_eq!(wait(Duration::from_secs(5), "a number", || Ok((started.elapsed().as_millis() > 5).then_some(7))).ok(), Some(7));
}
