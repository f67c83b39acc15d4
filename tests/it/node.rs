//! The agent on a node of the lab, from a folder of manifests: what scenarios cannot say.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_tests::agent::{Agent, DEADLINE, Mode, Source};
use proxy_tests::lab::{self, Connect, Lab, LabOptions, Outcome, Proto, Seen, to_mapped, to_v6_socket};
use proxy_tests::manifest::{save, service, slice};
use proxy_tests::{expect, lab::Peer};
use serde_json::{Value, json};
use tempfile::TempDir;

const WEB: &str = "10.96.0.10:80";
const DNS: &str = "10.96.0.53:53";

/// A lab with an agent on its node1.
pub(crate) struct Rig {
    pub(crate) lab: Lab,
    pub(crate) agent: Agent,
    dir: TempDir,
    mode: Mode,
}

impl Rig {
    /// A lab whose node1 serves `web` (TCP: b1, a2, b2) and `dns` (UDP: a2, b2).
    pub(crate) fn new(mode: Mode) -> Result<Self> {
        Self::with_flags(mode, &[])
    }

    /// The same with more flags of the agent.
    pub(crate) fn with_flags(mode: Mode, flags: &[&str]) -> Result<Self> {
        let lab = Lab::new(LabOptions::default())?;
        let dir = tempfile::tempdir()?;
        let agent = Agent::new(1, mode, Source::Manifests(dir.path().to_path_buf()))?;
        let agent = agent.with_flags(flags.iter().map(|&flag| flag.to_owned()).collect());
        let mut rig = Self { lab, agent, dir, mode };
        rig.write("web.json", &service("web", "10.96.0.10", 80, "TCP"))?;
        rig.write("web-1.json", &slice("web", "TCP", &[("10.1.1.3", true), ("10.1.2.2", true), ("10.1.2.3", true)]))?;
        rig.write("dns.json", &service("dns", "10.96.0.53", 53, "UDP"))?;
        rig.write("dns-1.json", &slice("dns", "UDP", &[("10.1.2.2", true), ("10.1.2.3", true)]))?;
        rig.agent.start(&rig.lab)?;
        rig.reaches("10.96.0.10:80/tcp", &["b1", "a2", "b2"])?;
        Ok(rig)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        save(&self.dir.path().join(name), text)
    }

    pub(crate) fn reaches(&self, to: &str, pods: &[&str]) -> Result<()> {
        let result = ["a1", "node1"].into_iter().try_for_each(|from| expect::reaches(&self.lab, from, to, pods));
        result.with_context(|| {
            format!("{}: {}\nprogrammed: {:#}", self.mode, self.agent.tail(), self.agent.dump(&self.lab).unwrap_or_default())
        })
    }

    fn pod(&self, name: &str) -> &Peer {
        self.lab.pod(name)
    }
}

/// An address and the one that the lab has for it in IPv6.
pub(crate) fn both(v4: &str) -> [String; 2] {
    let v4: IpAddr = v4.parse().expect("an address");
    [v4.to_string(), to_v6_socket(SocketAddr::new(v4, 1)).ip().to_string()]
}

/// Runs a test on every dataplane.
pub(crate) fn each(test: impl Fn(Mode) -> Result<()>) {
    if lab::available() {
        for mode in Mode::ALL {
            test(mode).unwrap_or_else(|error| panic!("{mode}: {error:?}"));
        }
    }
}

