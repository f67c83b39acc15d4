//! A real control plane for tests and benchmarks: etcd and kube-apiserver, without controllers, scheduler or kubelet.
//!
//! What a cluster's controllers would write (EndpointSlices, Nodes, Pods) the test writes itself, so that every step is the
//! test's own. RBAC is on: a proxy that runs with [`User::KubeProxy`]'s kubeconfig has the rights that Kubernetes gives to
//! kube-proxy and no more.

pub mod api;
pub mod binaries;
pub mod process;
#[cfg(test)]
mod tests;

use std::env;
use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;

pub use api::Api;
pub use binaries::{Binaries, binaries};
pub use process::{Netns, Process};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// How long a process gets to end by itself. The API server first finishes the requests that it has.
const GRACE: Duration = Duration::from_secs(10);

/// Name of etcd's data directory.
const ETCD: &str = "etcd";

/// How a control plane is set up. The default is one on loopback in the caller's own network namespace.
#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the network namespace (`ip netns`) that etcd and the API server run in; its loopback device must be up. `None`
    /// is the one of the thread that starts them.
    pub netns: Option<String>,
    /// Addresses of that namespace, beside loopback, at which others reach the API server; its certificate is valid for all of
    /// them. The first one is what kubeconfigs name; the first one of the first service range's family is the endpoint of
    /// Service `default/kubernetes`. Empty: loopback only, and that Service has no endpoint.
    pub addresses: Vec<IpAddr>,
    /// The API server's port; `None` takes a free one.
    pub port: Option<u16>,
    /// `--service-cluster-ip-range`: one range, or an IPv4 and an IPv6 one.
    pub service_ranges: String,
    /// More flags for the API server, such as `--feature-gates=...`.
    pub extra_args: Vec<String>,
    /// What [`ControlPlane::save`] kept of another control plane: this one starts with a copy of its objects.
    pub saved: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            netns: None,
            addresses: Vec::new(),
            port: None,
            // 65,000 addresses in each family.
            service_ranges: "10.96.0.0/16,fd00:10:96::/112".to_owned(),
            extra_args: Vec::new(),
            saved: None,
        }
    }
}

/// Who a kubeconfig speaks as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// In group `system:masters`: may do everything.
    Admin,
    /// `system:kube-proxy`: what ClusterRole `system:node-proxier` allows.
    KubeProxy,
}

impl User {
    const ALL: [Self; 2] = [Self::Admin, Self::KubeProxy];

    fn file(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::KubeProxy => "kube-proxy",
        }
    }
}

/// A running control plane; dropping it ends its processes and removes its data.
///
/// The data is kept, and named on stderr, when the thread is panicking, or always where `PROXY_TESTS_KEEP` is set.
pub struct ControlPlane {
    // Fields are dropped in this order: the API server must not outlive its etcd, nor either of them the directory.
    apiserver: Option<Process>,
    etcd: Process,
    dir: Option<TempDir>,
    path: PathBuf,
    binaries: Binaries,
    options: Options,
    netns: Netns,
    port: u16,
    etcd_port: u16,
}

impl ControlPlane {
    /// Starts etcd and the API server, and builds them first where that has not been done. It returns before they serve: see
    /// [`ControlPlane::wait_ready`].
    pub fn start(options: Options) -> Result<Self> {
        let binaries = binaries()?;
        let netns = options.netns.as_deref().map_or_else(Netns::current, Netns::open)?;
        let dir = tempfile::Builder::new().prefix("controlplane-").tempdir().context("a directory for the control plane's data")?;
        let path = dir.path().to_owned();

        let [etcd_port, peer_port, free_port] = process::free_ports(&netns)?;
        let port = options.port.unwrap_or(free_port);
        write_keys(&binaries, &path, &options)?;
        write_users(&path, &options, port)?;
        if let Some(saved) = &options.saved {
            copy(saved, &path.join(ETCD))?;
        }
        let etcd = start_etcd(&binaries, &path, &netns, etcd_port, peer_port)?;
        let mut this = Self { apiserver: None, etcd, dir: Some(dir), path, binaries, options, netns, port, etcd_port };
        this.start_apiserver()?;
        Ok(this)
    }

