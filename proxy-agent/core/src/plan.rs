//! A lowering with its memory: what one dataplane has still to do.

use std::collections::{BTreeMap, BTreeSet};

use crate::forward::Forwarding;
use crate::ledger::{Kinds, Ledger, Objects};
use crate::lower::{Lowering, ObjectsOf, StepOf};
use crate::model::ObjectName;
use crate::route::Route;
use crate::slots::{Seat, Slots};

/// What one dataplane should hold, what it is believed to hold, and the steps between the two.
#[derive(Debug)]
pub struct Plan<L: Lowering> {
    lowering: L,
    slots: Slots,
    ledger: Ledger<L::Key, L::Value>,
    /// What is there whatever the Services, as of this epoch of the forwarding.
    base: ObjectsOf<L>,
    epoch: u64,
    gradual: bool,
}

impl<L: Lowering> Plan<L> {
    /// Starts from what the kernel holds: nothing of it is in the way of what is wanted, and what is wanted already stays as it is.
    /// Once all Services have been taken in, [`complete`](Self::complete) says so.
    pub fn new(lowering: L, observed: ObjectsOf<L>, forwarding: &Forwarding) -> Self {
        let mut slots = Slots::new(L::IS_NUMBERED);
        slots.restore(L::seats(&observed));
        let base = lowering.base(forwarding.surroundings());
        let gradual = base.iter().all(|(key, value)| observed.get(key).is_none_or(|found| found == value));
        let mut ledger = Ledger::new(observed, Kinds { lingers: L::lingers, is_shared: L::is_shared });
        ledger.exchange(Vec::new(), listed(&base));
        Self { lowering, slots, ledger, base, epoch: forwarding.epoch(), gradual }
    }

    /// Whether the Services may be taken in and committed some at a time. If not, their objects hang on a base that takes what is
    /// there away with it: only all at once has every packet meet the old or the new.
    pub fn is_gradual(&self) -> bool {
        self.gradual
    }

    /// Takes the routes of Services in, and what is around them. What passes from one Service to another does so within one call.
    pub fn update<'a>(&mut self, names: impl IntoIterator<Item = &'a ObjectName>, forwarding: &Forwarding) {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        if self.epoch != forwarding.epoch() {
            let base = self.lowering.base(forwarding.surroundings());
            before = listed(&self.base);
            after = listed(&base);
            (self.base, self.epoch) = (base, forwarding.epoch());
        }
        for name in names {
            let former = self.slots.seat(name, self.routes(name, forwarding));
            // What became of an endpoint that was not usable and is not now changes nothing.
            if *former != *self.slots.of(name) {
                self.objects(name, &former, &mut before);
                self.objects(name, self.slots.of(name), &mut after);
            }
        }
        before.sort_by(|(a, _), (b, _)| a.cmp(b));
        after.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.ledger.exchange(before, after);
    }

    /// The routes as far as the lowering has them.
    fn routes(&self, name: &ObjectName, forwarding: &Forwarding) -> Vec<Route> {
        let mut routes = forwarding.routes(name);
        routes.retain(|route| self.lowering.serves(route.key.family));
        if !self.lowering.is_sticky() {
            routes.iter_mut().for_each(|route| route.affinity = None);
        }
        routes
    }

    /// Adds the objects of a Service, each key once.
    fn objects(&self, name: &ObjectName, seats: &[Seat], out: &mut Vec<(L::Key, L::Value)>) {
        let mut objects = Vec::new();
        self.lowering.objects(name, seats, &mut objects);
        objects.sort_by(|(a, _), (b, _)| a.cmp(b));
        objects.dedup_by(|(a, _), (b, _)| a == b);
        out.append(&mut objects);
    }

    /// All Services have been taken in: what was observed and none of them wants may go.
    pub fn complete(&mut self) {
        self.ledger.disown();
    }

    /// What is to be done now, in an order in which every prefix is safe.
    pub fn due(&mut self) -> Vec<StepOf<L>> {
        let mut steps = self.ledger.due();
        L::order(&mut steps);
        steps
    }

    /// The deletions that waited since before `round`, in order.
    pub fn sweep(&mut self, round: u64) -> Vec<StepOf<L>> {
        let mut steps = self.ledger.sweep(round);
        L::order(&mut steps);
        steps
    }

    /// Learns what became of steps: all are done but those whose keys are in `refused`.
    pub fn settle(&mut self, steps: &[StepOf<L>], refused: &BTreeSet<L::Key>) {
        self.ledger.settle(steps, refused);
    }

    /// Compares what the kernel holds with what it was believed to hold, by a walk over all. Returns the keys of what somebody else
    /// has changed; its repair is due next.
    pub fn correct(&mut self, mut observed: ObjectsOf<L>) -> Vec<L::Key> {
        let mut changed = Vec::new();
        for (key, believed) in self.believed() {
            let held = observed.remove(&key);
            if held.as_ref() != Some(&believed) {
                changed.push(key.clone());
                self.ledger.correct(key, Some(believed), held);
            }
        }
        for (key, held) in observed {
            changed.push(key.clone());
            self.ledger.correct(key, None, Some(held));
        }
        changed
    }

    /// The same for some keys, with what the kernel holds under each.
    pub fn correct_some(&mut self, held: BTreeMap<L::Key, Option<L::Value>>) -> Vec<L::Key> {
        let mut desired: ObjectsOf<L> = self.base.clone().into_iter().filter(|(key, _)| held.contains_key(key)).collect();
        let mut objects = Vec::new();
        for (name, seats) in self.slots.iter() {
            self.lowering.objects(name, seats, &mut objects);
            desired.extend(objects.drain(..).filter(|(key, _)| held.contains_key(key)));
        }
        let mut believed = self.ledger.believed(desired);
        let mut changed = Vec::new();
        for (key, held) in held {
            let believed = believed.remove(&key);
            if believed != held {
                changed.push(key.clone());
                self.ledger.correct(key, believed, held);
            }
        }
        changed
    }

    /// The ledger, for reports, retries and the round.
    pub fn ledger(&mut self) -> &mut Ledger<L::Key, L::Value> {
        &mut self.ledger
    }

    /// The objects that a Service wants, sorted.
    pub fn wanted_by(&self, name: &ObjectName) -> Vec<(L::Key, L::Value)> {
        let mut objects = Vec::new();
        self.objects(name, self.slots.of(name), &mut objects);
        objects
    }

    /// The Services that want a key, by a walk over all: for reports.
    pub fn owners_of(&self, key: &L::Key) -> Vec<&ObjectName> {
        let wants = |name: &&ObjectName| self.wanted_by(name).binary_search_by(|(k, _)| k.cmp(key)).is_ok();
        self.slots.iter().map(|(name, _)| name).filter(wants).collect()
    }

    /// Everything that is wanted, by a walk over all.
    pub fn desired(&self) -> ObjectsOf<L> {
        let mut objects = listed(&self.base);
        for (name, seats) in self.slots.iter() {
            self.lowering.objects(name, seats, &mut objects);
        }
        objects.into_iter().collect()
    }

    /// Everything that the kernel is believed to hold, by a walk over all.
    pub fn believed(&self) -> ObjectsOf<L> {
        self.ledger.believed(self.desired())
    }
}

fn listed<K: Clone + Ord, V: Clone>(objects: &Objects<K, V>) -> Vec<(K, V)> {
    objects.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}
