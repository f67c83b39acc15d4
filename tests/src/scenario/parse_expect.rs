//! Reads the lines of `expect` sections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, anyhow, bail, ensure};
use proxy_core::model::{Family, Protocol};

use super::parse::{Wrong, because, content_of};
use super::{Action, Choice, Difference, Expectation, Host, KubeProxyMode, Outcome, Source, Step, Tested};

pub(super) fn expectations(lines: &[(usize, &str)]) -> Result<Vec<Expectation>, Wrong> {
    let mut expectations: Vec<Expectation> = Vec::new();
    for (line, content) in content_of(lines) {
        let wrong = |error| (line, error);
        let line_of = |word| content.trim_start().strip_prefix(word).filter(|rest: &&str| rest.starts_with(' '));
        let differs = line_of("kube-proxy").map(|text| (true, text)).or_else(|| line_of("nftables").map(|text| (false, text)));
        match (differs, expectations.last_mut()) {
            (Some((is_kube_proxy, text)), Some(expectation)) => difference(is_kube_proxy, text, expectation).map_err(wrong)?,
            (Some(_), None) => return Err(wrong(anyhow!("a difference from an expectation: want one above"))),
            (None, _) => expectations.push(expectation(line, content).map_err(wrong)?),
        }
    }
    Ok(expectations)
}

/// Whoever is pinned has been given a backend by that name before.
pub(super) fn check_pins(steps: &[Step]) -> Result<(), Wrong> {
    let mut known: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let expectations = steps.iter().flat_map(|step| if let Action::Expect(all) = &step.action { &all[..] } else { &[] });
    for expectation in expectations {
        let names = expectation.sources.iter().map(|host| host.name);
        for outcome in [&expectation.outcome].into_iter().chain(expectation.differences.iter().map(|difference| &difference.outcome)) {
            match outcome {
                Outcome::Backends { choice: Choice::One(name), .. } => known.entry(name).or_default().extend(names.clone()),
                Outcome::Pinned { name, .. } => {
                    let sources = known.get(&**name);
                    let unknown = names.clone().find(|source| !sources.is_some_and(|sources| sources.contains(source)));
                    let error =
                        |source| (expectation.line, anyhow!("pinned {name}: nothing before says \"one of ... as {name}\" of {source}"));
                    unknown.map_or(Ok(()), |source| Err(error(source)))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Adds a difference to the expectation above it.
fn difference(is_kube_proxy: bool, text: &str, expectation: &mut Expectation) -> Result<()> {
    let (mode, text) = text.split_once("=>").context("want kube-proxy [MODE] => OUTCOME because REASON, or nftables => ...")?;
    let of = match (is_kube_proxy, mode.trim()) {
        (true, "") => KubeProxyMode::ALL.map(Tested::KubeProxy).to_vec(),
        (true, one) => vec![Tested::KubeProxy(kube_proxy_mode(one)?)],
        (false, "") => vec![Tested::Nftables],
        (false, other) => bail!("{other:?}: want nftables => OUTCOME because REASON"),
    };
    let (outcome, reason) = because(text)?;
    let outcome = self::outcome(outcome)?;
    ensure!(outcome != expectation.outcome, "{outcome}: that is no difference");
    let twice = of.iter().find(|one| expectation.difference(Some(**one)).is_some());
    ensure!(twice.is_none(), "two differences of one mode");
    fits(&outcome, expectation.destination, expectation.protocol)?;
    expectation.differences.push(Difference { of, outcome, reason });
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
    let (destination, protocol) = match protocol {
        "icmp" => {
            let ip: IpAddr = destination.parse().with_context(|| format!("{destination:?}: want ADDRESS/icmp, without a port"))?;
            (SocketAddr::new(ip, 0), None)
        }
        protocol => {
            let known: Result<Protocol, ()> = protocol.parse();
            let known = known.map_err(|()| anyhow!("{protocol:?}: want tcp, udp, sctp or icmp"))?;
            (socket(destination)?, Some(known))
        }
    };
    let (sources, source_port) = match sources.split_once(" from ") {
        Some((sources, port)) => {
            let port: u16 = port.trim().parse().with_context(|| format!("{:?}: want SOURCES from PORT", port.trim()))?;
            ensure!(matches!(protocol, Some(Protocol::Udp | Protocol::Sctp)), "from {port}: only UDP and SCTP flows are looked at again");
            (sources, Some(port))
        }
        None => (sources, None),
    };
    let sources = sources.split(',').map(|name| host(name.trim())).collect::<Result<Vec<_>>>()?;
    let outcome = self::outcome(outcome)?;
    fits(&outcome, destination, protocol)?;
    Ok(Expectation { line, sources, source_port, destination, protocol, outcome, differences: Vec::new() })
}

fn fits(outcome: &Outcome, destination: SocketAddr, protocol: Option<Protocol>) -> Result<()> {
    let other = outcome.backends().find(|backend| backend.is_ipv4() != destination.is_ipv4());
    ensure!(other.is_none(), "{other:?}: not of the destination's family");
    let passed_on = matches!(outcome, Outcome::Backends { .. } | Outcome::Pinned { .. });
    ensure!(protocol.is_some() || !passed_on, "{outcome}: no Service passes on ICMP");
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
    let text = text.trim();
    let mut parts = text.split(',').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let (mut source, mut evenly) = (Source::Any, false);
    for part in parts {
        match part {
            "source kept" | "masqueraded" => {
                ensure!(source == Source::Any, "{text:?}: the source is said twice");
                source = if part == "masqueraded" { Source::Masqueraded } else { Source::Kept };
            }
            "evenly" => evenly = true,
            other => bail!("{other:?}: want \"source kept\", \"masqueraded\" or \"evenly\""),
        }
    }
    let nobody = match first {
        "refused" => Some(Outcome::Refused),
        "untouched" => Some(Outcome::Untouched),
        "dropped" => Some(Outcome::Dropped),
        _ => None,
    };
    if let Some(nobody) = nobody {
        ensure!(source == Source::Any && !evenly, "{text:?}: there is no backend");
        return Ok(nobody);
    }
    if let Some(name) = first.strip_prefix("pinned ") {
        ensure!(!evenly, "{text:?}: there is one backend");
        return Ok(Outcome::Pinned { name: name.trim().to_owned(), source });
    }
    let (list, choice) = match first.strip_prefix("one of ") {
        Some(pinned) => {
            ensure!(!evenly, "{text:?}: there is one backend");
            let (list, name) = pinned.split_once(" as ").context("want one of A | B as NAME")?;
            (list, Choice::One(name.trim().to_owned()))
        }
        None => (first, if evenly { Choice::Evenly } else { Choice::Any }),
    };
    Ok(Outcome::Backends { backends: backends(list)?, choice, source })
}

fn backends(list: &str) -> Result<BTreeSet<SocketAddr>> {
    let backends: BTreeSet<SocketAddr> = list.split('|').map(|backend| socket(backend.trim())).collect::<Result<_>>()?;
    // Whatever is to be reached has to be there for executors with real packets.
    for backend in &backends {
        let mut hosts = Host::ALL.iter().flat_map(|host| Family::ALL.map(|family| host.address(family)));
        ensure!(hosts.any(|address| address == backend.ip()), "{backend}: no host has this address");
    }
    Ok(backends)
}
