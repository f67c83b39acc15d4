//! Every behaviour of kube-proxy that is about packets is shown by a scenario, or listed with the reason why not.

use std::path::{Path, PathBuf};
use std::{env, fs};

use proxy_tests::scenario::{self, Scenario, behaviours};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn scenarios() -> Vec<Scenario> {
    scenario::load().unwrap_or_else(|error| panic!("{error:#}"))
}

#[test]
fn every_behaviour_is_shown() {
    let mut gaps = behaviours::gaps(&scenarios());
    for elsewhere in behaviours::elsewhere() {
        let Some((file, function)) = elsewhere.test.and_then(|test| test.split_once(' ')) else { continue };
        let text = fs::read_to_string(root().join(file)).unwrap_or_default();
        if !text.contains(&format!("fn {function}(")) {
            gaps.push(format!("{}: there is no {function} in {file}", elsewhere.id));
        }
    }
    assert!(gaps.is_empty(), "{}", gaps.join("\n"));
}

#[test]
fn the_table_of_behaviours_is_in_the_docs() {
    let path = root().join("docs/behaviours.md");
    let page = behaviours::page(&scenarios());
    if env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        fs::write(&path, &page).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    let differs = known.lines().zip(page.lines()).position(|(known, new)| known != new);
    assert!(known == page, "docs/behaviours.md is not up to date from line {:?}: UPDATE_GOLDEN=1 writes it", differs.map(|line| line + 1));
}
