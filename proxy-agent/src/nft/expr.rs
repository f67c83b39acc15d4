//! The expressions that rules are made of. They are those of `nft --debug=netlink`; registers are the 32-bit ones, of which the
//! parts of a concatenation take as many as they need.

use std::ffi::CString;
use std::fmt;

use nftnl::nftnl_sys as ffi;
use proxy_core::model::Family;

use super::sys::Expr;
use super::wire::nfta;

/// The first 32-bit register.
const FIRST: u32 = libc::NFT_REG32_00 as u32;
/// A register that no key or data in the first ones reaches to.
const ASIDE: u32 = libc::NFT_REG32_15 as u32;
const VERDICT: u32 = libc::NFT_REG_VERDICT as u32;
/// IP_CT_* as bits (NF_CT_STATE_BIT of linux/netfilter/nf_conntrack_common.h).
const INVALID: u32 = 1;
const ESTABLISHED: u32 = 1 << 1;
const RELATED: u32 = 1 << 2;
const NEW: u32 = 1 << 3;
/// IPS_DST_NAT (linux/netfilter/nf_conntrack_common.h)
const DST_NAT: u32 = 1 << 5;
/// NF_NAT_RANGE_PROTO_RANDOM_FULLY (linux/netfilter/nf_nat.h)
const FULLY_RANDOM: u32 = 1 << 4;
/// NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_SADDR and NFTA_FIB_F_DADDR (linux/netfilter/nf_tables.h), RTN_LOCAL (linux/rtnetlink.h)
const ADDRESS_TYPE: u32 = 3;
/// The interface that loopback addresses are on.
const LOOPBACK: &str = "lo";
const LOCAL: u32 = 2;

/// The end of a packet that is looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

/// A field of a packet that the rules use from one lookup to the next. A map's result cannot be a key in the same statement
/// (`nft list` aborts).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Field {
    /// `meta secmark`: touched by nothing but labelled networking. Not every kernel has it (CONFIG_NETWORK_SECMARK).
    Secmark,
    /// `meta priority`: the first packet of a flow from the node itself leaves with priority 0 where rules use it.
    Priority,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Field::Secmark => "secmark",
            Field::Priority => "priority",
        })
    }
}

impl Field {
    fn key(self) -> u32 {
        (match self {
            Field::Secmark => libc::NFT_META_SECMARK,
            Field::Priority => libc::NFT_META_PRIORITY,
        }) as u32
    }

    /// Sets it to what the first register holds.
    pub(super) fn set(self) -> Vec<Expr> {
        vec![set_meta(self.key(), FIRST)]
    }

    /// Sets it to 0.
    pub(super) fn clear(self) -> Vec<Expr> {
        self.set_to(0)
    }

    /// Sets it to a number. Touches no register of a key or of data.
    pub(super) fn set_to(self, number: u32) -> Vec<Expr> {
        vec![immediate(ASIDE, &number.to_ne_bytes()), set_meta(self.key(), ASIDE)]
    }

    /// To the chain that it is the class of; goes on if there is none.
    pub(super) fn vmap(self, classes: &str) -> Vec<Expr> {
        vec![meta(self.key(), FIRST), lookup(classes, FIRST).number(ffi::NFTNL_EXPR_LOOKUP_DREG, VERDICT)]
    }
}

/// A key as it is loaded, part by part, into registers from the first.
pub(super) struct Key {
    family: Family,
    exprs: Vec<Expr>,
    next: u32,
}

impl Key {
    pub(super) fn new(family: Family) -> Self {
        Self { family, exprs: Vec::new(), next: FIRST }
    }

    fn part(mut self, registers: u32, expr: impl FnOnce(u32) -> Expr) -> Self {
        self.exprs.push(expr(self.next));
        self.next += registers;
        self
    }

