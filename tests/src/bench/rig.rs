//! What all proxies are measured in: a lab whose pod b1 has every endpoint's address, and an API server full of Services.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde::Deserialize;

use super::plan::{Plan, sample};
use super::state::{self, READY};
use crate::child::{die_with_parent, spawn_from_lasting_thread};
use crate::controlplane::{ControlPlane, Options};
use crate::lab::{Lab, LabOptions, PodSpec};
use crate::random::random;

/// The node under test.
pub(super) const NODE: &str = "node1";
/// The Service that is changed, and its slice.
pub(super) const PROBE: &str = "probe";
pub(super) const PROBE_SLICE: &str = "probe-0";
/// The UDP Service whose flows go stale, and its slice.
pub(super) const FLOWS: &str = "flows";
pub(super) const FLOWS_SLICE: &str = "flows-0";
/// Where endpoints listen.
const BACKEND_PORT: u16 = 8080;
/// Where `fill` takes its endpoints from.
const ENDPOINTS: &str = "10.128.0.0/9";

/// The two addresses that the probe's only endpoint takes in turn: above all that `fill` invents.
pub(super) fn endpoint(turn: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 0, if turn.is_multiple_of(2) { 1 } else { 2 })
}

/// Endpoints that take what is sent to them and answer nothing: within those of [`endpoint`]'s network that nobody else has.
const SILENT: &str = "10.255.1.0/24";

/// The two addresses that the endpoint of the Service with many flows takes in turn.
pub(super) fn silent_endpoint(turn: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 255, 1, if turn.is_multiple_of(2) { 1 } else { 2 })
}

/// The two ports that the probe takes in turn.
pub(super) fn port(turn: usize) -> u16 {
    if turn.is_multiple_of(2) { 80 } else { 81 }
}

/// Lab, API server and the processes that write to it.
pub(super) struct Rig {
    pub(super) lab: Lab,
    pub(super) plane: ControlPlane,
    pub(super) writer: Writer,
    pub(super) plan: Plan,
    pub(super) services: usize,
    /// Virtual addresses of the sample, `svc-00000` first.
    pub(super) sample: Vec<SocketAddr>,
    /// The probe's virtual address, and how often its endpoint and port have changed.
    pub(super) probe: IpAddr,
    pub(super) endpoint_turn: usize,
    pub(super) port_turn: usize,
    /// The virtual address of the Service with many flows, and how often its endpoint has changed.
    pub(super) flows: IpAddr,
    pub(super) flows_writer: Writer,
    pub(super) flows_turn: usize,
    random: u64,
}

impl Rig {
    pub(super) fn new(services: usize, plan: &Plan) -> Result<Self> {
        let pods = [("a1", 1, 2), ("b1", 1, 3)].map(|(name, node, host)| PodSpec::new(name, node, host)).to_vec();
        let lab = Lab::new(LabOptions { pods, listen: Vec::new(), ..LabOptions::default() })?;
        let pod = lab.pod("b1").v4();
        lab.ip("b1", &format!("route add local {ENDPOINTS} dev lo\n"))?;
        lab.ip("node1", &format!("route add {ENDPOINTS} via {pod} dev pod-b1 onlink\n"))?;
        lab.pod("b1").answer_at((Ipv4Addr::UNSPECIFIED, BACKEND_PORT).into())?;
        lab.ip("b1", &format!("route add blackhole {SILENT} table local\n"))?;
        forget_unanswered_soon(&lab)?;

        // On another node, as it is in a cluster: its own connections do not meet the rules of the node under test.
        let (netns, addresses) = (Some(lab.node(2).netns().to_owned()), lab.node(2).addresses().to_vec());
        let mut options = Options { netns, addresses, ..Options::default() };
        options.saved = Some(state::saved(&lab, &options, services, plan)?);
        let mut plane = ControlPlane::start(options)?;
        plane.wait_ready(READY)?;
        let [writer, flows_writer] = [Writer::start(&plane, PROBE)?, Writer::start(&plane, FLOWS)?];
        let names: Vec<String> = sample(services, plan.seed).into_iter().map(|i| format!("svc-{i:05}")).collect();
        let sample = addresses_of(&plane, &names)?.into_iter().map(|ip| SocketAddr::new(ip, 80)).collect();
        let [probe, flows] = addresses_of(&plane, &[PROBE.to_owned(), FLOWS.to_owned()])?[..] else {
            bail!("two addresses were asked for")
        };
        let (plan, random) = (plan.clone(), plan.seed);
        let (endpoint_turn, port_turn, flows_turn) = (0, 0, 0);
        Ok(Self { lab, plane, writer, plan, services, sample, probe, endpoint_turn, port_turn, flows, flows_writer, flows_turn, random })
    }

