//! The host's own addresses, by rtnetlink: all of all interfaces of this network namespace, at the start and whenever they change.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::{FutureExt, Stream, StreamExt, TryStreamExt};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use proxy_core::input::Converted;
use proxy_core::model::Change;
use rtnetlink::{Handle, MulticastGroup, new_connection, new_multicast_connection};
use tracing::{info, warn};

use crate::source::{Closed, Event, Sender, send};

/// After a failure, of which there should be none.
const RETRY: Duration = Duration::from_secs(1);

/// The addresses, as they were said last.
pub struct Addresses {
    events: Sender,
    known: Box<[IpAddr]>,
    failed: bool,
}

impl Addresses {
    /// Reads them and says them: before whatever is said after this.
    ///
    /// # Errors
    ///
    /// The kernel does not tell.
    pub async fn start(events: Sender) -> anyhow::Result<Self> {
        let read = async {
            let (connection, handle, _) = new_connection()?;
            over(connection, list(&handle)).await
        };
        let known = read.await.context("the host's addresses cannot be read (rtnetlink): the agent needs netlink sockets")?;
        let addresses = Self { events, known, failed: false };
        // Where nobody listens, the watch ends at once.
        let _ = addresses.say().await;
        Ok(addresses)
    }

    /// Says them anew whenever they change, until nobody listens.
    pub async fn watch(mut self) {
        let events = self.events.clone();
        tokio::select! {
            () = events.closed() => {}
            () = self.sessions() => {}
        }
    }

    async fn sessions(&mut self) {
        while let Err(error) = self.session().await {
            if !std::mem::replace(&mut self.failed, true) {
                warn!("the host's addresses cannot be watched: {error:#}; what is known of them stays in force, trying again");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn session(&mut self) -> anyhow::Result<()> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, handle, notices) = new_multicast_connection(&groups)?;
        over(connection, self.follow(&handle, notices)).await
    }

    /// Reads all of them after every notice: that is cheap, and there is nothing to be missed. Where notices were lost, there is one
    /// that says so.
    async fn follow(&mut self, handle: &Handle, mut notices: impl Stream + Unpin) -> anyhow::Result<()> {
        loop {
            let addresses = list(handle).await?;
            if std::mem::take(&mut self.failed) {
                info!("the host's addresses: watched again");
            }
            if addresses != self.known {
                self.known = addresses;
                if let Err(Closed) = self.say().await {
                    return Ok(());
                }
            }
            notices.next().await.context("there are no more notices")?;
            while notices.next().now_or_never().flatten().is_some() {}
        }
    }

    async fn say(&self) -> Result<(), Closed> {
        let change = Change::HostAddresses(self.known.clone());
        send(&self.events, Event::Object(Converted { change: Some(change), problems: Vec::new() })).await
    }
}

/// Does what needs a connection. One that ends in between must not be taken for the end of a list.
async fn over<T>(connection: impl Future<Output = ()>, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        biased;
        () = connection => bail!("the kernel has closed the connection"),
        done = work => done,
    }
}

/// All addresses, by the index of their interface; those of one as the kernel lists them, IPv4 first.
async fn list(handle: &Handle) -> anyhow::Result<Box<[IpAddr]>> {
    let mut found = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut request = handle.address().get();
        request.message_mut().header.family = family;
        let mut messages = request.execute();
        while let Some(message) = messages.try_next().await.context("listing addresses")? {
            // A kernel without the family gives those of the others.
            if message.header.family == family {
                found.extend(address_of(&message).map(|ip| (message.header.index, ip)));
            }
        }
    }
    found.sort_by_key(|(index, _)| *index);
    Ok(found.into_iter().map(|(_, ip)| ip).collect())
}

/// The host's own address: of a point-to-point interface, `Address` is the other end's.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let attributes = message.attributes.iter();
    let local = attributes.clone().find_map(|attribute| if let AddressAttribute::Local(ip) = attribute { Some(*ip) } else { None });
    local.or_else(|| attributes.clone().find_map(|attribute| if let AddressAttribute::Address(ip) = attribute { Some(*ip) } else { None }))
}

#[cfg(test)]
#[path = "host/tests.rs"]
mod tests;
