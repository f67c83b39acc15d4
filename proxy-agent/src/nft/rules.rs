//! The table's chains and rules, through nftnl. The expressions are those of `nft --debug=netlink`; registers are the 32-bit
//! ones, of which the parts of a concatenation take as many as they need.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};

use nftnl::nftnl_sys as ffi;
use nftnl::{Chain, ChainType, Hook, Policy, ProtoFamily, Rule, Table};
use proxy_core::model::Family;

use super::layout::{CLASSES, Layout, REFUSED, SERVICES, SLOTS, Scratch, pick_name};
use super::sys::{Expr, Writer};
use super::wire::{Batch, nfta, text};

const NAT_CHAINS: [(&CStr, Hook); 2] = [(c"nat-prerouting", Hook::PreRouting), (c"nat-output", Hook::Out)];
const FILTER_CHAINS: [(&CStr, Hook); 3] = [(c"filter-input", Hook::In), (c"filter-forward", Hook::Forward), (c"filter-output", Hook::Out)];
const REFUSE: &CStr = c"refuse";
/// NF_IP_PRI_NAT_DST (linux/netfilter_ipv4.h), `dstnat` for nft.
const DSTNAT: i32 = -100;
/// NF_IP_PRI_FILTER, `filter` for nft.
const FILTER: i32 = 0;
/// Rules in a chain that picks.
pub(super) const PICK_RULES: usize = 3;
/// The first 32-bit register.
const FIRST: u32 = libc::NFT_REG32_00 as u32;
const VERDICT: u32 = libc::NFT_REG_VERDICT as u32;

/// How many rules each chain but those that pick must have.
pub(super) fn expected() -> BTreeMap<&'static [u8], usize> {
    let nat = NAT_CHAINS.iter().map(|(name, _)| (name.to_bytes(), 2));
    let filter = FILTER_CHAINS.iter().map(|(name, _)| (name.to_bytes(), 1));
    nat.chain(filter).chain([(REFUSE.to_bytes(), 2)]).collect()
}

/// Writes the base chains and what they go to, but for the chains that pick.
pub(super) fn base(layout: &Layout, batch: &mut Batch, table: &str) {
    let (mut out, table) = (Output::new(batch), named(layout, table));
    for (name, hook) in NAT_CHAINS {
        let chain = base_chain(&table, name, (ChainType::Nat, DSTNAT), hook);
        out.chain(&chain);
        out.rule(&chain, Some(c"to the chain for this number of backends"), &dispatch(layout));
        // An element changes by being deleted and added in one batch. A lookup that runs into the change can miss both on
        // kernels before "netfilter: nf_tables: restart set lookup on base_seq change" (September 2025).
        out.rule(&chain, Some(c"again: a lookup may miss an element that changes"), &dispatch(layout));
    }
    let refuse = Chain::new(REFUSE, &table);
    out.chain(&refuse);
    // TCP is reset because the kernel limits the rate of ICMP errors.
    out.rule(
        &refuse,
        None,
        &[meta(libc::NFT_META_L4PROTO, FIRST), is(FIRST, libc::IPPROTO_TCP as u8), reject(libc::NFT_REJECT_TCP_RST, 0)],
    );
    // ICMP_PORT_UNREACH (linux/icmp.h), ICMPV6_PORT_UNREACH (linux/icmpv6.h).
    let port_unreachable = if layout.family == Family::V4 { 3 } else { 4 };
    out.rule(&refuse, None, &[reject(libc::NFT_REJECT_ICMP_UNREACH, port_unreachable)]);
    for (name, hook) in FILTER_CHAINS {
        let chain = base_chain(&table, name, (ChainType::Filter, FILTER), hook);
        out.chain(&chain);
        let mut exprs = is_new();
        exprs.extend(frontend(layout));
        exprs.extend([lookup(REFUSED, None), verdict(nfta::GOTO, Some(REFUSE))]);
        out.rule(&chain, None, &exprs);
    }
}

