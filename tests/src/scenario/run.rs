//! Carrying a scenario out.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use proxy_core::model::ObjectName;

use super::{Action, AddressChange, Expectation, Host, Manifest, ObjectKind, Observed, Pins, Scenario, Tested};

/// An expectation, from one of its sources.
pub type Probe<'a> = (Host, &'a Expectation);

/// Something that a scenario can be carried out on: a cluster's objects, an agent that follows them, and packets. It begins with
/// the [objects that are always there](super::object::defaults) and an agent that runs, configured as the scenario says.
pub trait Executor {
    /// Adds or alters objects. An agent that runs has taken them in when this returns.
    fn apply(&mut self, manifests: &[Manifest]) -> Result<()>;

    /// Deletes objects, in the same way.
    fn delete(&mut self, objects: &[(ObjectKind, ObjectName)]) -> Result<()>;

    /// Gives node1 addresses, or takes them away, on its `lo`.
    fn address(&mut self, changes: &[AddressChange]) -> Result<()>;

    /// Lets time pass, if it passes here.
    fn wait(&mut self, duration: Duration) -> Result<()>;

    /// Ends the agent; what it has programmed stays. By asking it to, or (`killed`) as a crash would.
    fn stop(&mut self, killed: bool) -> Result<()>;

    /// Starts the agent on the objects that there are now. It has brought the kernel in line with them when this returns.
    fn start(&mut self) -> Result<()>;

    /// What becomes, for each of `probes`, of new connections or datagrams from this host as the expectation describes them: as many
    /// as it takes to tell whether it holds. In any order, or all at once.
    fn observe(&mut self, probes: &[Probe]) -> Result<Vec<Observed>>;

    /// What is programmed, for the report of a failure.
    fn state(&mut self) -> String;

    /// The mode of kube-proxy, if the proxy under test is kube-proxy: then its [differences](super::Difference) count.
    fn tested(&self) -> Option<Tested> {
        None
    }
}

/// Carries a scenario out. The error of an expectation that does not hold lists its whole section, and what was programmed.
pub fn run(scenario: &Scenario, executor: &mut dyn Executor) -> Result<()> {
    let mut pins = Pins::default();
    for step in &scenario.steps {
        let place = || format!("{scenario}: {}.txt:{}", scenario.name, step.line);
        take(&step.action, executor, &mut pins).with_context(place)?;
    }
    Ok(())
}

/// Carries one step out. `pins` is what the steps before have chosen.
pub fn take(action: &Action, executor: &mut dyn Executor, pins: &mut Pins) -> Result<()> {
    match action {
        Action::Apply(manifests) => executor.apply(manifests),
        Action::Delete(objects) => executor.delete(objects),
        Action::Address(changes) => executor.address(changes),
        Action::Wait(duration) => executor.wait(*duration),
        Action::Restart => executor.stop(false).and_then(|()| executor.start()),
        Action::Kill => executor.stop(true),
        Action::Start => executor.start(),
        Action::Expect(expectations) => check(expectations, executor, pins),
    }
}

fn check(expectations: &[Expectation], executor: &mut dyn Executor, pins: &mut Pins) -> Result<()> {
    let each = |expectation| move |source: &Host| (*source, expectation);
    let probes: Vec<Probe> = expectations.iter().flat_map(|e| e.sources.iter().map(each(e))).collect();
    let observed = executor.observe(&probes)?;
    let tested = executor.tested();
    let mut good = Vec::with_capacity(probes.len());
    for ((source, expectation), observed) in probes.iter().zip(&observed) {
        good.push(expectation.holds(*source, observed, tested, pins));
        pins.remember(*source, expectation.wanted(tested), observed);
    }
    if good.iter().all(|good| *good) {
        return Ok(());
    }
    bail!("not as expected\n{}\n{}", table(&probes, &observed, &good, tested), executor.state());
}

/// A listing of what was expected and what was seen.
fn table(probes: &[Probe], observed: &[Observed], good: &[bool], tested: Option<Tested>) -> String {
    let mut lines = vec![["line".into(), "flow".into(), "expected".into(), "actual".into()]];
    for (((source, expectation), observed), good) in probes.iter().zip(observed).zip(good) {
        let differs = expectation.difference(tested).map_or("", |_| " (a difference)");
        lines.push([
            format!("{} {}", if *good { "  " } else { "✗ " }, expectation.line),
            format!("{} -> {}", source.name, expectation.target()),
            format!("{}{differs}", expectation.wanted(tested)),
            if *good { "as expected".into() } else { observed.to_string() },
        ]);
    }
    let width = |column: usize| lines.iter().map(|line: &[String; 4]| line[column].chars().count()).max().unwrap_or(0);
    let (a, b, c) = (width(0), width(1), width(2));
    let rows: Vec<String> = lines.iter().map(|[l, f, e, o]| format!("{l:a$}  {f:b$}  {e:c$}  {o}").trim_end().to_string()).collect();
    rows.join("\n")
}
