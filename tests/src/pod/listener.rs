//! Listeners that answer every line or datagram with who they are and which peer they saw.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, Backlog, SockFlag, SockaddrStorage, sockopt};

use super::{Echoed, Proto};
use crate::probe::new_socket;

/// A socket that listens, and its thread.
pub(super) struct Listener {
    /// Dropped to wake the thread: the reading end then shows the end of the file.
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

/// The connections that were accepted, as far as they are still open.
#[derive(Clone, Default)]
pub(super) struct Accepted(Arc<Mutex<Vec<Weak<TcpStream>>>>);

impl Accepted {
    fn add(&self, stream: &Arc<TcpStream>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|stream| stream.strong_count() > 0);
        all.push(Arc::downgrade(stream));
    }

    /// Resets them all, and returns when that is done.
    pub(super) fn reset(&self) -> Result<()> {
        let all = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for stream in all.iter().filter_map(Weak::upgrade) {
            // A reset is what closing gives without lingering. The other thread's read returns, and it drops the last handle.
            socket::setsockopt(&stream, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
            // Fails if the peer has closed it already.
            let _ = stream.shutdown(Shutdown::Read);
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while all.iter().any(|stream| stream.strong_count() > 0) {
            ensure!(Instant::now() < deadline, "connections that do not end");
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Listener {
    /// Starts to listen.
    pub(super) fn open(name: Arc<str>, proto: Proto, address: SocketAddr, accepted: Accepted) -> io::Result<Self> {
        if proto == Proto::Icmp {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "the kernel answers echo requests"));
        }
        let fd = new_socket(address, proto, SockFlag::SOCK_NONBLOCK)?;
        if proto != Proto::Udp {
            // Connections of an earlier listener may still be in TIME_WAIT.
            socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        }
        if address.is_ipv6() {
            // The IPv4 address has a listener of its own.
            socket::setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
        }
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(address))?;
        let (stopped, stop) = io::pipe()?;
        let thread = if proto == Proto::Udp {
            let socket = UdpSocket::from(fd);
            thread::spawn(move || until_stopped(&socket, &stopped, || answer_datagram(&name, &socket)))
        } else {
            socket::listen(&fd, Backlog::MAXCONN)?;
            let socket = TcpListener::from(fd);
            thread::spawn(move || until_stopped(&socket, &stopped, || accept(&name, &socket, &accepted)))
        };
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Listener {
    /// Returns when the port is closed.
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Calls `serve` whenever the socket is ready, until the pipe is closed.
fn until_stopped(socket: &impl AsFd, stopped: &io::PipeReader, mut serve: impl FnMut() -> io::Result<()>) {
    loop {
        let mut ready = [PollFd::new(stopped.as_fd(), PollFlags::POLLIN), PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
        let polled = poll(&mut ready, PollTimeout::NONE);
        if ready[0].any() == Some(true) {
            return;
        }
        if polled.is_ok() {
            // An error is one peer's (it went away, an ICMP error about it): the next one is to be served all the same.
            let _ = serve();
        }
    }
}

fn answer_datagram(name: &str, socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 1024];
    let (length, peer) = socket.recv_from(&mut buffer)?;
    let token = String::from_utf8_lossy(&buffer[..length]).into_owned();
    let message = Echoed { name: name.to_owned(), server: socket.local_addr()?, peer, token };
    socket.send_to(&serde_json::to_vec(&message)?, peer)?;
    Ok(())
}

fn accept(name: &Arc<str>, socket: &TcpListener, accepted: &Accepted) -> io::Result<()> {
    let (stream, peer) = socket.accept()?;
    let (stream, name) = (Arc::new(stream), Arc::clone(name));
    accepted.add(&stream);
    // Its end is the peer's.
    thread::spawn(move || answer_lines(&name, &stream, peer));
    Ok(())
}

fn answer_lines(name: &str, stream: &TcpStream, peer: SocketAddr) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let server = stream.local_addr()?;
    for token in BufReader::new(stream).lines() {
        let message = Echoed { name: name.to_owned(), server, peer, token: token? };
        let mut line = serde_json::to_vec(&message)?;
        line.push(b'\n');
        let mut stream = stream;
        stream.write_all(&line)?;
    }
    Ok(())
}
