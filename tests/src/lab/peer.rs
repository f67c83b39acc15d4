//! A pod, a node's host or the client: something that has addresses and a process, and takes part in traffic.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use super::address::to_v6;
use super::cgroup::Group;
use super::exec::Place;
use crate::pod::{
    Ask, Connect, Counts, FINGERPRINT, Hello, Listen, Outcome, Proto, Reply, Report, Request, Response, Spray, Storm, Stormed, Traffic,
    Watch,
};

/// Something that takes part in traffic.
pub struct Peer {
    name: String,
    v4: Ipv4Addr,
    place: Place,
    wire: Arc<Wire>,
}

impl Peer {
    /// Its name: a pod's own, `node1`, `client`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its IPv4 address.
    pub fn v4(&self) -> Ipv4Addr {
        self.v4
    }

    /// Its IPv6 address.
    pub fn v6(&self) -> Ipv6Addr {
        to_v6(self.v4)
    }

    /// Both.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6().into()]
    }

    /// The name of its network namespace, as `ip netns` has it.
    pub fn netns(&self) -> &str {
        &self.place.netns
    }

    /// Its control group.
    pub fn cgroup(&self) -> &Path {
        &self.place.cgroup
    }

    /// What its process uses.
    pub fn group(&self) -> Group {
        Group::new(self.place.cgroup.clone())
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// The id of its process.
    pub fn pid(&self) -> u32 {
        lock(&self.wire.child).id()
    }

    /// One probe of this destination, with the default timeout.
    pub fn connect(&self, dst: SocketAddr, proto: Proto) -> Result<Outcome> {
        self.probe(Connect::new(dst, proto))
    }

    /// One probe.
    pub fn probe(&self, connect: Connect) -> Result<Outcome> {
        match self.wire.ask(Ask::Connect(Connect { hold: false, ..connect }))? {
            Reply::Probe { outcome, .. } => Ok(outcome),
            other => self.wire.unexpected(&other),
        }
    }

    /// One probe whose socket is kept. An error if it was not answered.
    pub fn hold(&self, connect: Connect) -> Result<Held> {
        let dst = connect.dst;
        match self.wire.ask(Ask::Connect(Connect { hold: true, ..connect }))? {
            Reply::Probe { outcome: Outcome::Ok(answer), socket: Some(id) } => {
                let wire = Arc::clone(&self.wire);
                Ok(Held { wire, id, local: answer.local, first: Some(answer) })
            }
            Reply::Probe { outcome, .. } => bail!("{} -> {dst}: {outcome}", self.name),
            other => self.wire.unexpected(&other),
        }
    }

    /// An unconnected UDP socket at this address, which gives its family; `0.0.0.0:0` and `[::]:0` will do.
    pub fn udp(&self, source: SocketAddr) -> Result<Held> {
        match self.wire.ask(Ask::UdpOpen { source })? {
            Reply::Socket { socket: id, local } => Ok(Held { wire: Arc::clone(&self.wire), id, local, first: None }),
            other => self.wire.unexpected(&other),
        }
    }

    /// This many probes, one after the other.
    pub fn spray(&self, probe: Connect, count: u64) -> Result<Counts> {
        match self.wire.ask(Ask::Spray(Spray { probe, count }))? {
            Reply::Counts(counts) => Ok(counts),
            other => self.wire.unexpected(&other),
        }
    }

    /// Starts probes in a loop, with this pause between them. With [`Connect::hold`], all go over one connection.
    pub fn traffic(&self, probe: Connect, pause: std::time::Duration) -> Result<Flowing> {
        let pause_us = u64::try_from(pause.as_micros())?;
        match self.wire.ask(Ask::Start(Traffic { probe, pause_us }))? {
            Reply::Started(id) => Ok(Flowing { wire: Arc::clone(&self.wire), id, stopped: false }),
            other => self.wire.unexpected(&other),
        }
    }

    /// Starts new connections to answerers, at a rate.
    pub fn storm(&self, storm: Storm) -> Result<Raging> {
        match self.wire.ask(Ask::StartStorm(storm))? {
            Reply::Started(id) => Ok(Raging { wire: Arc::clone(&self.wire), id }),
            other => self.wire.unexpected(&other),
        }
    }

    /// Echoes on this port of all its addresses.
    pub fn listen(&self, proto: Proto, port: u16) -> Result<()> {
        self.wire.done(Ask::Listen(Listen { proto, port, address: None }))
    }

    /// Echoes at this address, which must be in its namespace.
    pub fn listen_at(&self, proto: Proto, address: SocketAddr) -> Result<()> {
        self.wire.done(Ask::Listen(Listen { proto, port: address.port(), address: Some(address.ip()) }))
    }

    /// Closes what [`listen`](Self::listen) opened; connections that were accepted go on.
    pub fn unlisten(&self, proto: Proto, port: u16) -> Result<()> {
        self.wire.done(Ask::Unlisten(Listen { proto, port, address: None }))
    }

    /// Resets all connections that its listeners have accepted.
    pub fn reset_accepted(&self) -> Result<()> {
        self.wire.done(Ask::ResetAccepted)
    }

    /// Answers at this address, which must be in its namespace, until its process ends: see [`Ask::AnswerAt`].
    pub fn answer_at(&self, address: SocketAddr) -> Result<()> {
        self.wire.done(Ask::AnswerAt(address))
    }

    /// Waits until answerers are reached. When each was, in nanoseconds since 1970; none where the limit was over before.
    pub fn watch(&self, order: Watch) -> Result<Vec<Option<u64>>> {
        match self.wire.ask(Ask::Watch(order))? {
            Reply::Seen(seen) => Ok(seen),
            other => self.wire.unexpected(&other),
        }
    }

    /// Waits until nobody answers there any more; whether that was before the limit.
    pub fn gone(&self, dst: SocketAddr, limit_ms: u64) -> Result<bool> {
        match self.wire.ask(Ask::Gone { dst, limit_ms })? {
            Reply::Gone(gone) => Ok(gone),
            other => self.wire.unexpected(&other),
        }
    }

    /// How long connecting to each of these takes, in nanoseconds: so many tries, one destination after the other.
    pub fn connect_times(&self, dsts: &[SocketAddr], samples: usize) -> Result<Vec<Vec<u64>>> {
        match self.wire.ask(Ask::ConnectTimes { dsts: dsts.to_vec(), samples })? {
            Reply::Times(times) => Ok(times),
            other => self.wire.unexpected(&other),
        }
    }

    /// Starts its process; [`ready`](Self::ready) is to be called before anything else.
    pub(super) fn start(name: &str, v4: Ipv4Addr, place: Place, program: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(["pod", "--name", name, "--address", &v4.to_string(), "--address", &to_v6(v4).to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = place.spawn(command)?;
        Ok(Self { name: name.to_owned(), v4, place, wire: Wire::new(name, child)? })
    }

    /// Waits until its process serves, and opens its listeners.
    pub(super) fn ready(&self, listen: &[(Proto, u16)]) -> Result<()> {
        self.wire.greet()?;
        listen.iter().try_for_each(|&(proto, port)| self.listen(proto, port))
    }
}

/// A socket that is kept. It is closed when this is dropped.
pub struct Held {
    wire: Arc<Wire>,
    id: u64,
    local: SocketAddr,
    first: Option<crate::pod::Answer>,
}

impl Held {
    /// The answer to the probe that opened it; none for a bare UDP socket.
    pub fn first(&self) -> Option<&crate::pod::Answer> {
        self.first.as_ref()
    }

    /// Its own address.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// One more exchange with whom it was opened to.
    pub fn echo(&self) -> Result<Outcome> {
        self.exchange(None, Connect::TIMEOUT_MS)
    }

    /// Unconnected UDP to this destination.
    pub fn send(&self, dst: SocketAddr) -> Result<Outcome> {
        self.exchange(Some(dst), Connect::TIMEOUT_MS)
    }

    /// One exchange, with a destination if it is unconnected UDP, and a timeout.
    pub fn exchange(&self, dst: Option<SocketAddr>, timeout_ms: u64) -> Result<Outcome> {
        match self.wire.ask(Ask::Echo { socket: self.id, dst, timeout_ms })? {
            Reply::Probe { outcome, .. } => Ok(outcome),
            other => self.wire.unexpected(&other),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Fails if the process is gone, and the socket with it.
        let _ = self.wire.done(Ask::Close(self.id));
    }
}

/// A loop of probes that runs until it is stopped or dropped.
pub struct Flowing {
    wire: Arc<Wire>,
    id: u64,
    stopped: bool,
}

impl Flowing {
    /// Ends it and tells what became of the probes.
    pub fn stop(mut self) -> Result<Report> {
        self.stopped = true;
        match self.wire.ask(Ask::Stop(self.id))? {
            Reply::Report(report) => Ok(report),
            other => self.wire.unexpected(&other),
        }
    }
}

impl Drop for Flowing {
    fn drop(&mut self) {
        if !self.stopped {
            // Fails if the process is gone, and the loop with it.
            let _ = self.wire.ask(Ask::Stop(self.id));
        }
    }
}

/// New connections at a rate. They end with the process at the latest.
pub struct Raging {
    wire: Arc<Wire>,
    id: u64,
}

impl Raging {
    /// What has become of them so far.
    pub fn seen(&self) -> Result<Stormed> {
        self.ask(Ask::Stormed(self.id))
    }

    /// Ends them.
    pub fn stop(self) -> Result<Stormed> {
        self.ask(Ask::StopStorm(self.id))
    }

    fn ask(&self, ask: Ask) -> Result<Stormed> {
        match self.wire.ask(ask)? {
            Reply::Stormed(stormed) => Ok(stormed),
            other => self.wire.unexpected(&other),
        }
    }
}

/// Who waits for the reply to which request; none once there will be no more.
type Waiting = Option<HashMap<u64, Sender<Reply>>>;

/// Requests to a process, and its replies.
struct Wire {
    name: String,
    child: Mutex<Child>,
    stdin: Mutex<ChildStdin>,
    stdout: Mutex<Option<BufReader<ChildStdout>>>,
    next: AtomicU64,
    waiting: Arc<Mutex<Waiting>>,
}

impl Wire {
    fn new(name: &str, mut child: Child) -> Result<Arc<Self>> {
        let stdin = child.stdin.take().context("standard input was not piped")?;
        let stdout = child.stdout.take().context("standard output was not piped")?;
        Ok(Arc::new(Self {
            name: name.to_owned(),
            child: Mutex::new(child),
            stdin: Mutex::new(stdin),
            stdout: Mutex::new(Some(BufReader::new(stdout))),
            next: AtomicU64::new(0),
            waiting: Arc::new(Mutex::new(Some(HashMap::new()))),
        }))
    }

    /// Reads the first line, and leaves the others to a thread.
    fn greet(&self) -> Result<()> {
        let mut stdout = lock(&self.stdout).take().context("greeted twice")?;
        let mut line = String::new();
        stdout.read_line(&mut line).with_context(|| format!("what the process of {} says", self.name))?;
        let hello: Hello = serde_json::from_str(&line).with_context(|| format!("process of {} said {line:?}", self.name))?;
        let stale = "is of another build than this test: `cargo build -p proxy-tests --bin proxy-lab`";
        ensure!(hello.fingerprint == FINGERPRINT, "the program that stands for {} {stale}", self.name);
        let waiting = Arc::clone(&self.waiting);
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let Ok(Response { id, reply }) = serde_json::from_str(&line) else { break };
                let sender = lock(&waiting).as_mut().and_then(|waiting| waiting.remove(&id));
                if let Some(sender) = sender {
                    // Nobody waits for the reply to a request whose caller has panicked.
                    let _ = sender.send(reply);
                }
            }
            // Drops the senders, which is how those who wait learn of it.
            *lock(&waiting) = None;
        });
        Ok(())
    }

    fn ask(&self, ask: Ask) -> Result<Reply> {
        let gone = || format!("the process of {} has ended", self.name);
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = mpsc::channel();
        lock(&self.waiting).as_mut().with_context(gone)?.insert(id, sender);
        let mut line = serde_json::to_vec(&Request { id, ask })?;
        line.push(b'\n');
        lock(&self.stdin).write_all(&line).with_context(gone)?;
        match receiver.recv().with_context(gone)? {
            Reply::Failed(error) => bail!("{}: {error}", self.name),
            reply => Ok(reply),
        }
    }

    fn done(&self, ask: Ask) -> Result<()> {
        match self.ask(ask)? {
            Reply::Done => Ok(()),
            other => self.unexpected(&other),
        }
    }

    fn unexpected<T>(&self, reply: &Reply) -> Result<T> {
        bail!("{}: unexpected reply {reply:?}", self.name)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        // Fails only for a process that has been waited for.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// A thread that panicked has failed its test already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
