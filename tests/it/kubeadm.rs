//! A cluster of kubeadm's: its ConfigMap and the arguments of its DaemonSet, unchanged, with the agent in kube-proxy's place.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use proxy_tests::agent::DEADLINE;
use proxy_tests::controlplane::{ControlPlane, Options, User};
use proxy_tests::expect;
use proxy_tests::lab::{self, Connect, Lab, LabOptions, Program, Proto, Seen};
use proxy_tests::manifest::{service, slice};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a control plane may take to start on a busy machine.
const START: Duration = Duration::from_secs(120);

/// The name of the node, which is not the host's.
const NODE: &str = "node1";

/// `config.conf` as `kubeadm init` of 1.37 makes it, for pods in this lab's ranges: every field is there, most of them empty.
pub(crate) const CONFIGURATION: &str = r#"apiVersion: kubeproxy.config.k8s.io/v1alpha1
bindAddress: 0.0.0.0
bindAddressHardFail: false
clientConnection:
  acceptContentTypes: ""
  burst: 0
  contentType: ""
  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf
  qps: 0
clusterCIDR: 10.1.0.0/16,fd00:10:1::/48
configSyncPeriod: 0s
conntrack:
  maxPerCore: null
  min: null
  tcpBeLiberal: false
  tcpCloseWaitTimeout: null
  tcpEstablishedTimeout: null
  udpStreamTimeout: 0s
  udpTimeout: 0s
detectLocal:
  bridgeInterface: ""
  interfaceNamePrefix: ""
detectLocalMode: ""
enableProfiling: false
healthzBindAddress: ""
hostnameOverride: ""
iptables:
  localhostNodePorts: null
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
ipvs:
  excludeCIDRs: null
  minSyncPeriod: 0s
  scheduler: ""
  strictARP: false
  syncPeriod: 0s
  tcpFinTimeout: 0s
  tcpTimeout: 0s
  udpTimeout: 0s
kind: KubeProxyConfiguration
logging:
  flushFrequency: 0
  options:
    json:
      infoBufferSize: "0"
    text:
      infoBufferSize: "0"
  verbosity: 0
metricsBindAddress: ""
mode: iptables
nftables:
  masqueradeAll: false
  masqueradeBit: null
  minSyncPeriod: 0s
  syncPeriod: 0s
nodePortAddresses: null
oomScoreAdj: null
portRange: ""
showHiddenMetricsForVersion: ""
winkernel:
  enableDSR: false
  forwardHealthCheckVip: false
  networkName: ""
  rootHnsEndpointName: ""
  sourceVip: ""
"#;

/// `command` of the container in kubeadm's DaemonSet, its environment filled in.
const COMMAND: [&str; 3] = ["/usr/local/bin/kube-proxy", "--config=/var/lib/kube-proxy/config.conf", "--hostname-override=node1"];

/// What a container has for the program: its image, the ConfigMap and the ServiceAccount, mounted where kubeadm's DaemonSet has them; and the
/// lab's bpf file system, which is below /run.
/// The mounts are in a namespace of their own; `exec` keeps the process id.
const CONTAINER: &str = r#"set -e
mount -t tmpfs none /usr/local/bin
ln -s "$AGENT" /usr/local/bin/kube-proxy
mount -t tmpfs none /var/lib
mkdir /var/lib/kube-proxy
mount --bind "$CONFIG_MAP" /var/lib/kube-proxy
mount -t tmpfs none /mnt
mkdir /mnt/bpf
mount --bind "$BPFFS" /mnt/bpf
mount -t tmpfs none /run
mkdir -p "$BPFFS"
mount --bind /mnt/bpf "$BPFFS"
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount
mount --bind "$SERVICE_ACCOUNT" /var/run/secrets/kubernetes.io/serviceaccount
exec "$@""#;

#[test]
fn the_stock_config_map_and_arguments_drive_the_agent() {
    if lab::available() {
        run(stock, |_| String::new()).unwrap_or_else(|error| panic!("{error:?}"));
    }
}

