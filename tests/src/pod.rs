//! The process that stands for a pod, a node's host or the outside client: what it can be asked, and what it answers.
//!
//! Requests and replies are lines of JSON on its standard input and output. Each request has an id and runs in a thread of its
//! own, so that a probe that waits for its timeout holds up no other.

mod listener;
mod storm;
mod timing;
pub mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use storm::{Storm, Stormed};

/// Transport protocol of a probe or listener.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP, one-to-one style; `EPROTONOSUPPORT` where the kernel has none.
    Sctp,
    /// ICMP echo requests, of the destination's family; the port of a source is their identifier, that of a destination nothing.
    Icmp,
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
            Proto::Sctp => "sctp",
            Proto::Icmp => "icmp",
        })
    }
}

impl FromStr for Proto {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Proto::Tcp),
            "udp" => Ok(Proto::Udp),
            "sctp" => Ok(Proto::Sctp),
            _ => anyhow::bail!("protocol {text:?}: want tcp, udp or sctp"),
        }
    }
}

/// Who answered a probe, and what both ends saw.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Answer {
    /// Name of the pod or host that answered.
    pub name: String,
    /// The address that the answering socket is bound to.
    pub server: SocketAddr,
    /// Where the answering socket saw the probe come from.
    pub seen_source: SocketAddr,
    /// The probe's own address, by getsockname(2).
    pub local: SocketAddr,
    /// The probe's peer, by getpeername(2); none for unconnected UDP.
    pub peer: Option<SocketAddr>,
    /// Where a UDP answer came from, by recvfrom(2).
    pub reply_source: Option<SocketAddr>,
}

/// What became of a probe.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was answered.
    Ok(Answer),
    /// `ECONNREFUSED`, from a TCP reset, an ICMP error or the system call itself.
    Refused,
    /// Nothing came back in time.
    Timeout,
    /// Another error: its errno's name, such as `EPERM`.
    Error(String),
}

impl Outcome {
    /// The answer, if there was one.
    pub fn answer(&self) -> Option<&Answer> {
        match self {
            Outcome::Ok(answer) => Some(answer),
            _ => None,
        }
    }

    /// The answer; an error that tells the outcome if there was none.
    pub fn into_answer(self) -> anyhow::Result<Answer> {
        match self {
            Outcome::Ok(answer) => Ok(answer),
            other => anyhow::bail!("expected an answer, got: {other}"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Ok(answer) => write!(f, "answered by {} ({}), source {}", answer.name, answer.server, answer.seen_source),
            Outcome::Refused => f.write_str("refused"),
            Outcome::Timeout => f.write_str("timeout"),
            Outcome::Error(errno) => f.write_str(errno),
        }
    }
}

/// How a UDP probe uses its socket.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// connect(2), then send and receive.
    #[default]
    Connected,
    /// sendto(2) and recvfrom(2).
    Unconnected,
}

/// One probe: connect, send a line, wait for the answer to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Connect {
    /// The destination. Its family is the socket's: a v4-mapped IPv6 address is probed from an IPv6 socket.
    pub dst: SocketAddr,
    /// The protocol.
    pub proto: Proto,
    /// For how long to wait, for connecting and the answer together.
    pub timeout_ms: u64,
    /// How UDP is sent; of no meaning for other protocols.
    #[serde(default)]
    pub mode: Mode,
    /// The address to bind to first, if not any.
    #[serde(default)]
    pub source: Option<SocketAddr>,
    /// Whether the socket is kept, for [`Ask::Echo`].
    #[serde(default)]
    pub hold: bool,
}

impl Connect {
    /// A probe with the default timeout, [`Self::TIMEOUT_MS`], from any source.
    pub fn new(dst: SocketAddr, proto: Proto) -> Self {
        Self { dst, proto, timeout_ms: Self::TIMEOUT_MS, mode: Mode::Connected, source: None, hold: false }
    }

    /// The default timeout: long enough for one retransmission of a TCP SYN.
    pub const TIMEOUT_MS: u64 = 2_000;

