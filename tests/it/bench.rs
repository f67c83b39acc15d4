//! The benchmark harness at its smallest, so that it cannot rot. Nothing is said about time: that is for quiet machines.

use std::fs;

use anyhow::{Context, Result, ensure};
use proxy_tests::bench::{self, Kind, Plan, Proxy, Results};
use proxy_tests::lab;

const CHANGES: usize = 2;
const CONNECTS: usize = 20;
const PROXIES: [Proxy; 3] = [Proxy::Nftables, Proxy::KubeProxyNftables, Proxy::None];

#[test]
fn the_harness_measures_everything_and_reports_it() {
    if lab::available() {
        run().unwrap_or_else(|error| panic!("{error:?}"));
    }
}

fn run() -> Result<()> {
    let out = tempfile::tempdir()?;
    let plan = Plan { sizes: vec![1], proxies: PROXIES.to_vec(), rounds: 1, changes: CHANGES, connects: CONNECTS, ..Plan::full() };
    bench::run(plan, out.path())?;
    let file = out.path().join("benchmarks.json");
    complete(&serde_json::from_str(&fs::read_to_string(&file)?)?)?;

    // The report comes from the file alone, the same each time.
    let markdown = out.path().join("benchmarks.md");
    let first = fs::read_to_string(&markdown)?;
    fs::remove_file(&markdown)?;
    bench::report(&file)?;
    ensure!(fs::read_to_string(&markdown)? == first, "the report differs");
    for word in ["| figure | dataplane |", "### 1 x 10", "not measured", "| processor |", "benchmarks-start.svg"] {
        ensure!(first.contains(word), "no {word:?} in\n{first}");
    }
    let plot = fs::read_to_string(out.path().join("benchmarks-memory.svg"))?;
    ensure!(plot.starts_with("<svg") && plot.matches("<circle").count() == 2, "two proxies at one size: {plot}");
    Ok(())
}

/// Every proxy was measured in every way.
fn complete(results: &Results) -> Result<()> {
    ensure!(results.facts.values().all(|fact| !fact.is_empty()), "{:?}", results.facts);
    ensure!(results.runs.iter().map(|run| run.proxy).eq(PROXIES), "{:?}", results.runs);
    for run in &results.runs {
        let connect = run.connect.as_ref().with_context(|| format!("{run:?}"))?;
        ensure!([&connect.direct, &connect.other].iter().all(|times| times.len() == CONNECTS), "{connect:?}");
        if run.proxy == Proxy::None {
            ensure!(run.start.is_none() && run.changes.is_empty() && run.peak_memory.is_none(), "{run:?}");
            continue;
        }
        let start = run.start.as_ref().with_context(|| format!("{run:?}"))?;
        ensure!(start.first.is_some() && start.last >= start.first && start.cpu > 0.0, "{start:?}");
        ensure!(run.peak_memory.is_some_and(|bytes| bytes > 1 << 20), "{run:?}");
        ensure!(run.changes.len() == Kind::ALL.len(), "{run:?}");
        for series in run.changes.iter().chain([run.alone.as_ref().context("no commits alone")?]) {
            ensure!([&series.latency, &series.write, &series.seen].iter().all(|times| times.len() == CHANGES), "{series:?}");
            ensure!(series.commit.is_some() && series.cpu > 0.0 && !series.gave_up, "{series:?}");
        }
    }
    Ok(())
}
