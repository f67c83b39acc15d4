//! Who has which address. IPv6 follows from IPv4 by [`to_v6`], so that a scenario written for IPv4 can be run on either.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The outside client.
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);

/// The nodes' default gateway, behind which everything is lost, and counted.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);

/// A node's address: 10.0.0.1 for the first.
pub fn node(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, index)
}

/// A pod's address: 10.1.1.2 for host 2 on the first node.
pub fn pod(node: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 1, node, host)
}

/// `a.b.c.d` as `fd00:a:b::c:d`, the decimal digits kept: 10.96.0.10 is fd00:10:96::0:10.
pub fn to_v6(v4: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = v4.octets().map(digits_as_hex);
    Ipv6Addr::new(0xfd00, a, b, 0, 0, 0, c, d)
}

/// The inverse of [`to_v6`].
pub fn to_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let [0xfd00, a, b, 0, 0, 0, c, d] = v6.segments() else { return None };
    let octet = |group: u16| format!("{group:x}").parse::<u8>().ok();
    Some(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?))
}

/// [`to_v6`] for an address with a port; IPv6 stays as it is.
pub fn to_v6_socket(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(to_v6(v4).into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// `a.b.c.d` as `::ffff:a.b.c.d`, by which an IPv6 socket reaches it over IPv4; IPv6 stays as it is.
pub fn to_mapped(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(v4) => SocketAddr::new(v4.to_ipv6_mapped().into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

/// 254 gives 0x254.
fn digits_as_hex(octet: u8) -> u16 {
    let octet = u16::from(octet);
    octet / 100 * 0x100 + octet / 10 % 10 * 0x10 + octet % 10
}
