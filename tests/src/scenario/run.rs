//! Carrying a scenario out.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use proxy_core::cluster::Kind;
use proxy_core::model::ObjectName;

use super::{Action, Expectation, Host, KubeProxyMode, Manifest, Outcome, Scenario};

/// An expectation, from one of its sources.
pub type Probe<'a> = (Host, &'a Expectation);

/// Something that a scenario can be carried out on: a cluster's objects, an agent that follows them, and packets. It begins with
/// no objects and an agent that runs.
pub trait Executor {
    /// Adds or alters objects. An agent that runs has taken them in when this returns.
    fn apply(&mut self, manifests: &[Manifest]) -> Result<()>;

    /// Deletes objects, in the same way.
    fn delete(&mut self, objects: &[(Kind, ObjectName)]) -> Result<()>;

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
    fn kube_proxy(&self) -> Option<KubeProxyMode> {
        None
    }
}

/// What became of packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Observed {
    /// Every one passed as it was: nobody answered at the destination, or the destination itself.
    Untouched,
    /// Every one was refused.
    Refused,
    /// Every one was answered by these backends.
    Backends {
        /// All that answered.
        backends: BTreeSet<SocketAddr>,
        /// They saw the sender's own address.
        source_kept: bool,
        /// In shares that chance explains.
        evenly: bool,
    },
    /// Anything else, in words.
    Other(String),
}

impl Observed {
    /// Whether this is what was wanted.
    pub fn satisfies(&self, wanted: &Outcome) -> bool {
        match (wanted, self) {
            (Outcome::Untouched, Observed::Untouched) | (Outcome::Refused, Observed::Refused) => true,
            (Outcome::Backends { backends: b, source_kept: s, evenly: e }, Observed::Backends { backends, source_kept, evenly }) => {
                b == backends && (*source_kept || !s) && (*evenly || !e)
            }
            _ => false,
        }
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Observed::Untouched => f.write_str("untouched"),
            Observed::Refused => f.write_str("refused"),
            Observed::Backends { backends, source_kept, evenly } => {
                f.write_str(&backends.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | "))?;
                f.write_str(if *source_kept { ", source kept" } else { ", source not kept" })?;
                f.write_str(if *evenly { "" } else { ", unevenly" })
            }
            Observed::Other(text) => f.write_str(text),
        }
    }
}

/// Carries a scenario out. The error of an expectation that does not hold lists its whole section, and what was programmed.
pub fn run(scenario: &Scenario, executor: &mut dyn Executor) -> Result<()> {
    for step in &scenario.steps {
        let place = || format!("{scenario}: {}.txt:{}", scenario.name, step.line);
        take(&step.action, executor).with_context(place)?;
    }
    Ok(())
}

/// Carries one step out.
pub fn take(action: &Action, executor: &mut dyn Executor) -> Result<()> {
    match action {
        Action::Apply(manifests) => executor.apply(manifests),
        Action::Delete(objects) => executor.delete(objects),
        Action::Restart => executor.stop(false).and_then(|()| executor.start()),
        Action::Kill => executor.stop(true),
        Action::Start => executor.start(),
        Action::Expect(expectations) => check(expectations, executor),
    }
}

fn check(expectations: &[Expectation], executor: &mut dyn Executor) -> Result<()> {
    let each = |expectation| move |source: &Host| (*source, expectation);
    let probes: Vec<Probe> = expectations.iter().flat_map(|e| e.sources.iter().map(each(e))).collect();
    let observed = executor.observe(&probes)?;
    let kube_proxy = executor.kube_proxy();
    if probes.iter().zip(&observed).all(|((_, expectation), observed)| expectation.holds(observed, kube_proxy)) {
        return Ok(());
    }
    bail!("not as expected\n{}\n{}", table(&probes, &observed, kube_proxy), executor.state());
}

/// A listing of what was expected and what was seen.
fn table(probes: &[Probe], observed: &[Observed], kube_proxy: Option<KubeProxyMode>) -> String {
    let mut lines = vec![["line".into(), "flow".into(), "expected".into(), "actual".into()]];
    for ((source, expectation), observed) in probes.iter().zip(observed) {
        let protocol = expectation.protocol.to_string().to_lowercase();
        let good = expectation.holds(observed, kube_proxy);
        let differs = expectation.difference(kube_proxy).map_or("", |_| " (a difference)");
        lines.push([
            format!("{} {}", if good { "  " } else { "✗ " }, expectation.line),
            format!("{} -> {}/{protocol}", source.name, expectation.destination),
            format!("{}{differs}", expectation.wanted(kube_proxy)),
            if good { "as expected".into() } else { observed.to_string() },
        ]);
    }
    let width = |column: usize| lines.iter().map(|line: &[String; 4]| line[column].chars().count()).max().unwrap_or(0);
    let (a, b, c) = (width(0), width(1), width(2));
    let rows: Vec<String> = lines.iter().map(|[l, f, e, o]| format!("{l:a$}  {f:b$}  {e:c$}  {o}").trim_end().to_string()).collect();
    rows.join("\n")
}
