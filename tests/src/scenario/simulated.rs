//! Executors without a kernel: the model alone, and each lowering on objects that stand for the kernel's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_core::forward::{Flow, Forwarding, Verdict};
use proxy_core::lower::bpf::Bpf;
use proxy_core::lower::nft::Nft;
use proxy_core::lower::{Lowering, ObjectsOf};
use proxy_core::model::{Change, Family, ObjectName};
use proxy_core::plan::Plan;
use proxy_core::view::ServiceView;

use super::object::NODE;
use super::run::Probe;
use super::{AddressChange, Executor, Host, Manifest, ObjectKind, Observed, Seen};

/// The objects of a cluster and what an agent makes of them. Serves as an executor: the model, which every dataplane is held to.
#[derive(Default)]
pub struct Model {
    /// What the API server has: nothing but its name where the agent does not look at it.
    objects: BTreeMap<(ObjectKind, ObjectName), Option<Change>>,
    /// What the agent knows, or knew when it ended.
    forwarding: Forwarding,
    stopped: bool,
}

impl Model {
    /// What is or was known last.
    pub fn forwarding(&self) -> &Forwarding {
        &self.forwarding
    }

    fn learn(&mut self, change: Option<Change>) {
        if let Some(change) = change.filter(|_| !self.stopped) {
            self.forwarding.apply(change);
        }
    }
}

impl Executor for Model {
    fn apply(&mut self, manifests: &[Manifest]) -> Result<()> {
        for manifest in manifests {
            // One without a name cannot exist; whoever reads it from a file leaves it out.
            let Some(name) = manifest.object.name() else { continue };
            let change = manifest.object.change();
            if manifest.object.kind().core().is_none() || change.is_some() {
                self.objects.insert((manifest.object.kind(), name), change.clone());
                self.learn(change);
            }
        }
        Ok(())
    }

    fn delete(&mut self, objects: &[(ObjectKind, ObjectName)]) -> Result<()> {
        for (kind, name) in objects {
            ensure!(self.objects.remove(&(*kind, name.clone())).is_some(), "there is no {kind} {name} to delete");
            self.learn(match kind {
                ObjectKind::Service => Some(Change::Service(name.clone(), None)),
                ObjectKind::Slice => Some(Change::Slice(name.clone(), None)),
                ObjectKind::Node | ObjectKind::ServiceCidr => None,
            });
        }
        Ok(())
    }

    fn address(&mut self, _: &[AddressChange]) -> Result<()> {
        Ok(())
    }

    fn wait(&mut self, _: Duration) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self, _: bool) -> Result<()> {
        ensure!(!self.stopped, "the agent does not run");
        self.stopped = true;
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        ensure!(self.stopped, "the agent runs already");
        self.stopped = false;
        self.forwarding = Forwarding::default();
        for change in self.objects.values().flatten() {
            self.forwarding.apply(change.clone());
        }
        Ok(())
    }

    fn observe(&mut self, probes: &[Probe]) -> Result<Vec<Observed>> {
        let one = |(source, expectation): &Probe| {
            expectation.flow(*source).map_or_else(no_ports, |flow| observed(self.forwarding.decide(&flow), *source))
        };
        Ok(probes.iter().map(one).collect())
    }

    fn state(&mut self) -> String {
        format!("served:\n{}", listing(&self.forwarding.view()))
    }
}

/// The source is kept and the choice is even by the meaning of a verdict.
fn observed(verdict: Verdict, source: Host) -> Observed {
    match verdict {
        Verdict::Untouched => Observed::Untouched,
        Verdict::Rejected => Observed::Refused,
        Verdict::Backends(backends) => {
            let seen = if source.name == NODE { Seen::OwnNode } else { Seen::Own };
            Observed::Backends { backends, evenly: true, sticky: false, seen }
        }
    }
}

fn no_ports() -> Observed {
    Observed::Other("a verdict is about flows with ports".into())
}

fn listing(view: &[ServiceView]) -> String {
    let list = |addresses: &[proxy_core::model::Address]| addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    let line = |v: &ServiceView| {
        let ServiceView { namespace, service, port, protocol, frontends, backends } = v;
        format!("  {namespace}/{service}:{port}/{protocol} {} => {}\n", list(frontends), list(backends))
    };
    view.iter().map(line).collect()
}

/// A lowering that a kernel is simulated for.
pub trait Simulated: Lowering + Copy + 'static {
    /// The mechanism's name.
    const NAME: &'static str;
    /// Its instances.
    const INSTANCES: &'static [Self];
}

impl Simulated for Bpf {
    const NAME: &'static str = "bpf";
    const INSTANCES: &'static [Self] = &[Bpf];
}

impl Simulated for Nft {
    const NAME: &'static str = "nft";
    const INSTANCES: &'static [Self] = &[Nft { family: Family::V4 }, Nft { family: Family::V6 }];
}

