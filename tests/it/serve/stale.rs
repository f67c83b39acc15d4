//! A dataplane that cannot be written: somebody else owns the table.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::{DEADLINE, Mode};
use proxy_tests::lab::{self, Program, Seen};
use proxy_tests::scenario::KubeProxyMode;

use super::proxy::{Proxy, Rig};
use super::{CHECK, HEALTHZ, NODE, check, on, service, slice};

#[test]
fn a_change_that_cannot_be_written_is_an_illness_until_it_is() {
    if lab::available() {
        let run = || {
            let mut rig = Rig::new()?;
            for proxy in [Proxy::Theirs(KubeProxyMode::Nftables), Proxy::Ours(Mode::Nftables), Proxy::Ours(Mode::Ebpf)] {
                rig.start(proxy)?;
                stale(&mut rig).with_context(|| rig.tail())?;
                rig.end()?;
                rig.forget()?;
            }
            Ok(())
        };
        check(run());
    }
}

fn stale(rig: &mut Rig) -> Result<()> {
    rig.apply(&service("Local", CHECK))?;
    rig.apply(&slice("lb", "IPv4", &[on("node1", "10.1.1.3", "ready")]))?;
    rig.apply(&slice("lb-6", "IPv6", &[on("node1", "fd00:10:1:1::3", "ready")]))?;
    for ip in NODE {
        ensure!(rig.weighs(ip, CHECK, 1)?.status == 200, "{ip}");
    }
    let owner = own(rig)?;
    // Something to write.
    rig.apply(&slice("lb", "IPv4", &[on("node1", "10.1.1.3", "ready"), on("node2", "10.1.2.2", "ready")]))?;
    for path in ["/healthz", "/livez"] {
        let said = rig.lab.wait(DEADLINE, &format!("503 of {path}"), || {
            let answer = rig.ask(NODE[0], HEALTHZ, "GET", path)?;
            Ok(if answer.status == 503 { Seen::Done(answer) } else { Seen::not_yet(answer) })
        })?;
        let body = said.json()?;
        ensure!(body["healthy"] == false && body["status"]["IPv4"]["healthy"] == false, "{said}");
        ensure!(body["status"]["IPv6"]["healthy"] == true, "the other family is well: {said}");
        ensure!(body["lastUpdated"].as_str() < body["currentTime"].as_str(), "{said}");
    }
    // HC-08: load balancers leave the node, though there are endpoints, and learn why.
    let said = rig.ask(NODE[1], CHECK, "GET", "/")?;
    ensure!(said.status == 503 && said.body.contains("\"serviceProxyHealthy\": false"), "{said}");
    let failures = r#"kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family="IPv4"} "#;
    let text = rig.ask_metrics("GET", "/metrics", "")?.body;
    ensure!(text.lines().any(|line| line.strip_prefix(failures).is_some_and(|count| count != "0")), "{text}");
    owner.kill()?;
    rig.lab.wait(DEADLINE * 3, "health again", || {
        let answer = rig.ask(NODE[0], HEALTHZ, "GET", "/healthz")?;
        Ok(if answer.status == 200 { Seen::Done(()) } else { Seen::not_yet(answer) })
    })?;
    ensure!(rig.weighs(NODE[1], CHECK, 1)?.status == 200);
    Ok(())
}

/// Takes the table of IPv4 away from whoever has it: the kernel lets nobody but its owner write it.
fn own(rig: &Rig) -> Result<Program> {
    let table = if matches!(rig.proxy(), Some(Proxy::Ours(_))) { "proxy-agent" } else { "kube-proxy" };
    // The program's own process is nft, so that its end is the end of the table.
    let script = "d=$(mktemp -d); mkfifo $d/f; (printf 'delete table ip %s; add table ip %s { flags owner; }\\n' $0 $0; exec sleep 600) > $d/f & \
                  exec nft -i < $d/f";
    let mut command = Command::new("sh");
    command.args(["-ec", script, table]);
    let program = rig.lab.spawn_on_node(1, command)?;
    rig.lab.wait(DEADLINE, "another owner", || {
        let mut list = Command::new("nft");
        list.args(["list", "table", "ip", table]);
        let output = rig.lab.output_on_node(1, list)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(if text.contains("flags owner") { Seen::Done(()) } else { Seen::not_yet(format!("{text}\n{}", program.tail())) })
    })?;
    Ok(program)
}
