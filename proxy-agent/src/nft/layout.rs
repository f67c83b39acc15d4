//! What the table is made of, but for the elements.
//!
//! ```text
//! prerouting, output (nat):  meta secmark set ip daddr . meta l4proto . th dport map @services meta secmark vmap @classes   (twice)
//! pick-3:                    meta secmark set 0 dnat to ip daddr . meta l4proto . th dport . numgen random mod 3 map @slots
//!                            dnat to … map @slots
//!                            meta secmark set ip daddr . meta l4proto . th dport map @services counter drop
//! input, forward, output:    ct state new ip daddr . meta l4proto . th dport @refused goto refuse
//! refuse:                    meta l4proto tcp reject with tcp reset
//!                            reject
//! ```
//!
//! A map's result cannot be a key in the same statement (`nft list` aborts), so the class takes its way through a scratch field
//! of the packet, which is zero again before the packet leaves the table. Lookup of the class and jump are one rule: a packet
//! to no Service ends there, whatever its scratch holds. Another kind of frontend (node ports) is another pair of maps and
//! another line in the nat chains.

use std::fmt;

use proxy_core::lower::nft::LAYOUT;
use proxy_core::model::Family;

use super::rules;
use super::wire::{Batch, attribute, nest, nfta, number, text, userdata};

/// The table's name, in both families.
pub(super) const TABLE: &str = "proxy-agent";
/// A table that is tried and never made.
const TRIAL: &str = "proxy-agent-trial";

/// Map: frontend to class.
pub(super) const SERVICES: &str = "services";
/// Map: frontend and slot to backend.
pub(super) const SLOTS: &str = "slots";
/// Map: class to the chain that picks a slot.
pub(super) const CLASSES: &str = "classes";
/// Set: frontends whose connections are refused.
pub(super) const REFUSED: &str = "refused";

/// High bits of a class, so that it looks like nobody else's mark or priority.
const TAG: u32 = 0x7072_0000;

/// Types in nftables' concatenations, 6 bits each (include/datatype.h of nftables).
mod datatype {
    pub(super) const INTEGER: u32 = 4;
    pub(super) const IPV4: u32 = 7;
    pub(super) const IPV6: u32 = 8;
    pub(super) const PROTOCOL: u32 = 12;
    pub(super) const PORT: u32 = 13;
    pub(super) const MARK: u32 = 19;
}

/// Items of a set's user data (`enum nftnl_udata_set_types`, libnftnl/udata.h).
mod item {
    pub(super) const KEY_BYTE_ORDER: u8 = 0;
    pub(super) const DATA_BYTE_ORDER: u8 = 1;
    pub(super) const KEY_TYPEOF: u8 = 3;
    pub(super) const DATA_TYPEOF: u8 = 4;
    pub(super) const COMMENT: u8 = 7;
}

/// The packet's field that carries the class from one lookup to the next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Scratch {
    /// `meta secmark`: touched by nothing but labelled networking.
    Secmark,
    /// `meta priority`, where the kernel has no CONFIG_NETWORK_SECMARK: the first packet of a flow from the node itself to a
    /// Service leaves with priority 0.
    Priority,
}

impl fmt::Display for Scratch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scratch::Secmark => "secmark",
            Scratch::Priority => "priority",
        })
    }
}

/// What the table of one family is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) family: Family,
    pub(super) scratch: Scratch,
}

impl Layout {
    /// NFPROTO_IPV4 or NFPROTO_IPV6.
    pub(super) fn protocol(&self) -> u8 {
        match self.family {
            Family::V4 => libc::NFPROTO_IPV4 as u8,
            Family::V6 => libc::NFPROTO_IPV6 as u8,
        }
    }

    /// The table's comment: version, scratch, and a number that changes with any rule or set.
    pub(super) fn comment(&self) -> String {
        let mut batch = Batch::begin(self.protocol(), 0);
        self.create(&mut batch, TABLE, "");
        self.pick_in(&mut batch, TABLE, 1);
        format!("layout {LAYOUT} scratch {} base {:016x}", self.scratch, batch.fingerprint())
    }

