//! Reads scenario files. Whatever is wrong is reported with its file and line.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use proxy_core::cluster::Kind;
use proxy_core::model::{Family, ObjectName};
use serde::Deserialize;

use super::{
    Action, Difference, Expectation, Host, KubeProxy, KubeProxyMode, Manifest, Object, Outcome, Scenario, Step, behaviours, family,
};

/// A file's scenarios: one for each family that it is for.
pub(super) fn scenarios(name: &str, text: &str) -> Result<Vec<Scenario>> {
    let header = header(text).map_err(|error| at(name, error))?;
    let one = |text: &str, family| -> Result<Scenario> {
        let steps = steps(text).map_err(|error| at(name, error))?;
        Ok(Scenario { name: name.into(), family, ids: header.ids.clone(), kube_proxy: header.kube_proxy.clone(), steps })
    };
    match header.families {
        Families::Each => Ok(vec![one(text, Some(Family::V4))?, one(&family::to_v6(text), Some(Family::V6))?]),
        Families::V4 => Ok(vec![one(text, Some(Family::V4))?]),
        Families::Both => Ok(vec![one(text, None)?]),
    }
}

/// Something is wrong in a line.
type Wrong = (usize, Error);

fn at(name: &str, (line, error): Wrong) -> Error {
    error.context(format!("{name}.txt:{line}"))
}

struct Header {
    ids: Vec<String>,
    families: Families,
    kube_proxy: KubeProxy,
}

enum Families {
    Each,
    V4,
    Both,
}

/// The lines above the first section.
fn header(text: &str) -> Result<Header, Wrong> {
    let mut header = Header { ids: Vec::new(), families: Families::Each, kube_proxy: KubeProxy::Run };
    let mut said = false;
    for (line, content) in numbered(text).take_while(|(_, content)| !content.starts_with("--- ")) {
        let wrong = |error| (line, error);
        if let Some(ids) = content.strip_prefix("ids:") {
            header.ids.extend(ids.split_whitespace().map(String::from));
            let unknown = header.ids.iter().find(|id| !behaviours::exists(id));
            unknown.map_or(Ok(()), |id| Err(wrong(anyhow!("{id} is no behaviour"))))?;
        } else if let Some(families) = content.strip_prefix("families:") {
            header.families = match families.trim() {
                "v4" => Families::V4,
                "both" => Families::Both,
                other => return Err(wrong(anyhow!("families: {other:?}: want v4 or both, or leave the line out"))),
            };
        } else if let Some(how) = content.strip_prefix("kube-proxy:") {
            header.kube_proxy = kube_proxy(how).map_err(wrong)?;
        } else if content.starts_with('#') {
            said = true;
        } else if !content.is_empty() {
            return Err(wrong(anyhow!("{content:?}: want a comment, ids:, families:, kube-proxy: or a section")));
        }
    }
    let missing = if said { "ids: of the behaviours that this shows" } else { "a comment that says what this shows" };
    if said && !header.ids.is_empty() { Ok(header) } else { Err((1, anyhow!("missing: {missing}"))) }
}

fn kube_proxy(text: &str) -> Result<KubeProxy> {
    let (how, reason) = because(text)?;
    match how {
        "objects past the API server" => Ok(KubeProxy::PastApiServer(reason)),
        "not run" => Ok(KubeProxy::NotRun(reason)),
        other => bail!("{other:?}: want \"objects past the API server\" or \"not run\""),
    }
}

/// What is said, and why.
fn because(text: &str) -> Result<(&str, String)> {
    let (what, reason) = text.split_once(" because ").context("want ... because REASON")?;
    Ok((what.trim(), reason.trim().to_owned()))
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines().map(str::trim_end))
}

