//! What is measured, by stage. Only this file knows how the stages of core are called.

use std::collections::BTreeSet;
use std::hint::black_box;

use proxy_core::forward::Forwarding;
use proxy_core::input::{convert_endpoint_slice, convert_service, object};
use proxy_core::ledger::{Kinds, Ledger};
use proxy_core::lower::{Lowering, ObjectsOf, StepOf};
use proxy_core::model::{Change, ObjectName};
use proxy_core::plan::Plan;
use proxy_core::route::Route;
use proxy_core::slots::Slots;

/// What *select* makes of a change: a Service and what is routed for it.
pub(crate) type Selected = (ObjectName, Vec<Route>);
/// What *lower* makes of that: the objects that the Service had, and those that it gets.
pub(crate) type Lowered<L> = [Vec<(<L as Lowering>::Key, <L as Lowering>::Value)>; 2];

/// A Service as decoding gives it.
pub(crate) fn service_object(json: &str) -> object::Service {
    serde_json::from_str(json).expect("a Service")
}

/// An EndpointSlice as decoding gives it.
pub(crate) fn slice_object(json: &str) -> object::EndpointSlice {
    serde_json::from_str(json).expect("an EndpointSlice")
}

/// *convert*: a Service.
pub(crate) fn convert_one_service(object: &object::Service) -> Change {
    convert_service(object).change.expect("a change")
}

/// *convert*: an EndpointSlice.
pub(crate) fn convert_one_slice(object: &object::EndpointSlice) -> Change {
    convert_endpoint_slice(object, "node-007").change.expect("a change")
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
        Self { lowering, slots: Slots::new(L::IS_NUMBERED) }
    }

    pub(crate) fn lower(&mut self, (name, routes): &Selected) -> Lowered<L> {
        let former = self.slots.seat(name, routes.clone());
        [&former, self.slots.of(name)].map(|seats| {
            let mut objects = Vec::new();
            self.lowering.objects(name, seats, &mut objects);
            objects.sort_by(|(a, _), (b, _)| a.cmp(b));
            objects
        })
    }
}

/// *diff*, with what it remembers.
pub(crate) struct Diff<L: Lowering>(Ledger<L::Key, L::Value>);

impl<L: Lowering> Diff<L> {
    pub(crate) fn new() -> Self {
        Self(Ledger::new(ObjectsOf::<L>::new(), Kinds { lingers: L::lingers, is_shared: L::is_shared }))
    }

    pub(crate) fn want(&mut self, [before, after]: Lowered<L>) {
        self.0.exchange(before, after);
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
        Self(Plan::new(lowering, ObjectsOf::<L>::new(), &Forwarding::default()))
    }

    /// Takes the touched Services in and carries out what is to be done; returns the number of steps.
    pub(crate) fn update(&mut self, touched: &[ObjectName], forwarding: &Forwarding) -> usize {
        self.0.update(touched, forwarding);
        let steps = self.0.due();
        self.0.settle(&steps, &BTreeSet::new());
        carried_out::<L>(steps)
    }
}

fn carried_out<L: Lowering>(steps: Vec<StepOf<L>>) -> usize {
    black_box(steps).len()
}