    /// The version in a table's comment.
    pub(super) fn version_in(comment: &str) -> Option<u32> {
        comment.strip_prefix("layout ")?.split(' ').next()?.parse().ok()
    }

    /// Makes the table anew, without elements.
    pub(super) fn replace(&self, batch: &mut Batch) {
        // Only what exists can be deleted; adding what exists changes nothing.
        batch.message(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, |out| text(out, nfta::TABLE_NAME, TABLE));
        batch.message(libc::NFT_MSG_DELTABLE, 0, |out| text(out, nfta::TABLE_NAME, TABLE));
        self.create(batch, TABLE, &self.comment());
    }

    /// A batch that shows, when it is sent without an end, whether the kernel has all that the table needs.
    pub(super) fn trial(&self, seq: u32) -> Batch {
        let mut batch = Batch::begin(self.protocol(), seq);
        self.create(&mut batch, TRIAL, "");
        self.pick_in(&mut batch, TRIAL, 1);
        batch
    }

    /// Makes the chain that picks among `count` backends, also if it is there already, complete or not.
    pub(super) fn pick(&self, batch: &mut Batch, count: u16) {
        self.pick_in(batch, TABLE, count);
    }

    /// Deletes the chain that picks among `count` backends.
    pub(super) fn drop_pick(&self, batch: &mut Batch, count: u16) {
        batch.message(libc::NFT_MSG_DELSETELEM, 0, |out| class_element(out, TABLE, count));
        batch.message(libc::NFT_MSG_DELCHAIN, 0, |out| {
            text(out, nfta::CHAIN_TABLE, TABLE);
            text(out, nfta::CHAIN_NAME, &pick_name(count));
        });
    }

    fn pick_in(&self, batch: &mut Batch, table: &str, count: u16) {
        rules::pick(self, batch, table, count);
        // Not exclusive: the same element again is no error.
        batch.message(libc::NFT_MSG_NEWSETELEM, libc::NLM_F_CREATE, |out| class_element(out, table, count));
    }

    fn create(&self, batch: &mut Batch, table: &str, comment: &str) {
        // By hand, because nftnl's table has no user data.
        batch.message(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, |out| {
            text(out, nfta::TABLE_NAME, table);
            let mut list = Vec::new();
            userdata(&mut list, 0, &with_nul(comment));
            attribute(out, nfta::TABLE_USERDATA, &list);
        });
        self.sets(batch, table);
        rules::base(self, batch, table);
    }

    /// Byte order, typeof and comment are for `nft list` alone. Without a size the kernel's hash tables grow as they fill.
    fn sets(&self, batch: &mut Batch, table: &str) {
        use datatype::{INTEGER, MARK, PORT, PROTOCOL};
        use typeof_expr::{concat, meta, numgen, payload};
        let (address, len, ip) = match self.family {
            Family::V4 => (datatype::IPV4, 4, payload(12, 12)),
            Family::V6 => (datatype::IPV6, 16, payload(13, 9)),
        };
        let port = payload(11, 2);
        let frontend = (types(&[address, PROTOCOL, PORT]), len + 8);
        let slot = (types(&[address, PROTOCOL, PORT, INTEGER]), len + 12);
        let backend = (types(&[address, PORT]), len + 4);
        // BYTEORDER_HOST_ENDIAN of nftables.
        let host = 1u32.to_ne_bytes().to_vec();

        let items = vec![(item::DATA_BYTE_ORDER, host.clone()), (item::COMMENT, with_nul("frontend : class by number of backends"))];
        set(batch, table, SERVICES, frontend, Some((MARK, 4)), &items);
        let items = vec![
            (item::KEY_TYPEOF, concat(&[ip.clone(), meta(16), port.clone(), numgen(65536)])),
            (item::DATA_TYPEOF, concat(&[ip, port])),
            (item::COMMENT, with_nul("frontend . slot : backend")),
        ];
        set(batch, table, SLOTS, slot, Some(backend), &items);
        let items = vec![(item::KEY_BYTE_ORDER, host), (item::COMMENT, with_nul("class : chain"))];
        set(batch, table, CLASSES, (MARK, 4), Some((nfta::VERDICT, 0)), &items);
        set(batch, table, REFUSED, frontend, None, &[(item::COMMENT, with_nul("frontends without backends"))]);
    }
}

