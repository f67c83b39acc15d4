//! A dataplane with its plan: brings the kernel to what is wanted, remembers what it refused, and starts over where nothing is
//! known.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::Instant;

use anyhow::Context;
use proxy_core::forward::Forwarding;
use proxy_core::lower::{Lowering, ObjectsOf, StepOf};
use proxy_core::model::{Family, ObjectName};
use proxy_core::plan::Plan;
use tracing::{debug, error, info, trace, warn};

use crate::dataplane::{Dataplane, Disturbance, DisturbanceOf, Refused};
use crate::metrics::Measured;
use crate::recorder::{Recorder, Severity};
use crate::telemetry::Telemetry;

/// So many Services are taken in and committed at once at the start: what is on its way to the kernel takes memory, and the first
/// ones need not wait for the last.
const AT_ONCE: usize = 1024;

/// So many objects are named in a report. Who wants an object takes a walk over all: a full map must not turn into hours of
/// reporting.
const DETAILED: usize = 10;

/// What a round left to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Round {
    /// Objects that the kernel refused and that are still wanted.
    pub refused: usize,
    /// What went out of use before this round may be swept once packets on their way have passed.
    pub sweep: Option<u64>,
}

/// What a look at the kernel has shown and led to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Repair {
    /// Objects that were not as they had been left.
    pub objects: usize,
    /// What is left to do.
    pub round: Round,
}

/// What the event loop knows of a dataplane.
pub trait Programmer: Send {
    /// For logs.
    fn name(&self) -> &str;

    /// Brings the kernel in line with `forwarding`, of which the touched Services may have changed. A `retry` tries again what the
    /// kernel refused before.
    ///
    /// # Errors
    ///
    /// The kernel could not be written or read at all; the next call starts from what it holds.
    fn sync(&mut self, forwarding: &Forwarding, touched: &BTreeSet<ObjectName>, retry: bool) -> anyhow::Result<Round>;

    /// Deletes what went out of use before `round`. Returns the round before which what is left may be swept later, if anything is.
    /// Errors as in [`sync`](Self::sync).
    fn sweep(&mut self, round: u64) -> anyhow::Result<Option<u64>>;

    /// Whether it has frontends of this family.
    fn serves(&self, family: Family) -> bool;

    /// Has what it does counted and recorded.
    fn told_to(&mut self, telemetry: &Telemetry);

    /// The objects of a Service that the kernel refuses.
    fn refused_of(&self, name: &ObjectName) -> Vec<String>;

    /// Whether everything that is wanted has been in place.
    fn is_filled(&self) -> bool;

    /// Whether somebody else has changed something since the kernel was last read.
    fn is_disturbed(&mut self) -> bool;

    /// Finds out what somebody else has broken, by reading the kernel back unless that is known, and repairs that and nothing else.
    /// Errors as in [`sync`](Self::sync).
    fn verify(&mut self, forwarding: &Forwarding) -> anyhow::Result<Repair>;
}

/// A dataplane with its plan; without one where what the kernel holds is not known.
pub struct Programmed<D: Dataplane> {
    name: String,
    dataplane: D,
    lowering: D::L,
    plan: Option<Plan<D::L>>,
    /// The reasons that were reported, so that each is reported once.
    reported: Refused<D::L>,
    /// Everything that is wanted has been in place.
    filled: bool,
    /// What somebody else has changed since the kernel was last read.
    disturbance: Option<DisturbanceOf<D::L>>,
    /// What a start writes.
    written: Listed,
    measured: Option<Measured>,
    recorder: Option<Recorder>,
}

/// Objects, of which the first are named.
#[derive(Default)]
struct Listed {
    count: usize,
    first: Vec<String>,
}

impl Listed {
    fn of<K: Display>(keys: &[K]) -> Self {
        let mut listed = Self::default();
        listed.add(keys.iter());
        listed
    }

    fn add<K: Display>(&mut self, keys: impl ExactSizeIterator<Item = K>) {
        self.count += keys.len();
        self.first.extend(keys.take(DETAILED.saturating_sub(self.first.len())).map(|key| key.to_string()));
    }
}

impl<D: Dataplane> Programmed<D> {
    /// Nothing is read or written yet.
    pub fn new(name: impl Into<String>, dataplane: D, lowering: D::L) -> Self {
        Self {
            name: name.into(),
            dataplane,
            lowering,
            plan: None,
            reported: BTreeMap::new(),
            filled: false,
            disturbance: None,
            written: Listed::default(),
            measured: None,
            recorder: None,
        }
    }

