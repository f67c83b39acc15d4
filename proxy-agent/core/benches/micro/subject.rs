//! What is measured, by stage. Only this file knows how the stages of core are called.

use std::collections::BTreeSet;
use std::hint::black_box;

use proxy_core::forward::{Forwarding, Route};
use proxy_core::input::{convert_endpoint_slice, convert_service};
use proxy_core::ledger::Ledger;
use proxy_core::lower::{Lowering, ObjectsOf, StepOf};
use proxy_core::model::{Change, Frontend, ObjectName};
use proxy_core::plan::Plan;
use proxy_core::slots::Slots;

/// What *select* makes of a change: a Service and what is routed for it.
pub(crate) type Selected = (ObjectName, Vec<(Frontend, Route)>);
/// What *lower* makes of that.
pub(crate) type Lowered<L> = (ObjectName, ObjectsOf<L>);

/// *convert*: a Service as it was sent.
pub(crate) fn convert_service_json(json: &str) -> Change {
    let object = serde_json::from_slice(json.as_bytes()).expect("a Service");
    convert_service(&object).change.expect("a change")
}

/// *convert*: an EndpointSlice as it was sent.
pub(crate) fn convert_slice_json(json: &str) -> Change {
    let object = serde_json::from_slice(json.as_bytes()).expect("an EndpointSlice");
    convert_endpoint_slice(&object).change.expect("a change")
}

/// *select*: the Services that changed, with their routes.
pub(crate) fn select(forwarding: &mut Forwarding, mut take: impl FnMut(Selected)) {
    for name in forwarding.take_touched() {
        take(routes(forwarding, &name));
    }
}

/// What is routed for a Service.
pub(crate) fn routes(forwarding: &Forwarding, name: &ObjectName) -> Selected {
    (name.clone(), forwarding.routes(name))
}

/// *lower*, with what it remembers.
pub(crate) struct Lower<L> {
    lowering: L,
    slots: Slots,
}

impl<L: Lowering> Lower<L> {
    pub(crate) fn new(lowering: L) -> Self {
        Self { lowering, slots: Slots::default() }
    }

    pub(crate) fn lower(&mut self, (name, routes): &Selected) -> Lowered<L> {
        (name.clone(), self.lowering.service(name, routes, &mut self.slots))
    }
}

/// *diff*, with what it remembers.
pub(crate) struct Diff<L: Lowering>(Ledger<L::Key, L::Value>);

impl<L: Lowering> Diff<L> {
    pub(crate) fn new() -> Self {
        Self(Ledger::new(ObjectsOf::<L>::new(), L::lingers))
    }

    pub(crate) fn want(&mut self, (name, objects): Lowered<L>) {
        self.0.want(&name, objects);
    }

    /// Carries out what is to be done; returns the number of steps.
    pub(crate) fn finish(&mut self) -> usize {
        let mut steps = self.0.due();
        L::order(&mut steps);
        self.0.settle(&steps, &BTreeSet::new());
        carried_out::<L>(steps)
    }
}

/// All that one dataplane's plan does: routes, lower and diff.
pub(crate) struct Whole<L: Lowering>(Plan<L>);

impl<L: Lowering> Whole<L> {
    pub(crate) fn new(lowering: L) -> Self {
        Self(Plan::new(lowering, ObjectsOf::<L>::new()))
    }

    /// Takes the touched Services in and carries out what is to be done; returns the number of steps.
    pub(crate) fn update(&mut self, touched: &[ObjectName], forwarding: &Forwarding) -> usize {
        for name in touched {
            self.0.update(name, forwarding);
        }
        let steps = self.0.due();
        self.0.settle(&steps, &BTreeSet::new());
        carried_out::<L>(steps)
    }
}

fn carried_out<L: Lowering>(steps: Vec<StepOf<L>>) -> usize {
    black_box(steps).len()
}
