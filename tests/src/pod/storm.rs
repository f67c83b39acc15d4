//! New connections at a rate until told to stop, and who answered them, and when last.
//!
//! An answerer is expected (see [`timing`](super::timing)): little beside the proxy takes time.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use anyhow::Result;
use nix::errno::Errno;
use nix::sys::socket::{self, SockFlag, SockaddrStorage, sockopt};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};

use super::timing::{now, open};
use super::{Counts, Failure, Outcome};
use crate::probe::outcome;

/// How long an answer may take: two packets of a connection may be lost, and be sent again, before it is over.
const TIMEOUT: Duration = Duration::from_secs(5);
/// An answer that took so long came after a packet was sent again.
const LATE: Duration = Duration::from_millis(900);
/// Who is so far behind does not catch up.
const BEHIND: Duration = Duration::from_millis(50);
/// Failures that are kept.
const KEPT: usize = 100;

/// New connections to each of these in turn.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Storm {
    /// Where answerers are expected.
    pub dsts: Vec<SocketAddr>,
    /// How many a second, if the machine can.
    pub rate: u64,
    /// How many at once at most.
    pub threads: u32,
}

/// What has become of a [`Storm`] so far.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Stormed {
    /// How many were answered.
    pub answered: u64,
    /// How many of these took so long that a packet must have been sent again.
    pub late: u64,
    /// Those that were not answered.
    pub failed: Counts,
    /// The first of those, with their destination.
    pub failures: Vec<(SocketAddr, Failure)>,
    /// The latest connection that was answered at each address, by destination.
    pub latest: BTreeMap<SocketAddr, BTreeMap<Ipv4Addr, Latest>>,
}

/// The latest connection that an address has answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Serialize, Deserialize)]
pub struct Latest {
    /// When it began, in nanoseconds since 1970.
    pub at: u64,
    /// The port that it came from.
    pub port: u16,
    /// The connection before it from that port to the same destination, if there was one: when it began, and who answered. What the
    /// kernel remembers of that one may have led this one.
    pub before: Option<(u64, Ipv4Addr)>,
}

/// The connection before, by the port that it came from and its destination.
type Ports = Mutex<HashMap<(u16, SocketAddr), (u64, Ipv4Addr)>>;

impl Stormed {
    /// Adds what another thread, or another pod, has seen.
    pub fn merge(&mut self, other: Stormed) {
        self.answered += other.answered;
        self.late += other.late;
        self.failed.refused += other.failed.refused;
        self.failed.timeouts += other.failed.timeouts;
        for (errno, count) in other.failed.errors {
            *self.failed.errors.entry(errno).or_default() += count;
        }
        self.failures.extend(other.failures);
        for (dst, servers) in other.latest {
            let known = self.latest.entry(dst).or_default();
            for (server, latest) in servers {
                let known = known.entry(server).or_default();
                *known = latest.max(*known);
            }
        }
    }

    fn add(&mut self, dst: SocketAddr, began: u64, took: Duration, answer: io::Result<(Ipv4Addr, u16)>, ports: &Ports) {
        match answer {
            Ok((server, port)) => {
                self.answered += 1;
                self.late += u64::from(took >= LATE);
                let before = ports.lock().unwrap_or_else(PoisonError::into_inner).insert((port, dst), (began, server));
                let latest = self.latest.entry(dst).or_default().entry(server).or_default();
                *latest = Latest { at: began, port, before }.max(*latest);
            }
            Err(error) => {
                let outcome: Outcome = outcome(&error);
                self.failed.add(&outcome);
                if self.failures.len() < KEPT {
                    self.failures.push((dst, Failure { at_us: began / 1000, outcome }));
                }
            }
        }
    }
}

/// A storm that runs.
pub(super) struct Raging {
    stop: Arc<AtomicBool>,
    threads: Vec<(Arc<Mutex<Stormed>>, JoinHandle<()>)>,
}

