//! Rules as they are compared: what we write and what the kernel says there is come to the same, which is what packets meet.
//! The kernel numbers registers in another way, adds what goes without saying, and counts.

use super::wire::{Attributes, Batch, Message, message_type, messages, nfta};

/// The attributes of an expression that need a closer look (`NFTA_*` of linux/netfilter/nf_tables.h).
struct Kind {
    name: &'static str,
    /// Registers, which have two numbers each.
    registers: &'static [u16],
    /// Data or verdicts.
    data: &'static [u16],
    /// Differ without any difference to a packet: counts, the numbers of sets, what follows from another attribute.
    ignored: &'static [u16],
}

const fn kind(name: &'static str, registers: &'static [u16], data: &'static [u16], ignored: &'static [u16]) -> Kind {
    Kind { name, registers, data, ignored }
}

const KINDS: [Kind; 12] = [
    kind("bitwise", &[1, 2], &[4, 5, 7], &[]),
    kind("cmp", &[1], &[3], &[]),
    kind("counter", &[], &[], &[1, 2]),
    kind("ct", &[1, 4], &[], &[]),
    kind("dynset", &[4, 5], &[], &[2]),
    kind("fib", &[1], &[], &[]),
    kind("immediate", &[1], &[2], &[]),
    kind("lookup", &[2, 3], &[], &[4]),
    kind("meta", &[1, 3], &[], &[]),
    kind("nat", &[3, 4, 5, 6], &[], &[]),
    kind("numgen", &[1], &[], &[]),
    kind("payload", &[1, 5], &[], &[]),
];
/// NFTA_NAT_REG_ADDR_MIN, its MAX, the same of ports, and NFTA_NAT_FLAGS
const NAT: [u16; 5] = [3, 4, 5, 6, 7];
/// NF_NAT_RANGE_MAP_IPS and NF_NAT_RANGE_PROTO_SPECIFIED (linux/netfilter/nf_nat.h): follow from the registers.
const NAT_RANGES: u8 = 3;

/// The expressions of a rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Rule(Vec<Expression>);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Expression {
    name: String,
    /// By type, without those that are 0.
    attributes: Vec<(u16, Vec<u8>)>,
}

/// The rules in a batch.
pub(super) fn written(batch: Batch) -> Vec<Rule> {
    let bytes = batch.unended();
    messages(&bytes).filter(|message| message.kind == message_type(libc::NFT_MSG_NEWRULE)).map(|message| read(&message)).collect()
}

/// The rule in a message.
pub(super) fn read(message: &Message<'_>) -> Rule {
    let expressions = message.attributes().nest(nfta::RULE_EXPRESSIONS);
    Rule(expressions.map(|(_, expression)| Expression::read(Attributes(expression))).collect())
}

impl Expression {
    fn read(expression: Attributes<'_>) -> Self {
        let name = expression.text(nfta::EXPR_NAME).unwrap_or_default().to_owned();
        let kind = KINDS.iter().find(|kind| kind.name == name);
        let has = |list: fn(&Kind) -> &[u16], attribute: u16| kind.is_some_and(|kind| list(kind).contains(&attribute));
        let mut attributes: Vec<(u16, Vec<u8>)> = expression
            .nest(nfta::EXPR_DATA)
            .filter(|(attribute, _)| !has(|kind| kind.ignored, *attribute))
            .map(|(attribute, value)| match () {
                // What it does to an element.
                () if name == "dynset" && attribute == nfta::DYNSET_EXPR => {
                    (attribute, Attributes(value).get(nfta::EXPR_NAME).map(trimmed).unwrap_or_default())
                }
                () if has(|kind| kind.registers, attribute) => (attribute, vec![register(value)]),
                () if has(|kind| kind.data, attribute) => (attribute, data(Attributes(value))),
                () => (attribute, trimmed(value)),
            })
            .filter(|(_, value)| !value.is_empty())
            .collect();
        attributes.sort();
        if name == "nat" {
            attributes = nat(attributes);
        }
        Self { name, attributes }
    }
}

/// The 32-bit register that a number stands for: 128-bit ones have numbers of their own (nft_parse_register).
fn register(value: &[u8]) -> u8 {
    let number = value.first_chunk().map_or(u32::MAX, |number| u32::from_be_bytes(*number));
    let first = libc::NFT_REG32_00 as u32;
    let register = if number < first { number.saturating_mul(4) } else { number - first + 4 };
    u8::try_from(register).unwrap_or(u8::MAX)
}

/// A value as it is, or code and chain of a verdict.
fn data(data: Attributes<'_>) -> Vec<u8> {
    let verdict = data.nest(nfta::DATA_VERDICT);
    let parts = [data.get(nfta::DATA_VALUE), verdict.get(nfta::VERDICT_CODE), verdict.get(nfta::VERDICT_CHAIN)];
    parts.into_iter().flatten().flatten().copied().collect()
}

/// Without zeros at the end: numbers have their high bytes first and always the same length, texts may or may not end with one.
fn trimmed(value: &[u8]) -> Vec<u8> {
    let len = value.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    value[..len].to_vec()
}

/// Without what the kernel adds: the ends of ranges of one, and flags that say that there are ranges.
fn nat(attributes: Vec<(u16, Vec<u8>)>) -> Vec<(u16, Vec<u8>)> {
    let [ip, ip_end, port, port_end, flags] = NAT;
    let of = |wanted| attributes.iter().find(|(attribute, _)| *attribute == wanted).map(|(_, value)| value.clone());
    let (ip_min, port_min) = (of(ip), of(port));
    let mut rest = attributes;
    for (attribute, value) in &mut rest {
        let is_same = |min: &Option<Vec<u8>>| min.as_ref() == Some(&*value);
        if *attribute == ip_end && is_same(&ip_min) || *attribute == port_end && is_same(&port_min) {
            value.clear();
        } else if *attribute == flags && value.len() == size_of::<u32>() {
            value[3] &= !NAT_RANGES;
            *value = trimmed(value);
        }
    }
    rest.retain(|(_, value)| !value.is_empty());
    rest
}

#[cfg(test)]
mod tests {
    use super::super::wire::HEADER;
    use super::*;

    #[test]
    fn both_numbers_of_a_register_are_one() {
        let of = |number: u32| register(&number.to_be_bytes());
        assert_eq!([0, 1, 2, 4].map(of), [0, 4, 8, 16]);
        assert_eq!([8, 9, 12, 23].map(of), [4, 5, 8, 19]);
    }

    #[test]
    fn a_message_that_is_cut_short_is_a_rule_without_expressions() {
        let message = Message { kind: 0, flags: 0, seq: 0, port: 0, body: &[0; HEADER] };
        assert_eq!(read(&message), Rule(Vec::new()));
    }
}
