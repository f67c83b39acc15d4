//! Real kube-proxy on the scenarios: its answers prove what they expect. Where it differs on purpose, `docs/datapath.md` says so.

use std::time::Instant;

use proxy_tests::lab;
use proxy_tests::scenario::kubeproxy::Reference;
use proxy_tests::scenario::{self, KubeProxy, KubeProxyMode};

#[test]
fn kube_proxy_nftables() {
    every_scenario(KubeProxyMode::Nftables);
}

#[test]
fn kube_proxy_iptables() {
    every_scenario(KubeProxyMode::Iptables);
}

/// All scenarios in all families, one after the other, in one lab with one control plane.
fn every_scenario(mode: KubeProxyMode) {
    if !lab::available() {
        return;
    }
    let mut reference = Reference::new(mode).unwrap_or_else(|error| panic!("{mode}: {error:?}"));
    let (mut failures, mut ran, mut not_run) = (Vec::new(), 0, 0);
    for scenario in scenario::load().unwrap_or_else(|error| panic!("{error:#}")) {
        let start = Instant::now();
        if let KubeProxy::NotRun(reason) = &scenario.kube_proxy {
            println!("{scenario}: not run: {reason}");
            not_run += 1;
            continue;
        }
        if let Err(error) = reference.carry_out(&scenario) {
            failures.push(format!("{scenario}: {error:?}"));
        }
        ran += 1;
        println!("{scenario}: {:?}", start.elapsed());
    }
    println!("kube-proxy {mode}: {ran} run, {not_run} not run");
    assert!(failures.is_empty(), "kube-proxy {mode}: {} of {ran} scenarios failed\n\n{}", failures.len(), failures.join("\n\n"));
}