    /// Everything of ours that the kernel holds. What was changed before is of no more interest.
    fn observe(&mut self) -> anyhow::Result<ObjectsOf<D::L>> {
        self.is_disturbed();
        self.disturbance = None;
        let observed = self.dataplane.observe().with_context(|| format!("{}: cannot be read back", self.name))?;
        if let Some(measured) = &mut self.measured {
            measured.holds(observed.keys().map(D::L::kind));
        }
        Ok(observed)
    }

    /// Brings the kernel in line for the first time, or after it is not known what it holds.
    fn start(&mut self, forwarding: &Forwarding, observed: ObjectsOf<D::L>) -> anyhow::Result<()> {
        let plan = self.plan.insert(Plan::new(self.lowering.clone(), observed, forwarding));
        let mut names: Vec<&ObjectName> = forwarding.services().collect();
        names.sort_unstable_by_key(|name| (rank(name), *name));
        let at_once = if plan.is_gradual() { AT_ONCE } else { usize::MAX };
        for names in names.chunks(at_once) {
            self.commit(|plan| plan.update(names.iter().copied(), forwarding))?;
        }
        self.commit(Plan::complete)
    }

    /// Changes the plan and carries out what is due.
    fn commit(&mut self, change: impl FnOnce(&mut Plan<D::L>)) -> anyhow::Result<()> {
        let Some(plan) = &mut self.plan else { return Ok(()) };
        change(plan);
        let steps = plan.due();
        for step in &steps {
            trace!(dataplane = %self.name, %step);
        }
        self.carry_out(&steps)
    }

    fn carry_out(&mut self, steps: &[StepOf<D::L>]) -> anyhow::Result<()> {
        let Some(plan) = &mut self.plan else { return Ok(()) };
        if steps.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        match self.dataplane.commit(steps) {
            Ok(refused) => {
                self.written.add(steps.iter().map(StepOf::<D::L>::key));
                // The benchmark harness reads this line.
                let took = start.elapsed();
                let micros = took.as_micros() as u64;
                debug!(dataplane = %self.name, steps = steps.len(), refused = refused.len(), micros, "committed");
                let keys = refused.keys().cloned().collect();
                plan.settle(steps, &keys);
                if let Some(measured) = &mut self.measured {
                    measured.committed(took);
                    let done = steps.iter().filter(|step| !keys.contains(step.key()));
                    done.for_each(|step| measured.did(step, D::L::kind(step.key())));
                }
                self.report(refused);
                Ok(())
            }
            Err(error) => {
                self.plan = None;
                Err(error.context(format!("{}: a change of {} objects failed as a whole", self.name, steps.len())))
            }
        }
    }

    /// What is left to do after a commit.
    fn round(&mut self, refused_before: usize) -> anyhow::Result<Round> {
        let Some(plan) = &mut self.plan else { return Ok(Round::default()) };
        let refused = plan.ledger().refused();
        self.reported.retain(|key, _| refused.contains(key));
        let refused = refused.len();
        if let Some(measured) = &self.measured {
            measured.refused(refused);
        }
        if refused_before > 0 && refused == 0 {
            info!(dataplane = %self.name, "all that the kernel refused is in place or no longer wanted");
        }
        if refused == 0 && !self.filled {
            self.dataplane.filled().with_context(|| self.name.clone())?;
            self.filled = true;
        }
        Ok(Round { refused, sweep: self.sweepable() })
    }

    fn sweepable(&mut self) -> Option<u64> {
        let ledger = self.plan.as_mut()?.ledger();
        ledger.has_lingering().then(|| ledger.round())
    }

    fn report(&mut self, refused: Refused<D::L>) {
        let Some(plan) = &mut self.plan else { return };
        let fresh: Vec<_> = refused.into_iter().filter(|(key, why)| self.reported.get(key) != Some(why)).collect();
        let detailed = DETAILED.saturating_sub(self.reported.len()).min(fresh.len());
        for (key, why) in &fresh[..detailed] {
            let owners = plan.owners_of(key);
            if let Some(recorder) = &self.recorder {
                let note = format!("{}: the kernel refuses {key}: {why}; it is tried again", self.name);
                owners.iter().for_each(|name| recorder.service(name, Severity::Warning, "ObjectRefused", note.clone()));
            }
            let owners: Vec<String> = owners.into_iter().map(ToString::to_string).collect();
            error!(dataplane = %self.name, object = %key, services = %owners.join(", "), "the kernel refuses it: {why}; it is tried again");
        }
        if fresh.len() > detailed {
            error!(dataplane = %self.name, "the kernel refuses {} more objects", fresh.len() - detailed);
        }
        self.reported.extend(fresh);
    }
}