    /// `ip daddr`
    pub(super) fn ip(self, side: Side) -> Self {
        let (offset, len) = match (self.family, side) {
            (Family::V4, Side::Source) => (12, 4),
            (Family::V4, Side::Destination) => (16, 4),
            (Family::V6, Side::Source) => (8, 16),
            (Family::V6, Side::Destination) => (24, 16),
        };
        self.part(len / 4, |register| payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, len, register))
    }

    /// `meta l4proto . th dport`. Breaks off for fragments without ports.
    pub(super) fn port(self, side: Side) -> Self {
        let offset = if side == Side::Source { 0 } else { 2 };
        self.part(1, |register| meta(libc::NFT_META_L4PROTO as u32, register))
            .part(1, |register| payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, offset, 2, register))
    }

    /// What a packet is addressed to: a frontend with its address, or a NodePort.
    pub(super) fn destination(self, is_node_port: bool) -> Self {
        if is_node_port { self.port(Side::Destination) } else { self.ip(Side::Destination).port(Side::Destination) }
    }

    pub(super) fn field(self, field: Field) -> Self {
        self.part(1, |register| meta(field.key(), register))
    }

    /// Goes on if a set has it; what a map has for it is in the registers from the first then.
    pub(super) fn find(mut self, map: &str) -> Vec<Expr> {
        self.exprs.push(lookup(map, FIRST).number(ffi::NFTNL_EXPR_LOOKUP_DREG, FIRST));
        self.exprs
    }

    /// Goes on if a set has it.
    pub(super) fn inside(mut self, set: &str) -> Vec<Expr> {
        self.exprs.push(lookup(set, FIRST));
        self.exprs
    }

    /// Goes on if a set does not have it.
    pub(super) fn outside(mut self, set: &str) -> Vec<Expr> {
        self.exprs.push(lookup(set, FIRST).number(ffi::NFTNL_EXPR_LOOKUP_FLAGS, libc::NFT_LOOKUP_F_INV as u32));
        self.exprs
    }

    /// Counts in a dynamic set, whose element comes with the first packet. Ends the rule if there is no room for it, or no memory.
    pub(super) fn count(mut self, set: &str) -> Vec<Expr> {
        let dynset = Expr::new(c"dynset")
            .number(ffi::NFTNL_EXPR_DYNSET_SREG_KEY, FIRST)
            .number(ffi::NFTNL_EXPR_DYNSET_OP, libc::NFT_DYNSET_OP_ADD as u32)
            .text(ffi::NFTNL_EXPR_DYNSET_SET_NAME, &text_of(set));
        self.exprs.push(dynset.nested(ffi::NFTNL_EXPR_DYNSET_EXPR, Expr::new(c"counter")));
        self.exprs
    }

    /// Writes it into a dynamic map with the value of a field, or deletes it.
    pub(super) fn dynset(mut self, operation: Operation, map: &str, value: Field) -> Vec<Expr> {
        self.exprs.push(meta(value.key(), self.next));
        let dynset = Expr::new(c"dynset")
            .number(ffi::NFTNL_EXPR_DYNSET_SREG_KEY, FIRST)
            .number(ffi::NFTNL_EXPR_DYNSET_SREG_DATA, self.next)
            .text(ffi::NFTNL_EXPR_DYNSET_SET_NAME, &text_of(map));
        self.exprs.push(match operation {
            Operation::Delete => dynset.number(ffi::NFTNL_EXPR_DYNSET_OP, libc::NFT_DYNSET_OP_UPDATE as u32 + 1),
            Operation::Update { seconds } => dynset
                .number(ffi::NFTNL_EXPR_DYNSET_OP, libc::NFT_DYNSET_OP_UPDATE as u32)
                .bytes(ffi::NFTNL_EXPR_DYNSET_TIMEOUT, &(u64::from(seconds) * 1000).to_ne_bytes()),
        });
        self.exprs
    }
}

/// What a rule does to a dynamic map.
#[derive(Clone, Copy)]
pub(super) enum Operation {
    /// Adds the element, or begins its time anew; leaves its value.
    Update { seconds: u32 },
    /// Deletes the element, if it is there. (NFT_DYNSET_OP_DELETE, which libc lacks.)
    Delete,
}

/// `numgen random mod <count> offset <offset>` in the first register.
pub(super) fn random(count: u32, offset: u32) -> Vec<Expr> {
    vec![
        Expr::new(c"numgen")
            .number(ffi::NFTNL_EXPR_NG_DREG, FIRST)
            .number(ffi::NFTNL_EXPR_NG_TYPE, libc::NFT_NG_RANDOM as u32)
            .number(ffi::NFTNL_EXPR_NG_MODULUS, count)
            .number(ffi::NFTNL_EXPR_NG_OFFSET, offset),
    ]
}

/// `dnat to` the address and port in the registers from the first.
pub(super) fn dnat(family: Family) -> Vec<Expr> {
    let (protocol, registers) = match family {
        Family::V4 => (libc::NFPROTO_IPV4, 1),
        Family::V6 => (libc::NFPROTO_IPV6, 4),
    };
    vec![
        Expr::new(c"nat")
            .number(ffi::NFTNL_EXPR_NAT_TYPE, libc::NFT_NAT_DNAT as u32)
            .number(ffi::NFTNL_EXPR_NAT_FAMILY, protocol as u32)
            .number(ffi::NFTNL_EXPR_NAT_REG_ADDR_MIN, FIRST)
            .number(ffi::NFTNL_EXPR_NAT_REG_PROTO_MIN, FIRST + registers),
    ]
}

/// `masquerade fully-random`
pub(super) fn masquerade() -> Vec<Expr> {
    vec![Expr::new(c"masq").number(ffi::NFTNL_EXPR_MASQ_FLAGS, FULLY_RANDOM)]
}

