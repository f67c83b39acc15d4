//! The kernel's table of flows, by ctnetlink: linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::bail;
use nix::errno::Errno;
use proxy_core::model::{Address, Family, Frontend, Protocol};
use proxy_core::stale::Flow;

use crate::netfilter::socket::{Outcome, Socket, Subsystem};
use crate::netfilter::wire::{Attributes, Message, attribute, nest, request};

/// Numbers of linux/netfilter/nfnetlink_conntrack.h.
pub(super) mod cta {
    pub(crate) const GET: i32 = 1;
    pub(crate) const DELETE: i32 = 2;
    pub(crate) const GET_STATS: i32 = 5;
    pub(crate) const TUPLE_ORIG: u16 = 1;
    pub(crate) const TUPLE_REPLY: u16 = 2;
    pub(crate) const ID: u16 = 12;
    pub(crate) const ZONE: u16 = 18;
    pub(crate) const FILTER: u16 = 25;
    pub(crate) const TUPLE_IP: u16 = 1;
    pub(crate) const TUPLE_PROTO: u16 = 2;
    pub(crate) const IP_V4_SRC: u16 = 1;
    pub(crate) const IP_V4_DST: u16 = 2;
    pub(crate) const IP_V6_SRC: u16 = 3;
    pub(crate) const IP_V6_DST: u16 = 4;
    pub(crate) const PROTO_NUM: u16 = 1;
    pub(crate) const PROTO_SRC_PORT: u16 = 2;
    pub(crate) const PROTO_DST_PORT: u16 = 3;
    pub(crate) const FILTER_ORIG_FLAGS: u16 = 1;
    pub(crate) const FILTER_REPLY_FLAGS: u16 = 2;
    /// CTA_FILTER_F_CTA_IP_DST (net/netfilter/nf_internals.h)
    pub(crate) const BY_IP_DST: u32 = 1 << 1;
    /// CTA_FILTER_F_CTA_PROTO_NUM
    pub(crate) const BY_PROTO_NUM: u32 = 1 << 3;
}

/// An entry, as far as it takes to delete it.
pub(super) struct Entry {
    /// What it remembers.
    pub(super) flow: Flow,
    /// Its reply direction, as the kernel wrote it: addresses, protocol, ports. That of a flow which has begun anew since, and goes
    /// elsewhere, is another.
    reply: Box<[u8]>,
    /// Made of where the entry is and of its original direction.
    id: [u8; 4],
}

/// What has become of entries that were to be deleted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Deleted {
    /// So many were there and are not any more.
    pub(super) count: u64,
    /// So many are in a flowtable, which has them for as long as there are packets.
    pub(super) busy: u64,
}

/// What to read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filter {
    pub(super) family: Family,
    pub(super) protocol: Protocol,
    /// What was addressed to this alone.
    pub(super) ip: Option<IpAddr>,
}

/// The table of the network namespace in which it was opened.
pub(super) struct Table {
    socket: Socket,
    /// The kernel filters itself (5.8 and later).
    pub(super) filters: bool,
}

impl Table {
    pub(super) fn open() -> anyhow::Result<Self> {
        Ok(Self { socket: Socket::open(Subsystem::Conntrack)?, filters: true })
    }

