//! The signals that ask the process to end.

use std::thread;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Whether somebody has asked the process to end, by SIGTERM or SIGINT. It outlasts the runs, so that a signal between two of them counts.
#[derive(Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// Listens from now on, in a thread of its own.
    ///
    /// # Errors
    ///
    /// The kernel gives no thread or no signal handler.
    pub fn new() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().context("listening to signals")?;
        // They need the runtime to be there.
        let entered = runtime.enter();
        let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        drop(entered);
        let (sender, asked) = watch::channel(false);
        let listen = move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            });
            // Nobody listens any more where the process ends already.
            let _ = sender.send(true);
        };
        thread::Builder::new().name("signals".to_owned()).spawn(listen).context("listening to signals")?;
        Ok(Self(asked))
    }

    /// Waits until somebody has asked.
    pub async fn asked(&mut self) {
        if self.0.wait_for(|asked| *asked).await.is_err() {
            // The thread has ended without a signal: there will be none.
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{Signal, raise};
    use tokio::time::timeout;

    use super::*;

    fn asked(stop: &Stop, at_most: Duration) -> bool {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async { timeout(at_most, stop.clone().asked()).await.is_ok() })
    }

    #[test]
    fn a_signal_between_two_runs_counts_for_the_next_ones() {
        let stop = Stop::new().expect("signal handlers");
        assert!(!asked(&stop, Duration::ZERO));
        raise(Signal::SIGTERM).expect("sent");
        assert!(asked(&stop, Duration::from_secs(60)));
        assert!(asked(&stop, Duration::from_secs(60)));
    }
}
