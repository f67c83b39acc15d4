//! Elements of the sets as bytes. The parts of a concatenation are padded to 4 bytes; addresses and ports are big-endian, slots,
//! classes, identities and ids are numbers of the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use proxy_core::cidr::Cidr;
use proxy_core::lower::nft::{Class, Key, Target, Value};
use proxy_core::model::{Address, Family, Frontend, Protocol};
use proxy_core::route::Pool;

use super::class;
use super::wire::{Attributes, attribute, find_userdata, nest, nested, nfta, number, userdata_header};

/// NFTNL_UDATA_SET_ELEM_COMMENT of libnftnl.
const COMMENT: u8 = 0;

/// The longest label that the kernel stores. Of the 256 bytes of user data that it takes (NFT_USERDATA_MAXLEN) 6.18 refuses
/// 255 and loses 256 without a word. Kubernetes' names make 191 at most.
pub(super) const MAX_LABEL: usize = 251;

/// Writes the element of a key, without a value as for a deletion. A range is two elements: its first address, and the first
/// address after it.
pub(super) fn write(out: &mut Vec<u8>, key: &Key, value: Option<&Value>) {
    nest(out, nfta::LIST_ELEM, |out| {
        nest(out, nfta::ELEM_KEY, |out| nested(out, nfta::DATA_VALUE, |out| write_key(out, key, cidr_of(key).map(|cidr| cidr.first()))));
        if let Key::Source(_, cidr) = key {
            nest(out, nfta::ELEM_KEY_END, |out| nested(out, nfta::DATA_VALUE, |out| write_key(out, key, Some(cidr.last()))));
        }
        if let Some(value) = value {
            write_value(out, key, value);
        }
    });
    if let Key::PodCidr(cidr) | Key::ServiceCidr(cidr) = key
        && let Some(after) = next_address(cidr.last())
    {
        nest(out, nfta::LIST_ELEM, |out| {
            nest(out, nfta::ELEM_KEY, |out| nested(out, nfta::DATA_VALUE, |out| write_key(out, key, Some(after))));
            number(out, nfta::ELEM_FLAGS, nfta::INTERVAL_END);
        });
    }
}

fn cidr_of(key: &Key) -> Option<Cidr> {
    match key {
        Key::PodCidr(cidr) | Key::ServiceCidr(cidr) | Key::Source(_, cidr) => Some(*cidr),
        _ => None,
    }
}

/// `of_range`: the address of the range that is meant.
fn write_key(out: &mut Vec<u8>, key: &Key, of_range: Option<IpAddr>) {
    let numbers = |out: &mut Vec<u8>, numbers: &[u32]| numbers.iter().for_each(|number| out.extend_from_slice(&number.to_ne_bytes()));
    match key {
        Key::Base | Key::Chain(_) | Key::StickPick(..) | Key::Damage(_) => {}
        Key::PodCidr(_) | Key::ServiceCidr(_) => {}
        Key::NodeAddress(ip) | Key::ClusterIp(ip) => write_address(out, *ip),
        Key::Hairpin(ip) => {
            write_address(out, *ip);
            write_address(out, *ip);
        }
        Key::Endpoint(Address { ip, port }, protocol) => write_frontend(out, &Frontend { ip: *ip, port: *port, protocol: *protocol }),
        Key::Slot(frontend, slot) => {
            write_frontend(out, frontend);
            numbers(out, &[*slot]);
        }
        Key::StickEndpoint(id) => numbers(out, &[*id]),
        Key::StickSlot(identity, slot) => numbers(out, &[*identity, *slot]),
        Key::StickMember(identity, _, id) => numbers(out, &[*identity, *id]),
        Key::StickSize(identity, _) => numbers(out, &[*identity]),
        Key::Identity(frontend) | Key::BySource(frontend, _) | Key::Restricted(frontend) | Key::Source(frontend, _) => {
            write_frontend(out, frontend);
        }
        Key::Service(frontend) | Key::Refused(frontend) | Key::Dropped(frontend) => write_frontend(out, frontend),
    }
    if let Some(ip) = of_range {
        write_address(out, ip);
    }
}

/// Writes data and comment of an element.
fn write_value(out: &mut Vec<u8>, key: &Key, value: &Value) {
    match value {
        Value::Base(_) | Value::Present => {}
        Value::Backend(backend) => data(out, |out| {
            write_address(out, backend.ip);
            write_port(out, backend.port);
        }),
        Value::Number(number) => data(out, |out| out.extend_from_slice(&number.to_ne_bytes())),
        Value::Count(count) => {
            let pool = if let Key::StickSize(_, pool) = key { *pool } else { Pool::Cluster };
            write_class(out, class::number(class::of_stick_pick(pool, *count)));
        }
        Value::Target(target) => write_class(out, class::number_by_source(*target)),
        Value::Service(class, label) => {
            write_class(out, class::number(*class));
            write_label(out, label);
        }
        Value::Label(label) => write_label(out, label),
    }
}

