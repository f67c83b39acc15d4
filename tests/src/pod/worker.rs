//! The process itself: reads requests, carries them out, prints replies.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::listener::{Accepted, Listener};
use super::storm::Raging;
use super::{Ask, Connect, FINGERPRINT, Hello, Listen, Proto, Reply, Request, Response, timing};
use crate::probe::{Session, probe};
use crate::traffic::{Running, spray};

/// Serves requests from standard input until its end.
pub fn run(name: &str, addresses: Vec<IpAddr>) -> Result<()> {
    let worker = Arc::new(Worker { name: name.into(), addresses, ..Worker::default() });
    print(&Hello { fingerprint: FINGERPRINT })?;
    for line in io::stdin().lock().lines() {
        let line = line.context("standard input")?;
        let request: Request = serde_json::from_str(&line).with_context(|| format!("request {line}"))?;
        let worker = Arc::clone(&worker);
        thread::spawn(move || {
            let reply = worker.answer(request.ask).unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
            // Nobody is left to tell if this fails, and standard input is at its end as well.
            let _ = print(&Response { id: request.id, reply });
        });
    }
    Ok(())
}

/// One line, in one piece whatever other threads print.
fn print(message: &impl serde::Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    let mut out = io::stdout().lock();
    out.write_all(&line).and_then(|()| out.flush()).context("standard output")
}

#[derive(Default)]
struct Worker {
    name: Arc<str>,
    addresses: Vec<IpAddr>,
    accepted: Accepted,
    listeners: Mutex<BTreeMap<(Proto, SocketAddr), Listener>>,
    sessions: Mutex<BTreeMap<u64, Arc<Mutex<Session>>>>,
    running: Mutex<BTreeMap<u64, Running>>,
    storms: Mutex<BTreeMap<u64, Raging>>,
    next: AtomicU64,
}

impl Worker {
    fn answer(&self, ask: Ask) -> Result<Reply> {
        Ok(match ask {
            Ask::Listen(listen) => self.listen(&listen)?,
            Ask::Unlisten(listen) => self.unlisten(&listen)?,
            Ask::ResetAccepted => self.accepted.reset().map(|()| Reply::Done)?,
            Ask::Connect(connect) => self.connect(&connect),
            Ask::UdpOpen { source } => {
                let (session, local) = Session::unconnected(source).with_context(|| format!("UDP socket at {source}"))?;
                Reply::Socket { socket: self.keep(session), local }
            }
            Ask::Echo { socket, dst, timeout_ms } => {
                let session = lock(&self.sessions).get(&socket).cloned().with_context(|| format!("no socket {socket}"))?;
                let deadline = Instant::now() + Duration::from_millis(timeout_ms);
                Reply::Probe { outcome: lock(&session).echo(dst, deadline), socket: Some(socket) }
            }
            Ask::Close(socket) => {
                lock(&self.sessions).remove(&socket).with_context(|| format!("no socket {socket}"))?;
                Reply::Done
            }
            Ask::Spray(order) => Reply::Counts(spray(&order)),
            Ask::Start(traffic) => {
                let id = self.next.fetch_add(1, Ordering::Relaxed);
                lock(&self.running).insert(id, Running::start(traffic));
                Reply::Started(id)
            }
            Ask::Stop(id) => {
                let running = lock(&self.running).remove(&id).with_context(|| format!("no traffic {id}"))?;
                Reply::Report(running.stop()?)
            }
            Ask::StartStorm(storm) => {
                let id = self.next.fetch_add(1, Ordering::Relaxed);
                lock(&self.storms).insert(id, Raging::start(&storm));
                Reply::Started(id)
            }
            Ask::Stormed(id) => Reply::Stormed(lock(&self.storms).get(&id).with_context(|| format!("no storm {id}"))?.seen()),
            Ask::StopStorm(id) => {
                let raging = lock(&self.storms).remove(&id).with_context(|| format!("no storm {id}"))?;
                Reply::Stormed(raging.stop()?)
            }
            Ask::AnswerAt(address) => timing::answer_at(address).map(|()| Reply::Done)?,
            Ask::Watch(order) => Reply::Seen(timing::watch(&order)),
            Ask::Gone { dst, limit_ms } => Reply::Gone(timing::gone(dst, Duration::from_millis(limit_ms))),
            Ask::ConnectTimes { dsts, samples } => Reply::Times(timing::connect_times(&dsts, samples)?),
        })
    }

    fn connect(&self, connect: &Connect) -> Reply {
        let (outcome, session) = probe(connect);
        let socket = session.filter(|_| connect.hold).map(|session| self.keep(session));
        Reply::Probe { outcome, socket }
    }

    fn keep(&self, session: Session) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.sessions).insert(id, Arc::new(Mutex::new(session)));
        id
    }

    fn listen(&self, listen: &Listen) -> Result<Reply> {
        let mut listeners = lock(&self.listeners);
        for address in self.addresses_of(listen) {
            let key = (listen.proto, address);
            if listeners.contains_key(&key) {
                bail!("{} listens on {address}/{} already", self.name, listen.proto);
            }
            let listener = Listener::open(Arc::clone(&self.name), listen.proto, address, self.accepted.clone())
                .with_context(|| format!("{} cannot listen on {address}/{}", self.name, listen.proto))?;
            listeners.insert(key, listener);
        }
        Ok(Reply::Done)
    }

    fn unlisten(&self, listen: &Listen) -> Result<Reply> {
        for address in self.addresses_of(listen) {
            let listener = lock(&self.listeners).remove(&(listen.proto, address));
            listener.with_context(|| format!("{} does not listen on {address}/{}", self.name, listen.proto))?;
        }
        Ok(Reply::Done)
    }

    fn addresses_of(&self, listen: &Listen) -> Vec<SocketAddr> {
        let addresses = listen.address.map_or_else(|| self.addresses.clone(), |address| vec![address]);
        addresses.into_iter().map(|address| SocketAddr::new(address, listen.port)).collect()
    }
}

/// A thread that panicked has said so on standard error; what it left is good enough for the others.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
