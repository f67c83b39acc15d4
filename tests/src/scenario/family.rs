//! From IPv4 to IPv6: a scenario is written once and carried out in either family.
//!
//! `a.b.c.d` becomes `fd00:a:b::c:d`, its decimal digits kept as they are (10.96.0.10 is `fd00:10:96::0:10`, as in the
//! [lab](crate::lab::address)), with brackets where a port follows; `IPv4` becomes `IPv6`. Nothing else changes, so that lines
//! keep their numbers.

/// The IPv6 form of a scenario's text.
pub fn to_v6(text: &str) -> String {
    let mut mapped = String::with_capacity(text.len() * 2);
    let mut rest = text;
    // Whether an address or word may begin here.
    let mut fresh = true;
    while let Some(c) = rest.chars().next() {
        if fresh && let Some((octets, after)) = quad(rest) {
            let [a, b, c, d] = octets;
            let port = after.strip_prefix(':').is_some_and(|after| after.starts_with(|c: char| c.is_ascii_digit()));
            let (open, close) = if port { ("[", "]") } else { ("", "") };
            mapped += &format!("{open}fd00:{a}:{b}::{c}:{d}{close}");
            rest = after;
            fresh = false;
        } else if fresh && let Some(after) = rest.strip_prefix("IPv4").filter(|after| !after.starts_with(is_word)) {
            mapped += "IPv6";
            rest = after;
            fresh = false;
        } else {
            mapped.push(c);
            rest = &rest[c.len_utf8()..];
            fresh = !is_word(c);
        }
    }
    mapped
}

/// Four groups of digits with dots between, and what follows.
fn quad(text: &str) -> Option<([&str; 4], &str)> {
    let mut octets = [""; 4];
    let mut rest = text;
    for (i, octet) in octets.iter_mut().enumerate() {
        if i > 0 {
            rest = rest.strip_prefix('.')?;
        }
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        if !(1..=3).contains(&digits) {
            return None;
        }
        (*octet, rest) = rest.split_at(digits);
    }
    // A full stop ends a sentence, not an address.
    let ends = !rest.strip_prefix('.').unwrap_or(rest).starts_with(is_word);
    ends.then_some((octets, rest))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || matches!(c, '.' | '-' | '_')
}