fn data(out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    nest(out, nfta::ELEM_DATA, |out| nested(out, nfta::DATA_VALUE, content));
}

/// A class without a number is a [flaw](super::flaw::flaw).
fn write_class(out: &mut Vec<u8>, class: Option<u32>) {
    let number = class.unwrap_or_default();
    nest(out, nfta::ELEM_DATA, |out| attribute(out, nfta::DATA_VALUE, &number.to_ne_bytes()));
}

fn write_frontend(out: &mut Vec<u8>, frontend: &Frontend) {
    if !frontend.is_node_port() {
        write_address(out, frontend.ip);
    }
    out.extend_from_slice(&[frontend.protocol.number(), 0, 0, 0]);
    write_port(out, frontend.port);
}

fn write_address(out: &mut Vec<u8>, ip: IpAddr) {
    match ip {
        IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()),
        IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()),
    }
}

fn write_port(out: &mut Vec<u8>, port: u16) {
    let [high, low] = port.to_be_bytes();
    out.extend_from_slice(&[high, low, 0, 0]);
}

fn write_label(out: &mut Vec<u8>, label: &str) {
    nested(out, nfta::ELEM_USERDATA, |out| {
        // At most MAX_LABEL bytes, so the length does not wrap.
        userdata_header(out, COMMENT, label.len() + 1);
        out.extend_from_slice(label.as_bytes());
        out.push(0);
    });
}

fn next_address(ip: IpAddr) -> Option<IpAddr> {
    Some(match ip {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip).checked_add(1)?).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip).checked_add(1)?).into(),
    })
}

/// Reads an element of a set back. Elements of [interval sets](super::sets::is_interval) are read by [`bound`].
pub(super) fn read(family: Family, set: &str, element: Attributes<'_>) -> Option<(Key, Value)> {
    let is_node_port = set.starts_with("node-");
    let mut key = Bytes { family, bytes: element.nest(nfta::ELEM_KEY).get(nfta::DATA_VALUE)? };
    let mut data = Bytes { family, bytes: element.nest(nfta::ELEM_DATA).get(nfta::DATA_VALUE).unwrap_or_default() };
    Some(match set {
        "services" | "node-services" => {
            let label = label(element);
            (Key::Service(key.destination(is_node_port)?), Value::Service(data.class()?, label))
        }
        "slots" | "node-slots" => (Key::Slot(key.destination(is_node_port)?, key.number()?), Value::Backend(data.backend()?)),
        "by-source-cluster" | "node-by-source-cluster" => {
            (Key::BySource(key.destination(is_node_port)?, Pool::Cluster), Value::Target(data.target()?))
        }
        "by-source-local" | "node-by-source-local" => {
            (Key::BySource(key.destination(is_node_port)?, Pool::Local), Value::Target(data.target()?))
        }
        "refused" | "node-refused" => (Key::Refused(key.destination(is_node_port)?), Value::Label(label(element))),
        "dropped" => (Key::Dropped(key.destination(false)?), Value::Label(label(element))),
        "node-addresses" => (Key::NodeAddress(key.address()?), Value::Present),
        "cluster-ips" => (Key::ClusterIp(key.address()?), Value::Present),
        "hairpins" => {
            let ip = key.address()?;
            (Key::Hairpin((key.address()? == ip).then_some(ip)?), Value::Present)
        }
        "endpoints" => {
            let Frontend { ip, port, protocol } = key.destination(false)?;
            (Key::Endpoint(Address { ip, port }, protocol), Value::Present)
        }
        "restricted" => (Key::Restricted(key.destination(false)?), Value::Present),
        "sources" => {
            let end = element.nest(nfta::ELEM_KEY_END).get(nfta::DATA_VALUE)?;
            let (frontend, first) = (key.destination(false)?, key.address()?);
            let mut end = Bytes { family, bytes: end };
            let cidr = (end.destination(false)? == frontend).then(|| end.address().and_then(|last| between(first, last)))??;
            (Key::Source(frontend, cidr), Value::Present)
        }
        "identities" | "node-identities" => (Key::Identity(key.destination(is_node_port)?), Value::Number(data.number()?)),
        "stick-sizes" => (Key::StickSize(key.number()?, Pool::Cluster), Value::Count(data.count(Pool::Cluster)?)),
        "stick-sizes-local" => (Key::StickSize(key.number()?, Pool::Local), Value::Count(data.count(Pool::Local)?)),
        "stick-slots" => (Key::StickSlot(key.number()?, key.number()?), Value::Number(data.number()?)),
        "stick-members" => (Key::StickMember(key.number()?, Pool::Cluster, key.number()?), Value::Present),
        "stick-members-local" => (Key::StickMember(key.number()?, Pool::Local, key.number()?), Value::Present),
        "stick-endpoints" => (Key::StickEndpoint(key.number()?), Value::Backend(data.backend()?)),
        _ => return None,
    })
}