    /// Where the probe is served now.
    pub(super) fn vip(&self) -> SocketAddr {
        SocketAddr::new(self.probe, port(self.port_turn))
    }

    /// The probe's endpoint now, past any proxy.
    pub(super) fn backend(&self) -> SocketAddr {
        (endpoint(self.endpoint_turn), BACKEND_PORT).into()
    }

    /// CPU time that those have used who connect and who answer.
    pub(super) fn probing(&self) -> Result<Duration> {
        Ok(self.lab.pod("a1").group().cpu_time()? + self.lab.pod("b1").group().cpu_time()?)
    }

    /// A pause between two changes, of varying length, so that nothing falls into step with a proxy's own timers.
    pub(super) fn pause(&mut self) {
        thread::sleep(Duration::from_millis(60 + random(&mut self.random) % 60));
    }

    /// Waits until API server and etcd have nothing more to do of their own, as after their start, or for half a minute.
    pub(super) fn settle(&self) -> Result<()> {
        quiet(Duration::from_secs(30), || self.plane.cpu_time())
    }
}

/// Waits until what `cpu_time` tells of grows by less than a twentieth of the time, but no longer than `at_most`.
pub(super) fn quiet(at_most: Duration, cpu_time: impl Fn() -> Result<Duration>) -> Result<()> {
    const WINDOW: Duration = Duration::from_millis(400);
    let end = Instant::now() + at_most;
    let mut before = cpu_time()?;
    while Instant::now() < end {
        thread::sleep(WINDOW);
        let now = cpu_time()?;
        if now - before < WINDOW / 20 {
            break;
        }
        before = now;
    }
    Ok(())
}

/// A try that met the kernel before it was programmed leaves a conntrack entry, through which a later try from the same port would
/// go untranslated for two minutes.
fn forget_unanswered_soon(lab: &Lab) -> Result<()> {
    let path = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_syn_sent";
    lab.inside("node1", || std::fs::write(path, "1").context(path))
}

fn addresses_of(plane: &ControlPlane, names: &[String]) -> Result<Vec<IpAddr>> {
    let mut args = vec!["get", "service", "--output=jsonpath={..spec.clusterIP}"];
    args.extend(names.iter().map(String::as_str));
    let text = plane.kubectl(&args, None)?;
    let found = text.split_whitespace().map(|ip| ip.parse().with_context(|| format!("ClusterIP {ip:?}"))).collect::<Result<Vec<_>>>()?;
    anyhow::ensure!(found.len() == names.len(), "{} Services have {} addresses: {text}", names.len(), found.len());
    Ok(found)
}

/// `fill update`, which stays: no process start is within what is timed.
pub(super) struct Writer {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

/// When a write was under way, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Written {
    #[serde(rename = "started_unix_ns")]
    pub(super) started: u64,
    #[serde(rename = "done_unix_ns")]
    pub(super) done: u64,
    /// When a bare watch saw it.
    #[serde(rename = "seen_unix_ns")]
    pub(super) seen: u64,
}

impl Writer {
    /// For one Service, whose changes it watches as well.
    fn start(plane: &ControlPlane, service: &str) -> Result<Self> {
        let mut command = plane.fill_command("update");
        command.args(["-watch", service]).stdin(Stdio::piped()).stdout(Stdio::piped());
        die_with_parent(&mut command, Signal::SIGKILL);
        let mut child = spawn_from_lasting_thread(command).context("fill update")?;
        let stdin = child.stdin.take().context("standard input was not piped")?;
        let stdout = BufReader::new(child.stdout.take().context("standard output was not piped")?);
        Ok(Self { child, stdin, stdout })
    }

    /// Carries out one line of `fill update`.
    pub(super) fn write(&mut self, line: &str) -> Result<Written> {
        let mut answer = String::new();
        self.stdin.write_all(format!("{line}\n").as_bytes()).and_then(|()| self.stdout.read_line(&mut answer)).context("fill update")?;
        serde_json::from_str(&answer).with_context(|| format!("fill update, {line:?}: it said {answer:?}"))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Fails only for a process that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
