//! The report for reading. Its prose is here, its figures come from the results.

use std::fmt::Write as _;

use super::change::{PAUSE_US, SELDOM_US};
use super::flows::FLOWS;
use super::goals::goals;
use super::metric::{Metric, digits};
use super::plan::Proxy;
use super::results::{Kind, Results};
use super::stats::ratio;
use super::svg;

const RIVAL: Proxy = Proxy::KubeProxyNftables;

/// The rows of each table.
const ROWS: [(&str, Metric); 39] = [
    ("start to first working Service", Metric::First),
    ("start to last working Service", Metric::Last),
    ("CPU from start to then", Metric::StartCpu),
    ("of that all commits", Metric::StartCommit),
    ("EndpointSlice to effect, p50", Metric::Latency(Kind::EndpointSlice, 50.0)),
    ("EndpointSlice to effect, p90", Metric::Latency(Kind::EndpointSlice, 90.0)),
    ("EndpointSlice to effect, p99", Metric::Latency(Kind::EndpointSlice, 99.0)),
    ("of that the API server's write, p50", Metric::Write(Kind::EndpointSlice)),
    ("of that until a bare watch sees it, p50", Metric::Seen(Kind::EndpointSlice)),
    ("from there to effect, p50", Metric::Beyond(Kind::EndpointSlice, 50.0)),
    ("from there to effect, p99", Metric::Beyond(Kind::EndpointSlice, 99.0)),
    ("commit of one endpoint", Metric::Commit),
    ("CPU for an EndpointSlice change", Metric::Cpu(Kind::EndpointSlice)),
    ("CPU of the probes for one", Metric::Probing(Kind::EndpointSlice)),
    ("Service to effect, p50", Metric::Latency(Kind::Service, 50.0)),
    ("Service to effect, p90", Metric::Latency(Kind::Service, 90.0)),
    ("Service to effect, p99", Metric::Latency(Kind::Service, 99.0)),
    ("CPU for a Service change", Metric::Cpu(Kind::Service)),
    ("port to effect, p50", Metric::Latency(Kind::Port, 50.0)),
    ("port to effect, p90", Metric::Latency(Kind::Port, 90.0)),
    ("port to effect, p99", Metric::Latency(Kind::Port, 99.0)),
    ("CPU for a port change", Metric::Cpu(Kind::Port)),
    ("policy to effect, p50", Metric::Latency(Kind::Policy, 50.0)),
    ("policy to effect, p90", Metric::Latency(Kind::Policy, 90.0)),
    ("policy to effect, p99", Metric::Latency(Kind::Policy, 99.0)),
    ("CPU for a policy change", Metric::Cpu(Kind::Policy)),
    ("EndpointSlice to effect while 10,000 flows end, p50", Metric::Latency(Kind::StaleFlows, 50.0)),
    ("EndpointSlice to effect while 10,000 flows end, p90", Metric::Latency(Kind::StaleFlows, 90.0)),
    ("EndpointSlice to effect while 10,000 flows end, p99", Metric::Latency(Kind::StaleFlows, 99.0)),
    ("CPU for an EndpointSlice change and 10,000 flows", Metric::Cpu(Kind::StaleFlows)),
    ("commit of a Service, p50", Metric::CommitOf(Kind::Service, 50.0)),
    ("commit of a Service, p99", Metric::CommitOf(Kind::Service, 99.0)),
    ("commit of a policy, p50", Metric::CommitOf(Kind::Policy, 50.0)),
    ("commit of a policy, p99", Metric::CommitOf(Kind::Policy, 99.0)),
    ("peak memory", Metric::Memory),
    ("connect through the virtual IP, p50", Metric::Connect(50.0)),
    ("connect through the virtual IP, p99", Metric::Connect(99.0)),
    ("connect directly, p50", Metric::Direct(50.0)),
    ("virtual IP against direct, p50", Metric::ConnectRatio),
];

/// The whole document.
pub(super) fn render(results: &Results, notes: &str) -> String {
    let mut text = String::from("# Benchmarks\n\nWritten by `cargo xtask bench` from `benchmarks.json`, in full: do not edit.\n");
    if results.plan.quick {
        text += "\n**A quick run: too few samples for publication.**\n";
    }
    text += &goals_table(results);
    if !notes.trim().is_empty() {
        let _ = write!(text, "\n{}\n", notes.trim());
    }
    text += "\n## By number of Services\n\nIn parentheses: how many times as much as kube-proxy nftables in the same run.\n";
    for &services in &results.plan.sizes {
        text += &table(results, services);
    }
    text += "\n## Cost against number of Services\n";
    for (title, file) in svg::FILES {
        let _ = write!(text, "\n![{title}]({file})\n");
    }
    text += &method(results);
    text
}