/// The line of its header, the header's word, its lines with their numbers.
type Section<'a> = (usize, &'a str, Vec<(usize, &'a str)>);

fn steps(text: &str) -> Result<Vec<Step>, Wrong> {
    let mut sections: Vec<Section> = Vec::new();
    for (line, content) in numbered(text) {
        match (content.strip_prefix("--- "), sections.last_mut()) {
            (Some(word), _) => sections.push((line, word.trim(), Vec::new())),
            (None, Some((_, _, lines))) => lines.push((line, content)),
            (None, None) => {}
        }
    }
    let steps: Vec<Step> = sections.into_iter().map(|(line, word, lines)| step(line, word, &lines)).collect::<Result<_, _>>()?;
    let expects = steps.iter().any(|step| matches!(step.action, Action::Expect(_)));
    if expects { Ok(steps) } else { Err((1, anyhow!("nothing is expected"))) }
}

fn step(line: usize, word: &str, lines: &[(usize, &str)]) -> Result<Step, Wrong> {
    let action = match word {
        "apply" => Action::Apply(manifests(lines)?),
        "delete" => Action::Delete(each(lines, reference)?),
        "expect" => Action::Expect(expectations(lines)?),
        "restart" | "kill" | "start" => {
            if let Some((line, content)) = content_of(lines).next() {
                return Err((line, anyhow!("{content:?}: {word} has no content")));
            }
            match word {
                "restart" => Action::Restart,
                "kill" => Action::Kill,
                _ => Action::Start,
            }
        }
        other => return Err((line, anyhow!("{other:?}: want apply, delete, restart, kill, start or expect"))),
    };
    Ok(Step { line, action })
}

/// The lines that are not empty and no comments.
fn content_of<'a>(lines: &[(usize, &'a str)]) -> impl Iterator<Item = (usize, &'a str)> {
    lines.iter().copied().filter(|(_, content)| !content.trim_start().is_empty() && !content.starts_with('#'))
}

fn each<T>(lines: &[(usize, &str)], read: impl Fn(usize, &str) -> Result<T>) -> Result<Vec<T>, Wrong> {
    content_of(lines).map(|(line, content)| read(line, content).map_err(|error| (line, error))).collect()
}

fn manifests(lines: &[(usize, &str)]) -> Result<Vec<Manifest>, Wrong> {
    let documents = lines.split(|(_, content)| *content == "---");
    let documents = documents.filter(|document| content_of(document).next().is_some());
    documents.map(manifest).collect()
}

fn manifest(document: &[(usize, &str)]) -> Result<Manifest, Wrong> {
    let first = document.first().map_or(0, |(line, _)| *line);
    let text: String = document.iter().flat_map(|(_, content)| [content, "\n"]).collect();
    let wrong = |error: serde_saphyr::Error| {
        let line = error.location().map_or(0, |at| (at.line() as usize).saturating_sub(1));
        (first + line, anyhow!("{}", error.without_snippet()))
    };
    let head: Head = serde_saphyr::from_str(&text).map_err(wrong)?;
    let object = match (&*head.api_version, &*head.kind) {
        ("v1", "Service") => Object::Service(serde_saphyr::from_str(&text).map_err(wrong)?),
        ("discovery.k8s.io/v1", "EndpointSlice") => Object::Slice(serde_saphyr::from_str(&text).map_err(wrong)?),
        (version, kind) => return Err((first, anyhow!("{version} {kind}: want v1 Service or discovery.k8s.io/v1 EndpointSlice"))),
    };
    Ok(Manifest { text, object })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
}

fn reference(_: usize, content: &str) -> Result<(Kind, ObjectName)> {
    let (kind, name) = content.split_once(' ').context("want KIND NAMESPACE/NAME")?;
    let kind = match kind {
        "service" => Kind::Service,
        "endpointslice" => Kind::Slice,
        other => bail!("{other:?}: want service or endpointslice"),
    };
    let (namespace, name) = name.trim().split_once('/').context("want KIND NAMESPACE/NAME")?;
    Ok((kind, ObjectName::new(namespace, name)))
}

fn expectations(lines: &[(usize, &str)]) -> Result<Vec<Expectation>, Wrong> {
    let mut expectations: Vec<Expectation> = Vec::new();
    for (line, content) in content_of(lines) {
        let wrong = |error| (line, error);
        match (content.trim_start().strip_prefix("kube-proxy "), expectations.last_mut()) {
            (Some(text), Some(expectation)) => difference(text, expectation).map_err(wrong)?,
            (Some(_), None) => return Err(wrong(anyhow!("kube-proxy differs from an expectation: want one above"))),
            (None, _) => expectations.push(expectation(line, content).map_err(wrong)?),
        }
    }
    Ok(expectations)
}