/// Sets bits of the packet's mark, and leaves the others.
pub(super) fn set_mark(bits: u32) -> Vec<Expr> {
    change_mark(!bits, bits)
}

/// Turns bits of the packet's mark over.
pub(super) fn flip_mark(bits: u32) -> Vec<Expr> {
    change_mark(u32::MAX, bits)
}

fn change_mark(mask: u32, xor: u32) -> Vec<Expr> {
    let mark = libc::NFT_META_MARK as u32;
    vec![meta(mark, FIRST), bitwise(mask, xor), set_meta(mark, FIRST)]
}

/// Goes on if all these bits of the packet's mark are set.
pub(super) fn is_marked(bits: u32) -> Vec<Expr> {
    vec![meta(libc::NFT_META_MARK as u32, FIRST), bitwise(bits, 0), cmp(FIRST, libc::NFT_CMP_EQ, &bits.to_ne_bytes())]
}

/// `ct state new`
pub(super) fn is_new() -> Vec<Expr> {
    ct_has(libc::NFT_CT_STATE, NEW)
}

/// `ct state established,related`
pub(super) fn is_known() -> Vec<Expr> {
    ct_has(libc::NFT_CT_STATE, ESTABLISHED | RELATED)
}

/// `ct state invalid`
pub(super) fn is_invalid() -> Vec<Expr> {
    ct_has(libc::NFT_CT_STATE, INVALID)
}

/// `ct status dnat`
pub(super) fn is_translated() -> Vec<Expr> {
    ct_has(libc::NFT_CT_STATUS, DST_NAT)
}

/// The opposite of [`is_translated`].
pub(super) fn is_not_translated() -> Vec<Expr> {
    ct(libc::NFT_CT_STATUS, DST_NAT, libc::NFT_CMP_EQ)
}

fn ct_has(key: libc::c_int, bits: u32) -> Vec<Expr> {
    ct(key, bits, libc::NFT_CMP_NEQ)
}

/// Compares bits of the connection's state with 0.
fn ct(key: libc::c_int, bits: u32, operator: libc::c_int) -> Vec<Expr> {
    let load = Expr::new(c"ct").number(ffi::NFTNL_EXPR_CT_KEY, key as u32).number(ffi::NFTNL_EXPR_CT_DREG, FIRST);
    vec![load, bitwise(bits, 0), cmp(FIRST, operator, &[0; 4])]
}

/// `fib saddr type local`: it is one of the host's addresses.
pub(super) fn is_own(side: Side) -> Vec<Expr> {
    let flag = if side == Side::Source { 1 } else { 2 };
    let fib = Expr::new(c"fib")
        .number(ffi::NFTNL_EXPR_FIB_DREG, FIRST)
        .number(ffi::NFTNL_EXPR_FIB_RESULT, ADDRESS_TYPE)
        .number(ffi::NFTNL_EXPR_FIB_FLAGS, flag);
    vec![fib, cmp(FIRST, libc::NFT_CMP_EQ, &LOCAL.to_ne_bytes())]
}

/// `ip daddr != 127.0.0.0/8`, `ip6 daddr != ::1`
pub(super) fn is_not_to_loopback(family: Family) -> Vec<Expr> {
    match family {
        Family::V4 => vec![payload(libc::NFT_PAYLOAD_NETWORK_HEADER, 16, 1, FIRST), cmp(FIRST, libc::NFT_CMP_NEQ, &[127])],
        Family::V6 => {
            let mut key = Key::new(family).ip(Side::Destination).exprs;
            key.push(cmp(FIRST, libc::NFT_CMP_NEQ, &std::net::Ipv6Addr::LOCALHOST.octets()));
            key
        }
    }
}

/// `ip saddr 127.0.0.0/8`
pub(super) fn is_loopback(side: Side) -> Vec<Expr> {
    let offset = if side == Side::Source { 12 } else { 16 };
    vec![payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, 1, FIRST), cmp(FIRST, libc::NFT_CMP_EQ, &[127])]
}

/// `iifname != "lo"`
pub(super) fn came_from_elsewhere() -> Vec<Expr> {
    vec![meta(libc::NFT_META_IIFNAME as u32, FIRST), cmp(FIRST, libc::NFT_CMP_NEQ, &interface(LOOPBACK))]
}

/// `meta l4proto tcp`
pub(super) fn is_tcp() -> Vec<Expr> {
    vec![meta(libc::NFT_META_L4PROTO as u32, FIRST), cmp(FIRST, libc::NFT_CMP_EQ, &[libc::IPPROTO_TCP as u8])]
}

/// `iifname <name>`, or one that begins like this.
pub(super) fn came_by(name: &str, is_prefix: bool) -> Vec<Expr> {
    let bytes = if is_prefix { name.as_bytes().to_vec() } else { interface(name) };
    vec![meta(libc::NFT_META_IIFNAME as u32, FIRST), cmp(FIRST, libc::NFT_CMP_EQ, &bytes)]
}