fn goals_table(results: &Results) -> String {
    let mut text = String::from(
        "\n## Goals\n\nAt 10,000 Services with 10 endpoints each unless a row says otherwise.\n\n\
         | figure | dataplane | kube-proxy nftables | goal | measured | |\n|---|---|---|---|---|---|\n",
    );
    for goal in goals(results) {
        let met = match goal.met {
            Some(true) => "met",
            Some(false) => "**missed**",
            None => "not measured",
        };
        let value = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let _ =
            writeln!(text, "| {} | {} | {} | {} | {} | {met} |", goal.what, goal.proxy, value(goal.rival), goal.goal, value(goal.measured));
    }
    text
}

fn table(results: &Results, services: usize) -> String {
    let proxies: Vec<Proxy> = results.plan.proxies.iter().copied().filter(|&proxy| results.of(proxy, services).next().is_some()).collect();
    let mut text = format!("\n### {services} x {}\n\n|", results.plan.endpoints);
    for proxy in &proxies {
        let _ = write!(text, " | {proxy}");
    }
    text += " |\n|---";
    text += &"|---".repeat(proxies.len());
    text += "|\n";
    for (name, metric) in ROWS {
        let _ = write!(text, "| {name}");
        for &proxy in &proxies {
            let _ = write!(text, " | {}", cell(results, metric, proxy, services));
        }
        text += " |\n";
    }
    text
}

fn cell(results: &Results, metric: Metric, proxy: Proxy, services: usize) -> String {
    let Some(value) = metric.of(results, proxy, services) else {
        let started = results.of(proxy, services).any(|run| run.start.is_some());
        let late = metric == Metric::Last && started;
        return if late { format!("not converged within {} s", results.plan.start_limit) } else { "-".to_owned() };
    };
    let shown = metric.show(value);
    match ratio(Some(value), metric.of(results, RIVAL, services)) {
        Some(ratio) if proxy != RIVAL && proxy != Proxy::None => format!("{shown} ({})", digits(ratio)),
        _ => shown,
    }
}

fn method(results: &Results) -> String {
    let plan = &results.plan;
    let mut text = format!(
        "\n## How it was measured\n\n\
         - One node and its pods in network namespaces, a real kube-apiserver and etcd on another, all on one machine: they share its \
           cores with the proxy. Every endpoint is real: one pod answers at all their addresses and says at which one it was reached.\n\
         - {rounds} rounds at each size; in each, every proxy in turn, the order rotated: clean, start, changes, connections, stop, \
           clean. Figures are over all rounds.\n\
         - **Start**: from the process's start, with nothing programmed, until `svc-00000` and until all of a sample of Services (first, \
           last, and 50 at random, seed {seed}) have answered. Who takes more than {start} s, or {change} s for a change, is reported \
           as that, and not asked for more, at larger sizes either.\n\
         - **Change to effect**: from just before the write to the API server until the first connection that shows it, so the write is \
           within it. {changes} changes of each kind in a round, of one Service among the others: its only endpoint is replaced; it \
           becomes this proxy's by its `service-proxy-name` label; its port becomes another; \
           its internal traffic policy, which leaves it none of its endpoints, becomes Cluster. One change comes before and does not count. \
           The write goes on until the API server answers it, but its watches see it earlier: a bare watch of that one Service, in the \
           process that writes, tells when a proxy could know of it at the earliest. New connections are tried every {pause} us, or every hundredth of the time that has passed if that is longer: \
           the resolution. **While 10,000 flows end**: before each change of the endpoint, {flows} UDP flows from outside the cluster went \
           to another Service, whose endpoint was replaced just before; the next such change waits until they have ended.\n\
         - Percentiles are by nearest rank: of few samples p99 is the largest.\n\
         - **Commit**: from a series of its own, with a try of a connection only every {seldom} ms, so that the probes take no core from \
           the proxy. For our dataplanes, the time in which the agent writes an endpoint's change to the kernel, median; for \
           kube-proxy, the mean of its own `sync_proxy_rules_duration_seconds` over the same changes, which includes computing the rules.\n\
         - **CPU** is that of the proxy's control group, children included; for a change, that of the whole series by the number of \
           writes. **Peak memory** is the most that proxy and children had resident at once, looked at every 20 ms; kernel memory is \
           not in it.\n\
         - **Connect**: the time of connect(2) from a pod to another on its node, directly and through the virtual IP, one by one in turn, \
           {connects} of each in a round. Without a proxy both are direct: what the ratio is worth.\n\
         - kube-proxy has its defaults, but `minSyncPeriod` is 1 ms (by default 1 s), so that the period never counts. In node1's \
           namespace conntrack forgets an unanswered connection after 1 s, so that a try from before the rules does not spoil a later one.\n\n\
         ## The machine\n\n| | |\n|---|---|\n",
        rounds = plan.rounds,
        seed = plan.seed,
        start = plan.start_limit,
        change = plan.change_limit,
        changes = plan.changes,
        pause = PAUSE_US,
        seldom = SELDOM_US / 1000,
        connects = plan.connects,
        flows = FLOWS,
    );
    for (name, value) in &results.facts {
        let _ = writeln!(text, "| {name} | {value} |");
    }
    let busiest = results.runs.iter().map(|run| run.load_before).fold(0.0, f64::max);
    let _ = writeln!(text, "| highest load average at the start of a turn | {} |", digits(busiest));
    text
}
