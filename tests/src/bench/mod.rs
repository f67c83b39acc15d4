//! The benchmark harness: real proxies, a real API server, real connections, interleaved in one run.
//!
//! [`run`] measures and writes `benchmarks.json`; [`report`] makes everything that is for reading out of that file alone.

mod change;
mod facts;
mod flows;
mod goals;
mod markdown;
mod metric;
mod plan;
mod proxies;
mod results;
mod rig;
mod round;
mod state;
mod stats;
mod svg;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

pub use plan::{Plan, Proxy};
pub use results::{Kind, Results};

use crate::manifest::save;
use rig::Rig;

/// The file of all measurements, raw.
const JSON: &str = "benchmarks.json";
/// Remarks on missed goals, by hand, without figures.
const NOTES: &str = "benchmarks-notes.md";

/// Carries a plan out and writes results and report into a folder. What has been measured by then is written after each size.
pub fn run(plan: Plan, out: &Path) -> Result<Results> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    plan.check()?;
    let mut progress = plan::Progress::new(&plan);
    let mut results = Results::new(facts::gather()?, plan.clone());
    for &services in &plan.sizes {
        progress.say(&format!("{services} Services: starting the API server"));
        let mut rig = Rig::new(services, &plan).with_context(|| format!("{services} Services"))?;
        for (round, proxy) in plan.order() {
            if !plan.takes_part(proxy, services) || results.gave_up(proxy, services) {
                progress.skip(proxy, services);
                continue;
            }
            progress.start(proxy, services, round);
            let measured = round::measure(&mut rig, proxy, round).with_context(|| format!("{proxy}, {services} Services"))?;
            results.runs.push(measured);
            progress.done(proxy, services);
        }
        save_json(&results, out)?;
    }
    report(&out.join(JSON))?;
    Ok(results)
}

fn save_json(results: &Results, out: &Path) -> Result<()> {
    save(&out.join(JSON), &serde_json::to_string(results).context("results as JSON")?)
}

/// Writes `benchmarks.md` and the plots beside a file of results.
pub fn report(json: &Path) -> Result<()> {
    let text = fs::read_to_string(json).with_context(|| format!("cannot read {}", json.display()))?;
    let results: Results = serde_json::from_str(&text).with_context(|| format!("{} is not of this version", json.display()))?;
    let out = json.parent().unwrap_or(Path::new("."));
    let notes = fs::read_to_string(out.join(NOTES)).unwrap_or_default();
    for plot in svg::plots(&results) {
        save(&out.join(plot.file), &plot.svg)?;
    }
    save(&out.join("benchmarks.md"), &markdown::render(&results, &notes))
}
