//! What a benchmark asks of a pod: when destinations start to answer, and how long connecting takes.
//!
//! An answerer says over each connection at which of its addresses it was reached, and nothing else: no line is waited for and no
//! thread started, so that little beside the proxy is measured.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{self, SockFlag, SockaddrStorage, sockopt};
use nix::sys::time::TimeSpec;

use super::{Proto, Target, Watch};
use crate::probe::new_socket;

/// Connections to one destination that are under way at once. One that meets a kernel before the proxy has programmed it is never
/// answered, and which one that will be is not known.
const AT_ONCE: usize = 8;
/// Longest pause between two tries: it grows with the time that has passed, of which it is a hundredth.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// How long an answer may take before a destination counts as silent, and how often in a row that must be so.
const SILENCE: Duration = Duration::from_millis(20);
const SILENT_TRIES: u32 = 3;
/// How long connecting may take where it must succeed.
const CONNECT_TIMEOUT: i64 = 2;

/// Answers every connection at `address` until the process ends.
pub(super) fn answer_at(address: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    // std's backlog of 128 may be short of a burst's.
    socket::listen(&listener, socket::Backlog::MAXCONN).with_context(|| format!("cannot listen on {address}"))?;
    thread::spawn(move || {
        loop {
            // An error is one peer's, who has gone away.
            let _ = listener.accept().and_then(|(stream, _)| say_address(stream));
        }
    });
    Ok(())
}

fn say_address(mut stream: TcpStream) -> io::Result<()> {
    if let SocketAddr::V4(address) = stream.local_addr()? {
        stream.write_all(&address.ip().octets())?;
    }
    Ok(())
}

/// A try that is under way.
struct Attempt {
    stream: TcpStream,
    target: usize,
}

impl Attempt {
    /// None where the kernel refuses at once.
    fn start(targets: &[Target], target: usize) -> Option<Self> {
        let fd = open(targets[target].dst, SockFlag::SOCK_NONBLOCK).ok()?;
        match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(targets[target].dst)) {
            Ok(()) | Err(Errno::EINPROGRESS) => Some(Self { stream: fd, target }),
            Err(_) => None,
        }
    }

    /// Who answered; an error once the try has failed.
    fn answer(&mut self) -> io::Result<Ipv4Addr> {
        let mut octets = [0; 4];
        self.stream.read_exact(&mut octets)?;
        Ok(octets.into())
    }
}

/// A TCP socket whose connection is reset when it is closed: no port is left in TIME_WAIT.
pub(super) fn open(dst: SocketAddr, flags: SockFlag) -> io::Result<TcpStream> {
    let fd = new_socket(dst, Proto::Tcp, flags)?;
    socket::setsockopt(&fd, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(fd.into())
}

/// Tries until all targets have answered as wanted, or the limit is over. When each did, in nanoseconds since 1970. The first
/// target is tried alone until it has answered, so that a proxy that starts is not held up by many tries.
pub(super) fn watch(order: &Watch) -> Vec<Option<u64>> {
    let start = Instant::now();
    let mut seen = vec![None; order.targets.len()];
    let mut under_way: Vec<Attempt> = Vec::new();
    while start.elapsed() < Duration::from_millis(order.limit_ms) {
        let pending = pending(&seen);
        if pending.is_empty() {
            break;
        }
        let surplus = under_way.len().saturating_sub((AT_ONCE - 1) * pending.len());
        under_way.drain(..surplus);
        under_way.extend(pending.iter().filter_map(|&target| Attempt::start(&order.targets, target)));
        let pause = Duration::from_micros(order.pause_us).max(start.elapsed() / 100).min(LONGEST_PAUSE);
        collect(&mut under_way, Instant::now() + pause, &order.targets, &mut seen);
    }
    seen
}

fn pending(seen: &[Option<u64>]) -> Vec<usize> {
    let first_only = if seen.first() == Some(&None) { 1 } else { seen.len() };
    (0..first_only).filter(|&target| seen[target].is_none()).collect()
}

/// Takes in what answers before `until`; returns early when nothing more is wanted.
fn collect(under_way: &mut Vec<Attempt>, until: Instant, targets: &[Target], seen: &mut [Option<u64>]) {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let mut fds: Vec<PollFd> = under_way.iter().map(|a| PollFd::new(a.stream.as_fd(), PollFlags::POLLIN)).collect();
        let ready = ppoll(&mut fds, Some(TimeSpec::from_duration(left)), None).unwrap_or(0);
        if ready == 0 && until <= Instant::now() {
            return;
        }
        let states: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
        let mut states = states.into_iter();
        under_way.retain_mut(|attempt| {
            if states.next() != Some(true) {
                return true;
            }
            let (target, answer) = (attempt.target, attempt.answer());
            if answer.is_ok_and(|server| targets[target].server.is_none_or(|wanted| wanted == server)) {
                seen[target].get_or_insert_with(now);
            }
            false
        });
        under_way.retain(|attempt| seen[attempt.target].is_none());
        if pending(seen).is_empty() {
            return;
        }
    }
}

