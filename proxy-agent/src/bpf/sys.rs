//! bpf(2) where aya has no word for it: batches of map entries, and cgroup links that outlive us and change their program.
//!
//! Layouts follow `union bpf_attr` of include/uapi/linux/bpf.h.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use proxy_abi::Plain;

/// asm-generic/socket.h, which libc lacks.
const SO_NETNS_COOKIE: libc::c_int = 71;
const BPF_OBJ_PIN: i32 = 6;
const BPF_OBJ_GET: i32 = 7;
const BPF_OBJ_GET_INFO_BY_FD: i32 = 15;
const BPF_MAP_LOOKUP_BATCH: i32 = 24;
const BPF_MAP_UPDATE_BATCH: i32 = 26;
const BPF_MAP_DELETE_BATCH: i32 = 27;
const BPF_LINK_CREATE: i32 = 28;
const BPF_LINK_UPDATE: i32 = 29;

/// One call; `T` is the part of `union bpf_attr` that the command reads, zero-filled where it says nothing.
fn bpf<T>(command: i32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is valid for reads and writes of its size for the duration of the call; the callers below keep what its
    // pointers point to alive for as long, with the sizes that the kernel expects.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn pointer<T: ?Sized>(to: *const T) -> u64 {
    to.cast::<u8>() as usize as u64
}

fn path_text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// What programs know our network namespace by (bpf_get_netns_cookie).
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
    let (mut cookie, mut len) = (0u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the descriptor is open; both pointers are those of live values, of the size that the second one says.
    let result = unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len) };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[repr(C)]
#[derive(Default)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Opens what is pinned at `path`.
pub(super) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let text = path_text(path)?;
    bpf(BPF_OBJ_GET, &mut ObjAttr { pathname: pointer(text.as_ptr()), ..Default::default() }).map(owned)
}

/// Pins a link at `path`, which must not exist.
pub(super) fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let text = path_text(path)?;
    let mut attr = ObjAttr { pathname: pointer(text.as_ptr()), bpf_fd: fd.as_raw_fd() as u32, file_flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    /// `link_create.prog_fd` or `link_update.link_fd`.
    first_fd: u32,
    /// `link_create.target_fd` or `link_update.new_prog_fd`.
    second_fd: u32,
    /// `link_create.attach_type`.
    attach_type: u32,
    flags: u32,
}

/// Attaches a program to a cgroup and all below it.
pub(super) fn link_create(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let (first_fd, second_fd) = (program.as_raw_fd() as u32, cgroup.as_raw_fd() as u32);
    bpf(BPF_LINK_CREATE, &mut LinkAttr { first_fd, second_fd, attach_type, flags: 0 }).map(owned)
}

/// Puts another program behind a link, between two packets.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (first_fd, second_fd) = (link.as_raw_fd() as u32, program.as_raw_fd() as u32);
    bpf(BPF_LINK_UPDATE, &mut LinkAttr { first_fd, second_fd, ..Default::default() }).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of `struct bpf_link_info` for a cgroup link.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    type_: u32,
    id: u32,
    prog_id: u32,
    pad: u32,
    cgroup_id: u64,
    attach_type: u32,
    pad2: u32,
}

/// The id (inode number) of the cgroup that a link is attached to; 0 once that cgroup is gone.
pub(super) fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    let mut info = LinkInfo::default();
    let mut attr = InfoAttr { bpf_fd: link.as_raw_fd() as u32, info_len: size_of::<LinkInfo>() as u32, info: pointer(&raw mut info) };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info.cgroup_id)
}

/// The part of `struct bpf_map_info` that tells the sizes.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    type_: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A hash map, opened by its pin, whose keys and values have the sizes of `K` and `V`.
#[derive(Debug)]
pub(super) struct Map<K, V> {
    fd: OwnedFd,
    /// How many entries it takes.
    pub(super) capacity: u32,
    types: std::marker::PhantomData<fn(K, V)>,
}

