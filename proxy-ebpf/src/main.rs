//! The kernel programs of proxy-agent: socket calls to a virtual address are turned into calls to a backend, once per
//! connection, and the addresses that the kernel reports back are turned into the virtual ones.

#![no_std]
#![no_main]
// The target has additions that are one operation, and `AtomicU64` has none for it, since it lacks others.
#![feature(core_intrinsics)]
#![allow(internal_features)]
#![allow(unsafe_code, reason = "every map access and every field of a context is behind a raw pointer here")]
// The macro drops the doc comment of a program, and nothing here has a caller in Rust.
#![allow(missing_docs, unreachable_pub)]

mod hook;
mod maps;
mod translate;

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;

use hook::{V4, V6};

/// connect() to an IPv4 address.
#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    hook::connect::<V4>(context)
}

/// connect() to an IPv6 address, v4-mapped ones included.
#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    hook::connect::<V6>(context)
}

/// sendto() and sendmsg() with an IPv4 address; also those of an IPv6 socket to a v4-mapped one.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    hook::send::<V4>(context)
}

/// sendto() and sendmsg() with an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    hook::send::<V6>(context)
}

/// recvfrom() and recvmsg() on an IPv4 socket.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(context: SockAddrContext) -> i32 {
    hook::receive::<V4>(context)
}

/// recvfrom() and recvmsg() on an IPv6 socket, from v4-mapped addresses too.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(context: SockAddrContext) -> i32 {
    hook::receive::<V6>(context)
}

/// getpeername() on an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    hook::peer::<V4>(context)
}

/// getpeername() on an IPv6 socket, connected to a v4-mapped address or not.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    hook::peer::<V6>(context)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
