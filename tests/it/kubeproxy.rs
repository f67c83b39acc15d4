//! Real kube-proxy on the scenarios: its answers prove what they expect. Where it differs on purpose, `docs/datapath.md` says so.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use proxy_core::model::Family;
use proxy_tests::lab;
use proxy_tests::scenario::kubeproxy::Reference;
use proxy_tests::scenario::{self, Action, KubeProxy, KubeProxyMode, Scenario, Tested};

#[test]
fn kube_proxy_nftables() {
    every_scenario(KubeProxyMode::Nftables);
}

#[test]
fn kube_proxy_iptables() {
    every_scenario(KubeProxyMode::Iptables);
}

fn scenarios() -> Vec<Scenario> {
    scenario::load().unwrap_or_else(|error| panic!("{error:#}"))
}

/// All scenarios in all families, one after the other, in one lab with one control plane.
fn every_scenario(mode: KubeProxyMode) {
    if !lab::available() {
        return;
    }
    let mut reference = Reference::new(mode).unwrap_or_else(|error| panic!("{mode}: {error:?}"));
    let (mut failures, mut ran, mut not_run) = (Vec::new(), 0, 0);
    let mut scenarios = scenario::chosen().unwrap_or_else(|error| panic!("{error:#}"));
    // kube-proxy starts anew for another configuration.
    scenarios.sort_by(|a, b| a.config.cmp(&b.config));
    for scenario in scenarios {
        let start = Instant::now();
        if let KubeProxy::NotRun(reason) = &scenario.kube_proxy {
            println!("{scenario}: not run: {reason}");
            not_run += 1;
            continue;
        }
        // One of 32 new connections had no answer, in one of many runs; why is not known. What kube-proxy always does fails again.
        let mut result = reference.carry_out(&scenario);
        if let Err(error) = &result {
            println!("{scenario}: once more, since: {error:#}");
            result = reference.carry_out(&scenario);
        }
        if let Err(error) = result {
            failures.push(format!("{scenario}: {error:?}"));
        }
        ran += 1;
        println!("{scenario}: {:?}", start.elapsed());
    }
    println!("kube-proxy {mode}: {ran} run, {not_run} not run");
    assert!(failures.is_empty(), "kube-proxy {mode}: {} of {ran} scenarios failed\n\n{}", failures.len(), failures.join("\n\n"));
}

/// What scenarios say of kube-proxy, and what `docs/datapath.md` says, is the same.
#[test]
fn every_difference_is_documented() {
    // In IPv6 a scenario says the same once more.
    let scenarios: Vec<Scenario> = scenarios().into_iter().filter(|scenario| scenario.family != Some(Family::V6)).collect();
    let differences = scenarios.iter().flat_map(|scenario| {
        let expectations = scenario.steps.iter().flat_map(|step| if let Action::Expect(all) = &step.action { &all[..] } else { &[] });
        let differences = expectations.flat_map(|expectation| &expectation.differences);
        let all = differences.flat_map(|difference| difference.of.iter().map(|of| (*of, difference.reason.clone())));
        all.map(|(of, reason)| (of, [scenario.name.clone(), of.to_string(), reason])).collect::<Vec<_>>()
    });
    let (ours, kube_proxys): (Vec<_>, Vec<_>) = differences.partition(|(of, _)| *of == Tested::Nftables);
    let said = |differences: Vec<(Tested, [String; 3])>| differences.into_iter().map(|(_, said)| said).collect();
    compare("### Where our nftables mode cannot do it", said(ours), |row| vec![[unquoted(&row[0]), "ours".to_owned(), row[3].clone()]]);
    compare("### What scenarios show", said(kube_proxys), |row| {
        let modes = if row[1] == "both" { KubeProxyMode::ALL.map(|mode| mode.to_string()).to_vec() } else { vec![row[1].clone()] };
        row[0].split(", ").flat_map(|name| modes.iter().map(|mode| [unquoted(name), mode.clone(), row[4].clone()])).collect()
    });
    let special = scenarios.iter().filter_map(|scenario| {
        let (how, reason) = match &scenario.kube_proxy {
            KubeProxy::Run => return None,
            KubeProxy::PastApiServer(reason) => ("objects past the API server", reason),
            KubeProxy::NotRun(reason) => ("not run", reason),
        };
        Some([scenario.name.clone(), how.to_owned(), reason.clone()])
    });
    compare("### How kube-proxy is run on scenarios that the API server refuses", special.collect(), |row| {
        vec![[unquoted(&row[0]), row[1].clone(), row[2].clone()]]
    });
}

/// Compares what scenarios say with the table below a heading; `read` tells what one of its rows says.
fn compare(heading: &str, said: BTreeSet<[String; 3]>, read: impl Fn(&[String]) -> Vec<[String; 3]>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/datapath.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let rows = text.lines().skip_while(|line| *line != heading).skip(1).take_while(|line| !line.starts_with('#'));
    let rows = rows.filter(|line| line.starts_with('|')).skip(2);
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<String>>();
    let documented: BTreeSet<[String; 3]> = rows.flat_map(|row| read(&cells(row))).collect();
    let missing: Vec<_> = said.difference(&documented).collect();
    let stale: Vec<_> = documented.difference(&said).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "docs/datapath.md, {heading:?}\nlacks {missing:#?}\nhas, and no scenario says {stale:#?}"
    );
    assert!(!said.is_empty(), "{heading:?}: nothing was compared");
}

fn unquoted(name: &str) -> String {
    name.trim_matches('`').to_owned()
}
