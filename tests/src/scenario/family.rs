//! From IPv4 to IPv6: a scenario is written once and carried out in either family.
//!
//! `a.b.c.d` becomes `fd00:a:b::c:d`, its decimal digits kept as they are, as in the [lab](crate::lab::address), and in the canonical
//! form that the API server asks for: 10.96.0.10 is `fd00:10:96::10`. Brackets stand around it where a port follows; `IPv4` becomes
//! `IPv6`. A CIDR of /8, /16, /24 or /32 becomes one of /32, /48, /112 or /128. `0.0.0.0/0` becomes `::/0`, `127.0.0.1` `::1`, and
//! `127.0.0.0/8` `::1/128`. Nothing else changes, so that lines keep their numbers.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, bail};

use crate::lab::address;

/// The IPv6 form of a scenario's text. An error, with the number of its line, for a CIDR that has none.
pub fn to_v6(text: &str) -> Result<String, (usize, anyhow::Error)> {
    let mut mapped = String::with_capacity(text.len() * 2);
    let mut rest = text;
    // Whether an address or word may begin here.
    let mut fresh = true;
    while let Some(c) = rest.chars().next() {
        if fresh && let Some((octets, after)) = quad(rest) {
            let (address, after) = mapped_address(octets, after).map_err(|error| (1 + mapped.matches('\n').count(), error))?;
            mapped += &address;
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
    Ok(mapped)
}

/// The IPv6 form of an address, and of the prefix length or port that follows it: what is left of the text.
fn mapped_address<'a>(octets: [&str; 4], after: &'a str) -> Result<(String, &'a str)> {
    let [a, b, c, d] = octets;
    let v4: Option<Ipv4Addr> = octets.join(".").parse().ok();
    let digits = |text: &str| text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if let Some(length) = after.strip_prefix('/').filter(|after| digits(after) > 0) {
        let (length, after) = length.split_at(digits(length));
        return Ok((mapped_cidr(octets, v4, length)?, after));
    }
    let address = match v4 {
        Some(Ipv4Addr::LOCALHOST) => Ipv6Addr::LOCALHOST.to_string(),
        Some(v4) => address::to_v6(v4).to_string(),
        // Leading zeros, or wrong on purpose.
        None => format!("fd00:{a}:{b}::{c}:{d}"),
    };
    let port = after.strip_prefix(':').is_some_and(|after| digits(after) > 0);
    Ok((if port { format!("[{address}]") } else { address }, after))
}

fn mapped_cidr(octets: [&str; 4], v4: Option<Ipv4Addr>, length: &str) -> Result<String> {
    let v6_length = match (octets, length) {
        (["0", "0", "0", "0"], "0") => return Ok("::/0".to_owned()),
        (["127", "0", "0", "0"], "8") | (["127", "0", "0", "1"], "32") => return Ok("::1/128".to_owned()),
        (_, "8") => 32,
        (_, "16") => 48,
        (_, "24") => 112,
        (_, "32") => 128,
        _ => bail!("{}/{length}: only /8, /16, /24 and /32 have a form in IPv6", octets.join(".")),
    };
    let [a, b, c, d] = octets;
    Ok(match v4 {
        Some(v4) => format!("{}/{v6_length}", address::to_v6(v4)),
        // Wrong on purpose.
        None => format!("fd00:{a}:{b}::{c}:{d}/{v6_length}"),
    })
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
