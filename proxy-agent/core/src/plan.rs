//! A lowering with its memory: what one dataplane has still to do.

use std::collections::BTreeSet;

use crate::forward::Forwarding;
use crate::ledger::Ledger;
use crate::lower::{Lowering, ObjectsOf, StepOf};
use crate::model::ObjectName;
use crate::slots::Slots;

/// What one dataplane should hold, what it is believed to hold, and the steps between the two.
#[derive(Debug)]
pub struct Plan<L: Lowering> {
    lowering: L,
    slots: Slots,
    ledger: Ledger<L::Key, L::Value>,
}

impl<L: Lowering> Plan<L> {
    /// Starts from what the kernel holds: nothing of it is in the way of what is wanted, and what is wanted already stays as it is.
    pub fn new(lowering: L, observed: ObjectsOf<L>) -> Self {
        let mut slots = Slots::default();
        slots.restore(L::seats(&observed));
        let mut ledger = Ledger::new(observed, L::lingers);
        // No Service has this name: the base belongs to none.
        ledger.want(&ObjectName::new("", ""), lowering.base());
        Self { lowering, slots, ledger }
    }

    /// Takes the routes of a Service in.
    pub fn update(&mut self, name: &ObjectName, forwarding: &Forwarding) {
        let objects = self.lowering.service(name, &forwarding.routes(name), &mut self.slots);
        self.ledger.want(name, objects);
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

    /// The ledger, for reports, retries and the round.
    pub fn ledger(&mut self) -> &mut Ledger<L::Key, L::Value> {
        &mut self.ledger
    }
}