/// Tries until a destination is silent or refuses; whether it was before the limit.
pub(super) fn gone(dst: SocketAddr, limit: Duration) -> bool {
    let start = Instant::now();
    let targets = [Target { dst, server: None }];
    let mut silent = 0;
    while silent < SILENT_TRIES {
        if start.elapsed() > limit {
            return false;
        }
        let mut seen = [None];
        let mut under_way: Vec<Attempt> = Attempt::start(&targets, 0).into_iter().collect();
        collect(&mut under_way, Instant::now() + SILENCE, &targets, &mut seen);
        silent = if seen[0].is_none() { silent + 1 } else { 0 };
    }
    true
}

/// Connects to each destination in turn, so many times, and returns how long each connect(2) took, in nanoseconds.
pub(super) fn connect_times(dsts: &[SocketAddr], samples: usize) -> Result<Vec<Vec<u64>>> {
    let mut times = vec![Vec::with_capacity(samples); dsts.len()];
    for sample in 0..samples {
        for i in 0..dsts.len() {
            // Each takes each place in the order.
            let i = (i + sample) % dsts.len();
            times[i].push(connect_time(dsts[i]).with_context(|| format!("connection {sample} to {}", dsts[i]))?);
        }
    }
    Ok(times)
}

fn connect_time(dst: SocketAddr) -> io::Result<u64> {
    let stream = open(dst, SockFlag::empty())?;
    // Bounds connect(2) too.
    socket::setsockopt(&stream, sockopt::SendTimeout, &nix::sys::time::TimeVal::new(CONNECT_TIMEOUT, 0))?;
    let (fd, address) = (stream.as_raw_fd(), SockaddrStorage::from(dst));
    let start = Instant::now();
    let connected = socket::connect(fd, &address);
    let time = start.elapsed();
    match connected {
        Ok(()) => u64::try_from(time.as_nanos()).map_err(io::Error::other),
        Err(Errno::EINPROGRESS) => Err(ErrorKind::TimedOut.into()),
        Err(errno) => Err(errno.into()),
    }
}

/// Nanoseconds since 1970, by the clock that all processes of a benchmark share.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local(port: u16) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// A port that an answerer listens on.
    fn answerer() -> Result<SocketAddr> {
        let port = TcpListener::bind(local(0))?.local_addr()?.port();
        answer_at((Ipv4Addr::UNSPECIFIED, port).into())?;
        Ok(local(port))
    }

    #[test]
    fn a_watch_ends_when_all_targets_have_answered_as_wanted() -> Result<()> {
        let dst = answerer()?;
        let target = |server: Option<[u8; 4]>| Target { dst, server: server.map(Ipv4Addr::from) };
        let order = |targets: Vec<Target>, limit_ms| Watch { targets, pause_us: 300, limit_ms };
        let seen = watch(&order(vec![target(None), target(Some([127, 0, 0, 1]))], 20_000));
        assert!(seen.iter().all(Option::is_some), "{seen:?}");
        let seen = watch(&order(vec![target(None), target(Some([127, 0, 0, 2]))], 100));
        assert!(seen[0].is_some() && seen[1].is_none(), "{seen:?}");
        Ok(())
    }

    #[test]
    fn who_refuses_is_gone_and_who_answers_is_not() -> Result<()> {
        let dst = answerer()?;
        assert!(!gone(dst, Duration::from_millis(100)));
        let closed = local(TcpListener::bind(local(0))?.local_addr()?.port());
        assert!(gone(closed, Duration::from_secs(20)));
        Ok(())
    }

    #[test]
    fn connecting_is_timed_for_each_destination() -> Result<()> {
        let times = connect_times(&[answerer()?, answerer()?], 5)?;
        assert!(times.len() == 2 && times.iter().flatten().all(|ns| *ns > 0) && times[1].len() == 5, "{times:?}");
        assert!(connect_times(&[local(9)], 1).is_err());
        Ok(())
    }
}
