//! Ranges of addresses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::model::Family;

/// An address prefix, its host bits zero. Ordered by address, then length, so that a range comes before those within it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    ip: IpAddr,
    len: u8,
}

impl Cidr {
    /// The range of the addresses whose first `len` bits are those of `ip`. None: the family has no so long prefix.
    pub fn new(ip: IpAddr, len: u8) -> Option<Self> {
        let ip = match ip {
            IpAddr::V4(ip) if len <= 32 => Ipv4Addr::from(u32::from(ip) & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)).into(),
            IpAddr::V6(ip) if len <= 128 => {
                Ipv6Addr::from(u128::from(ip) & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)).into()
            }
            _ => return None,
        };
        Some(Self { ip, len })
    }

    /// The range of one address.
    pub fn host(ip: IpAddr) -> Self {
        Self { ip, len: if ip.is_ipv4() { 32 } else { 128 } }
    }

    /// The first address.
    pub fn first(&self) -> IpAddr {
        self.ip
    }

    /// The last address.
    pub fn last(&self) -> IpAddr {
        match self.ip {
            IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip) | u32::MAX.checked_shr(self.len.into()).unwrap_or(0)).into(),
            IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) | u128::MAX.checked_shr(self.len.into()).unwrap_or(0)).into(),
        }
    }

    /// How many bits its addresses have in common.
    pub fn prefix_len(&self) -> u8 {
        self.len
    }

    /// Whether it is all addresses of its family.
    pub fn is_all(&self) -> bool {
        self.len == 0
    }

    /// The family of its addresses.
    pub fn family(&self) -> Family {
        Family::of(self.ip)
    }

    /// Whether an address is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        Cidr::new(ip, self.len).is_some_and(|cidr| cidr.ip == self.ip)
    }

    /// The same addresses in the fewest ranges that do not overlap, sorted. (Two neighbours stay two.)
    pub fn minimal(cidrs: impl IntoIterator<Item = Cidr>) -> Vec<Cidr> {
        let mut sorted: Vec<Cidr> = cidrs.into_iter().collect();
        sorted.sort_unstable();
        let mut minimal: Vec<Cidr> = Vec::with_capacity(sorted.len());
        for cidr in sorted {
            // Ranges nest or are apart: what lies in any before lies in the last one kept.
            if !minimal.last().is_some_and(|last| last.contains(cidr.ip)) {
                minimal.push(cidr);
            }
        }
        minimal
    }
}

impl FromStr for Cidr {
    type Err = &'static str;

    /// `ADDRESS/LENGTH`; bits of the address beyond the length are ignored, as in Go's `net.ParseCIDR`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (ip, len) = text.split_once('/')?;
            let plain = !len.is_empty() && len.len() <= 3 && len.bytes().all(|b| b.is_ascii_digit());
            Cidr::new(ip.parse().ok()?, len.parse().ok().filter(|_| plain)?)
        };
        parse().ok_or("is not a range of addresses (ADDRESS/LENGTH)")
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.len)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap_or_else(|why| panic!("{text} {why}"))
    }

    #[test]
    fn a_range_has_its_addresses_and_no_other() {
        for (range, inside, outside) in [
            ("10.1.2.3/8", "10.255.255.255", "11.0.0.0"),
            ("10.1.2.3/32", "10.1.2.3", "10.1.2.4"),
            ("0.0.0.0/0", "255.1.2.3", "::1"),
            ("fd00:10::/32", "fd00:10:ffff::1", "fd00:11::"),
            ("::/0", "ffff::", "10.0.0.1"),
        ] {
            let range = cidr(range);
            assert!(range.contains(inside.parse().expect("an address")), "{range} {inside}");
            assert!(!range.contains(outside.parse().expect("an address")), "{range} {outside}");
            assert!(range.contains(range.first()) && range.contains(range.last()));
        }
        assert_eq!(cidr("10.1.2.3/8").to_string(), "10.0.0.0/8");
        assert_eq!(cidr("10.96.0.0/12").last().to_string(), "10.111.255.255");
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in ["", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/+8", "fd00::/129", "10.0.0/8", "x/8", "10.0.0.0/0008"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_within_others_go() {
        let ranges = ["10.1.0.0/16", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.0/8", "192.168.0.0/24", "192.168.1.0/24"].map(cidr);
        assert_eq!(Cidr::minimal(ranges), ["10.0.0.0/8", "192.168.0.0/24", "192.168.1.0/24"].map(cidr));
    }
}
