//! How glibc's allocator keeps what is freed.

#![allow(unsafe_code)]

/// Blocks of this many bytes and more are the kernel's again once they are freed. (It is what glibc begins with; set, it stays so, where
/// otherwise the first large block that is freed, the kernel's type information, would raise it to megabytes.)
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD: libc::c_int = 128 << 10;

/// Makes all threads share one heap, so that what one has freed another can use: the loop, the sources and the loader of the eBPF programs
/// have their peaks one after the other. Effective in a process that has no second thread yet; other allocators than glibc's are left alone.
pub fn share() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD)] {
        // SAFETY: mallopt(3) takes two numbers and touches nothing but the allocator's settings, under its lock. A parameter that it does
        // not take changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}
