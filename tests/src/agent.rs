//! The real agent on a node of the lab: started, asked what it has programmed, restarted, killed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, str};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::child::keep_capabilities;
use crate::lab::{Lab, Program, Seen};

/// How long anything that the agent does may take here; most of it takes milliseconds.
pub const DEADLINE: Duration = Duration::from_secs(20);

/// A dataplane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// eBPF.
    Ebpf,
    /// nftables.
    Nftables,
}

impl Mode {
    /// All of them.
    pub const ALL: [Mode; 2] = [Mode::Ebpf, Mode::Nftables];

    /// The numbers of the capabilities that an agent needs (docs/install.md), which are all that it has here.
    pub fn capabilities(self) -> &'static [u8] {
        match self {
            Mode::Ebpf => &[NET_ADMIN, PERFMON, BPF],
            Mode::Nftables => &[NET_ADMIN],
        }
    }
}

/// Numbers of capabilities (include/uapi/linux/capability.h).
const NET_ADMIN: u8 = 12;
const PERFMON: u8 = 38;
const BPF: u8 = 39;

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Ebpf => "ebpf",
            Mode::Nftables => "nftables",
        })
    }
}

impl str::FromStr for Mode {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Mode::ALL.into_iter().find(|mode| mode.to_string() == text);
        found.with_context(|| format!("mode {text:?}: want ebpf or nftables"))
    }
}

/// Where the agent learns of Services.
#[derive(Clone, Debug)]
pub enum Source {
    /// A folder of manifests.
    Manifests(PathBuf),
    /// An API server.
    Kubeconfig(PathBuf),
}

/// An agent for one node; it need not run.
pub struct Agent {
    program: PathBuf,
    node: u8,
    mode: Mode,
    source: Source,
    /// More flags of `run`.
    flags: Vec<String>,
    running: Option<Program>,
}

impl Agent {
    /// Not started yet.
    pub fn new(node: u8, mode: Mode, source: Source) -> Result<Self> {
        Ok(Self::with_program(program()?, node, mode, source))
    }

    /// The same with a program of one's own choice.
    pub fn with_program(program: PathBuf, node: u8, mode: Mode, source: Source) -> Self {
        Self { program, node, mode, source, flags: Vec::new(), running: None }
    }

    /// The same with more flags of `run`.
    pub fn with_flags(self, flags: Vec<String>) -> Self {
        Self { flags, ..self }
    }

    /// The next start is in this mode.
    pub fn switch(&mut self, mode: Mode) {
        self.mode = mode;
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Starts it; it must not run.
    pub fn start(&mut self, lab: &Lab) -> Result<()> {
        self.start_with(lab, "info")
    }

    /// The same with a log level of one's own choice.
    pub fn start_with(&mut self, lab: &Lab, log_level: &str) -> Result<()> {
        ensure!(self.running.is_none(), "the agent runs already");
        self.running = Some(lab.spawn_on_node(self.node, self.command_to_run(lab, log_level))?);
        Ok(())
    }

    /// The command that [`start`](Self::start) runs, with a log level of one's own choice.
    pub fn command_to_run(&self, lab: &Lab, log_level: &str) -> Command {
        let mut command = self.command(lab, "run");
        command.args(["--log-level", log_level, "--proxy-mode", &self.mode.to_string()]);
        command.args(&self.flags).arg("--cgroup").arg(lab.node(self.node).cgroup());
        match &self.source {
            Source::Manifests(dir) => command.arg("--manifests").arg(dir),
            Source::Kubeconfig(file) => command.arg("--kubeconfig").arg(file),
        };
        command
    }

    /// Asks it to end, and waits for that.
    pub fn stop(&mut self) -> Result<()> {
        let program = self.running.take().context("the agent does not run")?;
        let status = program.stop(DEADLINE)?;
        ensure!(status.success(), "the agent ended with {status}");
        Ok(())
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        self.running.take().context("the agent does not run")?.kill()
    }

    /// The running program.
    pub fn running(&mut self) -> Result<&mut Program> {
        self.running.as_mut().context("the agent does not run")
    }

    /// What it has said, or that it does not run.
    pub fn tail(&self) -> String {
        self.running.as_ref().map_or_else(|| "the agent does not run".into(), Program::tail)
    }

    /// What is programmed, as JSON: the `services` of the first dataplane of its mode. Empty where nothing is.
    pub fn dump(&self, lab: &Lab) -> Result<Value> {
        let services = self.dataplanes(lab)?.pointer("/0/services").cloned();
        Ok(services.unwrap_or_else(|| Value::Array(Vec::new())))
    }

    /// What is programmed, as JSON: the `dataplanes` of its mode.
    pub fn dataplanes(&self, lab: &Lab) -> Result<Value> {
        let text = self.dump_as(lab, &["--proxy-mode", &self.mode.to_string(), "-o", "json"])?;
        let document: Value = serde_json::from_str(&text).context("dump -o json")?;
        Ok(document.get("dataplanes").cloned().unwrap_or_default())
    }

    /// What `proxy-agent dump` prints.
    pub fn dump_as(&self, lab: &Lab, args: &[&str]) -> Result<String> {
        let mut command = self.command(lab, "dump");
        command.args(args);
        output(lab, self.node, command)
    }

    /// Waits until what is programmed is `wanted`, in the form of [`dataplanes`](Self::dataplanes).
    pub fn wait_for(&self, lab: &Lab, wanted: &Value) -> Result<()> {
        let same = || {
            let found = self.dataplanes(lab)?;
            Ok(if found == *wanted { Seen::Done(()) } else { Seen::not_yet(format!("{found:#}")) })
        };
        lab.wait(DEADLINE, &format!("{} to hold {wanted:#}", self.mode), same).with_context(|| self.tail())
    }

    /// Runs `proxy-agent cleanup`.
    pub fn cleanup(&self, lab: &Lab) -> Result<()> {
        output(lab, self.node, self.command(lab, "cleanup")).map(drop)
    }

    fn command(&self, lab: &Lab, subcommand: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg(subcommand).arg("--bpf-pin-path").arg(lab.node(self.node).bpffs().join("proxy-agent"));
        keep_capabilities(&mut command, self.mode.capabilities());
        command
    }
}

fn output(lab: &Lab, node: u8, command: Command) -> Result<String> {
    let text = format!("{command:?}");
    let output = lab.output_on_node(node, command)?;
    if !output.status.success() {
        bail!("{text}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The program under test, wherever Cargo has put it.
pub fn program() -> Result<PathBuf> {
    if let Some(path) = env::var_os("PROXY_AGENT") {
        return Ok(path.into());
    }
    let this = env::current_exe().context("the path of this program")?;
    let mut places = this.ancestors().skip(1).take(2).map(|directory| directory.join("proxy-agent"));
    match places.find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("there is no proxy-agent beside {}: `cargo build -p proxy-agent`", this.display()),
    }
}
