//! Reads what the kernel has counted of connections, when somebody asks and when there is something to forget.
//!
//! A reading takes one dump for each set or map, whatever the number of Services, in a thread of its own: neither the loop nor who
//! asks waits for a kernel that does not answer.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proxy_core::connections::{Connections, Place};
use proxy_core::forward::Forwarding;
use proxy_core::model::{Frontend, ObjectName};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{debug, warn};

use crate::agent::Follower;
use crate::dataplane::Meter;
use crate::metrics;

/// Who asks gets what was read before if the kernel takes longer.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long what is to be forgotten is gathered, and how long after a failure it is tried again.
const GATHER: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(30);

/// The counters of Service ports, and where they are read. Locked in the order of the fields.
pub struct Counter {
    readers: Mutex<Readers>,
    /// Never held while the kernel is at work: the loop takes it.
    counted: Mutex<Connections>,
    shown: metrics::Connections,
    /// Rings when there is something to forget.
    given_up: Notify,
}

#[derive(Default)]
struct Readers {
    meters: Vec<Box<dyn Meter>>,
    /// What was said about the last reading that failed.
    failure: Option<String>,
}

impl Counter {
    /// Without anything to read. So many Service ports have a series at most; what has been read is shown there.
    pub fn new(most: usize, shown: metrics::Connections) -> Arc<Self> {
        let counted = Mutex::new(Connections::new(most));
        Arc::new(Self { readers: Mutex::default(), counted, shown, given_up: Notify::new() })
    }

    /// This is what counts.
    pub fn has(&self, meters: Vec<Box<dyn Meter>>) {
        locked(&self.readers).meters = meters;
    }

    /// Reads the kernel. What the kernel does not answer in time is shown the next time.
    pub async fn refresh(self: &Arc<Self>) {
        let this = Arc::clone(self);
        if timeout(PATIENCE, spawn_blocking(move || this.read())).await.is_err() {
            debug!("the kernel has not said its counts of connections within {PATIENCE:?}");
        }
    }

    /// Forgets what nobody has any more, for ever.
    pub async fn clean(self: Arc<Self>) {
        loop {
            self.given_up.notified().await;
            let mut pause = GATHER;
            loop {
                sleep(pause).await;
                let this = Arc::clone(&self);
                // It is not waited for any more where the run ends.
                if spawn_blocking(move || this.read()).await.unwrap_or(true) {
                    break;
                }
                pause = RETRY;
            }
        }
    }

    /// Reads the kernel. Whether all went well.
    fn read(&self) -> bool {
        let mut readers = locked(&self.readers);
        let (mut found, mut failure) = (Vec::new(), None);
        for (number, meter) in readers.meters.iter_mut().enumerate() {
            match meter.read() {
                Ok(counts) => found.extend(counts.into_iter().map(|(frontend, count)| ((number, frontend), count))),
                Err(reason) => failure = Some(reason),
            }
        }
        let places = locked(&self.counted).take_in(found);
        for (number, meter) in readers.meters.iter_mut().enumerate() {
            let of_meter: Vec<Place> = places.iter().filter(|(of, _)| *of == number).copied().collect();
            if of_meter.is_empty() {
                continue;
            }
            let frontends: Vec<Frontend> = of_meter.iter().map(|(_, frontend)| *frontend).collect();
            match meter.forget(&frontends) {
                Ok(()) => {
                    debug!(count = frontends.len(), "forgot the connections of frontends that nobody has");
                    locked(&self.counted).forgotten(&of_meter);
                }
                Err(reason) => failure = Some(reason),
            }
        }
        self.shown.show(&locked(&self.counted));
        readers.says(failure)
    }
}

impl Readers {
    /// What a reading has come to, said once. Whether all went well.
    fn says(&mut self, failure: Option<anyhow::Error>) -> bool {
        let failure = failure.map(|reason| format!("{reason:#}"));
        if let Some(reason) = failure.as_ref().filter(|reason| self.failure.as_ref() != Some(reason)) {
            warn!("connections of Services are counted, but not all counts can be read or forgotten: {reason}");
        }
        self.failure = failure;
        self.failure.is_none()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds one panics, and what it guards is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Learns which Service has which frontends.
impl Follower for Arc<Counter> {
    fn follow(&mut self, forwarding: &Forwarding, services: &BTreeSet<ObjectName>) {
        if locked(&self.counted).follow(forwarding, services) {
            self.given_up.notify_one();
        }
    }
}