#[test]
fn a_restart_and_a_crash_lose_no_connection() {
    each(|mode| {
        let mut rig = Rig::new(mode)?;
        let web = Connect::new(WEB.parse()?, Proto::Tcp);
        let dns = Connect::new(DNS.parse()?, Proto::Udp).unconnected();
        let held = [rig.pod("a1").hold(web.clone())?, rig.pod("a1").hold(dns.clone())?, rig.lab.host(1).hold(web.clone())?];
        let flowing = [("a1", &web), ("node1", &web), ("a1", &dns)];
        let flowing =
            flowing.map(|(from, probe)| rig.lab.find(from).and_then(|peer| peer.traffic(probe.clone(), Duration::from_millis(1))));
        for crash in [true, false, true] {
            if crash {
                rig.agent.kill()?
            } else {
                rig.agent.stop()?
            };
            rig.reaches("10.96.0.10:80/tcp", &["b1", "a2", "b2"]).context("while no agent runs")?;
            rig.agent.start(&rig.lab)?;
            rig.agent.running()?.wait_for_log(DEADLINE, "first sync")?;
        }
        // What changed while no agent ran takes effect with the next one.
        rig.agent.kill()?;
        rig.write("web-1.json", &slice("web", "TCP", &[("10.1.2.2", true)]))?;
        rig.agent.start(&rig.lab)?;
        rig.reaches("10.96.0.10:80/tcp", &["a2"])?;
        for flowing in flowing {
            let report = flowing?.stop()?;
            ensure!(report.counts.failed() == 0 && report.counts.answered() > 100, "{report:?}");
        }
        held.iter().try_for_each(|held| held.echo()?.into_answer().map(drop)).context("a connection from the beginning")
    });
}

#[test]
fn backends_are_chosen_uniformly() {
    each(|mode| {
        let rig = Rig::new(mode)?;
        let counts = rig.pod("a1").spray(Connect::new(WEB.parse()?, Proto::Tcp), 900)?;
        // 300 each, standard deviation 14: five of them is once in two million.
        ensure!(
            counts.failed() == 0 && counts.servers.len() == 3 && counts.servers.values().all(|n| (230..=370).contains(n)),
            "{counts:?}"
        );
        Ok(())
    });
}

#[test]
fn replies_come_from_the_virtual_address() {
    each(|mode| {
        let rig = Rig::new(mode)?;
        for dst in [DNS.parse()?, to_mapped(DNS.parse()?)] {
            for probe in [Connect::new(dst, Proto::Udp), Connect::new(dst, Proto::Udp).unconnected()] {
                let answer = rig.pod("a1").probe(probe)?.into_answer()?;
                ensure!(answer.reply_source == Some(dst), "{answer:?}");
                ensure!(answer.peer.is_none_or(|peer| peer == dst), "{answer:?}");
                ensure!(answer.seen_source.ip().to_canonical() == rig.pod("a1").v4(), "the source is kept: {answer:?}");
            }
        }
        for dst in [WEB.parse()?, to_mapped(WEB.parse()?)] {
            let answer = rig.pod("a1").connect(dst, Proto::Tcp)?.into_answer()?;
            ensure!(answer.peer == Some(dst), "{answer:?}");
        }
        Ok(())
    });
}

/// NAT leads the node's own connection to where another one goes from the same port: replies to one are not for the other, whether
/// that is in use or has just ended. (docs/datapath.md says on which kernels they may be.)
#[test]
fn a_port_that_a_connection_to_the_backend_has_can_be_used_for_its_service() {
    each(|mode| {
        let rig = Rig::new(mode)?;
        let (addresses, backends) = (both("10.96.0.9"), both("10.1.1.3"));
        for ((external, address), backend) in both("10.98.0.9").iter().zip(&addresses).zip(&backends) {
            let name = if address.contains(':') { "single-6" } else { "single-4" };
            let mut single: Value = serde_json::from_str(&service(name, address, 80, "TCP"))?;
            single["spec"]["externalIPs"] = json!([external]);
            rig.write(&format!("{name}.json"), &single.to_string())?;
            rig.write(&format!("{name}-1.json"), &slice(name, "TCP", &[(backend, true)]))?;
            let (external, backend) = (SocketAddr::new(external.parse()?, 80), SocketAddr::new(backend.parse()?, 8080));
            expect::reaches(&rig.lab, "node1", &format!("{external}/tcp"), &["b1"])?;
            let node = rig.lab.host(1);
            let own: IpAddr = if external.is_ipv4() { node.v4().into() } else { node.v6().into() };
            let probe = |to, port| Connect::new(to, Proto::Tcp).from(SocketAddr::new(own, port));
            let held = node.hold(probe(backend, 9_999))?;
            node.probe(probe(external, 9_999))?.into_answer().with_context(|| format!("{external} while a connection is in use"))?;
            held.echo()?.into_answer()?;
            node.probe(probe(backend, 9_998))?.into_answer()?;
            node.probe(probe(external, 9_998))?.into_answer().with_context(|| format!("{external} after a connection has ended"))?;
        }
        Ok(())
    });
}