#[test]
fn a_config_map_that_is_swapped_counts_without_a_restart() {
    if lab::available() {
        run(swapped, |_| String::new()).unwrap_or_else(|error| panic!("{error:?}"));
    }
}

/// It is a good one, but nothing for this host.
#[test]
fn a_configuration_that_cannot_be_run_gives_way_to_the_one_before() {
    if lab::available() {
        run(gives_way, |_| String::new()).unwrap_or_else(|error| panic!("{error:?}"));
    }
}

/// The same with eBPF, which our own document beside kube-proxy's asks for.
#[test]
fn a_config_map_that_is_swapped_counts_without_a_restart_of_ebpf() {
    if lab::available() {
        run(swapped, ebpf).unwrap_or_else(|error| panic!("{error:?}"));
    }
}

fn ebpf(lab: &Lab) -> String {
    let node = lab.node(1);
    format!(
        "---\napiVersion: proxy-agent.io/v1alpha1\nkind: ProxyAgentConfiguration\nmode: ebpf\nbpfPinPath: {}\ncgroup: {}\n",
        node.bpffs().join("proxy-agent").display(),
        node.cgroup().display()
    )
}

/// CLI-05: it waits for the Node, which is made only then, and ends; nothing serves.
#[test]
fn what_needs_more_rights_is_done_beforehand() {
    if lab::available() {
        prepares().unwrap_or_else(|error| panic!("{error:?}"));
    }
}

fn prepares() -> Result<()> {
    let (lab, plane) = cluster()?;
    let mut command = Command::new(proxy_tests::agent::program()?);
    // What belongs to the whole machine stays as it is.
    command.args(["--init-only", "--hostname-override=node1", "--conntrack-max-per-core=0", "--proxy-mode=nftables"]);
    command.args(["--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0"]);
    command.arg("--kubeconfig").arg(plane.kubeconfig(User::KubeProxy));
    let mut agent = lab.spawn_on_node(1, command)?;
    agent.wait_for_log(DEADLINE, "node node1: waiting for it")?;
    ensure!(agent.ended()?.is_none(), "it has not waited\n{}", agent.tail());
    plane.add_node(NODE, &lab.node(1).addresses())?;
    let status = agent.wait(DEADLINE)?;
    ensure!(status.success() && agent.log().contains("everything is prepared"), "{status}\n{}", agent.tail());
    ensure!(tables(&lab)?.is_empty(), "Services are not its business: {}", tables(&lab)?);
    Ok(())
}

