//! The maps and settings. The agent chooses the folder in which the maps are pinned under their names.

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap, PerCpuHashMap};
use proxy_abi::{Addr, Flow, Frontend, FrontendKey, MemberKey, ServiceName, SlotKey, SocketKey, capacity};

/// What is served, and by which Service port.
#[map]
pub(crate) static FRONTENDS: HashMap<FrontendKey, Frontend> = HashMap::pinned(capacity::SERVICES, BPF_F_NO_PREALLOC);

/// The backends of a Service port, by position.
#[map]
pub(crate) static SLOTS: HashMap<SlotKey, Addr> = HashMap::pinned(capacity::BACKENDS, BPF_F_NO_PREALLOC);

/// The backends of a Service port, as a set.
#[map]
pub(crate) static MEMBERS: HashMap<MemberKey, u8> = HashMap::pinned(capacity::BACKENDS, BPF_F_NO_PREALLOC);

/// The names of Service ports, for readers of the maps; no program reads them.
#[map]
pub(crate) static NAMES: HashMap<u32, ServiceName> = HashMap::pinned(capacity::SERVICES, BPF_F_NO_PREALLOC);

/// The backend of an unconnected UDP socket, by virtual address.
#[map]
pub(crate) static FLOWS: LruHashMap<SocketKey, Flow> = LruHashMap::pinned(capacity::SOCKETS, 0);

/// The virtual address that a socket used, by backend.
#[map]
pub(crate) static REVERSE: LruHashMap<SocketKey, Addr> = LruHashMap::pinned(capacity::SOCKETS, 0);

/// Connections and flows that were led to a backend, by frontend and processor. Only programs add entries, with the first
/// connection: what nobody uses takes no memory.
#[map]
pub(crate) static COUNTS: PerCpuHashMap<FrontendKey, u64> = PerCpuHashMap::pinned(capacity::SERVICES, BPF_F_NO_PREALLOC);

/// How long an unconnected UDP socket may be silent towards a virtual address and still keep its backend.
#[unsafe(no_mangle)]
pub(crate) static UDP_IDLE_NS: Global<u64> = Global::new(120_000_000_000);

/// Whether a refused call fails here, with ECONNREFUSED. Set to 0 before kernel 6.1, where a program cannot name the error, and the
/// call would fail with EPERM: its packets go to the node's rules then, which refuse them.
#[unsafe(no_mangle)]
pub(crate) static REFUSE_WITH_ERRNO: Global<u8> = Global::new(1);

/// The cookie of the network namespace whose sockets are served on ::1, the host's own; 0 where nobody's are.
#[unsafe(no_mangle)]
pub(crate) static HOST_NETNS: Global<u64> = Global::new(0);

/// Whether `COUNTS` is written.
#[unsafe(no_mangle)]
pub(crate) static COUNT_CONNECTIONS: Global<u8> = Global::new(1);
