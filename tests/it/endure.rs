//! A few seconds of what `cargo xtask endure` does for an hour.

use std::time::Duration;

use anyhow::Result;
use proxy_tests::agent::Mode;
use proxy_tests::endure::{Plan, run};
use proxy_tests::lab;

#[test]
fn changes_among_faults_are_not_missed_on_ebpf() {
    endures(Mode::Ebpf);
}

#[test]
fn changes_among_faults_are_not_missed_on_nftables() {
    endures(Mode::Nftables);
}

fn endures(mode: Mode) {
    if lab::available() {
        let plan = Plan { mode, services: 50, rate: 20, time: Duration::from_secs(20), faults: Duration::from_secs(3), seed: 1 };
        let endured = || -> Result<()> {
            let report = run(&plan)?;
            // Too short to tell growth.
            anyhow::ensure!(report.connections.counts.failed() == 0 && report.changes[0] > 50, "{report}\n{:?}", report.connections);
            Ok(())
        };
        endured().unwrap_or_else(|error| panic!("{mode}: {error:?}"));
    }
}