/// Writes the chain that picks among `count` backends, also if it is there already.
pub(super) fn pick(layout: &Layout, batch: &mut Batch, table: &str, count: u16) {
    let name = pick_name(count);
    let of_table = named(layout, table);
    let chain = Chain::new(text_of(&name), &of_table);
    let mut out = Output::new(batch);
    out.chain(&chain);
    out.batch.message(libc::NFT_MSG_DELRULE, 0, |out| {
        text(out, nfta::RULE_TABLE, table);
        text(out, nfta::RULE_CHAIN, &name);
    });
    let mut first = vec![immediate_zero(), meta_set(scratch(layout), FIRST)];
    first.extend(dnat(layout, count));
    out.rule(&chain, None, &first);
    out.rule(&chain, Some(c"again: a lookup may miss an element that changes"), &dnat(layout, count));
    // What is no longer in `services` returns: the rule ends at its lookup. (Older kernels refuse a lookup in a map without use
    // for the result, hence the scratch once more.)
    let mut lost = frontend(layout);
    lost.extend([lookup(SERVICES, Some(FIRST)), meta_set(scratch(layout), FIRST), Expr::new(c"counter"), verdict(libc::NF_DROP, None)]);
    out.rule(&chain, Some(c"no backend in the slot"), &lost);
}

/// `meta secmark set ip daddr . meta l4proto . th dport map @services meta secmark vmap @classes`
fn dispatch(layout: &Layout) -> Vec<Expr> {
    let mut exprs = frontend(layout);
    exprs.extend([lookup(SERVICES, Some(FIRST)), meta_set(scratch(layout), FIRST)]);
    exprs.extend([meta(scratch(layout), FIRST), lookup(CLASSES, Some(VERDICT))]);
    exprs
}

/// `dnat to ip daddr . meta l4proto . th dport . numgen random mod <count> map @slots`
fn dnat(layout: &Layout, count: u16) -> Vec<Expr> {
    let mut exprs = frontend(layout);
    let slot = Expr::new(c"numgen")
        .number(ffi::NFTNL_EXPR_NG_DREG, after_address(layout) + 2)
        .number(ffi::NFTNL_EXPR_NG_TYPE, libc::NFT_NG_RANDOM as u32)
        .number(ffi::NFTNL_EXPR_NG_MODULUS, count.into())
        .number(ffi::NFTNL_EXPR_NG_OFFSET, 0);
    let nat = Expr::new(c"nat")
        .number(ffi::NFTNL_EXPR_NAT_TYPE, libc::NFT_NAT_DNAT as u32)
        .number(ffi::NFTNL_EXPR_NAT_FAMILY, layout.protocol().into())
        .number(ffi::NFTNL_EXPR_NAT_REG_ADDR_MIN, FIRST)
        .number(ffi::NFTNL_EXPR_NAT_REG_PROTO_MIN, after_address(layout));
    exprs.extend([slot, lookup(SLOTS, Some(FIRST)), nat]);
    exprs
}

/// `ip daddr . meta l4proto . th dport` in the registers from the first. Breaks off for fragments without ports.
fn frontend(layout: &Layout) -> Vec<Expr> {
    let (offset, len) = if layout.family == Family::V4 { (16, 4) } else { (24, 16) };
    let protocol = after_address(layout);
    vec![
        payload(libc::NFT_PAYLOAD_NETWORK_HEADER, offset, len, FIRST),
        meta(libc::NFT_META_L4PROTO, protocol),
        payload(libc::NFT_PAYLOAD_TRANSPORT_HEADER, 2, 2, protocol + 1),
    ]
}

/// The register that follows an address in the first.
fn after_address(layout: &Layout) -> u32 {
    if layout.family == Family::V4 { FIRST + 1 } else { FIRST + 4 }
}

fn scratch(layout: &Layout) -> libc::c_int {
    match layout.scratch {
        Scratch::Secmark => libc::NFT_META_SECMARK,
        Scratch::Priority => libc::NFT_META_PRIORITY,
    }
}