impl Raging {
    /// Starts it.
    pub(super) fn start(storm: &Storm) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ports = Arc::<Ports>::default();
        let pause = Duration::from_secs(1) * storm.threads / u32::try_from(storm.rate.max(1)).unwrap_or(u32::MAX);
        let threads = (0..storm.threads).map(|i| {
            let (seen, stopped, dsts) = (Arc::<Mutex<Stormed>>::default(), Arc::clone(&stop), storm.dsts.clone());
            let (shared, ports) = (Arc::clone(&seen), Arc::clone(&ports));
            (shared, thread::spawn(move || rage(&dsts, i as usize, pause, &stopped, &seen, &ports)))
        });
        Self { threads: threads.collect(), stop }
    }

    /// What has become of it so far.
    pub(super) fn seen(&self) -> Stormed {
        let mut all = Stormed::default();
        self.threads.iter().for_each(|(seen, _)| all.merge(seen.lock().unwrap_or_else(PoisonError::into_inner).clone()));
        all
    }

    /// Ends it, once the connections that are under way are over.
    pub(super) fn stop(mut self) -> Result<Stormed> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Stormed::default();
        for (seen, thread) in mem::take(&mut self.threads) {
            thread.join().map_err(|_| anyhow::anyhow!("a thread that connects panicked"))?;
            all.merge(mem::take(&mut *seen.lock().unwrap_or_else(PoisonError::into_inner)));
        }
        Ok(all)
    }
}

fn rage(dsts: &[SocketAddr], first: usize, pause: Duration, stopped: &AtomicBool, seen: &Mutex<Stormed>, ports: &Ports) {
    let mut due = Instant::now();
    for &dst in dsts.iter().cycle().skip(first) {
        if stopped.load(Ordering::Relaxed) {
            return;
        }
        let (began, start) = (now(), Instant::now());
        let answer = once(dst);
        seen.lock().unwrap_or_else(PoisonError::into_inner).add(dst, began, start.elapsed(), answer, ports);
        due += pause;
        let now = Instant::now();
        match due.checked_duration_since(now) {
            Some(early) => thread::sleep(early),
            None => due = due.max(now.checked_sub(BEHIND).unwrap_or(now)),
        }
    }
}

/// Who answered, and from which port it was asked.
fn once(dst: SocketAddr) -> io::Result<(Ipv4Addr, u16)> {
    let mut stream: TcpStream = open(dst, SockFlag::empty())?;
    // Bounds connect(2) too.
    socket::setsockopt(&stream, sockopt::SendTimeout, &TimeVal::new(TIMEOUT.as_secs().cast_signed(), 0))?;
    socket::setsockopt(&stream, sockopt::ReceiveTimeout, &TimeVal::new(TIMEOUT.as_secs().cast_signed(), 0))?;
    match socket::connect(stream.as_raw_fd(), &SockaddrStorage::from(dst)) {
        Ok(()) => {}
        Err(Errno::EINPROGRESS) => return Err(io::ErrorKind::TimedOut.into()),
        Err(errno) => return Err(errno.into()),
    }
    let mut octets = [0; 4];
    stream.read_exact(&mut octets)?;
    Ok((octets.into(), stream.local_addr()?.port()))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::timing::answer_at;
    use super::*;

    #[test]
    fn who_answers_and_who_refuses_is_told_apart() -> Result<()> {
        let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr();
        let (open, closed) = (free()?, free()?);
        answer_at(open)?;
        let raging = Raging::start(&Storm { dsts: vec![open, closed], rate: 10_000, threads: 2 });
        let deadline = Instant::now() + Duration::from_secs(20);
        while raging.seen().answered < 10 || raging.seen().failed.refused < 10 {
            assert!(Instant::now() < deadline, "{:?}", raging.seen());
            thread::sleep(Duration::from_millis(1));
        }
        let all = raging.stop()?;
        let latest = all.latest.get(&open).and_then(|servers| servers.get(&Ipv4Addr::LOCALHOST)).copied().unwrap_or_default();
        assert!(latest.at > 0 && latest.at <= now() && latest.port > 0 && all.latest.len() == 1, "{all:?}");
        assert!(all.failed.failed() == all.failed.refused && all.failures.iter().all(|(dst, _)| *dst == closed), "{all:?}");
        Ok(())
    }
}
