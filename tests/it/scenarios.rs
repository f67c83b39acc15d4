//! Every scenario on every executor, in both families.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::Result;
use proxy_core::lower::bpf::Bpf;
use proxy_core::lower::nft::Nft;
use proxy_core::model::Family;
use proxy_tests::agent::Mode;
use proxy_tests::lab;
use proxy_tests::scenario::simulated::{Lowered, Model, Simulated};
use proxy_tests::scenario::{self, Action, Config, Executor, Pins, Scenario, packets};

#[test]
fn model() {
    carry_out("model", Model::new);
}

#[test]
fn bpf_objects() {
    carry_out("bpf objects", Lowered::<Bpf>::new);
}

#[test]
fn nft_objects() {
    carry_out("nft objects", Lowered::<Nft>::new);
}

#[test]
fn ebpf_packets_ipv4() {
    packets(Mode::Ebpf, Family::V4);
}

#[test]
fn ebpf_packets_ipv6() {
    packets(Mode::Ebpf, Family::V6);
}

#[test]
fn nftables_packets_ipv4() {
    packets(Mode::Nftables, Family::V4);
}

#[test]
fn nftables_packets_ipv6() {
    packets(Mode::Nftables, Family::V6);
}

#[test]
fn golden_bpf() {
    golden::<Bpf>();
}

#[test]
fn golden_nft() {
    golden::<Nft>();
}

fn scenarios() -> Vec<Scenario> {
    scenario::load().unwrap_or_else(|error| panic!("{error:#}"))
}

fn chosen() -> Vec<Scenario> {
    scenario::chosen().unwrap_or_else(|error| panic!("{error:#}"))
}

/// Runs every scenario on an executor of its own, and lists all that fail.
fn carry_out<E: Executor>(executor: &str, new: impl Fn(&Config) -> Result<E>) {
    let scenarios = chosen();
    let run = |scenario: &Scenario| new(&scenario.config).and_then(|mut executor| scenario::run(scenario, &mut executor));
    let failures: Vec<String> = scenarios.iter().filter_map(|scenario| run(scenario).err()).map(|e| format!("{e:#}")).collect();
    let count = failures.len();
    assert!(failures.is_empty(), "{executor}: {count} of {} scenarios failed\n\n{}", scenarios.len(), failures.join("\n\n"));
}

/// With real packets.
fn packets(mode: Mode, family: Family) {
    if !lab::available() {
        return;
    }
    let (_, failures) = packets::carry_out(mode, family, &chosen()).unwrap_or_else(|error| panic!("{error:?}"));
    assert!(failures.is_empty(), "{mode} {family}: {} scenarios failed\n\n{}", failures.len(), failures.join("\n\n"));
}

fn golden_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Compares what a lowering programs after every change with the text in `tests/golden/`. `UPDATE_GOLDEN=1` writes that text.
fn golden<L: Simulated>() {
    let update = env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1");
    let mut differences = Vec::new();
    let mut files = BTreeSet::new();
    for scenario in scenarios().iter().filter(|scenario| scenario.family != Some(Family::V6)) {
        let name = format!("{}.{}.txt", scenario.name, L::NAME);
        let path = golden_directory().join(&name);
        let text = transcript::<L>(scenario);
        if update {
            fs::write(&path, &text).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let known = fs::read_to_string(&path).unwrap_or_default();
        if known != text {
            differences.push(format!("{name}:\n{}", difference(&known, &text)));
        }
        files.insert(name);
    }
    let suffix = format!(".{}.txt", L::NAME);
    for entry in fs::read_dir(golden_directory()).expect("the golden files").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(&suffix) && !files.contains(&name) {
            differences.push(format!("{name}: its scenario is gone"));
        }
    }
    assert!(differences.is_empty(), "UPDATE_GOLDEN=1 writes what is right\n\n{}", differences.join("\n"));
}

/// Everything that is programmed after each step that changes something.
fn transcript<L: Simulated>(scenario: &Scenario) -> String {
    let mut executor = Lowered::<L>::new(&scenario.config).unwrap_or_else(|error| panic!("{scenario}: {error:#}"));
    let mut text = String::new();
    let changes = scenario.steps.iter().filter(|step| !matches!(step.action, Action::Expect(_)));
    for (number, step) in (1..).zip(changes) {
        scenario::run::take(&step.action, &mut executor, &mut Pins::default()).unwrap_or_else(|error| panic!("{scenario}: {error:#}"));
        let word = match &step.action {
            Action::Apply(_) => "apply",
            Action::Delete(_) => "delete",
            Action::Address(_) => "address",
            Action::Wait(_) => "wait",
            Action::Restart => "restart",
            Action::Kill => "kill",
            Action::Start => "start",
            Action::Expect(_) => "expect",
        };
        text += &format!("{number}. {word}\n{}\n", executor.objects());
    }
    text
}

/// The lines that differ, each with its number: `-` is in the file, `+` is what was made now.
fn difference(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let rest = old.len().min(new.len()) - same;
    let tail = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let lines = |sign, lines: &[&str]| (same..lines.len() - tail).map(|i| format!("{:5} {sign} {}\n", i + 1, lines[i])).collect::<String>();
    lines('-', &old) + &lines('+', &new)
}