/// The tables of nftables on the node.
fn tables(lab: &Lab) -> Result<String> {
    let mut command = Command::new("nft");
    command.args(["list", "tables"]);
    let output = lab.output_on_node(1, command)?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn cluster() -> Result<(Lab, ControlPlane)> {
    let lab = Lab::new(LabOptions::default())?;
    let (netns, addresses) = (Some(lab.node(1).netns().to_owned()), lab.node(1).addresses().to_vec());
    let mut plane = ControlPlane::start(Options { netns, addresses, ..Options::default() })?;
    plane.wait_ready(START)?;
    Ok((lab, plane))
}

/// A ConfigMap as kubelet mounts it: its files are links through `..data`, which is swapped as a whole.
struct ConfigMap {
    dir: TempDir,
    version: u32,
}

impl ConfigMap {
    fn new(files: &[(&str, &str)]) -> Result<Self> {
        let mut map = Self { dir: tempfile::tempdir()?, version: 0 };
        map.write(files)?;
        for (name, _) in files {
            symlink(Path::new("..data").join(name), map.dir.path().join(name))?;
        }
        Ok(map)
    }

    fn write(&mut self, files: &[(&str, &str)]) -> Result<()> {
        self.version += 1;
        let name = format!("..version-{}", self.version);
        let folder = self.dir.path().join(&name);
        fs::create_dir(&folder)?;
        for (name, text) in files {
            fs::write(folder.join(name), text)?;
        }
        symlink(&name, self.dir.path().join("..data_tmp"))?;
        fs::rename(self.dir.path().join("..data_tmp"), self.dir.path().join("..data"))?;
        Ok(())
    }
}

/// Everything that the tests have up.
struct Rig {
    lab: Lab,
    plane: ControlPlane,
    agent: Program,
    config_map: ConfigMap,
    kubeconfig: String,
    /// Our document, beside kube-proxy's.
    own: String,
    _service_account: TempDir,
}

fn run(test: fn(&mut Rig) -> Result<()>, own: fn(&Lab) -> String) -> Result<()> {
    let (lab, plane) = cluster()?;
    plane.add_node(NODE, &lab.node(1).addresses())?;
    let service_account = service_account(&plane)?;
    let kubeconfig = kubeconfig(&plane.url());
    let own = own(&lab);
    let config_map = ConfigMap::new(&[("config.conf", &(CONFIGURATION.to_owned() + &own)), ("kubeconfig.conf", &kubeconfig)])?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation=private", "sh", "-c", CONTAINER, "sh"]).args(COMMAND);
    command.env("AGENT", proxy_tests::agent::program()?);
    command.env("BPFFS", lab.node(1).bpffs());
    command.env("CONFIG_MAP", config_map.dir.path()).env("SERVICE_ACCOUNT", service_account.path());
    let agent = lab.spawn_on_node(1, command)?;
    let mut rig = Rig { lab, plane, agent, config_map, kubeconfig, own, _service_account: service_account };
    let result = rig.begin().and_then(|()| test(&mut rig));
    result.with_context(|| rig.agent.tail())
}

/// What kubeadm makes for kube-proxy: the ServiceAccount, its role, and, as kubelet mounts it, its token.
fn service_account(plane: &ControlPlane) -> Result<TempDir> {
    plane.kubectl(&["create", "serviceaccount", "kube-proxy", "--namespace=kube-system"], None)?;
    let binding = ["create", "clusterrolebinding", "kubeadm:node-proxier"];
    let binding = [&binding[..], &["--clusterrole=system:node-proxier", "--serviceaccount=kube-system:kube-proxy"]].concat();
    plane.kubectl(&binding, None)?;
    let token = plane.kubectl(&["create", "token", "kube-proxy", "--namespace=kube-system", "--duration=24h"], None)?;
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("token"), token.trim())?;
    fs::copy(plane.path().join("ca.crt"), dir.path().join("ca.crt")).context("the cluster's CA")?;
    Ok(dir)
}

fn kubeconfig(server: &str) -> String {
    let folder = PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount");
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "default",
        "clusters": [{"name": "default", "cluster": {"server": server, "certificate-authority": folder.join("ca.crt")}}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "namespace": "default", "user": "default"}}],
        "users": [{"name": "default", "user": {"tokenFile": folder.join("token")}}],
    })
    .to_string()
}

impl Rig {
    /// A Service with a NodePort is served.
    fn begin(&mut self) -> Result<()> {
        let mut web: Value = serde_json::from_str(&service("web", "10.96.0.10", 80, "TCP"))?;
        web["spec"]["type"] = "NodePort".into();
        web["spec"]["ports"][0]["nodePort"] = 30080.into();
        self.plane.kubectl(&["apply", "-f", "-"], Some(&web.to_string()))?;
        self.plane.kubectl(&["apply", "-f", "-"], Some(&slice("web", "TCP", &[("10.1.1.3", true), ("10.1.2.2", true)])))?;
        self.reaches("10.96.0.10:80/tcp")
    }