/// Makes a set or map; type and length of key and data.
fn set(batch: &mut Batch, table: &str, name: &str, key: (u32, u32), data: Option<(u32, u32)>, items: &[(u8, Vec<u8>)]) {
    let id = batch.len();
    batch.message(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE | libc::NLM_F_EXCL, |out| {
        text(out, nfta::SET_TABLE, table);
        text(out, nfta::SET_NAME, name);
        number(out, nfta::SET_FLAGS, if data.is_some() { nfta::MAP } else { 0 });
        number(out, nfta::SET_KEY_TYPE, key.0);
        number(out, nfta::SET_KEY_LEN, key.1);
        if let Some((kind, len)) = data {
            number(out, nfta::SET_DATA_TYPE, kind);
            number(out, nfta::SET_DATA_LEN, len);
        }
        number(out, nfta::SET_ID, id);
        let mut list = Vec::new();
        items.iter().for_each(|(kind, value)| userdata(&mut list, *kind, value));
        attribute(out, nfta::SET_USERDATA, &list);
    });
}

fn types(parts: &[u32]) -> u32 {
    parts.iter().fold(0, |all, part| all << 6 | part)
}

/// Expressions as nft keeps them for `typeof` (`expr_build_udata` and the numbers of expressions and headers, in nftables'
/// include/expression.h and include/proto.h).
mod typeof_expr {
    use super::userdata;

    pub(super) fn payload(header: u32, field: u32) -> Vec<u8> {
        expr(7, &numbers(&[header, field]))
    }

    pub(super) fn meta(key: u32) -> Vec<u8> {
        expr(9, &numbers(&[key]))
    }

    /// `numgen random mod …`
    pub(super) fn numgen(modulus: u32) -> Vec<u8> {
        expr(23, &numbers(&[1, modulus, 0]))
    }

    pub(super) fn concat(parts: &[Vec<u8>]) -> Vec<u8> {
        let mut list = Vec::new();
        (0..).zip(parts).for_each(|(i, part)| userdata(&mut list, i, part));
        expr(13, &list)
    }

    fn expr(kind: u32, content: &[u8]) -> Vec<u8> {
        let mut list = numbers(&[kind]);
        userdata(&mut list, 1, content);
        list
    }

    fn numbers(values: &[u32]) -> Vec<u8> {
        let mut list = Vec::new();
        (0..).zip(values).for_each(|(i, value)| userdata(&mut list, i, &value.to_ne_bytes()));
        list
    }
}

/// The name of the chain that picks among so many backends.
pub(super) fn pick_name(count: u16) -> String {
    format!("pick-{count}")
}

/// The class of frontends with so many backends.
pub(super) fn class(count: u16) -> u32 {
    TAG | u32::from(count)
}

/// The inverse of [`class`].
pub(super) fn count_of(class: u32) -> Option<u16> {
    u16::try_from(class ^ TAG).ok().filter(|count| *count > 0)
}

fn class_element(out: &mut Vec<u8>, table: &str, count: u16) {
    text(out, nfta::LIST_TABLE, table);
    text(out, nfta::LIST_SET, CLASSES);
    nest(out, nfta::LIST_ELEMENTS, |out| {
        nest(out, nfta::LIST_ELEM, |out| {
            nest(out, nfta::ELEM_KEY, |out| attribute(out, nfta::DATA_VALUE, &class(count).to_ne_bytes()));
            nest(out, nfta::ELEM_DATA, |out| {
                nest(out, nfta::DATA_VERDICT, |out| {
                    number(out, nfta::VERDICT_CODE, nfta::GOTO as u32);
                    text(out, nfta::VERDICT_CHAIN, &pick_name(count));
                });
            });
        });
    });
}

fn with_nul(text: &str) -> Vec<u8> {
    text.bytes().chain([0]).collect()
}
