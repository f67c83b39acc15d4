//! A dataplane with its plan: brings the kernel to what is wanted, remembers what it refused, and starts over where nothing is
//! known.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::Context;
use proxy_core::forward::Forwarding;
use proxy_core::lower::StepOf;
use proxy_core::model::ObjectName;
use proxy_core::plan::Plan;
use tracing::{debug, error, info, trace};

use crate::dataplane::{Dataplane, Refused};

/// So many Services are taken in and committed at once at the start: what is on its way to the kernel takes memory, and the first
/// ones need not wait for the last.
const AT_ONCE: usize = 1024;

/// What a round left to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Round {
    /// Objects that the kernel refused and that are still wanted.
    pub refused: usize,
    /// What went out of use before this round may be swept once packets on their way have passed.
    pub sweep: Option<u64>,
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
}

/// A dataplane with its plan; without one where what the kernel holds is not known.
pub struct Programmed<D: Dataplane> {
    name: String,
    dataplane: D,
    lowering: fn() -> D::L,
    plan: Option<Plan<D::L>>,
    /// The reasons that were reported, so that each is reported once.
    reported: Refused<D::L>,
    /// Everything that is wanted has been in place.
    filled: bool,
}

impl<D: Dataplane> Programmed<D> {
    /// Nothing is read or written yet.
    pub fn new(name: impl Into<String>, dataplane: D, lowering: fn() -> D::L) -> Self {
        Self { name: name.into(), dataplane, lowering, plan: None, reported: BTreeMap::new(), filled: false }
    }

    /// Brings the kernel in line for the first time, or after it is not known what it holds.
    fn start(&mut self, forwarding: &Forwarding) -> anyhow::Result<()> {
        let observed = self.dataplane.observe().with_context(|| format!("{}: cannot be read back", self.name))?;
        let plan = self.plan.insert(Plan::new((self.lowering)(), observed));
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
                // The benchmark harness reads this line.
                let micros = start.elapsed().as_micros() as u64;
                debug!(dataplane = %self.name, steps = steps.len(), refused = refused.len(), micros, "committed");
                let keys = refused.keys().cloned().collect();
                plan.settle(steps, &keys);
                self.report(refused);
                Ok(())
            }
            Err(error) => {
                self.plan = None;
                Err(error.context(format!("{}: a change of {} objects failed as a whole", self.name, steps.len())))
            }
        }
    }

    fn sweepable(&mut self) -> Option<u64> {
        let ledger = self.plan.as_mut()?.ledger();
        ledger.has_lingering().then(|| ledger.round())
    }

    fn report(&mut self, refused: Refused<D::L>) {
        let Some(plan) = &mut self.plan else { return };
        // Each owner costs a walk over all: a full map must not turn into hours of reporting.
        const DETAILED: usize = 10;
        let fresh: Vec<_> = refused.into_iter().filter(|(key, why)| self.reported.get(key) != Some(why)).collect();
        let detailed = DETAILED.saturating_sub(self.reported.len()).min(fresh.len());
        for (key, why) in &fresh[..detailed] {
            let owners: Vec<String> = plan.owners_of(key).into_iter().map(ToString::to_string).collect();
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
            None => self.start(forwarding)?,
            Some(_) => self.commit(|plan| {
                plan.update(touched, forwarding);
                if retry {
                    plan.ledger().retry();
                }
            })?,
        }
        let Some(plan) = &mut self.plan else { return Ok(Round::default()) };
        let refused = plan.ledger().refused();
        self.reported.retain(|key, _| refused.contains(key));
        let refused = refused.len();
        if refused_before > 0 && refused == 0 {
            info!(dataplane = %self.name, "all that the kernel refused is in place or no longer wanted");
        }
        if refused == 0 && !self.filled {
            self.dataplane.filled().with_context(|| self.name.clone())?;
            self.filled = true;
        }
        Ok(Round { refused, sweep: self.sweepable() })
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
}