/// The frontend and packets of an element of a set that counts connections.
pub(super) fn counted(family: Family, set: &str, element: Attributes<'_>) -> Option<(Frontend, u64)> {
    let mut key = Bytes { family, bytes: element.nest(nfta::ELEM_KEY).get(nfta::DATA_VALUE)? };
    let packets = element.nest(nfta::ELEM_EXPR).nest(nfta::EXPR_DATA).get(nfta::COUNTER_PACKETS)?;
    Some((key.destination(set.starts_with("node-"))?, u64::from_be_bytes(*packets.first_chunk()?)))
}

/// A part of a range: its first address, or the first address after one (`true`).
pub(super) fn bound(family: Family, element: Attributes<'_>) -> Option<(IpAddr, bool)> {
    let ip = Bytes { family, bytes: element.nest(nfta::ELEM_KEY).get(nfta::DATA_VALUE)? }.address()?;
    let flags = element.get(nfta::ELEM_FLAGS).and_then(|flags| flags.first_chunk()).map_or(0, |flags| u32::from_be_bytes(*flags));
    Some((ip, flags & nfta::INTERVAL_END != 0))
}

/// The elements that bounds are of, and how many bounds belong to none of ours. The last range may be open.
pub(super) fn ranges(set: &str, mut bounds: Vec<(IpAddr, bool)>) -> (Vec<(Key, Value)>, usize) {
    // The end of a range comes before the beginning of the next, which may be the same address.
    bounds.sort_unstable_by_key(|(ip, is_end)| (*ip, !is_end));
    let (mut known, mut unknown, mut bounds) = (Vec::new(), 0, bounds.into_iter().peekable());
    while let Some((first, is_end)) = bounds.next() {
        let end = bounds.next_if(|(_, next_is_end)| !is_end && *next_is_end);
        let last = end.map_or_else(|| last_address(Family::of(first)), |(after, _)| previous_address(after));
        let cidr = if is_end { None } else { between(first, last) };
        let key = cidr.and_then(|cidr| match set {
            "pods" => Some(Key::PodCidr(cidr)),
            "service-cidrs" => Some(Key::ServiceCidr(cidr)),
            _ => None,
        });
        match key {
            Some(key) => known.push((key, Value::Present)),
            None => unknown += 1,
        }
    }
    (known, unknown)
}

/// The range with these first and last addresses, if it has a prefix.
fn between(first: IpAddr, last: IpAddr) -> Option<Cidr> {
    let cidrs = (0..=Cidr::host(first).prefix_len()).filter_map(|len| Cidr::new(first, len));
    cidrs.into_iter().find(|cidr| cidr.first() == first && cidr.last() == last)
}

fn last_address(family: Family) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::BROADCAST.into(),
        Family::V6 => Ipv6Addr::from(u128::MAX).into(),
    }
}

fn previous_address(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip).saturating_sub(1)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip).saturating_sub(1)).into(),
    }
}

/// An element that lost its comment has an empty label, which differs from any that is wanted.
fn label(element: Attributes<'_>) -> Arc<str> {
    let comment = element.get(nfta::ELEM_USERDATA).and_then(|list| find_userdata(list, COMMENT));
    let text = comment.and_then(|comment| comment.split(|byte| *byte == 0).next());
    text.and_then(|text| str::from_utf8(text).ok()).unwrap_or_default().into()
}

/// Key or data, read part by part.
struct Bytes<'a> {
    family: Family,
    bytes: &'a [u8],
}

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (part, rest) = self.bytes.split_first_chunk()?;
        self.bytes = rest;
        Some(*part)
    }

    fn address(&mut self) -> Option<IpAddr> {
        Some(match self.family {
            Family::V4 => Ipv4Addr::from(self.take::<4>()?).into(),
            Family::V6 => Ipv6Addr::from(self.take::<16>()?).into(),
        })
    }

    fn port(&mut self) -> Option<u16> {
        let [high, low, ..] = self.take::<4>()?;
        Some(u16::from_be_bytes([high, low]))
    }

    fn number(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn destination(&mut self, is_node_port: bool) -> Option<Frontend> {
        let ip = if is_node_port { self.family.unspecified() } else { self.address()? };
        let [number, ..] = self.take::<4>()?;
        let protocol = Protocol::from_number(number)?;
        Some(Frontend { ip, port: self.port()?, protocol })
    }

    fn backend(&mut self) -> Option<Address> {
        let ip = self.address()?;
        Some(Address { ip, port: self.port()? })
    }

    fn class(&mut self) -> Option<Class> {
        class::of_number(self.number()?)
    }

    fn target(&mut self) -> Option<Option<Target>> {
        class::by_source_of_number(self.number()?)
    }

    fn count(&mut self, wanted: Pool) -> Option<u16> {
        class::stick_pick_of(self.class()?).filter(|(pool, _)| *pool == wanted).map(|(_, count)| count)
    }
}
