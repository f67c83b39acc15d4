//! One agent serves a node at a time. During a rollout with surge, or where two are installed, the second waits until the first has
//! ended: two would each take the other's changes for damage.
//!
//! They find each other by a name among the abstract Unix sockets, of which every network namespace has its own: there is nothing to
//! mount, nothing is left behind, and the kernel gives the name back when its holder ends, however it ends.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use anyhow::Context;
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use tokio::io::AsyncReadExt;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::recorder::{Recorder, Severity};

/// The name that the agents of a node know each other by.
const NAME: &str = "proxy-agent.lead";
/// Before the next attempt, where the name was neither free nor anybody there.
const AGAIN: Duration = Duration::from_millis(100);

/// While it lives, no other agent serves this network namespace.
#[derive(Debug)]
pub struct Lead {
    _listener: Option<UnixListener>,
}

/// Who has the name.
enum Holder {
    /// This process now.
    Us(UnixListener),
    /// Another agent: what it is called, and a connection that ends when it does.
    Agent(String, UnixStream),
    /// A process that may not be an agent, which would be root.
    Stranger(u32),
}

/// Waits until no other agent serves this network namespace, and says so if that takes waiting.
///
/// # Errors
///
/// The kernel gives no sockets.
pub async fn take(recorder: &Recorder) -> anyhow::Result<Lead> {
    let mut waited = false;
    loop {
        match holder(NAME).context("the socket by which agents of one node find each other")? {
            Some(Holder::Us(listener)) => {
                if waited {
                    info!("the other proxy-agent has ended: this one takes over");
                }
                return Ok(Lead { _listener: Some(listener) });
            }
            Some(Holder::Stranger(uid)) => {
                warn!(
                    "a process of user {uid} holds the name @{NAME}, which only an agent should: whether another agent serves this node \
                     cannot be told, and this one serves"
                );
                return Ok(Lead { _listener: None });
            }
            Some(Holder::Agent(who, stream)) => {
                if !std::mem::replace(&mut waited, true) {
                    let text = format!("another proxy-agent ({who}) serves this node: this one waits until it has ended");
                    warn!("{text}");
                    recorder.node(Severity::Warning, "WaitingForOtherAgent", text);
                }
                ended(stream).await;
            }
            None => sleep(AGAIN).await,
        }
    }
}

/// `None`: the holder has just ended.
fn holder(name: &str) -> io::Result<Option<Holder>> {
    let address = SocketAddr::from_abstract_name(name)?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => return Ok(Some(Holder::Us(listener))),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
        Err(error) => return Err(error),
    }
    let Ok(stream) = UnixStream::connect_addr(&address) else { return Ok(None) };
    let peer = getsockopt(&stream, PeerCredentials)?;
    if peer.uid() != 0 {
        return Ok(Some(Holder::Stranger(peer.uid())));
    }
    // In another container its number is not known.
    let who = if peer.pid() == 0 { "in another container".to_owned() } else { format!("pid {}", peer.pid()) };
    Ok(Some(Holder::Agent(who, stream)))
}

/// Waits until the other end is closed: nobody ever writes to it.
async fn ended(stream: UnixStream) {
    let read = async {
        stream.set_nonblocking(true)?;
        tokio::net::UnixStream::from_std(stream)?.read_u8().await
    };
    if let Err(error) = read.await
        && error.kind() != io::ErrorKind::UnexpectedEof
        && error.kind() != io::ErrorKind::ConnectionReset
    {
        warn!("waiting for the other proxy-agent: {error}");
        sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_waits_for_the_first() -> anyhow::Result<()> {
        let name = format!("proxy-agent.test-{}", std::process::id());
        let Some(Holder::Us(first)) = holder(&name)? else { anyhow::bail!("the name is taken") };
        // Whoever runs the tests holds it: root is taken for an agent.
        let stream = match holder(&name)? {
            Some(Holder::Agent(who, stream)) => {
                assert_eq!(who, format!("pid {}", std::process::id()));
                stream
            }
            Some(Holder::Stranger(uid)) => {
                assert_eq!(uid, nix::unistd::getuid().as_raw());
                return Ok(());
            }
            _ => anyhow::bail!("two have the name"),
        };
        let waiting = tokio::spawn(ended(stream));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(first);
        tokio::time::timeout(Duration::from_secs(10), waiting).await??;
        assert!(matches!(holder(&name)?, Some(Holder::Us(_))), "the name is free again");
        Ok(())
    }
}
