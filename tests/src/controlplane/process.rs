//! Processes that end with the test that started them, in a network namespace if need be.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::BuildHasher;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::stat;
use nix::unistd::Pid;

use crate::child::{before_exec, die_with_parent, spawn_from_lasting_thread};

/// Lines of a log that an error shows.
const TAIL: usize = 30;

/// A network namespace.
#[derive(Clone)]
pub struct Netns {
    name: String,
    // Shared with the commands that will run in it, some of which outlive this value.
    file: Arc<File>,
    inode: u64,
}

impl Netns {
    /// The namespace of that name, as `ip netns add` makes it.
    pub fn open(name: &str) -> Result<Self> {
        let path = Path::new("/run/netns").join(name);
        Self::from_file(name, &path).with_context(|| format!("network namespace {name} (`ip netns add {name}` makes it)"))
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self> {
        Self::from_file("of this thread", Path::new("/proc/thread-self/ns/net"))
    }

    fn from_file(name: &str, path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let inode = file.metadata().with_context(|| format!("cannot read {}", path.display()))?.ino();
        Ok(Self { name: name.to_owned(), file: Arc::new(file), inode })
    }

    /// A connection to a port of 127.0.0.1 in it.
    pub(super) fn connect(&self, port: u16) -> Result<TcpStream> {
        let connect = || -> Result<TcpStream> {
            self.enter().context("cannot enter it (root is needed)")?;
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).with_context(|| format!("port {port} of 127.0.0.1"))
        };
        // A thread of its own, because entering a network namespace is for good; the connection stays in it.
        thread::scope(|scope| scope.spawn(connect).join())
            .map_err(|_| anyhow!("panicked"))?
            .with_context(|| format!("network namespace {}", self.name))
    }

    /// Moves the calling thread here, for good. Makes system calls and nothing else.
    fn enter(&self) -> nix::Result<()> {
        // Only root may enter a namespace, even the one that it is in.
        if stat(c"/proc/thread-self/ns/net")?.st_ino == self.inode { Ok(()) } else { setns(&self.file, CloneFlags::CLONE_NEWNET) }
    }
}

/// A command that will run in `netns`.
pub fn command(program: &Path, netns: &Netns) -> Command {
    let mut command = Command::new(program);
    // What these programs talk to is in the test's own network, which an HTTP proxy of the machine cannot reach.
    for variable in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"] {
        command.env_remove(variable);
    }
    let netns = netns.clone();
    before_exec(&mut command, move || Ok(netns.enter()?));
    command
}

/// A process in the background, with its output in a log file. It is killed when this value is dropped, and when the test's
/// process ends in any way.
pub struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; its output is appended to `log`.
    pub fn spawn(name: &'static str, mut command: Command, log: &Path) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(log).with_context(|| format!("cannot write {}", log.display()))?;
        let errors = file.try_clone().with_context(|| format!("cannot write {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(file).stderr(errors);
        die_with_parent(&mut command, Signal::SIGKILL);
        let program = command.get_program().display().to_string();
        let child = spawn_from_lasting_thread(command).with_context(|| format!("cannot start {name} ({program})"))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Fails, with the tail of the log, if the process has ended.
    pub fn alive(&mut self) -> Result<()> {
        match self.child.try_wait().with_context(|| format!("{} (pid {})", self.name, self.pid()))? {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself ({status})\n{}", self.name, self.tail()),
        }
    }

    /// Asks the process to end and waits for it; one that is still there after `grace` is killed, which is an error.
    pub fn stop(mut self, grace: Duration) -> Result<()> {
        self.end(grace)
    }

    /// [`stop`](Self::stop) for one that is owned elsewhere.
    pub fn end(&mut self, grace: Duration) -> Result<()> {
        self.alive()?;
        let pid = Pid::from_raw(i32::try_from(self.pid()).context("a process id")?);
        kill(pid, Signal::SIGTERM).with_context(|| format!("cannot end {} (pid {pid})", self.name))?;
        let deadline = Instant::now() + grace;
        while self.child.try_wait()?.is_none() {
            if Instant::now() >= deadline {
                bail!("{} (pid {pid}) did not end within {grace:?} and was killed\n{}", self.name, self.tail());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The end of its log, with the log's path above.
    pub fn tail(&self) -> String {
        // A log may have any bytes in it: a test's error must not fail over them.
        let text = fs::read(&self.log).map_or_else(|error| error.to_string(), |bytes| String::from_utf8_lossy(&bytes).into_owned());
        let lines: Vec<&str> = text.lines().collect();
        let first = lines.len().saturating_sub(TAIL);
        format!("--- {} (last lines)\n{}", self.log.display(), lines[first..].join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only for a process that has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU time that a process has used, by the kernel's clock ticks.
pub(super) fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).context(path.clone())?;
    // The name, in parentheses, may have spaces; user and system time are the 12th and 13th field after it.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let ticks: u64 = fields.get(11..13).context(path)?.iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    // A hundred a second, for user space, on every architecture that is still built.
    Ok(Duration::from_millis(ticks * 10))
}

/// Ports of 127.0.0.1 in `netns` that nobody listens on now.
///
/// They are taken from below the range of connections' own ports (`ip_local_port_range`) and of NodePorts, so that no
/// connection takes the API server's port while it restarts.
pub fn free_ports<const N: usize>(netns: &Netns) -> Result<[u16; N]> {
    let find = || -> Result<[u16; N]> {
        netns.enter().context("cannot enter it (root is needed)")?;
        loopback_is_up(&netns.name)?;
        // Listening on all of them at once makes them differ.
        let mut listeners = Vec::new();
        while listeners.len() < N {
            listeners.push(listen_somewhere()?);
        }
        let mut ports = [0; N];
        for (port, listener) in ports.iter_mut().zip(&listeners) {
            *port = listener.local_addr()?.port();
        }
        Ok(ports)
    };
    // A thread of its own, because entering a namespace is for good.
    thread::scope(|scope| scope.spawn(find).join())
        .map_err(|_| anyhow!("panicked"))?
        .with_context(|| format!("network namespace {}", netns.name))
}

/// Listening on 127.0.0.1 works while the device is down, connecting does not, and etcd's clients would try it for a long time.
fn loopback_is_up(netns: &str) -> Result<()> {
    let listener = listen_somewhere()?;
    TcpStream::connect_timeout(&listener.local_addr()?, Duration::from_secs(1))
        .with_context(|| format!("cannot connect to 127.0.0.1 in it (`ip -n {netns} link set lo up`)"))?;
    Ok(())
}

fn listen_somewhere() -> Result<TcpListener> {
    let mut last = None;
    for _ in 0..100 {
        let random = RandomState::new().hash_one(0);
        let port = 10_000 + u16::try_from(random % 20_000)?;
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    Err(last.map_or_else(|| anyhow!("no try was made"), Into::into)).context("no free port of 127.0.0.1 between 10000 and 29999")
}
