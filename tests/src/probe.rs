//! Probes: a socket, a line sent over it, the answer to that line.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockProtocol, SockType, SockaddrStorage, sockopt};

use crate::pod::{Answer, Connect, Echoed, Mode, Outcome, Proto};

/// A socket that probes go over.
pub(crate) struct Session {
    socket: Socket,
    /// Tells an answer to this probe from a late one to an earlier probe.
    sequence: u64,
}

enum Socket {
    /// TCP and SCTP, and what has been read beyond the last answer.
    Stream(TcpStream, Vec<u8>),
    Connected(UdpSocket),
    /// For ICMP echo requests: as for datagrams, but that their header is ours to write and to read. It is connected to that address,
    /// which it does not tell, because there is no port.
    Ping(UdpSocket, IpAddr),
    /// With the destination unless another is given.
    Unconnected(UdpSocket, Option<SocketAddr>),
}

/// Carries out one probe. The session is returned if it was opened, whether or not it was answered.
pub(crate) fn probe(connect: &Connect) -> (Outcome, Option<Session>) {
    let deadline = Instant::now() + Duration::from_millis(connect.timeout_ms);
    match Session::open(connect, deadline) {
        Ok(mut session) => (session.echo(None, deadline), Some(session)),
        Err(error) => (outcome(&error), None),
    }
}

impl Session {
    fn open(connect: &Connect, deadline: Instant) -> io::Result<Self> {
        let fd = open(connect.dst, connect.proto, connect.source)?;
        let unconnected = connect.proto == Proto::Udp && connect.mode == Mode::Unconnected;
        if !unconnected {
            connect_by(&fd, connect.dst, deadline)?;
        }
        let socket = match connect.proto {
            Proto::Udp if unconnected => Socket::Unconnected(blocking(UdpSocket::from(fd))?, Some(connect.dst)),
            Proto::Udp => Socket::Connected(blocking(UdpSocket::from(fd))?),
            Proto::Icmp => Socket::Ping(blocking(UdpSocket::from(fd))?, connect.dst.ip()),
            Proto::Tcp | Proto::Sctp => {
                let stream = TcpStream::from(fd);
                stream.set_nonblocking(false)?;
                Socket::Stream(stream, Vec::new())
            }
        };
        Ok(Self { socket, sequence: 0 })
    }

    /// An unconnected UDP socket at this address, of its family.
    pub(crate) fn unconnected(source: SocketAddr) -> io::Result<(Self, SocketAddr)> {
        let socket = blocking(UdpSocket::from(open(source, Proto::Udp, Some(source))?))?;
        let local = socket.local_addr()?;
        Ok((Self { socket: Socket::Unconnected(socket, None), sequence: 0 }, local))
    }

    /// Sends a line and waits for the answer to it.
    pub(crate) fn echo(&mut self, dst: Option<SocketAddr>, deadline: Instant) -> Outcome {
        self.sequence += 1;
        let token = self.sequence.to_string();
        let answer = match &mut self.socket {
            Socket::Stream(stream, read) => echo_stream(stream, read, &token, deadline),
            Socket::Connected(socket) => echo_udp(socket, None, &token, deadline),
            Socket::Ping(socket, peer) => echo_icmp(socket, *peer, &token, deadline),
            Socket::Unconnected(socket, default) => match dst.or(*default) {
                Some(dst) => echo_udp(socket, Some(dst), &token, deadline),
                None => Err(Errno::EDESTADDRREQ.into()),
            },
        };
        answer.map_or_else(|error| outcome(&error), Outcome::Ok)
    }
}

/// A socket of the destination's family, bound to the source if there is one, not blocking.
fn open(dst: SocketAddr, proto: Proto, source: Option<SocketAddr>) -> io::Result<OwnedFd> {
    let fd = new_socket(dst, proto, SockFlag::SOCK_NONBLOCK)?;
    if proto != Proto::Tcp {
        // Without these an unconnected socket is not told of ICMP errors, and one of SCTP notes them without waking who waits for it.
        // An IPv6 socket can send IPv4 too, an IPv4 socket has no IPv6 option.
        let _ = socket::setsockopt(&fd, sockopt::Ipv4RecvErr, &true);
        let _ = socket::setsockopt(&fd, sockopt::Ipv6RecvErr, &true);
    }
    if let Some(source) = source {
        socket::setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        socket::bind(fd.as_raw_fd(), &SockaddrStorage::from(source))?;
    }
    Ok(fd)
}

/// A socket for this address and protocol.
pub(crate) fn new_socket(address: SocketAddr, proto: Proto, flags: SockFlag) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let (kind, protocol) = match proto {
        Proto::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Proto::Udp => (SockType::Datagram, SockProtocol::Udp),
        Proto::Sctp => (SockType::Stream, SockProtocol::Sctp),
        Proto::Icmp if address.is_ipv4() => (SockType::Datagram, SockProtocol::Icmp),
        Proto::Icmp => (SockType::Datagram, SockProtocol::IcmpV6),
    };
    Ok(socket::socket(family, kind, flags | SockFlag::SOCK_CLOEXEC, protocol)?)
}

