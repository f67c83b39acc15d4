//! How nft is told what keys and data of a set are, so that it prints them: types, and expressions of the same type (`typeof`) for
//! what has no type of its own. The kernel stores both without looking at them.

use proxy_core::model::Family;

use super::wire::userdata;

/// A part of a key or of data. Each fills registers of 4 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Part {
    /// An address of the table's family.
    Address,
    /// An IP protocol number.
    Protocol,
    /// A port number.
    Port,
    /// A number of the host's byte order: class, identity, id.
    Number,
    /// What `numgen` gives.
    Slot,
}

impl Part {
    /// How many bytes a register or more have of it.
    pub(super) fn len(self, family: Family) -> u32 {
        match (self, family) {
            (Part::Address, Family::V4) | (Part::Number | Part::Slot, _) => 4,
            (Part::Address, Family::V6) => 16,
            (Part::Protocol, _) => 1,
            (Part::Port, _) => 2,
        }
    }

    /// The type's number in nftables (include/datatype.h): a concatenation has 6 bits for each.
    fn number(self, family: Family) -> u32 {
        match (self, family) {
            (Part::Address, Family::V4) => 7,
            (Part::Address, Family::V6) => 8,
            (Part::Protocol, _) => 12,
            (Part::Port, _) => 13,
            // A packet's mark: printed as hexadecimal number.
            (Part::Number, _) => 19,
            // Any integer.
            (Part::Slot, _) => 4,
        }
    }

    fn expression(self, family: Family) -> Vec<u8> {
        match (self, family) {
            (Part::Address, Family::V4) => payload(12, 12),
            (Part::Address, Family::V6) => payload(13, 9),
            (Part::Protocol, _) => meta(16),
            (Part::Port, _) => payload(11, 2),
            (Part::Number, _) => meta(3),
            (Part::Slot, _) => numgen(65_536),
        }
    }
}

/// Type and length of a key or of data.
pub(super) fn describe(parts: &[Part], family: Family) -> (u32, u32) {
    let number = parts.iter().fold(0, |all, part| all << 6 | part.number(family));
    let len = if let [part] = parts { part.len(family) } else { parts.iter().map(|part| part.len(family).next_multiple_of(4)).sum() };
    (number, len)
}

/// As nft keeps `typeof` (`expr_build_udata` and the numbers of expressions and headers, in nftables' include/expression.h and
/// include/proto.h).
pub(super) fn type_of(parts: &[Part], family: Family) -> Vec<u8> {
    if let [part] = parts {
        return part.expression(family);
    }
    let mut list = Vec::new();
    (0..).zip(parts).for_each(|(i, part)| userdata(&mut list, i, &part.expression(family)));
    expression(13, &list)
}

fn payload(header: u32, field: u32) -> Vec<u8> {
    expression(7, &numbers(&[header, field]))
}

fn meta(key: u32) -> Vec<u8> {
    expression(9, &numbers(&[key]))
}

/// `numgen random mod …`
fn numgen(modulus: u32) -> Vec<u8> {
    expression(23, &numbers(&[1, modulus, 0]))
}

fn expression(kind: u32, content: &[u8]) -> Vec<u8> {
    let mut list = numbers(&[kind]);
    userdata(&mut list, 1, content);
    list
}

fn numbers(values: &[u32]) -> Vec<u8> {
    let mut list = Vec::new();
    (0..).zip(values).for_each(|(i, value)| userdata(&mut list, i, &value.to_ne_bytes()));
    list
}
