//! `docs/configuration.md`, written from the table of fields.

use std::fmt::Write;

use super::fields::{FIELDS, Field, at};
use super::kube_proxy::KubeProxyConfiguration;
use super::own::{self, ProxyAgentConfiguration};

/// What stands above the tables.
const ABOVE: &str = include_str!("docs.md");

/// The page.
fn page() -> String {
    let mut page = ABOVE.to_owned();
    let mut defaults = KubeProxyConfiguration::empty();
    defaults.set_defaults();
    let defaults = serde_json::to_value(defaults).expect("a document");
    let own = serde_json::to_value(ProxyAgentConfiguration::default()).expect("a document");
    let mut table = |heading: &str, is_one: fn(&Field) -> bool| {
        let _ = write!(page, "\n## {heading}\n\n| field | flag | default | what it does |\n|---|---|---|---|\n");
        for field in FIELDS.iter().filter(|field| is_one(field)) {
            let path = field.path.strip_prefix(own::KIND).map_or(field.path, |path| path.trim_start_matches('.'));
            let default = at(if field.is_own() { &own } else { &defaults }, path).to_string();
            let default = if matches!(&*default, "null" | "\"\"" | "[]") { String::new() } else { format!("`{default}`") };
            let flag = field.flag.map(|flag| format!("`--{flag}`")).unwrap_or_default();
            let _ = writeln!(page, "| `{path}` | {flag} | {default} | {} |", field.about);
        }
    };
    table("KubeProxyConfiguration: what counts", |field| !field.is_own() && field.counts);
    table("KubeProxyConfiguration: what is read and does nothing", |field| !field.is_own() && !field.counts);
    table("ProxyAgentConfiguration", Field::is_own);
    page
}

#[test]
fn the_page_of_the_configuration_is_in_the_docs() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let page = page();
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        std::fs::write(&path, &page).expect("the page");
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(known == page, "docs/configuration.md is not up to date: UPDATE_GOLDEN=1 writes it");
}