/// What a batch did: how many entries from its start are done, and why the next one is not.
pub(super) struct Batch {
    pub(super) done: usize,
    pub(super) error: Option<io::Error>,
}

impl<K: Plain, V: Plain> Map<K, V> {
    /// Opens a pinned map; one of other sizes is an error, since the kernel would read and write beyond our buffers.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let fd = obj_get(path)?;
        let mut info = MapInfo::default();
        let mut attr = InfoAttr { bpf_fd: fd.as_raw_fd() as u32, info_len: size_of::<MapInfo>() as u32, info: pointer(&raw mut info) };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
        if (info.key_size as usize, info.value_size as usize) != (size_of::<K>(), size_of::<V>()) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a map of another layout is pinned here"));
        }
        Ok(Self { fd, capacity: info.max_entries, types: std::marker::PhantomData })
    }

    /// Writes entries, whether or not their keys are there.
    pub(super) fn update(&self, keys: &[K], values: &[V]) -> Batch {
        debug_assert_eq!(keys.len(), values.len());
        self.batch(BPF_MAP_UPDATE_BATCH, keys, pointer(values.as_ptr()))
    }

    /// Deletes entries.
    pub(super) fn delete(&self, keys: &[K]) -> Batch {
        self.batch(BPF_MAP_DELETE_BATCH, keys, 0)
    }

    fn batch(&self, command: i32, keys: &[K], values: u64) -> Batch {
        let map_fd = self.fd.as_fd().as_raw_fd() as u32;
        let mut attr = BatchAttr { keys: pointer(keys.as_ptr()), values, count: keys.len() as u32, map_fd, ..Default::default() };
        let result = bpf(command, &mut attr);
        // The kernel leaves `count` alone where it never got as far as the entries (EINVAL, EFAULT): none is done then.
        let done = if result.is_ok() { keys.len() } else { attr.count.min(keys.len() as u32) as usize };
        match result {
            Ok(_) => Batch { done, error: None },
            Err(error) => Batch { done: if done == keys.len() { 0 } else { done }, error: Some(error) },
        }
    }

    /// All entries. Others may write meanwhile: an entry that they add or delete may or may not be seen.
    pub(super) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        self.read(1, |values| values[0])
    }

    /// Reads all entries, each with so many values, which `join` makes one of.
    fn read<T>(&self, per_key: usize, join: impl Fn(&[V]) -> T) -> io::Result<Vec<(K, T)>> {
        // Larger than any bucket's chain; the kernel answers ENOSPC where it is not.
        let mut room = 4096usize;
        let mut entries = Vec::new();
        let mut position = 0u32;
        let mut started = false;
        loop {
            let (mut keys, mut values) = (vec![K::ZERO; room], vec![V::ZERO; room * per_key]);
            let mut next = 0u32;
            let mut attr = BatchAttr {
                in_batch: if started { pointer(&raw const position) } else { 0 },
                out_batch: pointer(&raw mut next),
                keys: pointer(keys.as_mut_ptr()),
                values: pointer(values.as_mut_ptr()),
                count: room as u32,
                map_fd: self.fd.as_fd().as_raw_fd() as u32,
                ..Default::default()
            };
            let result = bpf(BPF_MAP_LOOKUP_BATCH, &mut attr);
            let end = match result {
                Ok(_) => false,
                Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => {
                    room *= 2;
                    continue;
                }
                Err(e) => return Err(e),
            };
            let count = (attr.count as usize).min(room);
            entries.extend(keys.into_iter().zip(values.chunks_exact(per_key).map(&join)).take(count));
            if end {
                return Ok(entries);
            }
            (position, started) = (next, true);
        }
    }
}

impl<K: Plain> Map<K, u64> {
    /// All entries of a map in which each of the host's possible processors has a value of its own, added up.
    pub(super) fn sums(&self, processors: usize) -> io::Result<Vec<(K, u64)>> {
        self.read(processors.max(1), |values| values.iter().fold(0u64, |sum, value| sum.wrapping_add(*value)))
    }
}
