//! Elements of the maps as bytes. Values are padded to 4 bytes; addresses and ports are big-endian, slots and classes are
//! numbers of the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use proxy_core::ledger::Step;
use proxy_core::lower::nft::{Key, Value};
use proxy_core::model::{Address, Family, Frontend, Protocol};

use super::layout::{REFUSED, SERVICES, SLOTS, class, count_of};
use super::wire::{Attributes, attribute, find_userdata, nest, nested, nfta, userdata_header};

/// NFTNL_UDATA_SET_ELEM_COMMENT of libnftnl.
const COMMENT: u8 = 0;

/// The longest label that the kernel stores. Of the 256 bytes of user data that it takes (NFT_USERDATA_MAXLEN) 6.18 refuses
/// 255 and loses 256 without a word. Kubernetes' names make 191 at most.
pub(super) const MAX_LABEL: usize = 251;

/// The set of an element.
pub(super) fn set_of(key: &Key) -> Option<&'static str> {
    match key {
        Key::Slot(..) => Some(SLOTS),
        Key::Service(_) => Some(SERVICES),
        Key::Refused(_) => Some(REFUSED),
        Key::Base | Key::Pick(_) => None,
    }
}

/// What is wrong with a step that cannot even be said to the kernel.
pub(super) fn flaw(family: Family, step: &Step<Key, Value>) -> Option<&'static str> {
    let foreign = |ip: IpAddr| Family::of(ip) != family;
    let key_flaw = match step.key() {
        Key::Slot(f, _) | Key::Service(f) | Key::Refused(f) => foreign(f.ip).then_some("the frontend is of the other family"),
        Key::Base | Key::Pick(_) => None,
    };
    let (Step::Add(key, value) | Step::Replace(key, value, _)) = step else { return key_flaw };
    let value_flaw = match (key, value) {
        (Key::Slot(..), Value::Slot(backend)) => foreign(backend.ip).then_some("the backend is of the other family"),
        (_, Value::Service(_, label) | Value::Refused(label)) if label.len() > MAX_LABEL => Some("the label is longer than 251 bytes"),
        (Key::Service(_), Value::Service(0, _)) => Some("a Service without backends is refused, not served"),
        (Key::Service(_), Value::Service(..)) | (Key::Refused(_), Value::Refused(_)) => None,
        (Key::Base, Value::Base(_)) | (Key::Pick(_), Value::Pick) => None,
        _ => Some("the value is not one of this kind of object"),
    };
    key_flaw.or(value_flaw)
}

/// Writes the key of an element.
pub(super) fn write_key(out: &mut Vec<u8>, key: &Key) {
    let (Key::Slot(frontend, _) | Key::Service(frontend) | Key::Refused(frontend)) = key else { return };
    nest(out, nfta::ELEM_KEY, |out| {
        nest_value(out, |out| {
            write_address(out, frontend.ip);
            out.extend_from_slice(&[frontend.protocol.number(), 0, 0, 0]);
            write_port(out, frontend.port);
            if let Key::Slot(_, slot) = key {
                out.extend_from_slice(&slot.to_ne_bytes());
            }
        });
    });
}

/// Writes data and comment of an element.
pub(super) fn write_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Slot(backend) => nest(out, nfta::ELEM_DATA, |out| {
            nest_value(out, |out| {
                write_address(out, backend.ip);
                write_port(out, backend.port);
            });
        }),
        Value::Service(count, label) => {
            nest(out, nfta::ELEM_DATA, |out| attribute(out, nfta::DATA_VALUE, &class(*count).to_ne_bytes()));
            write_label(out, label);
        }
        Value::Refused(label) => write_label(out, label),
        Value::Base(_) | Value::Pick => {}
    }
}

/// Reads an element of `set` back.
pub(super) fn read(family: Family, set: &str, element: Attributes<'_>) -> Option<(Key, Value)> {
    let value = |kind| element.nest(kind).get(nfta::DATA_VALUE);
    let (frontend, rest) = read_frontend(family, value(nfta::ELEM_KEY)?)?;
    match set {
        SLOTS => {
            let (ip, rest_of_data) = read_address(family, value(nfta::ELEM_DATA)?)?;
            let (port, _) = read_port(rest_of_data)?;
            Some((Key::Slot(frontend, u32::from_ne_bytes(*rest.first_chunk()?)), Value::Slot(Address { ip, port })))
        }
        SERVICES => {
            let class = u32::from_ne_bytes(*value(nfta::ELEM_DATA)?.first_chunk()?);
            Some((Key::Service(frontend), Value::Service(count_of(class)?, read_label(element))))
        }
        REFUSED => Some((Key::Refused(frontend), Value::Refused(read_label(element)))),
        _ => None,
    }
}

fn nest_value(out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) {
    nested(out, nfta::DATA_VALUE, content);
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

fn read_frontend(family: Family, bytes: &[u8]) -> Option<(Frontend, &[u8])> {
    let (ip, bytes) = read_address(family, bytes)?;
    let (protocol, bytes) = bytes.split_first_chunk::<4>()?;
    let (port, rest) = read_port(bytes)?;
    Some((Frontend { ip, port, protocol: Protocol::from_number(protocol[0])? }, rest))
}

fn read_address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    match family {
        Family::V4 => bytes.split_first_chunk::<4>().map(|(ip, rest)| (Ipv4Addr::from(*ip).into(), rest)),
        Family::V6 => bytes.split_first_chunk::<16>().map(|(ip, rest)| (Ipv6Addr::from(*ip).into(), rest)),
    }
}

fn read_port(bytes: &[u8]) -> Option<(u16, &[u8])> {
    bytes.split_first_chunk::<4>().map(|([high, low, ..], rest)| (u16::from_be_bytes([*high, *low]), rest))
}

/// An element that lost its comment has an empty label, which differs from any that is wanted.
fn read_label(element: Attributes<'_>) -> Arc<str> {
    let comment = element.get(nfta::ELEM_USERDATA).and_then(|list| find_userdata(list, COMMENT));
    let text = comment.and_then(|comment| comment.split(|byte| *byte == 0).next());
    text.and_then(|text| str::from_utf8(text).ok()).unwrap_or_default().into()
}
