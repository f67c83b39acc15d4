//! Sockets that listen, and servers that are kept up.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};
use tracing::{error, info};

use super::{Site, serve};

/// How often it is tried again to listen (CFG-14).
const RETRY: Duration = Duration::from_secs(5);
/// Connections that wait to be taken.
const BACKLOG: u32 = 128;

/// Listens on an address; on a port of all addresses of both families if the address is unspecified, as Go's servers do.
///
/// # Errors
///
/// The kernel refuses, for example because another process listens there.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return listen_on(address);
    }
    let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), address.port());
    match open(both, Some(false)) {
        // A kernel without IPv6.
        Err(error) if address.is_ipv4() && is_absent(&error) => listen_on(address),
        result => result,
    }
}

/// Listens on an address of one family alone, also if it is unspecified.
///
/// # Errors
///
/// As [`listen`].
pub fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    open(address, address.is_ipv6().then_some(true))
}

fn open(address: SocketAddr, only_v6: Option<bool>) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    if let Some(only) = only_v6 {
        setsockopt(&socket, sockopt::Ipv6V6Only, &only)?;
    }
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// A server that is kept up.
pub struct Keeping<F> {
    /// What it is called.
    pub what: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
    /// One that cannot listen is an error (CFG-14).
    pub hard_fail: bool,
    /// Told once, with the reason, for as long as it cannot listen.
    pub failed: F,
}

/// Serves for ever, and tries again for as long as it cannot listen.
///
/// # Errors
///
/// It cannot listen, and is not to try again.
pub async fn keep<S: Site>(keeping: Keeping<impl Fn(&str)>, site: Arc<S>) -> anyhow::Result<()> {
    let Keeping { what, address, hard_fail, failed } = keeping;
    let mut said: Option<String> = None;
    loop {
        match listen(address) {
            Ok(listener) => {
                info!(%address, "{what} is served");
                said = None;
                serve(vec![listener], Arc::clone(&site)).await;
            }
            Err(error) => {
                let way_out = other_ways(address.ip(), &error);
                let text = format!("{what} cannot be served at {address}: {error}{way_out}");
                if hard_fail {
                    failed(&text);
                    return Err(anyhow!("{text} (bindAddressHardFail)"));
                }
                if said.as_ref() != Some(&text) {
                    error!("{text}; trying again every {RETRY:?}");
                    failed(&text);
                    said = Some(text);
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn other_ways(ip: IpAddr, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => "; end what listens there, or name another port".to_owned(),
        io::ErrorKind::AddrNotAvailable => format!("; no interface has {ip}"),
        _ => String::new(),
    }
}