/// What others wait for comes first: the API server, by which everything starts, and the cluster's own Services, such as DNS.
fn rank(name: &ObjectName) -> u8 {
    match (&*name.namespace, &*name.name) {
        ("default", "kubernetes") => 0,
        ("kube-system", _) => 1,
        _ => 2,
    }
}

impl<D: Dataplane> Programmer for Programmed<D> {
    fn name(&self) -> &str {
        &self.name
    }

    fn sync(&mut self, forwarding: &Forwarding, touched: &BTreeSet<ObjectName>, retry: bool) -> anyhow::Result<Round> {
        let refused_before = self.reported.len();
        if retry && refused_before > 0 {
            debug!(dataplane = %self.name, "trying again what the kernel refused");
        }
        match &mut self.plan {
            None => {
                let observed = self.observe()?;
                self.start(forwarding, observed)?;
            }
            Some(_) => self.commit(|plan| {
                plan.update(touched, forwarding);
                if retry {
                    plan.ledger().retry();
                }
            })?,
        }
        self.round(refused_before)
    }

    fn sweep(&mut self, round: u64) -> anyhow::Result<Option<u64>> {
        let Some(plan) = &mut self.plan else { return Ok(None) };
        let steps = plan.sweep(round);
        if !steps.is_empty() {
            debug!(dataplane = %self.name, objects = steps.len(), "deleting what went out of use");
            self.carry_out(&steps)?;
        }
        Ok(self.sweepable())
    }

    fn serves(&self, family: Family) -> bool {
        self.lowering.serves(family)
    }

    fn told_to(&mut self, telemetry: &Telemetry) {
        let measured = telemetry.metrics.dataplanes.measured(&self.name);
        for (kind, capacity) in self.dataplane.capacities() {
            measured.has_room(kind, capacity);
        }
        self.measured = Some(measured);
        self.recorder = Some(telemetry.recorder.clone());
    }

    fn refused_of(&self, name: &ObjectName) -> Vec<String> {
        if self.reported.is_empty() {
            return Vec::new();
        }
        let wanted = self.plan.iter().flat_map(|plan| plan.wanted_by(name)).map(|(key, _)| key);
        wanted.filter_map(|key| Some(format!("{}: {key}: {}", self.name, self.reported.get(&key)?))).collect()
    }

    fn is_filled(&self) -> bool {
        self.filled
    }

    fn is_disturbed(&mut self) -> bool {
        if let Some(later) = self.dataplane.disturbance() {
            match &mut self.disturbance {
                Some(disturbance) => disturbance.merge(later),
                None => self.disturbance = Some(later),
            }
        }
        self.disturbance.is_some()
    }

    fn verify(&mut self, forwarding: &Forwarding) -> anyhow::Result<Repair> {
        let Some(Disturbance { by, objects }) = self.is_disturbed().then(|| self.disturbance.take()).flatten() else {
            return Ok(Repair { objects: 0, round: self.round(self.reported.len())? });
        };
        let refused_before = self.reported.len();
        let broken = match (&mut self.plan, objects) {
            // That alone is believed: a commit puts right what has become of it since.
            (Some(plan), Some(objects)) => Listed::of(&plan.correct_some(objects)),
            _ => {
                let observed = self.observe()?;
                match &mut self.plan {
                    Some(plan) if !observed.is_empty() => Listed::of(&plan.correct(observed)),
                    // All is gone, or it was not known what there was: first things first.
                    _ => {
                        self.written = Listed::default();
                        self.start(forwarding, observed)?;
                        std::mem::take(&mut self.written)
                    }
                }
            }
        };
        self.commit(|_| ())?;
        let by = by.join(", ");
        if broken.count == 0 {
            debug!(dataplane = %self.name, by, "somebody else changed something, and nothing is broken");
        } else {
            let first = broken.first.join(", ");
            warn!(dataplane = %self.name, by, objects = broken.count, first, "somebody else changed what is programmed: it is repaired");
            if let Some(recorder) = &self.recorder {
                let note = format!("{}: {by} changed what is programmed: {} objects are repaired: {first}", self.name, broken.count);
                recorder.node(Severity::Warning, "RulesRepaired", note);
            }
        }
        Ok(Repair { objects: broken.count, round: self.round(refused_before)? })
    }
}
