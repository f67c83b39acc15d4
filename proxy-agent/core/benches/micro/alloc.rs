//! The system's allocator, counted; and a standard library that hashes the same way in every run.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The allocator to measure with.
pub(crate) struct Counted;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static ALLOCATED: AtomicU64 = AtomicU64::new(0);
static FREED: AtomicU64 = AtomicU64::new(0);

/// What was allocated since the program started.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Counts {
    /// Allocations; one that grows or shrinks counts again.
    pub(crate) allocations: u64,
    /// Bytes asked for; of one that grows, what is new.
    pub(crate) bytes: u64,
    /// Bytes in use.
    pub(crate) live: u64,
}

pub(crate) fn counts() -> Counts {
    let bytes = ALLOCATED.load(Relaxed);
    Counts { allocations: ALLOCATIONS.load(Relaxed), bytes, live: bytes - FREED.load(Relaxed) }
}

/// The bytes that `value` alone keeps in use.
pub(crate) fn resident<T>(value: T) -> u64 {
    let before = counts().live;
    drop(value);
    before - counts().live
}

/// There is one thread, so this needs no locked instruction, which would cost more than what it counts.
fn add(counter: &AtomicU64, n: usize) {
    counter.store(counter.load(Relaxed) + n as u64, Relaxed);
}

// SAFETY: every call goes to `System` with the arguments as they came; counting neither allocates nor touches the memory.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(&ALLOCATIONS, 1);
        add(&ALLOCATED, layout.size());
        // SAFETY: the caller keeps the contract of `alloc`, which is the same one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(&ALLOCATIONS, 1);
        add(&ALLOCATED, layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        add(&FREED, layout.size());
        // SAFETY: as above; the block came from `System`.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(&ALLOCATIONS, 1);
        add(&ALLOCATED, size.saturating_sub(layout.size()));
        add(&FREED, layout.size().saturating_sub(size));
        // SAFETY: as above; the block came from `System`.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// Where the standard library gets the keys of its hash maps from: it looks for this symbol so that a program can take randomness
/// out. With other keys, the same work takes some more or fewer instructions, and maps are walked in another order.
///
/// # Safety
///
/// `buffer` is writable for `length` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    // SAFETY: the caller's promise.
    unsafe { buffer.cast::<u8>().write_bytes(0x5a, length) };
    length as isize
}