/// A whole name.
fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(libc::IFNAMSIZ.max(bytes.len()), 0);
    bytes
}

/// `reject with tcp reset`
pub(super) fn reset() -> Vec<Expr> {
    reject(libc::NFT_REJECT_TCP_RST, 0)
}

/// `reject`: port unreachable. ICMP_PORT_UNREACH (linux/icmp.h), ICMPV6_PORT_UNREACH (linux/icmpv6.h).
pub(super) fn unreachable(family: Family) -> Vec<Expr> {
    reject(libc::NFT_REJECT_ICMP_UNREACH, if family == Family::V4 { 3 } else { 4 })
}

fn reject(kind: libc::c_int, code: u8) -> Vec<Expr> {
    vec![Expr::new(c"reject").number(ffi::NFTNL_EXPR_REJECT_TYPE, kind as u32).byte(ffi::NFTNL_EXPR_REJECT_CODE, code)]
}

/// `counter drop`
pub(super) fn drop_counted() -> Vec<Expr> {
    vec![Expr::new(c"counter"), verdict(libc::NF_DROP)]
}

/// `accept`: leaves this chain to others.
pub(super) fn accept() -> Vec<Expr> {
    vec![verdict(libc::NF_ACCEPT)]
}

/// `return`
pub(super) fn back() -> Vec<Expr> {
    vec![verdict(libc::NFT_RETURN)]
}

pub(super) fn goto(chain: &str) -> Vec<Expr> {
    vec![verdict(nfta::GOTO).text(ffi::NFTNL_EXPR_IMM_CHAIN, &text_of(chain))]
}

pub(super) fn jump(chain: &str) -> Vec<Expr> {
    vec![verdict(nfta::JUMP).text(ffi::NFTNL_EXPR_IMM_CHAIN, &text_of(chain))]
}

fn verdict(code: i32) -> Expr {
    Expr::new(c"immediate").number(ffi::NFTNL_EXPR_IMM_DREG, VERDICT).number(ffi::NFTNL_EXPR_IMM_VERDICT, code as u32)
}

fn immediate(register: u32, value: &[u8]) -> Expr {
    Expr::new(c"immediate").number(ffi::NFTNL_EXPR_IMM_DREG, register).bytes(ffi::NFTNL_EXPR_IMM_DATA, value)
}

/// Masks and turns over the first register.
fn bitwise(mask: u32, xor: u32) -> Expr {
    Expr::new(c"bitwise")
        .number(ffi::NFTNL_EXPR_BITWISE_SREG, FIRST)
        .number(ffi::NFTNL_EXPR_BITWISE_DREG, FIRST)
        .number(ffi::NFTNL_EXPR_BITWISE_LEN, 4)
        .bytes(ffi::NFTNL_EXPR_BITWISE_MASK, &mask.to_ne_bytes())
        .bytes(ffi::NFTNL_EXPR_BITWISE_XOR, &xor.to_ne_bytes())
}

fn cmp(register: u32, operator: libc::c_int, value: &[u8]) -> Expr {
    Expr::new(c"cmp")
        .number(ffi::NFTNL_EXPR_CMP_SREG, register)
        .number(ffi::NFTNL_EXPR_CMP_OP, operator as u32)
        .bytes(ffi::NFTNL_EXPR_CMP_DATA, value)
}

fn payload(base: libc::c_int, offset: u32, len: u32, register: u32) -> Expr {
    Expr::new(c"payload")
        .number(ffi::NFTNL_EXPR_PAYLOAD_BASE, base as u32)
        .number(ffi::NFTNL_EXPR_PAYLOAD_OFFSET, offset)
        .number(ffi::NFTNL_EXPR_PAYLOAD_LEN, len)
        .number(ffi::NFTNL_EXPR_PAYLOAD_DREG, register)
}

fn meta(key: u32, register: u32) -> Expr {
    Expr::new(c"meta").number(ffi::NFTNL_EXPR_META_KEY, key).number(ffi::NFTNL_EXPR_META_DREG, register)
}

fn set_meta(key: u32, register: u32) -> Expr {
    Expr::new(c"meta").number(ffi::NFTNL_EXPR_META_KEY, key).number(ffi::NFTNL_EXPR_META_SREG, register)
}

/// A lookup of what the registers hold; ends the rule if there is no such element.
fn lookup(set: &str, register: u32) -> Expr {
    Expr::new(c"lookup").number(ffi::NFTNL_EXPR_LOOKUP_SREG, register).text(ffi::NFTNL_EXPR_LOOKUP_SET, &text_of(set))
}

/// Our own names; none has a NUL in it.
pub(super) fn text_of(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}