    /// Waits until the API server serves, and has made what Services need: its own RBAC rules, namespace `default`, and the
    /// address ranges.
    pub fn wait_ready(&mut self, within: Duration) -> Result<()> {
        let deadline = Instant::now() + within;
        loop {
            self.alive()?;
            // `default/kubernetes` is made a moment after /readyz says ok, and last of all: it takes the namespace and an
            // address.
            let get = |what: &[&str]| self.kubectl(&[&["get", "--request-timeout=5s"], what].concat(), None);
            let answer = get(&["--raw", "/readyz"]).and_then(|_| get(&["service", "kubernetes", "--namespace=default"]));
            let Err(error) = answer else { return Ok(()) };
            if Instant::now() >= deadline {
                let log = self.apiserver.as_ref().map_or_else(String::new, Process::tail);
                bail!("the API server at {} is not ready after {within:?}: {error:#}\n{log}", self.url());
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Fails, with the tail of its log, if etcd or the API server has ended by itself.
    pub fn alive(&mut self) -> Result<()> {
        self.etcd.alive()?;
        match &mut self.apiserver {
            Some(apiserver) => apiserver.alive(),
            None => bail!("the API server is stopped: call start_apiserver() first"),
        }
    }

    /// Ends the API server as a rolling restart would; etcd and all objects stay. Does nothing if it is stopped.
    pub fn stop_apiserver(&mut self) -> Result<()> {
        self.apiserver.take().map_or(Ok(()), |apiserver| apiserver.stop(GRACE))
    }

    /// Ends the API server as a crash would: clients see their connections reset. Does nothing if it is stopped.
    pub fn kill_apiserver(&mut self) {
        drop(self.apiserver.take());
    }

    /// Starts the API server again, on the same port and the same data. Does nothing if it runs.
    pub fn start_apiserver(&mut self) -> Result<()> {
        if self.apiserver.is_some() {
            return Ok(());
        }
        let file = |name: &str| self.path.join(name).display().to_string();
        let flags = [
            ("bind-address", bind_address(&self.options.addresses).to_owned()),
            ("secure-port", self.port.to_string()),
            ("etcd-servers", self.etcd_url()),
            ("tls-cert-file", file("apiserver.crt")),
            ("tls-private-key-file", file("apiserver.key")),
            ("token-auth-file", file("tokens.csv")),
            ("service-account-key-file", file("service-account.key")),
            ("service-account-signing-key-file", file("service-account.key")),
            ("service-account-issuer", "https://kubernetes.default.svc".to_owned()),
            ("service-cluster-ip-range", self.options.service_ranges.clone()),
            ("authorization-mode", "RBAC".to_owned()),
            // No controller makes the ServiceAccounts that this plugin would demand of every Pod.
            ("disable-admission-plugins", "ServiceAccount".to_owned()),
            ("allow-privileged", "true".to_owned()),
        ];
        let mut command = self.command(&self.binaries.kube_apiserver);
        command.args(flags.map(|(name, value)| format!("--{name}={value}")));
        command.args(advertise(&self.options)?).args(&self.options.extra_args);
        self.apiserver = Some(Process::spawn("kube-apiserver", command, &self.path.join("kube-apiserver.log"))?);
        Ok(())
    }

    /// Ends it and keeps its objects in a new directory, for [`Options::saved`]. Keys, tokens and addresses are not among them.
    pub fn save(mut self, dir: &Path) -> Result<()> {
        // A graceful end would wait a minute for watches; all that it has acknowledged is in etcd.
        self.kill_apiserver();
        self.etcd.end(GRACE)?;
        copy(&self.path.join(ETCD), dir)
    }

    /// CPU time that etcd and the API server have used.
    pub fn cpu_time(&self) -> Result<Duration> {
        let pids = self.apiserver.iter().chain([&self.etcd]).map(Process::pid);
        pids.map(process::cpu_time).sum()
    }

    /// Where clients reach the API server: at the first of [`Options::addresses`], or else at loopback.
    pub fn url(&self) -> String {
        url(self.options.addresses.first().copied().unwrap_or(LOOPBACK), self.port)
    }

    /// The API server's port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The programs that this control plane runs, kube-proxy among them.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The directory of data, logs and kubeconfigs.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A kubeconfig that names [`ControlPlane::url`].
    pub fn kubeconfig(&self, user: User) -> PathBuf {
        self.path.join(format!("{}.kubeconfig", user.file()))
    }

    /// Writes a kubeconfig for a ServiceAccount, which must exist: what a Pod of that account may do, no more.
    pub fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> Result<PathBuf> {
        let token = self.kubectl(&["create", "token", name, "--namespace", namespace, "--duration=24h"], None)?;
        let path = self.path.join(format!("{namespace}.{name}.kubeconfig"));
        write_kubeconfig(&path, &self.path, &self.url(), name, token.trim())?;
        Ok(path)
    }

    /// kube-proxy's configuration for one of its modes on a node: its defaults, but for where pods are, what a network namespace does
    /// not let it set, and a period between syncs that is so short that it never counts (0 would be a second). `ports` on loopback
    /// are for its health and its metrics.
    pub fn kube_proxy_config(&self, mode: &str, node: &str, pods: &str, [healthz, metrics]: [u16; 2]) -> Value {
        let periods = json!({"minSyncPeriod": "1ms"});
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
            "mode": mode,
            "hostnameOverride": node,
            "clientConnection": {"kubeconfig": self.kubeconfig(User::KubeProxy)},
            "detectLocalMode": "ClusterCIDR", "clusterCIDR": pods,
            "nftables": periods, "iptables": periods,
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "healthzBindAddress": format!("127.0.0.1:{healthz}"), "metricsBindAddress": format!("127.0.0.1:{metrics}"),
        })
    }

    /// Runs kubectl as admin, beside the API server, and returns what it printed. `stdin` is for `apply -f -`.
    pub fn kubectl(&self, args: &[&str], stdin: Option<&str>) -> Result<String> {
        let mut command = self.kubectl_command();
        command.args(args);
        run(command, stdin).with_context(|| format!("kubectl {}", args.join(" ")))
    }

    /// A way to the API server that takes no process for every request.
    pub fn api(&self) -> Result<Api> {
        Api::start(self.kubectl_command(), self.path.join("api.socket"), self.netns.clone(), self.etcd_port)
    }

    fn kubectl_command(&self) -> Command {
        let mut command = self.command(&self.binaries.kubectl);
        command
            .arg(format!("--kubeconfig={}", self.path.join("admin.loopback.kubeconfig").display()))
            .arg(format!("--cache-dir={}", self.path.join("kubectl").display()))
            // A server that accepts and never answers must fail a test, not hang it. A later flag wins.
            .arg("--request-timeout=60s")
            // The user's own settings for kubectl are none of a test's business.
            .env("KUBERC", "off");
        command
    }

    /// Makes a Node with these addresses. kube-proxy does not start to serve before its own Node has one.
    pub fn add_node(&self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
        self.kubectl(&["apply", "-f", "-"], Some(&node.to_string()))?;
        let internal: Vec<Value> = addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
        // The status is an object of its own to the API server: `apply` would drop it.
        let status = json!({"status": {"addresses": internal}}).to_string();
        self.kubectl(&["patch", "node", name, "--subresource=status", "--type=merge", "--patch", &status], None)?;
        Ok(())
    }

    /// Makes Services `svc-00000`, `svc-00001`, ... up to `services` in all, with so many endpoints each; 10,000 take seconds.
    /// `args` are more flags of `fill create`, such as `["-endpoint-ip", "10.1.1.2", "-target-port", "8080"]`. Returns its line
    /// of JSON.
    pub fn fill(&self, services: usize, endpoints: usize, args: &[&str]) -> Result<String> {
        let mut command = self.fill_command("create");
        command.arg(format!("-etcd={}", self.etcd_url()));
        command.arg(format!("-services={services}")).arg(format!("-endpoints={endpoints}"));
        command.args(args);
        run(command, None).with_context(|| format!("{services} Services with {endpoints} endpoints each"))
    }

    /// Gives one EndpointSlice exactly these ready endpoints. Returns a line of JSON with the time just before the write and
    /// just after it.
    pub fn update_slice(&self, slice: &str, endpoints: &[IpAddr]) -> Result<String> {
        let list: Vec<String> = endpoints.iter().map(IpAddr::to_string).collect();
        // A dash is an empty list.
        let list = if list.is_empty() { "-".to_owned() } else { list.join(",") };
        run(self.fill_command("update"), Some(&format!("endpoints {slice} {list}\n"))).with_context(|| format!("EndpointSlice {slice}"))
    }

    /// The command `fill create` or `fill update` as admin. A benchmark keeps `fill update` running and feeds it lines, so that
    /// no process start is within what it times.
    pub fn fill_command(&self, subcommand: &str) -> Command {
        let mut command = self.command(&self.binaries.fill);
        let kubeconfig = self.path.join("admin.loopback.kubeconfig");
        command.arg(subcommand).arg("-kubeconfig").arg(kubeconfig);
        command
    }

    fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.etcd_port)
    }

    /// A command in the control plane's network namespace.
    fn command(&self, program: &Path) -> Command {
        process::command(program, &self.netns)
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if (thread::panicking() || env::var_os("PROXY_TESTS_KEEP").is_some())
            && let Some(dir) = self.dir.take()
        {
            eprintln!("controlplane: logs and data kept in {}", dir.keep().display());
        }
    }
}

