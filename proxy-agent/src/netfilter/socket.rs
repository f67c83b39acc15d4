//! A netlink socket of netfilter in the network namespace in which it was opened.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, connect, getsockname, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use super::sys;
use super::wire::{Message, messages, request};

/// NETLINK_CAP_ACK and NETLINK_EXT_ACK (linux/netlink.h): answers say what is wrong, and do not repeat 64 KiB of elements.
const OPTIONS: [libc::c_int; 2] = [10, 11];
/// Room for answers when many messages fail.
const RECEIVE_BUFFER: usize = 8 << 20;
/// The kernel answers from within send() and recv(); this is for the case that something is very wrong.
const PATIENCE: Duration = Duration::from_secs(10);
/// The kernel fills at most 32 KiB of a dump at a time; one message is a little above 64 KiB at most.
const DATAGRAM: usize = 128 << 10;
/// How often a dump is begun anew because what is dumped changed meanwhile, not necessarily what is ours (CT-09).
pub(crate) const DUMPS: u32 = 5;

/// A part of netfilter that speaks netlink.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Subsystem {
    /// nf_tables.
    Tables,
    /// Connection tracking.
    Conntrack,
}

impl Subsystem {
    /// The type of its messages of a kind.
    pub(crate) fn message_type(self, kind: i32) -> u16 {
        let number = match self {
            Subsystem::Tables => libc::NFNL_SUBSYS_NFTABLES,
            Subsystem::Conntrack => libc::NFNL_SUBSYS_CTNETLINK,
        };
        (number as u16) << 8 | kind as u16
    }

    fn name(self) -> &'static str {
        match self {
            Subsystem::Tables => "nf_tables",
            Subsystem::Conntrack => "connection tracking",
        }
    }

    fn module(self) -> &'static str {
        match self {
            Subsystem::Tables => "nf_tables",
            Subsystem::Conntrack => "nf_conntrack_netlink",
        }
    }
}

/// A message that the kernel refused.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// Who refused it.
    subsystem: Subsystem,
    /// Its sequence number.
    pub(crate) seq: u32,
    pub(crate) errno: Errno,
    /// What the kernel says about it, if anything.
    pub(crate) explanation: Option<String>,
}

/// What became of a batch.
pub(crate) enum Outcome {
    /// It took effect.
    Done,
    /// Nothing of it took effect.
    Refused(Vec<Failure>),
    /// It does not fit the socket's buffer, which an unprivileged process cannot enlarge.
    TooLong,
}

/// The socket.
pub(crate) struct Socket {
    fd: OwnedFd,
    subsystem: Subsystem,
    seq: u32,
    /// Batches that took effect.
    committed: u32,
    /// The longest batch that the buffer takes.
    room: usize,
    buffer: Vec<u8>,
}

