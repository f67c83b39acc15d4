//! The event loop: the one place that sees sources and dataplanes together.
//!
//! Nothing is written before Services and EndpointSlices have both been listed once (SYNC-01); from then on, whatever has arrived
//! goes in as one change.

mod accounts;
mod drift;
mod pace;
mod reporter;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::time::Duration;

use proxy_core::cluster::Kind;
use proxy_core::forward::Forwarding;
use proxy_core::input::Converted;
use proxy_core::model::{Family, ObjectName};
use proxy_core::settings::Settings;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep_until};
use tracing::{error, info};

use crate::dataplane::Alarm;
use crate::programmed::{Asked, Question, Questions, ServiceStatus};
use crate::programmer::{Programmer, Round};
use crate::recorder::Severity;
use crate::source::Event;
use crate::telemetry::Telemetry;
use accounts::{Accounts, counted};
use drift::Watch;
use pace::Pace;
use reporter::Reporter;

/// How long packets may still be on their way through what went out of use: they pass in microseconds.
const SWEEP_AFTER: Duration = Duration::from_secs(1);
/// When what failed is tried again: first, and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Events that are taken in before they go to the kernel together.
const AT_ONCE: usize = 4096;

/// What is done about Services once the kernel has what they want (SYNC-18).
pub trait Follower: Send {
    /// Every dataplane has what these Services want now. They may be gone, and may be the same as before; there may be none of them,
    /// where only the surroundings have changed. Called in the loop: what takes time is done elsewhere.
    fn follow(&mut self, forwarding: &Forwarding, services: &BTreeSet<ObjectName>);
}

/// Everything that the loop holds.
pub struct Agent {
    forwarding: Forwarding,
    programmers: Vec<Slot>,
    listed: BTreeSet<Kind>,
    reporter: Reporter,
    /// There has been a first sync: with the surroundings as they were at this epoch.
    synced: Option<u64>,
    alarm: Alarm,
    once_filled: Option<Box<dyn FnOnce() + Send>>,
    followers: Vec<Box<dyn Follower>>,
    /// Services that have changed since the followers were last told.
    unfollowed: BTreeSet<ObjectName>,
    /// The surroundings that they were last told of.
    followed: Option<u64>,
    accounts: Accounts,
    questions: Asked,
    pace: Pace,
}

/// One dataplane, and when to come back to it.
struct Slot {
    programmer: Box<dyn Programmer>,
    /// Sweep what went out of use before this round, at this time.
    sweep: Option<(Instant, u64)>,
    /// Try again what failed, at this time; the pause grows.
    retry: Option<Instant>,
    pause: Duration,
    /// The last call failed as a whole: the retry starts from what the kernel holds and covers every change until then.
    down: bool,
    /// When it is looked at because somebody else has changed something.
    watch: Watch,
    telemetry: Telemetry,
}

impl Agent {
    /// Dataplanes fail and recover independently of each other. The alarm is the one that they ring.
    pub fn new(settings: Settings, programmers: Vec<Box<dyn Programmer>>, alarm: Alarm, telemetry: Telemetry) -> Self {
        let slot = |mut programmer: Box<dyn Programmer>| {
            programmer.told_to(&telemetry);
            let telemetry = telemetry.clone();
            Slot { programmer, sweep: None, retry: None, pause: RETRY.0, down: false, watch: Watch::default(), telemetry }
        };
        Self {
            reporter: Reporter::new(&settings.node, telemetry.recorder.clone()),
            forwarding: Forwarding::new(settings),
            programmers: programmers.into_iter().map(slot).collect(),
            listed: BTreeSet::new(),
            synced: None,
            alarm,
            once_filled: None,
            followers: Vec::new(),
            unfollowed: BTreeSet::new(),
            followed: None,
            accounts: Accounts::new(telemetry),
            // Nobody asks.
            questions: Questions::new().1,
            pace: Pace::default(),
        }
    }

    /// Answers questions about Services.
    pub fn asked_by(&mut self, questions: Asked) {
        self.questions = questions;
    }

    /// Leaves at least so much time from the end of one sync to the next.
    pub fn paced(&mut self, least: Duration) {
        self.pace = Pace::new(least);
    }

    /// Has something done as soon as everything that is wanted is in place, in all dataplanes.
    pub fn once_filled(&mut self, action: impl FnOnce() + Send + 'static) {
        self.once_filled = Some(Box::new(action));
    }