    /// The same with another timeout.
    pub fn timeout_ms(self, timeout_ms: u64) -> Self {
        Self { timeout_ms, ..self }
    }

    /// The same with UDP sent by sendto(2).
    pub fn unconnected(self) -> Self {
        Self { mode: Mode::Unconnected, ..self }
    }

    /// The same from this address.
    pub fn from(self, source: SocketAddr) -> Self {
        Self { source: Some(source), ..self }
    }
}

/// A listener that echoes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Listen {
    /// The protocol.
    pub proto: Proto,
    /// The port.
    pub port: u16,
    /// The address; if none, all of the pod's own, each with a socket of its own.
    #[serde(default)]
    pub address: Option<IpAddr>,
}

/// Many probes, one after the other.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Spray {
    /// What each of them does.
    pub probe: Connect,
    /// How many.
    pub count: u64,
}

/// Probes in a loop until told to stop.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Traffic {
    /// What each of them does. With `hold`, all go over one connection, which is opened anew only when it has failed.
    pub probe: Connect,
    /// Pause between two of them.
    pub pause_us: u64,
}

/// Probes counted by outcome.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Counts {
    /// Answers by the address that answered.
    pub servers: BTreeMap<SocketAddr, u64>,
    /// Answers by where the answering socket saw the probe come from.
    pub sources: BTreeMap<IpAddr, u64>,
    /// Refused ones.
    pub refused: u64,
    /// Those without an answer.
    pub timeouts: u64,
    /// Other errors by errno's name.
    pub errors: BTreeMap<String, u64>,
}

impl Counts {
    /// Counts one outcome.
    pub fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Ok(answer) => {
                *self.servers.entry(answer.server).or_default() += 1;
                *self.sources.entry(answer.seen_source.ip().to_canonical()).or_default() += 1;
            }
            Outcome::Refused => self.refused += 1,
            Outcome::Timeout => self.timeouts += 1,
            Outcome::Error(errno) => *self.errors.entry(errno.clone()).or_default() += 1,
        }
    }

    /// How many were answered.
    pub fn answered(&self) -> u64 {
        self.servers.values().sum()
    }

    /// How many were not.
    pub fn failed(&self) -> u64 {
        self.refused + self.timeouts + self.errors.values().sum::<u64>()
    }
}

/// One probe of a [`Traffic`] that was not answered.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// When it was sent, in microseconds since 1970.
    pub at_us: u64,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a [`Traffic`].
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Report {
    /// All probes, counted.
    pub counts: Counts,
    /// The first of those that failed, in order, at most [`Self::KEPT`].
    pub failures: Vec<Failure>,
    /// The longest time between two answers (or start, or end), in microseconds.
    pub longest_gap_us: u64,
    /// From start to end, in microseconds.
    pub duration_us: u64,
}

impl Report {
    /// How many failures are kept with their time.
    pub const KEPT: usize = 1_000;
}

/// A destination whose first good answer is waited for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Target {
    /// Where an answerer is expected.
    pub dst: SocketAddr,
    /// Where the answerer must have been reached, if not anywhere.
    #[serde(default)]
    pub server: Option<Ipv4Addr>,
}

/// Tries of destinations until each has answered as wanted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Watch {
    /// The destinations. The others are not tried before the first has answered.
    pub targets: Vec<Target>,
    /// Pause between two tries of one destination. It grows to a hundredth of the time that has passed.
    pub pause_us: u64,
    /// When to give up.
    pub limit_ms: u64,
}

/// A request.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Comes back in the reply.
    pub id: u64,
    /// What is asked.
    pub ask: Ask,
}

