//! The hooks: from a context to a [`Call`], and from what is decided about it back to the context. The families differ only
//! in where the remote address is.

use core::ptr::{read_volatile, write_volatile};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::bpf_set_retval;
use aya_ebpf::programs::SockAddrContext;
use proxy_abi::{Addr, TCP, UDP};

use crate::maps::REFUSE_WITH_ERRNO;
use crate::translate::{self, Call, Verdict};

/// What a program returns: the kernel goes on with the call, or fails it.
const PROCEED: i32 = 1;
const FAIL: i32 = 0;

const ECONNREFUSED: i32 = 111;

/// Where the remote address is in a context. Its fields are read and written one by one and in full: the verifier knows no
/// other way. No hook looks at the family that the caller wrote there: where it does not fit, the kernel fails the call.
pub(crate) trait Family {
    fn read(context: *mut bpf_sock_addr) -> [u32; 4];
    fn write(context: *mut bpf_sock_addr, ip: [u32; 4]);
    /// Whether a datagram goes where its socket is connected to.
    fn connected(context: *mut bpf_sock_addr, remote: &Addr) -> bool;
}

pub(crate) struct V4;
pub(crate) struct V6;

impl Family for V4 {
    #[inline(always)]
    fn read(context: *mut bpf_sock_addr) -> [u32; 4] {
        // SAFETY: the kernel passes a valid context.
        let ip = unsafe { read_volatile(&raw const (*context).user_ip4) };
        Addr::v4(ip, 0).ip
    }

    #[inline(always)]
    fn write(context: *mut bpf_sock_addr, ip: [u32; 4]) {
        // SAFETY: as above.
        unsafe { write_volatile(&raw mut (*context).user_ip4, ip[3]) }
    }

    /// An IPv6 socket that is connected to a v4-mapped address comes by here, with that address, at every send().
    #[inline(always)]
    fn connected(context: *mut bpf_sock_addr, remote: &Addr) -> bool {
        // SAFETY: as above; the socket of a context is never null.
        unsafe {
            let socket = read_volatile(&raw const (*context).__bindgen_anon_1.sk);
            read_volatile(&raw const (*socket).dst_ip4) == remote.ip[3] && read_volatile(&raw const (*socket).dst_port) == remote.port
        }
    }
}

impl Family for V6 {
    #[inline(always)]
    fn read(context: *mut bpf_sock_addr) -> [u32; 4] {
        // SAFETY: as above.
        unsafe {
            [
                read_volatile(&raw const (*context).user_ip6[0]),
                read_volatile(&raw const (*context).user_ip6[1]),
                read_volatile(&raw const (*context).user_ip6[2]),
                read_volatile(&raw const (*context).user_ip6[3]),
            ]
        }
    }

    #[inline(always)]
    fn write(context: *mut bpf_sock_addr, ip: [u32; 4]) {
        // SAFETY: as above.
        unsafe {
            write_volatile(&raw mut (*context).user_ip6[0], ip[0]);
            write_volatile(&raw mut (*context).user_ip6[1], ip[1]);
            write_volatile(&raw mut (*context).user_ip6[2], ip[2]);
            write_volatile(&raw mut (*context).user_ip6[3], ip[3]);
        }
    }

    /// The kernel runs the hook only where an address is given.
    #[inline(always)]
    fn connected(_context: *mut bpf_sock_addr, _remote: &Addr) -> bool {
        false
    }
}

#[inline(always)]
pub(crate) fn connect<F: Family>(context: SockAddrContext) -> i32 {
    match call::<F>(&context) {
        Some(call) => obey::<F>(&context, translate::connect(&call)),
        None => PROCEED,
    }
}

#[inline(always)]
pub(crate) fn send<F: Family>(context: SockAddrContext) -> i32 {
    match call::<F>(&context) {
        // Decided at connect().
        Some(call) if F::connected(context.sock_addr, &call.remote) => PROCEED,
        Some(call) => obey::<F>(&context, translate::send(&call)),
        None => PROCEED,
    }
}

/// The kernel takes no other answer than to proceed from this hook and the next.
#[inline(always)]
pub(crate) fn receive<F: Family>(context: SockAddrContext) -> i32 {
    if let Some(source) = call::<F>(&context).and_then(|call| translate::source(&call)) {
        set_remote::<F>(&context, source);
    }
    PROCEED
}

#[inline(always)]
pub(crate) fn peer<F: Family>(context: SockAddrContext) -> i32 {
    if let Some(peer) = call::<F>(&context).and_then(|call| translate::peer(&call)) {
        set_remote::<F>(&context, peer);
    }
    PROCEED
}

/// The call of a protocol that is served here.
#[inline(always)]
fn call<F: Family>(context: &SockAddrContext) -> Option<Call> {
    let fields = context.sock_addr;
    // SAFETY: the kernel passes a valid context.
    let (protocol, port) = unsafe { (read_volatile(&raw const (*fields).protocol), read_volatile(&raw const (*fields).user_port)) };
    let protocol = match protocol {
        6 => TCP,
        17 => UDP,
        _ => return None,
    };
    // The port is a 32-bit field whose first two bytes hold it in network byte order.
    let remote = Addr::v6(F::read(fields), port as u16);
    Some(Call { context: context.as_ptr(), remote, protocol })
}

#[inline(always)]
fn set_remote<F: Family>(context: &SockAddrContext, remote: Addr) {
    F::write(context.sock_addr, remote.ip);
    // SAFETY: the kernel passes a valid context.
    unsafe { write_volatile(&raw mut (*context.sock_addr).user_port, u32::from(remote.port)) }
}

#[inline(always)]
fn obey<F: Family>(context: &SockAddrContext, verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Untouched => PROCEED,
        Verdict::To(backend) => {
            set_remote::<F>(context, backend);
            PROCEED
        }
        Verdict::Refused => {
            if REFUSE_WITH_ERRNO.load() == 0 {
                return PROCEED;
            }
            // SAFETY: the helper takes a number and touches no memory of ours.
            unsafe { bpf_set_retval(-ECONNREFUSED) };
            FAIL
        }
    }
}