/// IPv6's any-address takes IPv4 connections too; it is used only where asked for, because a machine may have IPv6 turned off.
fn bind_address(addresses: &[IpAddr]) -> &'static str {
    if addresses.is_empty() {
        "127.0.0.1"
    } else if addresses.iter().all(IpAddr::is_ipv4) {
        "0.0.0.0"
    } else {
        "::"
    }
}

/// The flags that say what Service `default/kubernetes` points at.
fn advertise(options: &Options) -> Result<Vec<String>> {
    let first_range = options.service_ranges.split(',').next().unwrap_or_default();
    let family = first_of(first_range)?;
    // The API server insists on the family of its first range.
    let address = options.addresses.iter().find(|address| address.is_ipv4() == family.is_ipv4());
    Ok(match address {
        Some(address) => vec![format!("--advertise-address={address}")],
        None => {
            let loopback = if family.is_ipv4() { LOOPBACK } else { Ipv6Addr::LOCALHOST.into() };
            // Loopback is no address for an endpoint: the API server would fail to write it for ever.
            let no_endpoint = "--endpoint-reconciler-type=none".to_owned();
            vec![format!("--advertise-address={loopback}"), no_endpoint]
        }
    })
}

/// Copies a directory; the copy's parent must be there, the copy not.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command.args(["--recursive", "--no-target-directory", "--reflink=auto"]).arg(from).arg(to);
    run(command, None).with_context(|| format!("{} to {}", from.display(), to.display())).map(drop)
}