    /// Waits until the API server has an event about the Node.
    fn told(&self, reason: &str, note: &str) -> Result<()> {
        self.lab.wait(DEADLINE, &format!("the event {reason}"), || {
            let path = "jsonpath={range .items[*]}{.reason} {.type} {.regarding.kind}/{.regarding.name}: {.note}{'\\n'}{end}";
            let events = self.plane.kubectl(&["get", "events.events.k8s.io", "--all-namespaces", "-o", path], None)?;
            let begin = format!("{reason} Warning Node/{NODE}: ");
            let is_there = events.lines().any(|line| line.starts_with(&begin) && line.contains(note));
            Ok(if is_there { Seen::Done(()) } else { Seen::not_yet(events) })
        })
    }

    fn reaches(&self, to: &str) -> Result<()> {
        ["a1", "node1"].into_iter().try_for_each(|from| expect::reaches(&self.lab, from, to, &["b1", "a2"]))
    }

    fn swap(&mut self, configuration: &str) -> Result<()> {
        self.config_map.write(&[("config.conf", &(configuration.to_owned() + &self.own)), ("kubeconfig.conf", &self.kubeconfig)])
    }
}

/// Mode iptables is nftables, with a warning; the flag names the Node; NodePorts are on all addresses, as that mode of kube-proxy's has it.
fn stock(rig: &mut Rig) -> Result<()> {
    let said = |rig: &Rig, text: &str| {
        let log = rig.agent.log();
        ensure!(log.contains(text), "the log lacks {text:?}");
        Ok(())
    };
    said(rig, "mode iptables of kube-proxy is not here: Services are programmed in mode nftables")?;
    rig.told("KubeProxyModeReplaced", "Services are programmed in mode nftables")?;
    ensure!(!rig.agent.log().contains("no field"), "every field is known");
    ensure!(!rig.agent.log().contains("another Service proxy"), "it is not taken for a kube-proxy");
    expect::reaches(&rig.lab, "client", "10.0.0.1:30080/tcp", &["b1", "a2"])?;
    // An address of the host that the Node object does not name.
    rig.lab.ip("node1", "address add 10.0.0.7/32 dev lo\n")?;
    expect::reaches(&rig.lab, "client", "10.0.0.7:30080/tcp", &["b1", "a2"])?;
    // What changes goes on to count.
    rig.plane.kubectl(&["apply", "-f", "-"], Some(&slice("web", "TCP", &[("10.1.2.3", true)])))?;
    expect::reaches(&rig.lab, "a1", "10.96.0.10:80/tcp", &["b2"])?;
    // It ends when it is asked to, and leaves what it has programmed; kube-proxy's flag removes that.
    rig.agent.signal(Signal::SIGTERM)?;
    let status = rig.agent.wait(DEADLINE)?;
    ensure!(status.success(), "the agent ended with {status}");
    ensure!(tables(&rig.lab)?.contains("proxy-agent"), "{}", tables(&rig.lab)?);
    let mut command = Command::new(proxy_tests::agent::program()?);
    command.arg("--cleanup").arg("--bpf-pin-path").arg(rig.lab.node(1).bpffs().join("proxy-agent"));
    let output = rig.lab.output_on_node(1, command)?;
    ensure!(output.status.success() && tables(&rig.lab)?.is_empty(), "{output:?}\n{}", tables(&rig.lab)?);
    Ok(())
}

