//! Executors without a kernel: the model alone, and each lowering on objects that stand for the kernel's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use proxy_core::forward::{Flow, Forwarding, SourceSeen, Verdict};
use proxy_core::lower::bpf::Bpf;
use proxy_core::lower::nft::{self, Nft};
use proxy_core::lower::{Lowering, ObjectsOf};
use proxy_core::model::{Change, Family, ObjectName};
use proxy_core::plan::Plan;
use proxy_core::settings::Settings;
use proxy_core::view::{AroundView, ServiceView};
use serde_json::{Value, json};

use super::flows::Flows;
use super::object::{self, NODE};
use super::run::Probe;
use super::{AddressChange, Config, Executor, Host, Manifest, ObjectKind, Observed, Seen, Tested};
use crate::agent::Mode;

/// The objects of a cluster and what an agent makes of them. Serves as an executor: the model, which every dataplane is held to.
pub struct Model {
    /// What the API server has: nothing but its name where the agent does not look at it.
    objects: BTreeMap<(ObjectKind, ObjectName), Option<Change>>,
    /// The addresses of node1.
    host: Vec<IpAddr>,
    settings: Settings,
    /// What the agent knows, or knew when it ended.
    forwarding: Forwarding,
    stopped: bool,
    flows: Flows,
}

impl Model {
    /// Knows what every scenario begins with.
    pub fn new(config: &Config) -> Result<Self> {
        let settings = config.settings(NODE)?;
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let node = Host::ALL.into_iter().filter(|host| host.name == NODE);
        let host = node.flat_map(|node| Family::ALL.map(|family| node.address(family))).chain(loopback).collect();
        let forwarding = Forwarding::new(settings.clone());
        let flows = Flows::default();
        let mut model = Self { objects: BTreeMap::new(), host, settings, forwarding, stopped: false, flows };
        model.forwarding.apply(Change::HostAddresses(model.host.clone().into()));
        model.apply(&object::defaults())?;
        Ok(model)
    }

    /// What is or was known last.
    pub fn forwarding(&self) -> &Forwarding {
        &self.forwarding
    }

    /// What an agent of a mode should have programmed, in the form of [`Agent::dataplanes`](crate::agent::Agent::dataplanes).
    pub fn dataplanes(&self, mode: Mode) -> Result<Value> {
        let (mut packets, mut around) = (Vec::new(), AroundView::default());
        for (_, nft) in Nft::all(&self.settings) {
            packets.extend(self.forwarding.view(&nft));
            around.extend(nft::around(&nft.base(self.forwarding.surroundings())));
        }
        packets.sort();
        let mut dataplanes = vec![json!({"mode": "nftables", "services": packets, "around": around})];
        if mode == Mode::Ebpf {
            dataplanes.insert(0, json!({"mode": "ebpf", "services": self.forwarding.view(&Bpf::new(&self.settings))}));
        }
        Ok(serde_json::to_value(dataplanes)?)
    }

    /// Whether eBPF translates at the sender's socket: that of a process on node1, where programs serve the destination.
    pub fn is_by_socket(&self, (from, expectation): &Probe) -> bool {
        let (to, protocol) = (expectation.destination, expectation.protocol.map(|protocol| protocol.to_string()));
        let views = self.forwarding.view(&Bpf::new(&self.settings));
        let served = |view: &ServiceView| view.view.frontends.iter().any(|f| f.ip == to.ip() && f.port == to.port());
        matches!(from.name, NODE | "a1" | "b1") && views.iter().any(|view| Some(&view.protocol) == protocol.as_ref() && served(view))
    }

    fn learn(&mut self, change: Option<Change>) {
        if let Some(change) = change.filter(|_| !self.stopped) {
            if let Change::Service(name, _) = &change {
                self.flows.services.insert(name.clone());
            }
            self.forwarding.apply(change);
        }
    }

    fn flow(&self, (source, expectation): &Probe) -> Flow {
        expectation.flow(*source, &self.host)
    }
}

impl Executor for Model {
    fn apply(&mut self, manifests: &[Manifest]) -> Result<()> {
        for manifest in manifests {
            // One without a name cannot exist; whoever reads it from a file leaves it out.
            let Some(name) = manifest.object.name() else { continue };
            let change = manifest.object.change();
            self.objects.insert((manifest.object.kind(), name), change.clone());
            self.learn(change);
        }
        Ok(())
    }

    fn delete(&mut self, objects: &[(ObjectKind, ObjectName)]) -> Result<()> {
        for (kind, name) in objects {
            ensure!(self.objects.remove(&(*kind, name.clone())).is_some(), "there is no {kind} {name} to delete");
            self.learn(kind.removal(name));
        }
        Ok(())
    }

    fn address(&mut self, changes: &[AddressChange]) -> Result<()> {
        for AddressChange { ip, added } in changes {
            self.host.retain(|known| known != ip);
            self.host.extend(added.then_some(*ip));
        }
        self.learn(Some(Change::HostAddresses(self.host.clone().into())));
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
        self.forwarding = Forwarding::new(self.settings.clone());
        self.forwarding.apply(Change::HostAddresses(self.host.clone().into()));
        for change in self.objects.values().flatten() {
            self.forwarding.apply(change.clone());
        }
        self.flows.restart();
        Ok(())
    }