impl Socket {
    pub(crate) fn open(subsystem: Subsystem) -> anyhow::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)
            .context("cannot open a netfilter netlink socket (nfnetlink): load the kernel module, or allow AF_NETLINK in seccomp")?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("cannot bind the netlink socket")?;
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).context("cannot connect the netlink socket")?;
        let timeout = TimeVal::seconds(PATIENCE.as_secs() as i64);
        setsockopt(&fd, sockopt::ReceiveTimeout, &timeout).context("cannot set the netlink socket's timeout")?;
        for option in OPTIONS {
            sys::netlink_option(fd.as_fd(), option, 1).context("the kernel lacks extended netlink answers (4.12 and later have them)")?;
        }
        if setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            // In a user namespace on older kernels: as much as the limit allows.
            let _ = setsockopt(&fd, sockopt::RcvBuf, &RECEIVE_BUFFER);
        }
        Ok(Self { fd, subsystem, seq: 1, committed: 0, room: 0, buffer: vec![0; DATAGRAM] })
    }

    /// A sequence number with room for `count` after it.
    pub(crate) fn take_seq(&mut self, count: u32) -> u32 {
        if self.seq.checked_add(count.saturating_add(2)).is_none() {
            self.seq = 1;
        }
        self.seq
    }

    /// What tells its messages from those of other sockets.
    pub(crate) fn port(&self) -> anyhow::Result<u32> {
        Ok(getsockname::<NetlinkAddr>(self.fd.as_raw_fd()).context("the netlink socket's address")?.pid())
    }

    /// How many batches have taken effect.
    pub(crate) fn committed(&self) -> u32 {
        self.committed
    }

    /// Sends a batch whose messages, begin excluded, have the numbers from `first` + 1 to `first` + `count`, of which the last
    /// asks for an answer.
    pub(crate) fn transact(&mut self, bytes: &[u8], first: u32, count: u32) -> anyhow::Result<Outcome> {
        self.seq = first.saturating_add(count).saturating_add(2);
        self.make_room(bytes.len());
        match self.send(bytes) {
            Ok(()) => {}
            Err(Errno::EMSGSIZE) => return Ok(Outcome::TooLong),
            Err(errno) => bail!("cannot send {} bytes to {}: {}", bytes.len(), self.subsystem.name(), errno.desc()),
        }
        let (mut failures, mut finished) = (Vec::new(), false);
        let deadline = Instant::now() + PATIENCE;
        while !finished {
            let len = self.receive(deadline)?;
            let answers = messages(&self.buffer[..len]).filter(|m| i32::from(m.kind) == libc::NLMSG_ERROR);
            for answer in answers.filter(|m| (first..=first.saturating_add(count)).contains(&m.seq)) {
                if answer.errno() != 0 {
                    failures.push(Failure::new(self.subsystem, &answer));
                }
                // An error of the message that begins the batch is one of the whole, and nothing else need follow.
                finished |= answer.seq == first + count || answer.seq == first;
            }
        }
        if !failures.is_empty() {
            return Ok(Outcome::Refused(failures));
        }
        self.committed = self.committed.wrapping_add(1);
        Ok(Outcome::Done)
    }

    /// Asks for one object. None: it does not exist.
    pub(crate) fn get<T>(
        &mut self,
        kind: i32,
        family: u8,
        attributes: impl FnOnce(&mut Vec<u8>),
        parse: impl FnOnce(&Message<'_>) -> T,
    ) -> anyhow::Result<Option<T>> {
        let seq = self.ask(kind, libc::NLM_F_ACK, family, attributes)?;
        let (mut parse, mut found) = (Some(parse), None);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let len = self.receive(deadline)?;
            for message in messages(&self.buffer[..len]).filter(|m| m.seq == seq) {
                if i32::from(message.kind) != libc::NLMSG_ERROR {
                    found = found.or_else(|| Some(parse.take()?(&message)));
                    continue;
                }
                return match message.errno() {
                    0 => Ok(found),
                    libc::ENOENT => Ok(None),
                    _ => Err(Failure::new(self.subsystem, &message).into_error()),
                };
            }
        }
    }

    /// Sends requests with these sequence numbers, of which the last asks for an answer. `take` gets what comes but for errors.
    pub(crate) fn exchange(
        &mut self,
        requests: &[u8],
        seqs: RangeInclusive<u32>,
        mut take: impl FnMut(&Message<'_>),
    ) -> anyhow::Result<()> {
        self.seq = seqs.end().saturating_add(1);
        self.make_room(requests.len());
        self.send(requests).map_err(|errno| anyhow::anyhow!("cannot ask {}: {}", self.subsystem.name(), errno.desc()))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let len = self.receive(deadline)?;
            for message in messages(&self.buffer[..len]).filter(|m| seqs.contains(&m.seq)) {
                match i32::from(message.kind) {
                    libc::NLMSG_ERROR if message.seq == *seqs.end() => return Ok(()),
                    libc::NLMSG_ERROR => {}
                    _ => take(&message),
                }
            }
        }
    }

    /// Asks for all objects of a kind; `reset` is called before every attempt, `take` for each object. The objects are as they
    /// were at one moment, but for a warning.
    pub(crate) fn dump<T: Default>(
        &mut self,
        kind: i32,
        family: u8,
        attributes: impl Fn(&mut Vec<u8>),
        mut take: impl FnMut(&mut T, &Message<'_>),
    ) -> anyhow::Result<T> {
        let mut attempt = 1;
        loop {
            let mut found = T::default();
            if self.dump_once(kind, family, &attributes, |message| take(&mut found, message))? {
                return Ok(found);
            }
            if attempt == DUMPS {
                // Changes in other tables interrupt a dump as well. What is missing shows when it is written.
                tracing::warn!(kind, "{} changes all the time: what is read may be incomplete", self.subsystem.name());
                return Ok(found);
            }
            attempt += 1;
        }
    }

    /// The same once, whatever changes meanwhile. Whether the dump was not interrupted.
    pub(crate) fn dump_once(
        &mut self,
        kind: i32,
        family: u8,
        attributes: impl FnOnce(&mut Vec<u8>),
        mut take: impl FnMut(&Message<'_>),
    ) -> anyhow::Result<bool> {
        self.drain();
        let seq = self.ask(kind, libc::NLM_F_DUMP, family, attributes)?;
        let mut whole = true;
        loop {
            let len = self.receive(Instant::now() + PATIENCE)?;
            for message in messages(&self.buffer[..len]).filter(|m| m.seq == seq) {
                whole &= i32::from(message.flags) & libc::NLM_F_DUMP_INTR == 0;
                match i32::from(message.kind) {
                    libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                        return match message.errno() {
                            0 => Ok(whole),
                            libc::EINTR => Ok(false),
                            _ => Err(Failure::new(self.subsystem, &message).into_error()),
                        };
                    }
                    _ => take(&message),
                }
            }
        }
    }

    fn ask(&mut self, kind: i32, flags: i32, family: u8, attributes: impl FnOnce(&mut Vec<u8>)) -> anyhow::Result<u32> {
        let seq = self.take_seq(1);
        self.seq = seq + 1;
        let bytes = request(self.subsystem.message_type(kind), flags, seq, family, attributes);
        self.send(&bytes).map_err(|errno| anyhow::anyhow!("cannot ask {}: {}", self.subsystem.name(), errno.desc()))?;
        Ok(seq)
    }

    /// Lets a batch of this length through at once.
    fn make_room(&mut self, len: usize) {
        // The kernel doubles the number and keeps 32 bytes for itself.
        if len > self.room && setsockopt(&self.fd, sockopt::SndBufForce, &len).is_ok() {
            self.room = len;
        }
    }

    /// As a process that may not enlarge the buffer.
    #[cfg(test)]
    pub(crate) fn forbid_room(&mut self) {
        self.room = usize::MAX;
        let _ = setsockopt(&self.fd, sockopt::SndBuf, &65_536);
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Errno> {
        loop {
            match send(self.fd.as_raw_fd(), bytes, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                result => return result.map(drop),
            }
        }
    }

    fn receive(&mut self, deadline: Instant) -> anyhow::Result<usize> {
        loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Ok(len) => return Ok(len),
                Err(Errno::EINTR) if Instant::now() < deadline => {}
                Err(Errno::EAGAIN | Errno::EINTR) => bail!("{} does not answer within {} s", self.subsystem.name(), PATIENCE.as_secs()),
                Err(Errno::ENOBUFS) => bail!("{} had more to say than the socket's buffer holds", self.subsystem.name()),
                Err(errno) => bail!("cannot read from {}: {}", self.subsystem.name(), errno.desc()),
            }
        }
    }

    /// Takes out what an earlier request left; a dump has to be read to its end before the next.
    fn drain(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_DONTWAIT).is_ok_and(|len| len > 0) && Instant::now() < deadline {}
    }
}

