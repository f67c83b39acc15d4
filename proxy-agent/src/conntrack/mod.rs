//! Ends flows that have gone stale (CT): which, [`proxy_core::stale`] decides; here the kernel's entries are found and deleted, so
//! that the next packet meets the rules anew.
//!
//! It is done in a thread of its own, since a table of flows may have a million entries: a batch at a time, and no more than half
//! of the time, so that there is always a processor for the agent's loop. What has been told to it is remembered until it is done
//! (W-04).

mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use proxy_core::forward::Forwarding;
use proxy_core::model::{Family, Frontend, ObjectName, Protocol};
use proxy_core::stale::{News, Stale, Tracker};
use tracing::{debug, error, info};

use crate::agent::Follower;
use table::{Deleted, Entry, Filter, Table};

/// So many entries are deleted before there is a pause: that takes a millisecond or so.
const BATCH: usize = 256;
/// So many are held in memory at a time.
const AT_ONCE: usize = 1 << 16;
/// When what failed is tried again: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The longest pause for the sake of others.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// What has been done about the flows of one family, for metrics (MET-08).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cleaned {
    /// The family.
    pub family: Family,
    /// Entries that were deleted.
    pub deleted: u64,
    /// How long it took.
    pub duration: Duration,
}

/// Sees to it that the kernel's connection tracking is there, if it can be: asking loads its module.
pub fn load() {
    if let Err(reason) = Table::open().and_then(|mut table| table.probe()) {
        debug!("connection tracking cannot be asked: {reason:#}");
    }
}

/// Follows Services, and has the flows ended that go stale.
pub struct Cleaner {
    tracker: Tracker,
    sender: Sender<News>,
    /// What the thread has been told and not done yet.
    undone: Arc<AtomicUsize>,
}

impl Cleaner {
    /// Starts the thread, in this network namespace. `programmed`: the frontends that an agent before has left. `report` is told of
    /// everything that is done.
    ///
    /// # Errors
    ///
    /// There can be no thread.
    pub fn start(programmed: Vec<Frontend>, report: impl FnMut(Cleaned) + Send + 'static) -> anyhow::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        let undone = Arc::new(AtomicUsize::new(0));
        let worker = Worker { receiver, undone: Arc::clone(&undone), heard: 0, report, stale: Stale::default(), table: None };
        thread::Builder::new().name("conntrack".into()).spawn(move || worker.run()).context("cannot start the thread that ends flows")?;
        Ok(Self { tracker: Tracker::new(programmed), sender, undone })
    }
}

impl Follower for Cleaner {
    fn follow(&mut self, forwarding: &Forwarding, services: &BTreeSet<ObjectName>) {
        let news = self.tracker.follow(forwarding, services, self.undone.load(Ordering::Acquire) > 0);
        if news.is_empty() {
            return;
        }
        self.undone.fetch_add(1, Ordering::AcqRel);
        if self.sender.send(news).is_err() {
            error!("stale flows are not ended any more: the thread that does so has gone; restart the agent");
        }
    }
}

/// What the thread holds.
struct Worker<R> {
    receiver: Receiver<News>,
    undone: Arc<AtomicUsize>,
    /// How much of it has been taken in.
    heard: usize,
    report: R,
    /// What has not been done yet.
    stale: Stale,
    /// Opened when it is needed for the first time.
    table: Option<Table>,
}

impl<R: FnMut(Cleaned)> Worker<R> {
    fn run(mut self) {
        let mut retry: Option<Duration> = None;
        loop {
            match retry {
                // News would fail as well.
                Some(pause) => thread::sleep(pause),
                None => match self.receiver.recv() {
                    Ok(news) => self.take_in(news),
                    Err(_) => return,
                },
            }
            retry = match self.clean() {
                Ok(()) => None,
                Err(reason) => {
                    // CT-09: nothing else waits for it.
                    let pause = retry.map_or(RETRY.0, |pause| (pause * 2).min(RETRY.1));
                    error!("stale flows stay for now: {reason:#}; trying again in {pause:?}");
                    Some(pause)
                }
            };
        }
    }

    /// Ends all that is known to be stale. What fails stays known.
    fn clean(&mut self) -> anyhow::Result<()> {
        self.hear();
        while !self.stale.is_empty() {
            for (family, protocol) in self.stale.kinds().into_keys() {
                let start = Instant::now();
                let deleted = self.clean_kind(family, protocol)?;
                let duration = start.elapsed();
                if deleted > 0 {
                    info!(%family, %protocol, deleted, ?duration, "ended flows that had gone stale");
                } else {
                    debug!(%family, %protocol, ?duration, "no flow has gone stale");
                }
                (self.report)(Cleaned { family, deleted, duration });
            }
        }
        self.undone.fetch_sub(std::mem::take(&mut self.heard), Ordering::AcqRel);
        Ok(())
    }

    fn clean_kind(&mut self, family: Family, protocol: Protocol) -> anyhow::Result<u64> {
        // After an error it is opened anew.
        let mut table = match self.table.take() {
            Some(table) => table,
            None => Table::open()?,
        };
        let mut deleted = Deleted::default();
        loop {
            let (start, heard) = (Instant::now(), self.stale.heard());
            // By what is known now: it may have become more since.
            let ip = self.stale.kinds().get(&(family, protocol)).copied().flatten();
            let filter = Filter { family, protocol, ip };
            let entries = table.find(filter, AT_ONCE, |flow| self.stale.is_stale(flow))?;
            rest(start);
            for batch in entries.chunks(BATCH) {
                let start = Instant::now();
                // Services may have changed since it was read.
                self.hear();
                let batch: Vec<&Entry> = batch.iter().filter(|entry| self.stale.is_stale(&entry.flow)).collect();
                let Deleted { count, busy } = table.delete(&batch)?;
                (deleted.count, deleted.busy) = (deleted.count + count, deleted.busy + busy);
                rest(start);
            }
            let busy = deleted.busy;
            ensure!(busy == 0, "{busy} of {} {protocol} flows are in a flowtable, and are ended when they leave it", busy + deleted.count);
            if entries.len() < AT_ONCE {
                self.stale.done(family, protocol, heard);
                self.table = Some(table);
                return Ok(deleted.count);
            }
        }
    }

    fn hear(&mut self) {
        while let Ok(news) = self.receiver.try_recv() {
            self.take_in(news);
        }
    }

    fn take_in(&mut self, news: News) {
        self.stale.hear(news);
        self.heard += 1;
    }
}

/// Leaves the processor to others for as long as it was used.
fn rest(since: Instant) {
    thread::sleep(since.elapsed().min(LONGEST_REST));
}