    /// Has Services followed from the first sync on, when all of them are new.
    pub fn followed_by(&mut self, follower: impl Follower + 'static) {
        self.followers.push(Box::new(follower));
    }

    /// Runs until the sources are gone. The kernel keeps what it holds then (SYNC-13).
    pub async fn run(mut self, mut events: Receiver<Event>) {
        let mut batch = Vec::with_capacity(AT_ONCE);
        loop {
            let due = self.programmers.iter().flat_map(|p| [p.retry, p.sweep.map(|(at, _)| at), p.watch.due()]);
            let due = due.chain([self.pace.due()]).flatten().min();
            let timer = async {
                match due {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                count = events.recv_many(&mut batch, AT_ONCE) => {
                    for event in batch.drain(..) {
                        self.take(event);
                    }
                    // What waits at the end does not wait any longer.
                    if count == 0 || self.pace.may_sync(Instant::now()) {
                        self.sync();
                    }
                    if count == 0 {
                        return;
                    }
                }
                () = self.alarm.notified() => self.hear(Instant::now()),
                () = timer => self.come_back(Instant::now()),
                Some(question) = self.questions.recv() => self.reply(question),
            }
            self.tell_followers();
            self.settle();
            if let Some(action) =
                self.once_filled.take_if(|_| self.synced.is_some() && self.programmers.iter().all(|p| p.programmer.is_filled()))
            {
                action();
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Object(converted) => drop(self.apply(converted)),
            Event::Endpoints(converted, trigger) => {
                if self.apply(converted) {
                    self.accounts.triggered(trigger);
                }
            }
            Event::Version(kind, version) => self.accounts.reached(kind, version),
            Event::Listed(kind, names) => {
                self.forwarding.retain_listed(kind, &names);
                self.listed.insert(kind);
            }
        }
    }

    /// Whether it says anything new.
    fn apply(&mut self, Converted { change, problems }: Converted) -> bool {
        self.reporter.report(change.as_ref(), problems);
        let Some(change) = change else { return false };
        let what = counted(&change);
        let is_new = self.forwarding.apply(change);
        if is_new {
            self.accounts.changed(what);
        }
        is_new
    }

    fn sync(&mut self) {
        // What is around the Services is not waited for: the sources give it first where they can.
        if ![Kind::Service, Kind::Slice].iter().all(|kind| self.listed.contains(kind)) {
            return;
        }
        let touched = self.forwarding.take_touched();
        let (epoch, before) = (self.forwarding.epoch(), self.synced);
        if touched.is_empty() && before == Some(epoch) {
            return;
        }
        self.synced = Some(epoch);
        for name in &touched {
            self.reporter.conflicts(name, &self.forwarding);
        }
        self.accounts.begin(&self.forwarding, &touched);
        let start = Instant::now();
        let mut durations = [Duration::ZERO; 2];
        for slot in &mut self.programmers {
            if !slot.down {
                let took = slot.sync(&self.forwarding, &touched, false);
                for (sum, took) in durations.iter_mut().zip(took) {
                    *sum += took;
                }
            }
        }
        self.accounts.took(durations, before.is_none());
        self.pace.synced(Instant::now());
        if !self.followers.is_empty() {
            self.unfollowed.extend(touched.iter().cloned());
        }
        if before.is_none() {
            info!(services = touched.len(), duration = ?start.elapsed(), "first sync");
        }
    }

    /// A dataplane that is down has not written what they want; what it refuses of some objects holds up nobody else's.
    fn tell_followers(&mut self) {
        let epoch = self.forwarding.epoch();
        let news = !self.unfollowed.is_empty() || self.followed != Some(epoch);
        if self.synced.is_none() || !news || self.programmers.iter().any(|slot| slot.down) {
            return;
        }
        self.followed = Some(epoch);
        let services = std::mem::take(&mut self.unfollowed);
        for follower in &mut self.followers {
            follower.follow(&self.forwarding, &services);
        }
    }

    fn settle(&mut self) {
        if self.synced.is_some() {
            let (forwarding, slots) = (&self.forwarding, &self.programmers);
            self.accounts.settle(forwarding, |family| slots.iter().any(|slot| slot.down && slot.programmer.serves(family)));
        }
    }

    fn reply(&self, question: Question) {
        let name = question.service();
        let refused: Vec<String> = self.programmers.iter().flat_map(|slot| slot.programmer.refused_of(name)).collect();
        let known = self.forwarding.serves(name);
        let is_written = self.synced.is_some() && !self.programmers.iter().any(|slot| slot.down);
        let version = |kind| self.accounts.versions.programmed(kind).cloned();
        let answer = ServiceStatus {
            known,
            programmed: known && is_written && refused.is_empty(),
            services_resource_version: version(Kind::Service),
            slices_resource_version: version(Kind::Slice),
            refused,
        };
        question.answer(answer);
    }

    /// Somebody else has changed something. Before the first sync there is nothing to repair.
    fn hear(&mut self, now: Instant) {
        for slot in self.programmers.iter_mut().filter(|_| self.synced.is_some()) {
            if slot.programmer.is_disturbed() {
                slot.watch.disturbed(now);
            }
        }
    }

    /// Does what its time has come for.
    fn come_back(&mut self, now: Instant) {
        if self.pace.due().is_some_and(|at| at <= now) {
            self.sync();
        }
        for slot in &mut self.programmers {
            if slot.watch.take(now) {
                slot.verify(&self.forwarding, now);
            }
            if slot.retry.is_some_and(|at| at <= now) {
                let was_down = slot.down;
                let took = slot.sync(&self.forwarding, &BTreeSet::new(), true);
                self.accounts.took(took, was_down);
            }
            if let Some((_, round)) = slot.sweep.take_if(|(at, _)| *at <= now) {
                match slot.programmer.sweep(round) {
                    Ok(left) => slot.sweep = left.map(|round| (now + SWEEP_AFTER, round)),
                    Err(error) => {
                        slot.families().for_each(|family| slot.telemetry.metrics.syncs.cleanup_failed(family));
                        slot.failed(&error);
                    }
                }
            }
        }
    }
}

impl Slot {
    /// How long it has taken, by family.
    fn sync(&mut self, forwarding: &Forwarding, touched: &BTreeSet<ObjectName>, retry: bool) -> [Duration; 2] {
        let start = std::time::Instant::now();
        match self.programmer.sync(forwarding, touched, retry) {
            Ok(round) => self.done(round, retry),
            Err(error) => {
                self.families().for_each(|family| self.telemetry.metrics.syncs.failed(family));
                self.failed(&error);
            }
        }
        let took = start.elapsed();
        Family::ALL.map(|family| if self.programmer.serves(family) { took } else { Duration::ZERO })
    }

    fn families(&self) -> impl Iterator<Item = Family> + '_ {
        Family::ALL.into_iter().filter(|family| self.programmer.serves(*family))
    }

    fn verify(&mut self, forwarding: &Forwarding, now: Instant) {
        // Rounds may be counted anew; what lingers then waits once more.
        self.sweep = None;
        self.watch.looked(now, self.programmer.name());
        match self.programmer.verify(forwarding) {
            Ok(repair) => {
                self.telemetry.metrics.dataplanes.repaired(repair.objects);
                self.done(repair.round, false);
            }
            Err(error) => self.failed(&error),
        }
    }

    fn done(&mut self, round: Round, retry: bool) {
        self.is_down(false);
        if let Some(before) = round.sweep {
            // An earlier round's turn comes first, and takes only its own.
            self.sweep.get_or_insert((Instant::now() + SWEEP_AFTER, before));
        }
        if round.refused == 0 {
            (self.retry, self.pause) = (None, RETRY.0);
        } else if retry || self.retry.is_none() {
            self.try_again();
        }
    }

    fn failed(&mut self, error: &anyhow::Error) {
        error!(dataplane = self.programmer.name(), "{error:#}; trying again in {:?}", self.pause);
        if !self.down {
            let note = format!("{}: {error:#}; it is tried again", self.programmer.name());
            self.telemetry.recorder.node(Severity::Warning, "SyncFailed", note);
        }
        self.is_down(true);
        // The next start counts rounds anew.
        self.sweep = None;
        self.try_again();
    }

    fn is_down(&mut self, down: bool) {
        self.down = down;
        self.telemetry.metrics.dataplanes.down(self.programmer.name(), down);
    }

    fn try_again(&mut self) {
        self.retry = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(RETRY.1);
    }
}