/// W-16
fn swapped(rig: &mut Rig) -> Result<()> {
    let pid = rig.agent.pid();
    let probe = Connect::new("10.96.0.10:80".parse()?, Proto::Tcp);
    let held = rig.lab.pod("a1").hold(probe.clone())?;
    let flowing = rig.lab.pod("a1").traffic(probe, Duration::from_millis(2))?;
    let to = "10.0.0.1:30080/tcp";
    expect::reaches(&rig.lab, "client", to, &["b1", "a2"])?;

    // Where NodePorts are served changes, and back.
    rig.swap(&CONFIGURATION.replace("nodePortAddresses: null", "nodePortAddresses: [192.0.2.0/24]"))?;
    rig.agent.wait_for_log(DEADLINE, "has changed: nodePortAddresses; starting with it")?;
    expect::refused(&rig.lab, "client", to).context("NodePorts are elsewhere")?;
    rig.swap(&CONFIGURATION.replace("nodePortAddresses: null", "nodePortAddresses: [primary]"))?;
    expect::reaches(&rig.lab, "client", to, &["b1", "a2"])?;

    // What cannot be used changes nothing, whatever else is in it.
    let broken = CONFIGURATION
        .replace("nodePortAddresses: null", "nodePortAddresses: [192.0.2.0/24]")
        .replace("portRange: \"\"", "oomScoreAdj: 5000");
    rig.swap(&broken)?;
    rig.agent.wait_for_log(DEADLINE, "oomScoreAdj (--oom-score-adj): 5000 is not from -1000 to 1000")?;
    rig.told("InvalidConfiguration", "oomScoreAdj (--oom-score-adj): 5000")?;
    expect::reaches(&rig.lab, "client", to, &["b1", "a2"])?;
    rig.plane.kubectl(&["apply", "-f", "-"], Some(&slice("web", "TCP", &[("10.1.2.3", true), ("10.1.2.2", true)])))?;
    expect::reaches(&rig.lab, "a1", "10.96.0.10:80/tcp", &["b2", "a2"]).context("it goes on to follow the API server")?;

    // And what is mended counts: the log's level too, which needs no restart of anything.
    rig.swap(&CONFIGURATION.replace("verbosity: 0", "verbosity: 4"))?;
    rig.agent.wait_for_log(DEADLINE, "logging.verbosity, nodePortAddresses; starting with it")?;
    rig.lab.wait(DEADLINE, "the fourth run in one process", || {
        let runs = rig.agent.log().matches("first sync").count();
        Ok(if runs == 4 { Seen::Done(()) } else { Seen::not_yet(runs) })
    })?;
    expect::reaches(&rig.lab, "client", to, &["b2", "a2"])?;

    let report = flowing.stop()?;
    ensure!(report.counts.failed() == 0, "connections were lost: {report:?}");
    ensure!(report.counts.answered() > 100, "hardly any connection was made: {report:?}");
    held.echo()?.into_answer().context("a connection from before")?;
    ensure!(rig.agent.ended()?.is_none() && rig.agent.pid() == pid, "it is the same process");
    let name = fs::read_link(format!("/proc/{pid}/exe"))?;
    ensure!(name.file_name().is_some_and(|name| name == "proxy-agent"), "{} runs", name.display());
    Ok(())
}

fn gives_way(rig: &mut Rig) -> Result<()> {
    let pid = rig.agent.pid();
    let runs = |rig: &Rig, wanted| {
        rig.lab.wait(DEADLINE, &format!("run number {wanted} to serve"), || {
            let runs = rig.agent.log().matches("first sync").count();
            Ok(if runs == wanted { Seen::Done(()) } else { Seen::not_yet(runs) })
        })
    };
    // Maps cannot be pinned there.
    rig.swap(&format!(
        "{CONFIGURATION}---\napiVersion: proxy-agent.io/v1alpha1\nkind: ProxyAgentConfiguration\nmode: ebpf\nbpfPinPath: /proc/none\n"
    ))?;
    rig.agent.wait_for_log(DEADLINE, "what was there before is back")?;
    rig.told("InvalidConfiguration", "/proc/none")?;
    runs(rig, 2)?;
    rig.reaches("10.96.0.10:80/tcp")?;
    rig.swap(&CONFIGURATION.replace("verbosity: 0", "verbosity: 4"))?;
    runs(rig, 3)?;
    rig.reaches("10.96.0.10:80/tcp")?;
    // It was tried once only.
    let tried = rig.agent.log().matches("what was there before is back").count();
    ensure!(tried == 1 && rig.agent.ended()?.is_none() && rig.agent.pid() == pid, "tried {tried} times, in one process");
    Ok(())
}