/// `ct state new`: NF_CT_STATE_BIT(IP_CT_NEW) of linux/netfilter/nf_conntrack_common.h.
fn is_new() -> Vec<Expr> {
    let new = 1u32 << 3;
    vec![
        Expr::new(c"ct").number(ffi::NFTNL_EXPR_CT_KEY, libc::NFT_CT_STATE as u32).number(ffi::NFTNL_EXPR_CT_DREG, FIRST),
        Expr::new(c"bitwise")
            .number(ffi::NFTNL_EXPR_BITWISE_SREG, FIRST)
            .number(ffi::NFTNL_EXPR_BITWISE_DREG, FIRST)
            .number(ffi::NFTNL_EXPR_BITWISE_LEN, 4)
            .bytes(ffi::NFTNL_EXPR_BITWISE_MASK, &new.to_ne_bytes())
            .bytes(ffi::NFTNL_EXPR_BITWISE_XOR, &[0; 4]),
        cmp(FIRST, libc::NFT_CMP_NEQ, &[0; 4]),
    ]
}

fn is(register: u32, byte: u8) -> Expr {
    cmp(register, libc::NFT_CMP_EQ, &[byte])
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

fn meta(key: libc::c_int, register: u32) -> Expr {
    Expr::new(c"meta").number(ffi::NFTNL_EXPR_META_KEY, key as u32).number(ffi::NFTNL_EXPR_META_DREG, register)
}

fn meta_set(key: libc::c_int, register: u32) -> Expr {
    Expr::new(c"meta").number(ffi::NFTNL_EXPR_META_KEY, key as u32).number(ffi::NFTNL_EXPR_META_SREG, register)
}

/// A lookup of what the registers from the first hold; ends the rule if there is no such element.
fn lookup(set: &str, result: Option<u32>) -> Expr {
    let lookup = Expr::new(c"lookup").number(ffi::NFTNL_EXPR_LOOKUP_SREG, FIRST).text(ffi::NFTNL_EXPR_LOOKUP_SET, &text_of(set));
    match result {
        Some(register) => lookup.number(ffi::NFTNL_EXPR_LOOKUP_DREG, register),
        None => lookup,
    }
}

fn immediate_zero() -> Expr {
    Expr::new(c"immediate").number(ffi::NFTNL_EXPR_IMM_DREG, FIRST).bytes(ffi::NFTNL_EXPR_IMM_DATA, &[0; 4])
}

fn verdict(code: i32, chain: Option<&CStr>) -> Expr {
    let verdict = Expr::new(c"immediate").number(ffi::NFTNL_EXPR_IMM_DREG, VERDICT).number(ffi::NFTNL_EXPR_IMM_VERDICT, code as u32);
    match chain {
        Some(chain) => verdict.text(ffi::NFTNL_EXPR_IMM_CHAIN, chain),
        None => verdict,
    }
}

fn reject(kind: libc::c_int, code: u8) -> Expr {
    Expr::new(c"reject").number(ffi::NFTNL_EXPR_REJECT_TYPE, kind as u32).byte(ffi::NFTNL_EXPR_REJECT_CODE, code)
}

fn named(layout: &Layout, table: &str) -> Table {
    let family = if layout.family == Family::V4 { ProtoFamily::Ipv4 } else { ProtoFamily::Ipv6 };
    Table::new(text_of(table), family)
}

fn base_chain<'a>(table: &'a Table, name: &CStr, (kind, priority): (ChainType, i32), hook: Hook) -> Chain<'a> {
    let mut chain = Chain::new(name, table);
    chain.set_type(kind);
    chain.set_hook(hook, priority);
    chain.set_policy(Policy::Accept);
    chain
}

/// Our own names; none has a NUL in it.
fn text_of(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}

/// Where nftnl's objects are written to.
struct Output<'a> {
    batch: &'a mut Batch,
    writer: Writer,
}

impl<'a> Output<'a> {
    fn new(batch: &'a mut Batch) -> Self {
        Self { batch, writer: Writer::new() }
    }

    fn chain(&mut self, chain: &Chain<'_>) {
        let seq = self.batch.next();
        self.batch.foreign(self.writer.add(chain, seq));
    }

    fn rule(&mut self, chain: &Chain<'_>, comment: Option<&CStr>, exprs: &[Expr]) {
        let mut rule = Rule::new(chain);
        exprs.iter().for_each(|expr| rule.add_expr(expr));
        if let Some(comment) = comment
            && let Err(reason) = rule.set_comment(comment)
        {
            // Only a comment.
            tracing::debug!(?comment, reason, "rule without its comment");
        }
        let seq = self.batch.next();
        self.batch.foreign(self.writer.add(&rule, seq));
    }
}