fn url(address: IpAddr, port: u16) -> String {
    // SocketAddr puts IPv6 into brackets.
    format!("https://{}", SocketAddr::new(address, port))
}

fn start_etcd(binaries: &Binaries, path: &Path, netns: &Netns, port: u16, peer_port: u16) -> Result<Process> {
    let mut command = process::command(&binaries.etcd, netns);
    let clients = format!("http://127.0.0.1:{port}");
    let peers = format!("http://127.0.0.1:{peer_port}");
    command
        .arg(format!("--data-dir={}", path.join(ETCD).display()))
        .arg(format!("--listen-client-urls={clients}"))
        .arg(format!("--advertise-client-urls={clients}"))
        .arg(format!("--listen-peer-urls={peers}"))
        .arg(format!("--initial-advertise-peer-urls={peers}"))
        .arg(format!("--initial-cluster=default={peers}"))
        // The data lives as long as the test does: what a power cut would lose does not matter, and a slow disk must not be
        // measured.
        .arg("--unsafe-no-fsync")
        .arg("--quota-backend-bytes=4294967296")
        .arg("--log-level=warn");
    Process::spawn("etcd", command, &path.join("etcd.log"))
}

/// Makes the CA, the API server's certificate and the key that signs ServiceAccount tokens.
fn write_keys(binaries: &Binaries, path: &Path, options: &Options) -> Result<()> {
    let mut names: Vec<String> =
        ["127.0.0.1", "::1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned).to_vec();
    names.extend(options.addresses.iter().map(IpAddr::to_string));
    for range in options.service_ranges.split(',') {
        names.push(first_of(range)?.to_string());
    }
    let mut command = Command::new(&binaries.pki);
    command.arg("-out").arg(path).arg("-san").arg(names.join(","));
    run(command, None).context("certificates of the API server")?;
    Ok(())
}

/// The address that the API server takes for Service `default/kubernetes`: pods verify its certificate against it.
fn first_of(range: &str) -> Result<IpAddr> {
    let address = range.split_once('/').and_then(|(address, _)| address.trim().parse().ok());
    match address {
        Some(IpAddr::V4(v4)) => Ok(IpAddr::V4((u32::from(v4) + 1).into())),
        Some(IpAddr::V6(v6)) => Ok(IpAddr::V6((u128::from(v6) + 1).into())),
        None => bail!("service range {range:?}: want ADDRESS/BITS, such as 10.96.0.0/16"),
    }
}

/// Writes the tokens that the API server accepts, and the kubeconfigs that carry them.
fn write_users(path: &Path, options: &Options, port: u16) -> Result<()> {
    let mut tokens = String::new();
    for user in User::ALL {
        let token = random_token()?;
        tokens += &match user {
            User::Admin => format!("{token},admin,admin,system:masters\n"),
            User::KubeProxy => format!("{token},system:kube-proxy,system:kube-proxy\n"),
        };
        let public = options.addresses.first().copied().unwrap_or(LOOPBACK);
        let name = user.file();
        write_kubeconfig(&path.join(format!("{name}.kubeconfig")), path, &url(public, port), name, &token)?;
        write_kubeconfig(&path.join(format!("{name}.loopback.kubeconfig")), path, &url(LOOPBACK, port), name, &token)?;
    }
    write_private(&path.join("tokens.csv"), &tokens)
}

fn write_kubeconfig(file: &Path, path: &Path, server: &str, user: &str, token: &str) -> Result<()> {
    // JSON is YAML: every reader of kubeconfigs takes it.
    let config: Value = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server, "certificate-authority": path.join("ca.crt")}}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        "current-context": "test",
    });
    write_private(file, &format!("{config:#}\n"))
}

fn write_private(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text)
        .and_then(|()| fs::set_permissions(file, Permissions::from_mode(0o600)))
        .with_context(|| format!("cannot write {}", file.display()))
}

/// The API server may listen beyond loopback, so its tokens are not to be guessed.
fn random_token() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).context("/dev/urandom")?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Runs a command to its end and returns its stdout; its stderr is the error's text.
fn run(mut command: Command, stdin: Option<&str>) -> Result<String> {
    command.stdin(match stdin {
        None => Stdio::null(),
        Some(text) => {
            // A file, not a pipe: nobody has to write while somebody else reads.
            let mut file = tempfile::tempfile().context("a temporary file for stdin")?;
            file.write_all(text.as_bytes()).and_then(|()| file.seek(SeekFrom::Start(0))).context("a temporary file for stdin")?;
            file.into()
        }
    });
    let program = command.get_program().display().to_string();
    let Output { status, stdout, stderr } = command.output().with_context(|| format!("cannot run {program}"))?;
    ensure!(status.success(), "{status}: {}", String::from_utf8_lossy(&stderr).trim());
    String::from_utf8(stdout).with_context(|| format!("what {program} printed"))
}