    fn observe(&mut self, probes: &[Probe]) -> Result<Vec<Observed>> {
        if !self.stopped {
            self.flows.follow(&self.forwarding);
        }
        let mut observe = |probe: &Probe| {
            let decide = || observed(self.forwarding.decide(&probe.1.flow(probe.0, &self.host)), probe.0);
            if probe.1.source_port.is_some() { self.flows.observe(probe, decide) } else { decide() }
        };
        Ok(probes.iter().map(&mut observe).collect())
    }

    fn state(&mut self) -> String {
        Family::ALL
            .map(|family| format!("{family} served:\n{}", listing(&self.forwarding.view(&Nft::new(family, &self.settings)))))
            .concat()
    }
}

/// The choice is even by the meaning of a verdict.
fn observed(verdict: Verdict, from: Host) -> Observed {
    match verdict {
        Verdict::Untouched => Observed::Untouched,
        Verdict::Rejected => Observed::Refused,
        Verdict::Dropped => Observed::Dropped,
        Verdict::Backends { backends, source, is_sticky } => {
            let seen = match source {
                _ if from.name == NODE => Seen::OwnNode,
                SourceSeen::Kept => Seen::Own,
                SourceSeen::Masqueraded => Seen::Node,
                // Whatever is expected of it.
                SourceSeen::Either => Seen::OwnNode,
            };
            Observed::Backends { backends, evenly: true, sticky: is_sticky, seen }
        }
    }
}

fn listing(view: &[ServiceView]) -> String {
    let line = |v: &ServiceView| serde_json::to_string(v).map_or_else(|error| error.to_string(), |text| format!("  {text}\n"));
    view.iter().map(line).collect()
}

/// A lowering that a kernel is simulated for.
pub trait Simulated: Lowering + 'static {
    /// The mechanism's name.
    const NAME: &'static str;
    /// Whether all is served. If not, what it leaves untouched is for another mechanism beside it.
    const IS_WHOLE: bool;
    /// Its instances, with their names.
    fn all(settings: &Settings) -> Vec<(String, Self)>;
}

impl Simulated for Bpf {
    const NAME: &'static str = "bpf";
    const IS_WHOLE: bool = false;

    fn all(settings: &Settings) -> Vec<(String, Self)> {
        vec![("maps".into(), Bpf::new(settings))]
    }
}

impl Simulated for Nft {
    const NAME: &'static str = "nft";
    const IS_WHOLE: bool = true;

    fn all(settings: &Settings) -> Vec<(String, Self)> {
        Family::ALL.map(|family| (format!("table {family}"), Nft::new(family, settings))).into()
    }
}

/// An agent that programs one mechanism, on a simulated kernel as strict as the real one.
pub struct Lowered<L: Lowering> {
    model: Model,
    tables: Vec<Table<L>>,
}

struct Table<L: Lowering> {
    name: String,
    lowering: L,
    plan: Plan<L>,
    kernel: ObjectsOf<L>,
}

impl<L: Simulated> Lowered<L> {
    /// Has programmed what every scenario begins with.
    pub fn new(config: &Config) -> Result<Self> {
        let model = Model::new(config)?;
        let table = |(name, lowering): (String, L)| {
            let plan = Plan::new(lowering.clone(), ObjectsOf::<L>::new(), &model.forwarding);
            Table { name, lowering, plan, kernel: ObjectsOf::<L>::new() }
        };
        let tables = L::all(&model.settings).into_iter().map(table).collect();
        let mut lowered = Self { model, tables };
        lowered.program()?;
        Ok(lowered)
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
        let base = |table: &Table<L>| table.lowering.base(self.model.forwarding.surroundings());
        for table in self.tables.iter().filter(|table| table.kernel != base(table)) {
            let _ = writeln!(text, "{}", table.name);
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
        let view: Vec<ServiceView> = forwarding.view(&self.lowering);
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
            table.plan = Plan::new(table.lowering.clone(), table.kernel.clone(), &self.model.forwarding);
        }
        self.program()
    }

    fn observe(&mut self, probes: &[Probe]) -> Result<Vec<Observed>> {
        let mut one = |probe: &Probe| {
            if probe.1.source_port.is_some() {
                // What is remembered of flows is not among the objects.
                return self.model.observe(&[*probe]).map(|mut one| one.remove(0));
            }
            let flow = self.model.flow(probe);
            let verdict = self.table(&flow).map(|table| table.lowering.decide(&table.kernel, &flow));
            let left = |verdict: &Verdict| !L::IS_WHOLE && *verdict == Verdict::Untouched;
            let verdict = verdict.filter(|verdict| !left(verdict)).unwrap_or_else(|| self.model.forwarding.decide(&flow));
            Ok(observed(verdict, probe.0))
        };
        probes.iter().map(&mut one).collect()
    }

    fn tested(&self) -> Option<Tested> {
        // What it leaves is for nobody else.
        L::IS_WHOLE.then_some(Tested::Nftables)
    }

    fn state(&mut self) -> String {
        let programmed: Vec<ServiceView> = self.tables.iter().flat_map(|table| L::view(&table.kernel)).collect();
        format!("{}programmed:\n{}objects:\n{}", self.model.state(), listing(&programmed), self.objects())
    }
}