#[test]
fn an_unconnected_udp_socket_keeps_its_backend_until_that_is_gone() {
    each(|mode| {
        let rig = Rig::new(mode)?;
        let server = |outcome: Outcome| outcome.into_answer().map(|answer| answer.server.ip());
        let mut seen = std::collections::BTreeMap::new();
        for _ in 0..20 {
            let socket = rig.pod("a1").udp("0.0.0.0:0".parse()?)?;
            let first = server(socket.send(DNS.parse()?)?)?;
            for _ in 0..5 {
                ensure!(server(socket.send(DNS.parse()?)?)? == first, "the backend changed");
            }
            seen.insert(first, socket);
        }
        ensure!(seen.len() == 2, "all sockets got the same backend: {:?}", seen.keys());
        rig.write("dns-1.json", &slice("dns", "UDP", &[("10.1.2.2", true)]))?;
        rig.reaches("10.96.0.53:53/udp", &["a2"])?;
        for socket in seen.values() {
            // Flows are ended after everything else.
            rig.lab.wait(DEADLINE, "nothing to be sent to a backend that is gone", || {
                let server = server(socket.send(DNS.parse()?)?)?;
                Ok(if server == rig.pod("a2").v4() { Seen::Done(()) } else { Seen::not_yet(server) })
            })?;
        }
        Ok(())
    });
}

#[test]
fn scaling_under_load_refuses_nobody() {
    each(|mode| {
        let rig = Rig::new(mode)?;
        let web = Connect::new(WEB.parse()?, Proto::Tcp);
        let flowing = ["a1", "node1"].map(|from| rig.lab.find(from).and_then(|peer| peer.traffic(web.clone(), Duration::ZERO)));
        let all = [("10.1.1.3", true), ("10.1.2.2", true), ("10.1.2.3", true)];
        for count in [1, 3, 2, 1, 2, 3, 1, 3, 2] {
            rig.write("web-1.json", &slice("web", "TCP", &all[..count]))?;
            rig.reaches("10.96.0.10:80/tcp", &["b1", "a2", "b2"][..count])?;
        }
        for flowing in flowing {
            let report = flowing?.stop()?;
            ensure!(report.counts.failed() == 0 && report.counts.answered() > 100, "{report:?}");
        }
        Ok(())
    });
}

#[test]
fn a_broken_file_is_reported_by_line_and_its_last_good_state_stays() {
    each(|mode| {
        let mut rig = Rig::new(mode)?;
        rig.write("web.json", "apiVersion: v1\nkind: Service\nspec: [\n")?;
        rig.agent.running()?.wait_for_log(DEADLINE, "web.json:")?;
        rig.write("dns-1.json", &slice("dns", "UDP", &[("10.1.2.3", true)]))?;
        rig.reaches("10.96.0.53:53/udp", &["b2"]).context("the other files are served")?;
        rig.reaches("10.96.0.10:80/tcp", &["b1", "a2", "b2"]).context("the last good state stays")?;
        rig.write("web.json", &service("web", "10.96.0.11", 80, "TCP"))?;
        rig.reaches("10.96.0.11:80/tcp", &["b1", "a2", "b2"])
    });
}