/// What can be asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Opens listeners: [`Reply::Done`].
    Listen(Listen),
    /// Closes them; connections that they accepted go on: [`Reply::Done`].
    Unlisten(Listen),
    /// Ends all accepted connections with a reset: [`Reply::Done`].
    ResetAccepted,
    /// One probe: [`Reply::Probe`].
    Connect(Connect),
    /// Opens an unconnected UDP socket and keeps it: [`Reply::Socket`].
    UdpOpen {
        /// The address to bind to, which gives the socket's family.
        source: SocketAddr,
    },
    /// One more exchange over a kept socket: [`Reply::Probe`].
    Echo {
        /// The socket's id.
        socket: u64,
        /// The destination, for unconnected UDP; if none, that of the probe which opened it.
        #[serde(default)]
        dst: Option<SocketAddr>,
        /// For how long to wait.
        timeout_ms: u64,
    },
    /// Closes a kept socket: [`Reply::Done`].
    Close(u64),
    /// Many probes: [`Reply::Counts`].
    Spray(Spray),
    /// Starts probes in a loop: [`Reply::Started`].
    Start(Traffic),
    /// Ends them: [`Reply::Report`].
    Stop(u64),
    /// Starts new connections at a rate: [`Reply::Started`].
    StartStorm(Storm),
    /// What has become of them so far: [`Reply::Stormed`].
    Stormed(u64),
    /// Ends them: [`Reply::Stormed`].
    StopStorm(u64),
    /// Answers at this address until the process ends, by the four bytes of the address at which it was reached: [`Reply::Done`].
    AnswerAt(SocketAddr),
    /// Waits until answerers are reached: [`Reply::Seen`].
    Watch(Watch),
    /// Waits until nobody answers there any more: [`Reply::Gone`].
    Gone {
        /// The destination.
        dst: SocketAddr,
        /// When to give up.
        limit_ms: u64,
    },
    /// Connects to each of these in turn: [`Reply::Times`].
    ConnectTimes {
        /// The destinations.
        dsts: Vec<SocketAddr>,
        /// How often to each.
        samples: usize,
    },
}

/// What is printed: [`Hello`] once, then a line per reply.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Response {
    /// The request's id.
    pub id: u64,
    /// The reply to it.
    pub reply: Reply,
}

/// The replies.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// It was done.
    Done,
    /// It could not be carried out (not: a probe failed).
    Failed(String),
    /// What became of a probe, and the id of its socket if it was kept.
    Probe {
        /// What became of it.
        outcome: Outcome,
        /// The socket, if it was to be kept and was opened.
        #[serde(default)]
        socket: Option<u64>,
    },
    /// A socket was opened.
    Socket {
        /// Its id.
        socket: u64,
        /// Its address.
        local: SocketAddr,
    },
    /// Counts of a spray.
    Counts(Counts),
    /// A loop of probes was started.
    Started(u64),
    /// What became of it.
    Report(Report),
    /// What has become of a storm.
    Stormed(Stormed),
    /// When each target answered, in nanoseconds since 1970; none for one that did not.
    Seen(Vec<Option<u64>>),
    /// Whether it fell silent in time.
    Gone(bool),
    /// How long each connect(2) took, in nanoseconds, by destination.
    Times(Vec<Vec<u64>>),
}

/// The first line that the process prints.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// [`FINGERPRINT`] of the program that runs.
    pub fingerprint: u64,
}

/// The message that an echo listener answers with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Echoed {
    pub(crate) name: String,
    pub(crate) server: SocketAddr,
    pub(crate) peer: SocketAddr,
    /// The line that it answers.
    pub(crate) token: String,
}

/// Tells a program that was built from other sources than the library that talks to it: Cargo does not always build both.
pub const FINGERPRINT: u64 = {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    hash = fold(hash, include_bytes!("pod.rs"));
    hash = fold(hash, include_bytes!("pod/worker.rs"));
    hash = fold(hash, include_bytes!("pod/listener.rs"));
    hash = fold(hash, include_bytes!("pod/storm.rs"));
    hash = fold(hash, include_bytes!("pod/timing.rs"));
    hash = fold(hash, include_bytes!("probe.rs"));
    fold(hash, include_bytes!("traffic.rs"))
};

/// FNV-1a.
const fn fold(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    hash
}
