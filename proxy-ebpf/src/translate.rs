//! What becomes of a socket call. Addresses are normalised, so nothing here depends on the socket's family.

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_ns};
use proxy_abi::{Addr, Flow, Frontend, FrontendKey, MemberKey, SlotKey, SocketKey, UDP};

use crate::maps::{COUNT_CONNECTIONS, COUNTS, FLOWS, FRONTENDS, HOST_NETNS, MEMBERS, REVERSE, SLOTS, UDP_IDLE_NS};

/// `::1` and `::`.
const LOOPBACK: [u32; 4] = [0, 0, 0, 1u32.to_be()];
const UNSPECIFIED: [u32; 4] = [0; 4];

/// How often a backend is looked for while the agent changes the Service.
const ATTEMPTS: usize = 3;

/// A socket call that names a remote address, or is to report one.
pub(crate) struct Call {
    pub(crate) context: *mut c_void,
    pub(crate) remote: Addr,
    pub(crate) protocol: u8,
}

/// What becomes of a call that names a remote address.
pub(crate) enum Verdict {
    Untouched,
    To(Addr),
    Refused,
}

/// The half of a [`SocketKey`] that stays the same during a call.
struct Socket {
    cookie: u64,
    protocol: u8,
}

/// connect(): a backend for the socket's whole life.
#[inline(always)]
pub(crate) fn connect(call: &Call) -> Verdict {
    let key = call.frontend();
    let Some(frontend) = frontend(&key) else {
        // A TCP socket connects once (but for retries after a failure), a UDP socket as often as it likes.
        if call.protocol == UDP {
            forget(call);
        }
        return Verdict::Untouched;
    };
    let Some((_, backend)) = choose(&key, frontend) else {
        return Verdict::Refused;
    };
    count(&key);
    remember(&call.socket(), backend, call.remote);
    Verdict::To(backend)
}

/// sendto() of a UDP socket: the backend that the socket was given for this address, while that is still right.
#[inline(always)]
pub(crate) fn send(call: &Call) -> Verdict {
    let key = call.frontend();
    let Some(frontend) = frontend(&key) else {
        forget(call);
        return Verdict::Untouched;
    };
    let socket = call.socket();
    let flow_key = socket.key(call.remote);
    let now = now();
    if frontend.count != 0
        && let Some(backend) = kept(&flow_key, frontend.service, now)
    {
        remember(&socket, backend, call.remote);
        return Verdict::To(backend);
    }
    let Some((service, backend)) = choose(&key, frontend) else {
        let _ = FLOWS.remove(&flow_key);
        return Verdict::Refused;
    };
    count(&key);
    // A flow that cannot be stored costs no more than another choice at the next datagram.
    let _ = FLOWS.insert(&flow_key, &Flow { last_seen: now, backend, service }, 0);
    remember(&socket, backend, call.remote);
    Verdict::To(backend)
}

/// The source that a received datagram is to show: the virtual address, if it comes from a backend that the socket wrote to.
#[inline(always)]
pub(crate) fn source(call: &Call) -> Option<Addr> {
    let socket = call.socket();
    let virtual_addr = reverse(&socket.key(call.remote))?;
    if let Some(flow) = FLOWS.get_ptr_mut(&socket.key(virtual_addr)) {
        // SAFETY: the entry stays readable and writable for the length of the program. Were it given to another flow meanwhile,
        // that flow would be taken for fresher than it is, no more.
        unsafe {
            if (*flow).backend == call.remote {
                (&raw mut (*flow).last_seen).write_volatile(now());
            }
        }
    }
    Some(virtual_addr)
}

/// The address that getpeername() is to show.
#[inline(always)]
pub(crate) fn peer(call: &Call) -> Option<Addr> {
    reverse(&call.socket().key(call.remote))
}

impl Call {
    /// What it is addressed to. NodePorts are kept without an address, and served on ::1 for sockets of the host itself: the same
    /// address means another place everywhere else.
    #[inline(always)]
    fn frontend(&self) -> FrontendKey {
        let ip = match self.remote.ip {
            LOOPBACK if self.is_from_host() => UNSPECIFIED,
            // Nobody is served there.
            UNSPECIFIED => LOOPBACK,
            ip => ip,
        };
        FrontendKey::new(Addr::v6(ip, self.remote.port), self.protocol)
    }

    #[inline(always)]
    fn is_from_host(&self) -> bool {
        let host = HOST_NETNS.load();
        // SAFETY: `context` is the context of the program that runs.
        host != 0 && unsafe { bpf_get_netns_cookie(self.context) } == host
    }