#[test]
fn dump_shows_the_longest_names_in_every_form_and_cleanup_leaves_nothing() {
    each(|mode| {
        let mut rig = Rig::new(mode)?;
        let (namespace, name, port) = ("n".repeat(63), "s".repeat(63), "p".repeat(63));
        let long = service("web", "10.96.1.1", 80, "TCP")
            .replace("\"default\"", &format!("\"{namespace}\""))
            .replace("\"web\"", &format!("\"{name}\""));
        rig.write("long.json", &long.replace("\"main\"", &format!("\"{port}\"")))?;
        let filter = format!("{namespace}/{name}");
        let rows = |text: &str| Ok::<_, anyhow::Error>(serde_json::from_str::<Value>(text)?["dataplanes"][0]["services"].clone());
        let json = rig.lab.wait(DEADLINE, "the long names in dump", || {
            let found = rows(&rig.agent.dump_as(&rig.lab, &["-o", "json", "--service", &filter])?)?;
            Ok(if found.as_array().is_some_and(|a| a.len() == 1) { Seen::Done(found) } else { Seen::not_yet(found) })
        })?;
        ensure!(json[0]["namespace"] == *namespace && json[0]["service"] == *name && json[0]["port"] == *port, "{json:#}");
        // It works while no agent runs.
        rig.agent.stop()?;
        let table = rig.agent.dump_as(&rig.lab, &["--service", "default/web"])?;
        // Of every dataplane of the mode, below the head.
        let lines = if mode == Mode::Ebpf { 3 } else { 2 };
        ensure!(table.lines().count() == lines && table.contains("10.96.0.10:80"), "{table}");
        let yaml = rig.agent.dump_as(&rig.lab, &["--service", "default/web", "-o", "yaml"])?;
        ensure!(yaml.contains("service: web") && yaml.contains("10.1.1.3"), "{yaml}");

        rig.lab.nft("node1", "table inet foreign {\nset s { type ipv4_addr; elements = { 192.0.2.1 }; }\n}")?;
        rig.agent.cleanup(&rig.lab)?;
        ensure!(rig.agent.dump_as(&rig.lab, &[])?.contains("nothing is programmed"), "cleanup left something");
        ensure!(!rig.lab.node(1).bpffs().join("proxy-agent").exists(), "cleanup left pins");
        let mut nft = Command::new("nft");
        nft.args(["list", "tables"]);
        let tables = String::from_utf8(rig.lab.output_on_node(1, nft)?.stdout)?;
        ensure!(tables.trim() == "table inet foreign", "cleanup left or took tables: {tables}");
        expect::untouched(&rig.lab, "a1", "10.96.0.10:80/tcp")
    });
}

/// As in a container that sees its own cgroup as the root.
#[test]
fn a_cgroup_that_is_not_the_true_root_is_refused_unless_it_was_asked_for() {
    if !lab::available() {
        return;
    }
    let refused = || -> Result<()> {
        let mut rig = Rig::new(Mode::Ebpf)?;
        // A second one would wait for it.
        rig.agent.stop()?;
        let script = "mount --make-rprivate / && umount \"$1\" && mount -t cgroup2 none \"$1\" && shift && exec \"$@\"";
        let mut shell = Command::new("unshare");
        let mount = rig.lab.node(1).cgroup().ancestors().nth(2).context("the cgroup mount")?;
        shell.args(["--cgroup", "--mount", "sh", "-c", script, "sh"]).arg(mount).arg(rig.agent.program());
        shell
            .args(["run", "--proxy-mode=ebpf", "--manifests"])
            .arg(rig.dir.path())
            .arg("--bpf-pin-path")
            .arg(rig.lab.node(1).bpffs().join("other"));
        let output = rig.lab.output_on_node(1, shell)?;
        let text = String::from_utf8(output.stderr)?;
        ensure!(!output.status.success() && text.contains("is not the root of the host's cgroup v2 hierarchy"), "{text}");
        ensure!(text.contains("--cgroup"), "the way out is missing: {text}");
        Ok(())
    };
    refused().unwrap_or_else(|error| panic!("{error:?}"));
}