/// An agent that programs one mechanism, on a simulated kernel as strict as the real one.
pub struct Lowered<L: Lowering> {
    model: Model,
    tables: Vec<Table<L>>,
}

struct Table<L: Lowering> {
    lowering: L,
    plan: Plan<L>,
    kernel: ObjectsOf<L>,
}

impl<L: Simulated> Default for Lowered<L> {
    fn default() -> Self {
        let table =
            |lowering: &L| Table { lowering: *lowering, plan: Plan::new(*lowering, ObjectsOf::<L>::new()), kernel: ObjectsOf::<L>::new() };
        Self { model: Model::default(), tables: L::INSTANCES.iter().map(table).collect() }
    }
}

impl<L: Simulated> Lowered<L> {
    /// Programs what is new, and checks on the way what holds after every change.
    fn program(&mut self) -> Result<()> {
        if self.model.stopped {
            return Ok(());
        }
        let touched = self.model.forwarding.take_touched();
        for table in &mut self.tables {
            table.program(&touched, &self.model.forwarding).context(L::NAME)?;
        }
        Ok(())
    }

    /// Everything that the kernel holds, in order, by instance; instances that hold nothing but their base are left out.
    pub fn objects(&self) -> String {
        let mut text = String::new();
        for table in self.tables.iter().filter(|table| table.kernel != table.lowering.base()) {
            if self.tables.len() > 1 {
                let _ = writeln!(text, "{:?}", table.lowering);
            }
            let _ = table.kernel.iter().try_for_each(|(key, value)| writeln!(text, "  {key} = {value}"));
        }
        text
    }

    fn table(&self, flow: &Flow) -> Option<&Table<L>> {
        self.tables.iter().find(|table| table.lowering.serves(Family::of(flow.destination.ip())))
    }
}

impl<L: Simulated> Table<L> {
    fn program(&mut self, touched: &BTreeSet<ObjectName>, forwarding: &Forwarding) -> Result<()> {
        self.plan.update(touched, forwarding);
        self.plan.complete();
        let steps = self.plan.due();
        self.carry_out(&steps)?;
        let round = self.plan.ledger().round();
        let steps = self.plan.sweep(round);
        self.carry_out(&steps)?;
        ensure!(self.kernel == self.plan.desired(), "the kernel holds something else than is wanted");
        ensure!(self.plan.due().is_empty(), "a second commit has something to do");
        let view: Vec<ServiceView> = forwarding.view();
        let mine = |view: &ServiceView| view.frontends.iter().any(|frontend| self.lowering.serves(Family::of(frontend.ip)));
        let view: Vec<ServiceView> = view.into_iter().filter(mine).collect();
        ensure!(
            L::view(&self.kernel) == view,
            "what is programmed reads\n{}instead of\n{}",
            listing(&L::view(&self.kernel)),
            listing(&view)
        );
        Ok(())
    }

    fn carry_out(&mut self, steps: &[proxy_core::lower::StepOf<L>]) -> Result<()> {
        for step in steps {
            ensure!(step.apply(&mut self.kernel), "the kernel refuses {step}");
        }
        self.plan.settle(steps, &BTreeSet::new());
        Ok(())
    }
}

impl<L: Simulated> Executor for Lowered<L> {
    fn apply(&mut self, manifests: &[Manifest]) -> Result<()> {
        self.model.apply(manifests).and_then(|()| self.program())
    }

    fn delete(&mut self, objects: &[(ObjectKind, ObjectName)]) -> Result<()> {
        self.model.delete(objects).and_then(|()| self.program())
    }

    fn address(&mut self, changes: &[AddressChange]) -> Result<()> {
        self.model.address(changes).and_then(|()| self.program())
    }

    fn wait(&mut self, duration: Duration) -> Result<()> {
        self.model.wait(duration)
    }

    fn stop(&mut self, killed: bool) -> Result<()> {
        self.model.stop(killed)
    }

    fn start(&mut self) -> Result<()> {
        self.model.start()?;
        for table in &mut self.tables {
            table.plan = Plan::new(table.lowering, table.kernel.clone());
        }
        self.program()
    }

    fn observe(&mut self, probes: &[Probe]) -> Result<Vec<Observed>> {
        let one = |(source, expectation): &Probe| {
            let Some(flow) = expectation.flow(*source) else { return no_ports() };
            self.table(&flow).map_or(Observed::Untouched, |table| observed(L::decide(&table.kernel, &flow), *source))
        };
        Ok(probes.iter().map(one).collect())
    }

    fn state(&mut self) -> String {
        let programmed: Vec<ServiceView> = self.tables.iter().flat_map(|table| L::view(&table.kernel)).collect();
        format!("{}programmed:\n{}objects:\n{}", self.model.state(), listing(&programmed), self.objects())
    }
}
