//! Tests against the running kernel.

use nix::sched::{CloneFlags, unshare};

/// Runs a test on a thread with a network namespace of its own. Without the right to make one it is skipped, which is a
/// failure where PROXY_TEST_REQUIRED is set.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => test(),
        Err(errno) => {
            assert!(std::env::var_os("PROXY_TEST_REQUIRED").is_none(), "no network namespace: {errno}");
            eprintln!("skipped: no network namespace: {errno}");
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