    #[inline(always)]
    fn socket(&self) -> Socket {
        // SAFETY: `context` is the context of the program that runs.
        let cookie = unsafe { bpf_get_socket_cookie(self.context) };
        Socket { cookie, protocol: self.protocol }
    }
}

impl Socket {
    #[inline(always)]
    fn key(&self, addr: Addr) -> SocketKey {
        SocketKey { cookie: self.cookie, addr, protocol: u32::from(self.protocol) }
    }
}

/// A backend of the frontend at random, and the Service port it belongs to; `None`: there is none.
#[inline(always)]
fn choose(key: &FrontendKey, mut current: Frontend) -> Option<(u32, Addr)> {
    for _ in 0..ATTEMPTS {
        let Frontend { service, count } = current;
        if count == 0 {
            return None;
        }
        // SAFETY: the helper takes no argument.
        let random = unsafe { bpf_get_prandom_u32() };
        // The high half of the product is uniform below `count`, and takes no division.
        let slot = ((u64::from(random) * u64::from(count)) >> 32) as u32;
        // SAFETY: the value is copied at once.
        if let Some(backend) = unsafe { SLOTS.get(&SlotKey { service, slot }) } {
            // An address of the other family does not fit into the call.
            return (is_v4(backend) == is_v4(&key.addr)).then_some((service, *backend));
        }
        // The Service is just losing backends: what is left of it, is in its frontend. If that is gone too, the call is
        // refused: a virtual address never reaches the wire.
        current = frontend(key)?;
    }
    None
}

/// Counts a connection that is led to a backend. One that cannot be counted goes on all the same.
#[inline(always)]
fn count(key: &FrontendKey) {
    if COUNT_CONNECTIONS.load() != 0 && !counted(key) && COUNTS.insert(key, &1, BPF_NOEXIST.into()).is_err() {
        // Another processor has been the first, or there is no room.
        counted(key);
    }
}

/// Adds to the count of a frontend that has one.
#[inline(always)]
fn counted(key: &FrontendKey) -> bool {
    let Some(count) = COUNTS.get_ptr_mut(key) else { return false };
    // SAFETY: as in `source`. Another task may take this processor between reading and writing, so that it is one operation.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(count, 1) };
    true
}

/// The backend of a flow that is fresh, of this Service port, and still has its backend there. It is refreshed.
#[inline(always)]
fn kept(key: &SocketKey, service: u32, now: u64) -> Option<Addr> {
    let flow = FLOWS.get_ptr_mut(key)?;
    // SAFETY: as in `source`; the backend is copied before it is checked, so it is of this Service whatever happens.
    let Flow { last_seen, backend, service: flow_service } = unsafe { flow.read() };
    // Another processor may just have refreshed it.
    let idle = now.saturating_sub(last_seen);
    if flow_service != service || idle >= UDP_IDLE_NS.load() {
        return None;
    }
    MEMBERS.get_ptr(&MemberKey { service, backend })?;
    // SAFETY: as in `source`.
    unsafe { (&raw mut (*flow).last_seen).write_volatile(now) };
    Some(backend)
}

/// Notes that what comes from `backend` is to show `virtual_addr`. Of two virtual addresses with one backend the last one used
/// counts: a socket that asks and waits for the answer sees the right one.
#[inline(always)]
fn remember(socket: &Socket, backend: Addr, virtual_addr: Addr) {
    let key = socket.key(backend);
    if reverse(&key) != Some(virtual_addr) {
        // Without the entry the true address shows; that is no reason to fail the call.
        let _ = REVERSE.insert(&key, &virtual_addr, 0);
    }
}

/// Notes that a UDP socket now means `call.remote` itself, which may be a backend that it was given for a virtual address
/// before. The lookup, without a lock, is all that this costs where there is nothing to forget.
#[inline(always)]
fn forget(call: &Call) {
    let key = call.socket().key(call.remote);
    if REVERSE.get_ptr(&key).is_some() {
        let _ = REVERSE.remove(&key);
    }
}

#[inline(always)]
fn frontend(key: &FrontendKey) -> Option<Frontend> {
    // SAFETY: the value is copied at once.
    unsafe { FRONTENDS.get(key) }.copied()
}

#[inline(always)]
fn reverse(key: &SocketKey) -> Option<Addr> {
    // SAFETY: the value is copied at once.
    unsafe { REVERSE.get(key) }.copied()
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper takes no argument.
    unsafe { bpf_ktime_get_ns() }
}

/// Whether an address is v4-mapped.
#[inline(always)]
fn is_v4(addr: &Addr) -> bool {
    addr.ip[0] == 0 && addr.ip[1] == 0 && addr.ip[2] == Addr::V4_MAPPED
}
