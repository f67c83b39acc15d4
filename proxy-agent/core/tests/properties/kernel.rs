//! A simulated kernel, and an agent that programs it through a [`Plan`].

use std::collections::BTreeSet;

use proxy_core::forward::{Flow, Forwarding, Verdict};
use proxy_core::ledger::{Objects, Step};
use proxy_core::lower::bpf::Bpf;
use proxy_core::lower::nft::Nft;
use proxy_core::lower::{Lowering, ObjectsOf, StepOf};
use proxy_core::model::{Change, Family, ObjectName};
use proxy_core::plan::Plan;
use proxy_core::settings::Settings;

use super::world::Event;

/// Objects that take steps as the kernel does: what is there cannot be added, what is not there cannot be altered or deleted.
pub(crate) struct Kernel<L: Lowering>(pub(crate) ObjectsOf<L>);

impl<L: Lowering> Kernel<L> {
    pub(crate) fn apply(&mut self, step: &StepOf<L>) {
        assert!(step.apply(&mut self.0), "the kernel holds something else than the step says: {step}");
    }
}

/// What the tests ask of a lowering beside its trait: its instances.
pub(crate) trait Subject: Lowering + 'static {
    fn all(settings: &Settings) -> Vec<Self>;

    /// Whether what is left untouched may be served by another.
    const IS_WHOLE: bool;

    /// Whether a flow is one that can only be served by another.
    fn leaves(_: &Flow) -> bool {
        false
    }
}

impl Subject for Bpf {
    fn all(settings: &Settings) -> Vec<Self> {
        vec![Bpf::new(settings)]
    }

    const IS_WHOLE: bool = false;
}

impl Subject for Nft {
    fn all(settings: &Settings) -> Vec<Self> {
        Family::ALL.map(|family| Nft::new(family, settings)).into()
    }

    const IS_WHOLE: bool = true;

    /// Sockets serve ::1.
    fn leaves(flow: &Flow) -> bool {
        flow.destination.ip() == Family::V6.loopback()
    }
}

/// The model, a plan that follows it, and the kernel that is programmed.
pub(crate) struct Agent<L: Lowering> {
    lowering: L,
    pub(crate) forwarding: Forwarding,
    pub(crate) plan: Plan<L>,
    pub(crate) kernel: Kernel<L>,
}

impl<L: Subject> Agent<L> {
    pub(crate) fn new(lowering: L, settings: &Settings) -> Self {
        Self::start(lowering, Forwarding::new(settings.clone()), ObjectsOf::<L>::new())
    }

    /// Starts on what a kernel holds, with a complete list.
    pub(crate) fn start(lowering: L, forwarding: Forwarding, observed: ObjectsOf<L>) -> Self {
        let mut agent = Self::starting(lowering, forwarding, observed);
        agent.update();
        agent.plan.complete();
        agent
    }

    /// The same before anything of the list is taken in.
    pub(crate) fn starting(lowering: L, forwarding: Forwarding, observed: ObjectsOf<L>) -> Self {
        let plan = Plan::new(lowering.clone(), observed.clone(), &forwarding);
        Self { lowering, forwarding, plan, kernel: Kernel(observed) }
    }

    /// Hands what was touched to the plan.
    pub(crate) fn update(&mut self) -> BTreeSet<ObjectName> {
        let touched = self.forwarding.take_touched();
        self.plan.update(&touched, &self.forwarding);
        touched
    }

    pub(crate) fn change(&mut self, change: Change) {
        self.forwarding.apply(change);
        self.update();
    }

    pub(crate) fn event(&mut self, event: Event) {
        match event {
            Event::Change(change) => self.change(change),
            Event::Commit => drop(self.commit()),
            Event::Sweep => self.finish(),
        }
    }

    /// Commits what is due, all of it accepted.
    pub(crate) fn commit(&mut self) -> Vec<StepOf<L>> {
        let steps = self.plan.due();
        self.commit_steps(&steps);
        steps
    }

    fn commit_steps(&mut self, steps: &[StepOf<L>]) {
        for step in steps {
            self.kernel.apply(step);
        }
        self.plan.settle(steps, &BTreeSet::new());
    }

    /// Deletes what lingers since before the round that ended last.
    pub(crate) fn sweep(&mut self) -> Vec<StepOf<L>> {
        let round = self.plan.ledger().round();
        let steps = self.plan.sweep(round);
        let desired = self.plan.desired();
        for step in &steps {
            assert!(matches!(step, Step::Delete(..)), "a sweep only deletes: {step}");
            assert!(!desired.contains_key(step.key()), "wanted: {step}");
        }
        self.commit_steps(&steps);
        steps
    }

    /// Commits and sweeps.
    pub(crate) fn finish(&mut self) {
        self.commit();
        self.sweep();
    }

    /// The flows that this lowering is there for.
    pub(crate) fn mine<'a>(&self, flows: &'a [Flow]) -> Vec<&'a Flow> {
        flows.iter().filter(|flow| self.lowering.serves(flow.family())).collect()
    }

    /// Fails unless `objects` decide as the model does.
    pub(crate) fn check(&self, objects: &ObjectsOf<L>, flows: &[Flow], what: &str) {
        for flow in self.mine(flows) {
            let (verdict, wanted) = (self.lowering.decide(objects, flow), self.forwarding.decide(flow));
            let wanted = if L::leaves(flow) { Verdict::Untouched } else { wanted };
            let left = !L::IS_WHOLE && verdict == Verdict::Untouched;
            assert!(left || verdict.agrees(&wanted), "{what}: {flow:?}: {verdict:?}, not {wanted:?}\n{}", listing(objects));
        }
        assert_eq!(L::view(objects), self.forwarding.view(&self.lowering), "{what}");
    }

    pub(crate) fn decide(&self, flow: &Flow) -> Verdict {
        self.lowering.decide(&self.kernel.0, flow)
    }
}

fn listing<K: std::fmt::Display, V: std::fmt::Display>(objects: &Objects<K, V>) -> String {
    objects.iter().map(|(key, value)| format!("{key} = {value}\n")).collect()
}