/// connect(2), over by the deadline.
fn connect_by(fd: &OwnedFd, dst: SocketAddr, deadline: Instant) -> io::Result<()> {
    match socket::connect(fd.as_raw_fd(), &SockaddrStorage::from(dst)) {
        Ok(()) => return Ok(()),
        Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    // An ICMPv6 error that came while connect(2) was at work ends nothing before the SYN is sent again, a second later.
    pending_error(fd)?;
    let mut ready = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    let millis = left(deadline)?.as_millis().saturating_add(1);
    if poll(&mut ready, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX))? == 0 {
        return Err(ErrorKind::TimedOut.into());
    }
    pending_error(fd)
}

fn pending_error(fd: &OwnedFd) -> io::Result<()> {
    match socket::getsockopt(fd, sockopt::SocketError)? {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn echo_stream(stream: &mut TcpStream, read: &mut Vec<u8>, token: &str, deadline: Instant) -> io::Result<Answer> {
    stream.write_all(format!("{token}\n").as_bytes())?;
    loop {
        while let Some(end) = read.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = read.drain(..=end).collect();
            let echoed: Echoed = serde_json::from_slice(&line)?;
            if echoed.token == token {
                return Ok(answer(echoed, stream.local_addr()?, stream.peer_addr().ok(), None));
            }
        }
        stream.set_read_timeout(Some(left(deadline)?))?;
        let mut buffer = [0; 1024];
        match stream.read(&mut buffer)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            n => read.extend_from_slice(&buffer[..n]),
        }
    }
}

fn echo_udp(socket: &UdpSocket, dst: Option<SocketAddr>, token: &str, deadline: Instant) -> io::Result<Answer> {
    // An error that came late belongs to an earlier probe.
    socket.take_error()?;
    match dst {
        Some(dst) => socket.send_to(token.as_bytes(), dst)?,
        None => socket.send(token.as_bytes())?,
    };
    loop {
        socket.set_read_timeout(Some(left(deadline)?))?;
        let mut buffer = [0; 1024];
        let (length, from) = socket.recv_from(&mut buffer)?;
        let echoed: Echoed = serde_json::from_slice(&buffer[..length])?;
        if echoed.token == token {
            return Ok(answer(echoed, socket.local_addr()?, socket.peer_addr().ok(), Some(from)));
        }
    }
}

/// The kernel fills in the checksum and the identifier, and keeps to itself what is of another identifier.
fn echo_icmp(socket: &UdpSocket, peer: IpAddr, token: &str, deadline: Instant) -> io::Result<Answer> {
    const HEADER: usize = 8;
    let local = socket.local_addr()?;
    let (request, reply) = if peer.is_ipv4() { (8, 0) } else { (128, 129) };
    socket.take_error()?;
    let mut packet = [0; HEADER].to_vec();
    packet[0] = request;
    packet.extend_from_slice(token.as_bytes());
    socket.send(&packet)?;
    loop {
        socket.set_read_timeout(Some(left(deadline)?))?;
        let mut buffer = [0; 1024];
        let (length, from) = socket.recv_from(&mut buffer)?;
        if buffer[0] == reply && buffer.get(HEADER..length) == Some(token.as_bytes()) {
            let server = SocketAddr::new(from.ip(), 0);
            return Ok(Answer { name: String::new(), server, seen_source: local, local, peer: Some(server), reply_source: Some(from) });
        }
    }
}

fn answer(echoed: Echoed, local: SocketAddr, peer: Option<SocketAddr>, reply_source: Option<SocketAddr>) -> Answer {
    Answer { name: echoed.name, server: echoed.server, seen_source: echoed.peer, local, peer, reply_source }
}

fn blocking(socket: UdpSocket) -> io::Result<UdpSocket> {
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// The time until the deadline, which a socket's timeout must not have as zero.
fn left(deadline: Instant) -> io::Result<Duration> {
    deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()).ok_or_else(|| ErrorKind::TimedOut.into())
}

/// How an error counts.
pub(crate) fn outcome(error: &io::Error) -> Outcome {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::ConnectionRefused, _) => Outcome::Refused,
        (ErrorKind::WouldBlock | ErrorKind::TimedOut, _) => Outcome::Timeout,
        (_, Some(errno)) => Outcome::Error(format!("{:?}", Errno::from_raw(errno))),
        (ErrorKind::UnexpectedEof, None) => Outcome::Error("EOF".to_owned()),
        (_, None) => Outcome::Error(error.to_string()),
    }
}