/// Adds a difference to the expectation above it.
fn difference(text: &str, expectation: &mut Expectation) -> Result<()> {
    let (mode, text) = text.split_once("=>").context("want kube-proxy [MODE] => OUTCOME because REASON")?;
    let modes = match mode.trim() {
        "" => KubeProxyMode::ALL.to_vec(),
        one => vec![kube_proxy_mode(one)?],
    };
    let (outcome, reason) = because(text)?;
    let outcome = self::outcome(outcome)?;
    ensure!(outcome != expectation.outcome, "{outcome}: that is no difference");
    let twice = modes.iter().find(|mode| expectation.difference(Some(**mode)).is_some());
    ensure!(twice.is_none(), "two differences of one mode");
    of_family(&outcome, expectation.destination)?;
    expectation.differences.push(Difference { modes, outcome, reason });
    Ok(())
}

fn kube_proxy_mode(name: &str) -> Result<KubeProxyMode> {
    let found = KubeProxyMode::ALL.into_iter().find(|mode| mode.to_string() == name);
    found.with_context(|| format!("{name:?}: want iptables, nftables or, for both, nothing"))
}

fn expectation(line: usize, content: &str) -> Result<Expectation> {
    let (flow, outcome) = content.split_once("=>").context("want SOURCE -> ADDRESS:PORT/PROTOCOL => OUTCOME")?;
    let (sources, destination) = flow.split_once("->").context("want SOURCE -> ADDRESS:PORT/PROTOCOL")?;
    let (destination, protocol) = destination.trim().split_once('/').context("want ADDRESS:PORT/PROTOCOL")?;
    let protocol = protocol.parse().map_err(|()| anyhow!("{protocol:?}: want tcp, udp or sctp"))?;
    let sources = sources.split(',').map(|name| host(name.trim())).collect::<Result<Vec<_>>>()?;
    let (destination, outcome) = (socket(destination)?, self::outcome(outcome)?);
    of_family(&outcome, destination)?;
    Ok(Expectation { line, sources, destination, protocol, outcome, differences: Vec::new() })
}

fn of_family(outcome: &Outcome, destination: SocketAddr) -> Result<()> {
    let other = outcome.backends().find(|backend| backend.is_ipv4() != destination.is_ipv4());
    ensure!(other.is_none(), "{other:?}: not of the destination's family");
    Ok(())
}

fn host(name: &str) -> Result<Host> {
    let found = Host::ALL.into_iter().find(|host| host.name == name);
    found.with_context(|| format!("{name:?}: want one of {}", Host::ALL.map(|host| host.name).join(", ")))
}

fn socket(text: &str) -> Result<SocketAddr> {
    text.parse().with_context(|| format!("{text:?}: want ADDRESS:PORT"))
}

fn outcome(text: &str) -> Result<Outcome> {
    let mut parts = text.split(',').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let (mut source_kept, mut evenly) = (false, false);
    for part in parts {
        match part {
            "source kept" => source_kept = true,
            "evenly" => evenly = true,
            other => bail!("{other:?}: want \"source kept\" or \"evenly\""),
        }
    }
    let backends: BTreeSet<SocketAddr> = match first {
        "refused" | "untouched" => {
            ensure!(!source_kept && !evenly, "{text:?}: there is no backend");
            return Ok(if first == "refused" { Outcome::Refused } else { Outcome::Untouched });
        }
        list => list.split('|').map(|backend| socket(backend.trim())).collect::<Result<_>>()?,
    };
    // Whatever is to be reached has to be there for executors with real packets.
    for backend in &backends {
        let mut hosts = Host::ALL.iter().flat_map(|host| Family::ALL.map(|family| host.address(family)));
        ensure!(hosts.any(|address| address == backend.ip()), "{backend}: no host has this address");
    }
    Ok(Outcome::Backends { backends, source_kept, evenly })
}
