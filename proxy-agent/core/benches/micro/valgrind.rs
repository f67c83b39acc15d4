//! Requests to the valgrind that this program runs under. Elsewhere they do nothing.

#![allow(unsafe_code)]

use std::ffi::CStr;

const RUNNING_ON_VALGRIND: usize = 0x1001;
// callgrind.h
const CALLGRIND: usize = (b'C' as usize) << 24 | (b'T' as usize) << 16;
const ZERO_STATS: usize = CALLGRIND + 1;
const DUMP_STATS_AT: usize = CALLGRIND + 3;
const START_INSTRUMENTATION: usize = CALLGRIND + 4;
const STOP_INSTRUMENTATION: usize = CALLGRIND + 5;

/// Whether there is one.
pub(crate) fn is_running() -> bool {
    request(RUNNING_ON_VALGRIND, 0) != 0
}

/// Counts the instructions of `work`: callgrind writes a file that names them `name`.
pub(crate) fn count<T>(name: &CStr, work: impl FnOnce() -> T) -> T {
    request(ZERO_STATS, 0);
    request(START_INSTRUMENTATION, 0);
    let result = work();
    request(STOP_INSTRUMENTATION, 0);
    request(DUMP_STATS_AT, name.as_ptr() as usize);
    result
}

/// valgrind.h: rotations that leave the register as it was, and an exchange that does nothing, are what valgrind looks for.
#[cfg(target_arch = "x86_64")]
fn request(request: usize, argument: usize) -> usize {
    let arguments = [request, argument, 0, 0, 0, 0];
    let mut answer = 0usize;
    // SAFETY: as instructions of the processor, these change nothing but flags. valgrind reads `arguments`, the string that
    // DUMP_STATS_AT points to, which its caller keeps, and writes the answer to rdx.
    unsafe {
        std::arch::asm!(
            "rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51", "xchg rbx, rbx",
            in("rax") &arguments, inout("rdx") answer,
        );
    }
    answer
}

#[cfg(not(target_arch = "x86_64"))]
fn request(_request: usize, _argument: usize) -> usize {
    0
}
