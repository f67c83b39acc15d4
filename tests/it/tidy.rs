//! The invariants of `docs/architecture.md` that the compiler does not enforce, checked on the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file that fits in the head.
const LONGEST: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

/// All Rust files below `folder` of the workspace, by path relative to the workspace, with their text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())) {
            let path = entry.expect("an entry").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).expect("below the root").display().to_string();
                found.push((name, fs::read_to_string(&path).expect("text")));
            }
        }
    }
    assert!(!found.is_empty(), "{folder}: no sources");
    found
}

fn all() -> Vec<(String, String)> {
    ["proxy-agent", "proxy-ebpf", "tests", "xtask"].into_iter().flat_map(sources).collect()
}

/// The lines of files below `folder`, but for those in `except`, that have one of `words`.
fn lines_with(folder: &str, except: &[&str], words: &[&str]) -> Vec<String> {
    let files = sources(folder).into_iter().filter(|(name, _)| !except.iter().any(|e| name.starts_with(e)));
    let lines = files.flat_map(|(name, text)| {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        let hits = lines.filter(|(_, line)| words.iter().any(|word| line.contains(word)));
        hits.map(|(i, line)| format!("{name}:{}: {}", i + 1, line.trim())).collect::<Vec<_>>()
    });
    lines.collect()
}

#[track_caller]
fn none(found: Vec<String>) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn only_the_kubernetes_source_names_kube_types() {
    none(
        lines_with("proxy-agent/src", &["proxy-agent/src/source/kube"], &["kube::", "k8s_openapi", "use kube"])
            .into_iter()
            .filter(|line| !line.contains("source::kube::"))
            .collect(),
    );
}

#[test]
fn dataplanes_and_sources_do_not_know_each_other() {
    for dataplane in ["proxy-agent/src/bpf", "proxy-agent/src/nft"] {
        none(lines_with(dataplane, &[], &["crate::source", "crate::agent", "crate::programmer", "crate::modes"]));
    }
    none(lines_with("proxy-agent/src/bpf", &[], &["crate::nft"]));
    none(lines_with("proxy-agent/src/nft", &[], &["crate::bpf"]));
    none(lines_with("proxy-agent/src/source", &[], &["crate::bpf", "crate::nft", "crate::dataplane", "crate::programmer", "crate::agent"]));
}

#[test]
fn the_agent_starts_no_process() {
    none(lines_with("proxy-agent/src", &["proxy-agent/src/nft/tests", "proxy-agent/src/cli.rs"], &["process::Command", "Command::new"]));
}

#[test]
fn core_reads_no_clock_and_does_no_io() {
    let words = [
        "std::time",
        "Instant::now",
        "SystemTime",
        "std::fs",
        "std::env",
        "std::net::Tcp",
        "std::net::Udp",
        "std::process",
        "std::thread",
        "println!",
    ];
    none(lines_with("proxy-agent/core/src", &[], &words));
}

#[test]
fn files_stay_short_enough_to_hold_in_the_head() {
    let long = all().into_iter().map(|(name, text)| (name, text.lines().count())).filter(|(_, lines)| *lines > LONGEST);
    none(long.map(|(name, lines)| format!("{name}: {lines} lines")).collect());
}

/// A test in a file that no module declares would never run.
#[test]
fn every_file_is_a_module_of_its_crate() {
    let all = all();
    let orphans = all.iter().filter(|(name, _)| {
        let path = Path::new(name);
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let parent = path.parent().unwrap_or(Path::new(""));
        // Targets: crate roots, and the folders where Cargo looks for tests.
        let is_root = matches!(stem, "main" | "lib" | "build")
            || parent == Path::new("proxy-agent/core/tests")
            || parent == Path::new("proxy-agent/core/benches");
        let (stem, parent) = if stem == "mod" {
            (parent.file_name().and_then(|s| s.to_str()).unwrap_or_default(), parent.parent().unwrap_or(Path::new("")))
        } else {
            (stem, parent)
        };
        let file = format!("path = \"{}\"", path.file_name().and_then(|f| f.to_str()).unwrap_or_default());
        let declares = |text: &str| text.contains(&file) || text.lines().any(|line| line.trim_end().ends_with(&format!("mod {stem};")));
        let in_parent = |other: &Path| {
            other.parent() == Some(parent)
                || other.with_extension("") == *parent
                || (other.file_stem().is_some_and(|s| s == "mod") && other.parent() == Some(parent))
        };
        !is_root && !all.iter().any(|(other, text)| in_parent(Path::new(other)) && declares(text))
    });
    none(orphans.map(|(name, _)| format!("{name}: no module declares it")).collect());
}

/// What follows `words` in quotes, wherever the agent's sources have that.
fn quoted_after(words: &str) -> Vec<String> {
    let sources = sources("proxy-agent/src").into_iter().map(|(_, text)| text.split_whitespace().collect::<Vec<_>>().join(" "));
    let found = sources.flat_map(|text| {
        let after = text.split(words).skip(1);
        after.filter_map(|rest| rest.split('"').next().map(str::to_owned)).collect::<Vec<_>>()
    });
    found.collect()
}

#[test]
fn every_event_is_in_the_operations_page() {
    let page = fs::read_to_string(root().join("docs/operations.md")).expect("docs/operations.md");
    let ways = ["Severity::Normal, \"", "Severity::Warning, \"", "reason: \""];
    let reasons: Vec<String> = ways.iter().flat_map(|way| quoted_after(way)).filter(|reason| reason != "Test").collect();
    assert!(reasons.len() > 10, "{reasons:?}");
    none(reasons.into_iter().filter(|reason| !page.contains(&format!("| `{reason}` |"))).collect());
}

#[test]
fn the_readme_shows_the_two_commands() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    assert!(readme.contains("cargo xtask demo") && readme.contains("cargo xtask test"));
}