    /// The entries that `wanted` picks, at most so many.
    pub(super) fn find(&mut self, filter: Filter, most: usize, wanted: impl Fn(&Flow) -> bool) -> anyhow::Result<Vec<Entry>> {
        let take = |found: &mut Vec<Entry>, message: &Message<'_>| {
            if found.len() < most
                && let Some(flow) = flow(message).filter(|flow| flow.to.protocol == filter.protocol && wanted(flow))
            {
                found.extend(entry(message, flow));
            }
        };
        if self.filters {
            match self.socket.dump(cta::GET, protocol_family(filter.family), |out| write_filter(out, filter), take) {
                Ok(found) => return Ok(found),
                Err(error) => {
                    tracing::info!(error = format!("{error:#}"), "the kernel filters no flows: all of them are read");
                    self.filters = false;
                }
            }
        }
        self.socket.dump(cta::GET, protocol_family(filter.family), |_| (), take)
    }

    /// Asks for something, as little as there can be: statistics.
    pub(super) fn probe(&mut self) -> anyhow::Result<()> {
        self.socket.get(cta::GET_STATS, libc::AF_UNSPEC as u8, |_| (), |_| ()).map(drop)
    }

    /// Deletes entries that may have ended by themselves.
    pub(super) fn delete(&mut self, entries: &[&Entry]) -> anyhow::Result<Deleted> {
        let count = entries.len() as u32;
        if count == 0 {
            return Ok(Deleted::default());
        }
        let first = self.socket.take_seq(count);
        let mut bytes = Vec::with_capacity(128 * entries.len());
        for (seq, entry) in (first + 1..).zip(entries) {
            // Errors come without being asked for.
            let flags = if seq == first + count { libc::NLM_F_ACK } else { 0 };
            bytes.extend(request(Subsystem::Conntrack.message_type(cta::DELETE), flags, seq, protocol_family(entry.family()), |out| {
                nest(out, cta::TUPLE_REPLY, |out| out.extend_from_slice(&entry.reply));
                attribute(out, cta::ID, &entry.id);
            }));
        }
        let failures = match self.socket.transact(&bytes, first, count)? {
            Outcome::Done => return Ok(Deleted { count: count.into(), busy: 0 }),
            Outcome::Refused(failures) => failures,
            Outcome::TooLong => bail!("no room to ask for the deletion of {count} flows"),
        };
        let other = failures.iter().find(|failure| !matches!(failure.errno, Errno::ENOENT | Errno::EBUSY));
        if let Some(failure) = other {
            bail!("connection tracking does not delete flows: {}", failure.reason());
        }
        let busy = failures.iter().filter(|failure| failure.errno == Errno::EBUSY).count() as u64;
        Ok(Deleted { count: u64::from(count) - failures.len() as u64, busy })
    }
}

impl Entry {
    fn family(&self) -> Family {
        self.flow.to.family()
    }
}

pub(super) fn protocol_family(family: Family) -> u8 {
    match family {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

/// By an address in IPv4 only: with one of IPv6 the kernel gives all flows but those to it (ctnetlink_filter_match_tuple).
fn write_filter(out: &mut Vec<u8>, Filter { protocol, ip, .. }: Filter) {
    let ip = ip.and_then(|ip| if let IpAddr::V4(ip) = ip { Some(ip) } else { None });
    nest(out, cta::TUPLE_ORIG, |out| {
        if let Some(ip) = ip {
            nest(out, cta::TUPLE_IP, |out| attribute(out, cta::IP_V4_DST, &ip.octets()));
        }
        nest(out, cta::TUPLE_PROTO, |out| attribute(out, cta::PROTO_NUM, &[protocol.number()]));
    });
    nest(out, cta::FILTER, |out| {
        let flags = cta::BY_PROTO_NUM | if ip.is_some() { cta::BY_IP_DST } else { 0 };
        attribute(out, cta::FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
        attribute(out, cta::FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
    });
}

/// What an entry remembers; nothing of protocols that no Service has, nor of another zone than packets to Services are in: what
/// tracks packets there besides is not ours.
fn flow(message: &Message<'_>) -> Option<Flow> {
    let attributes = message.attributes();
    if attributes.get(cta::ZONE).is_some_and(|zone| zone != [0, 0]) {
        return None;
    }
    let (original, reply) = (attributes.nest(cta::TUPLE_ORIG), attributes.nest(cta::TUPLE_REPLY));
    let protocol = Protocol::from_number(*original.nest(cta::TUPLE_PROTO).get(cta::PROTO_NUM)?.first()?)?;
    let to = Frontend { ip: address(original, cta::IP_V4_DST, cta::IP_V6_DST)?, port: port(original, cta::PROTO_DST_PORT)?, protocol };
    let answered_by = Address { ip: address(reply, cta::IP_V4_SRC, cta::IP_V6_SRC)?, port: port(reply, cta::PROTO_SRC_PORT)? };
    Some(Flow { to, answered_by })
}

fn entry(message: &Message<'_>, flow: Flow) -> Option<Entry> {
    let attributes = message.attributes();
    let id = *attributes.get(cta::ID)?.first_chunk()?;
    Some(Entry { flow, reply: attributes.get(cta::TUPLE_REPLY)?.into(), id })
}

fn address(tuple: Attributes<'_>, v4: u16, v6: u16) -> Option<IpAddr> {
    let ip = tuple.nest(cta::TUPLE_IP);
    match (ip.get(v4), ip.get(v6)) {
        (Some(ip), _) => Some(IpAddr::from(*ip.first_chunk::<4>()?)),
        (None, Some(ip)) => Some(Ipv6Addr::from(*ip.first_chunk::<16>()?).into()),
        (None, None) => None,
    }
}

fn port(tuple: Attributes<'_>, kind: u16) -> Option<u16> {
    tuple.nest(cta::TUPLE_PROTO).get(kind)?.first_chunk().map(|port| u16::from_be_bytes(*port))
}
