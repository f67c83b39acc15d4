//! How glibc's allocator keeps what is freed. Other allocators are left alone.

#![allow(unsafe_code)]

use std::time::Duration;

use tokio::time::sleep;

/// How often what is freed is given back.
const EVERY: Duration = Duration::from_secs(60);

/// Blocks of this many bytes and more are the kernel's again once they are freed. (It is what glibc begins with; set, it stays so, where
/// otherwise the first large block that is freed, the kernel's type information, would raise it to megabytes.)
#[cfg(target_env = "gnu")]
const MMAP_THRESHOLD: libc::c_int = 128 << 10;

/// Makes all threads share one heap, so that what one has freed another can use: the loop, the sources and the loader of the eBPF programs
/// have their peaks one after the other. Effective in a process that has no second thread yet.
pub fn share() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD)] {
        // SAFETY: mallopt(3) takes two numbers and touches nothing but the allocator's settings, under its lock. A parameter that it does
        // not take changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives whole pages that are free back to the kernel now and then, for ever: objects that come and go leave them between others, where
/// the allocator by itself keeps them, so that the process would seem to grow.
pub async fn give_back() -> ! {
    loop {
        sleep(EVERY).await;
        #[cfg(target_env = "gnu")]
        // SAFETY: malloc_trim(3) gives back pages that nothing is allocated in, under the allocator's lock.
        unsafe {
            libc::malloc_trim(0)
        };
    }
}