impl Failure {
    fn new(subsystem: Subsystem, answer: &Message<'_>) -> Self {
        let (errno, explanation) = (Errno::from_raw(answer.errno()), answer.explanation().map(str::to_owned));
        Self { subsystem, seq: answer.seq, errno, explanation }
    }

    /// What the kernel says, and what to do where that is known.
    pub(crate) fn reason(&self) -> String {
        let advice = match self.errno {
            Errno::EPERM | Errno::EACCES => ": CAP_NET_ADMIN in the network namespace's owner is needed",
            Errno::ENOMEM => ": the node, or the container's memory limit, is out of memory",
            Errno::EOPNOTSUPP if self.subsystem == Subsystem::Tables => {
                ": the kernel lacks an nf_tables feature (CONFIG_NFT_NAT, NFT_MASQ, NFT_NUMGEN, NFT_REJECT, NFT_CT, NFT_FIB_IPV4, NFT_FIB_IPV6)"
            }
            _ => "",
        };
        let name = io::Error::from(self.errno);
        match &self.explanation {
            Some(text) => format!("{name}: {text}{advice}"),
            None => format!("{name}{advice}"),
        }
    }

    pub(crate) fn into_error(self) -> anyhow::Error {
        match self.errno {
            Errno::EINVAL if self.explanation.is_none() => {
                let (name, module) = (self.subsystem.name(), self.subsystem.module());
                anyhow::anyhow!("the kernel does not know the request to {name}: load the module {module}")
            }
            _ => anyhow::anyhow!("{}: {}", self.subsystem.name(), self.reason()),
        }
    }
}
