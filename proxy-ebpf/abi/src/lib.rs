//! The bytes that the kernel programs and the agent agree on: keys and values of the maps.
//!
//! Addresses are sixteen bytes in network byte order; an IPv4 address is stored v4-mapped (`::ffff:a.b.c.d`), so that one map
//! serves both families and a socket of one family may be answered through the hook of the other. Ports are two bytes in
//! network byte order. All other integers are in the host's byte order.
//!
//! Whoever changes the size, order or meaning of a field raises [`LAYOUT`]: maps of another layout are never reused.

#![no_std]

/// The version of everything in this file. It is part of the path under which maps and links are pinned.
pub const LAYOUT: u32 = 2;

/// IPPROTO_TCP, as in `FrontendKey::protocol`.
pub const TCP: u8 = 6;
/// IPPROTO_UDP, as in `FrontendKey::protocol`.
pub const UDP: u8 = 17;

/// Bytes of a [`ServiceName`]: namespace, name and port name at their longest, and two separators.
pub const NAME_BYTES: usize = 63 * 3 + 2;

/// An address and port: sixteen bytes of address (v4-mapped for IPv4) and two of port, network byte order.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Addr {
    /// The address, as four words in network byte order (the form of `bpf_sock_addr.user_ip6`).
    pub ip: [u32; 4],
    /// The port in network byte order.
    pub port: u16,
    /// Always zero: keys are compared byte for byte.
    pub pad: u16,
}

impl Addr {
    /// The third word of a v4-mapped address.
    pub const V4_MAPPED: u32 = 0xffffu32.to_be();

    /// An address from the form of `bpf_sock_addr`: `ip` and `port` in network byte order.
    #[inline(always)]
    pub const fn v6(ip: [u32; 4], port: u16) -> Self {
        Self { ip, port, pad: 0 }
    }

    /// The v4-mapped form of an IPv4 address: `ip` and `port` in network byte order.
    #[inline(always)]
    pub const fn v4(ip: u32, port: u16) -> Self {
        Self::v6([0, 0, Self::V4_MAPPED, ip], port)
    }
}

/// Key of `FRONTENDS`: what a packet or socket call is addressed to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FrontendKey {
    /// Virtual address and port.
    pub addr: Addr,
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub pad: [u8; 3],
}

impl FrontendKey {
    /// The key for a packet to `addr` with IP protocol number `protocol`.
    #[inline(always)]
    pub const fn new(addr: Addr, protocol: u8) -> Self {
        Self { addr, protocol, pad: [0; 3] }
    }
}

/// Value of `FRONTENDS`: where the backends of this frontend are.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frontend {
    /// The Service port's number on this node: the first half of [`SlotKey`] and [`MemberKey`].
    pub service: u32,
    /// Usable backends; their slots are `0..count`. Zero: connections are refused.
    pub count: u32,
}

/// Key of `SLOTS`: one backend of a Service port, by position.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotKey {
    /// As in [`Frontend`].
    pub service: u32,
    /// Position, below [`Frontend::count`].
    pub slot: u32,
}

/// Key of `MEMBERS` (value: one byte, 1): says that a backend still belongs to a Service port. Kept for UDP only, where a
/// socket comes back to the backend that it was given.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemberKey {
    /// As in [`Frontend`].
    pub service: u32,
    /// The backend.
    pub backend: Addr,
}

/// Value of `NAMES`, by service number (`u32`): `namespace/name:port` (`namespace/name` for a port without a name) for those who read the maps. No program reads it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServiceName {
    /// Bytes used of `text`.
    pub len: u8,
    /// UTF-8, zero-filled.
    pub text: [u8; NAME_BYTES],
}

/// Key of `FLOWS` (a socket and the virtual address it sends to) and of `REVERSE` (a socket and the backend it hears from).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SocketKey {
    /// `bpf_get_socket_cookie`.
    pub cookie: u64,
    /// The remote address.
    pub addr: Addr,
    /// IP protocol number, widened so that no padding is left.
    pub protocol: u32,
}

/// Value of `FLOWS`: the backend that an unconnected UDP socket was given for a virtual address.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// The last packet in either direction, `bpf_ktime_get_ns`.
    pub last_seen: u64,
    /// The backend.
    pub backend: Addr,
    /// As in [`Frontend`]; a flow of another number is stale.
    pub service: u32,
}

/// How a map is sized; both sides take the figures from here. The hash maps that the agent fills allocate as they fill
/// (`BPF_F_NO_PREALLOC`), so a high ceiling costs only its bucket array (16 bytes per entry).
pub mod capacity {
    /// `FRONTENDS`, `NAMES` and `COUNTS`.
    pub const SERVICES: u32 = 262_144;
    /// `SLOTS` and `MEMBERS`.
    pub const BACKENDS: u32 = 1_048_576;
    /// `FLOWS` and `REVERSE`, which forget the least recently used.
    pub const SOCKETS: u32 = 131_072;
}

/// What may be handed to the kernel as bytes and read back from it.
///
/// # Safety
///
/// The type has no padding, and every pattern of bits is a value of it.
#[allow(unsafe_code)]
pub unsafe trait Plain: Copy + 'static {
    /// All bits zero.
    const ZERO: Self;
}

macro_rules! plain {
    ($($type:ty = $zero:expr, $size:literal bytes;)*) => {$(
        // SAFETY: `repr(C)` or primitive, integers only; the assertion below says that the fields fill the size.
        #[allow(unsafe_code)]
        unsafe impl Plain for $type {
            const ZERO: Self = $zero;
        }
        const _: () = assert!(size_of::<$type>() == $size);
    )*};
}

plain! {
    u8 = 0, 1 bytes;
    u32 = 0, 4 bytes;
    u64 = 0, 8 bytes;
    Addr = Addr::v6([0; 4], 0), 20 bytes;
    FrontendKey = FrontendKey::new(Addr::ZERO, 0), 24 bytes;
    Frontend = Frontend { service: 0, count: 0 }, 8 bytes;
    SlotKey = SlotKey { service: 0, slot: 0 }, 8 bytes;
    MemberKey = MemberKey { service: 0, backend: Addr::ZERO }, 24 bytes;
    ServiceName = ServiceName { len: 0, text: [0; NAME_BYTES] }, 192 bytes;
    SocketKey = SocketKey { cookie: 0, addr: Addr::ZERO, protocol: 0 }, 32 bytes;
    Flow = Flow { last_seen: 0, backend: Addr::ZERO, service: 0 }, 32 bytes;
}
