//! Reads scenario files. Whatever is wrong is reported with its file and line.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use proxy_core::model::{Family, ObjectName};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::object::complete_node;
use super::parse_expect::{check_pins, expectations};
use super::{Action, AddressChange, Config, KubeProxy, Manifest, Object, ObjectKind, Scenario, Step, behaviours, family};

/// A file's scenarios: one for each family that it is for.
pub(super) fn scenarios(name: &str, text: &str) -> Result<Vec<Scenario>> {
    let header = header(text).map_err(|error| at(name, error))?;
    let one = |text: &str, family| -> Result<Scenario> {
        let config = config(text).map_err(|error| at(name, error))?;
        let steps = steps(text).map_err(|error| at(name, error))?;
        check_pins(&steps).map_err(|error| at(name, error))?;
        let (ids, kube_proxy) = (header.ids.clone(), header.kube_proxy.clone());
        Ok(Scenario { name: name.into(), family, ids, kube_proxy, config, steps })
    };
    match header.families {
        Families::Each => {
            let v6 = family::to_v6(text).map_err(|error| at(name, error))?;
            Ok(vec![one(text, Some(Family::V4))?, one(&v6, Some(Family::V6))?])
        }
        Families::V4 => Ok(vec![one(text, Some(Family::V4))?]),
        Families::Both => Ok(vec![one(text, None)?]),
    }
}

/// Something is wrong in a line.
pub(super) type Wrong = (usize, Error);

fn at(name: &str, (line, error): Wrong) -> Error {
    error.context(format!("{name}.txt:{line}"))
}

struct Header {
    ids: Vec<String>,
    families: Families,
    kube_proxy: KubeProxy,
}

enum Families {
    Each,
    V4,
    Both,
}

/// The lines above the first section.
fn header(text: &str) -> Result<Header, Wrong> {
    let mut header = Header { ids: Vec::new(), families: Families::Each, kube_proxy: KubeProxy::Run };
    let mut said = false;
    for (line, content) in numbered(text).take_while(|(_, content)| !content.starts_with("--- ")) {
        let wrong = |error| (line, error);
        if let Some(ids) = content.strip_prefix("ids:") {
            header.ids.extend(ids.split_whitespace().map(String::from));
            let unknown = header.ids.iter().find(|id| !behaviours::exists(id));
            unknown.map_or(Ok(()), |id| Err(wrong(anyhow!("{id} is no behaviour"))))?;
        } else if let Some(families) = content.strip_prefix("families:") {
            header.families = match families.trim() {
                "v4" => Families::V4,
                "both" => Families::Both,
                other => return Err(wrong(anyhow!("families: {other:?}: want v4 or both, or leave the line out"))),
            };
        } else if let Some(how) = content.strip_prefix("kube-proxy:") {
            header.kube_proxy = kube_proxy(how).map_err(wrong)?;
        } else if content.starts_with("config:") {
            // Its addresses are of a family: see config().
        } else if content.starts_with('#') {
            said = true;
        } else if !content.is_empty() {
            return Err(wrong(anyhow!("{content:?}: want a comment, ids:, families:, kube-proxy:, config: or a section")));
        }
    }
    let missing = if said { "ids: of the behaviours that this shows" } else { "a comment that says what this shows" };
    if said && !header.ids.is_empty() { Ok(header) } else { Err((1, anyhow!("missing: {missing}"))) }
}

fn kube_proxy(text: &str) -> Result<KubeProxy> {
    let (how, reason) = because(text)?;
    match how {
        "objects past the API server" => Ok(KubeProxy::PastApiServer(reason)),
        "not run" => Ok(KubeProxy::NotRun(reason)),
        other => bail!("{other:?}: want \"objects past the API server\" or \"not run\""),
    }
}

/// What the header says of the configuration, in the family of the text.
fn config(text: &str) -> Result<Config, Wrong> {
    let mut header = numbered(text).take_while(|(_, content)| !content.starts_with("--- "));
    let Some((line, yaml)) = header.find_map(|(line, content)| Some((line, content.strip_prefix("config:")?))) else {
        return Ok(Config::default());
    };
    yaml_of(yaml).map_err(|(_, error)| (line, error.context("config")))
}

/// What is said, and why.
pub(super) fn because(text: &str) -> Result<(&str, String)> {
    let (what, reason) = text.split_once(" because ").context("want ... because REASON")?;
    Ok((what.trim(), reason.trim().to_owned()))
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines().map(str::trim_end))
}

/// The line of its header, the header's word, its lines with their numbers.
type Section<'a> = (usize, &'a str, Vec<(usize, &'a str)>);

fn steps(text: &str) -> Result<Vec<Step>, Wrong> {
    let mut sections: Vec<Section> = Vec::new();
    for (line, content) in numbered(text) {
        match (content.strip_prefix("--- "), sections.last_mut()) {
            (Some(word), _) => sections.push((line, word.trim(), Vec::new())),
            (None, Some((_, _, lines))) => lines.push((line, content)),
            (None, None) => {}
        }
    }
    let steps: Vec<Step> = sections.into_iter().map(|(line, word, lines)| step(line, word, &lines)).collect::<Result<_, _>>()?;
    let expects = steps.iter().any(|step| matches!(step.action, Action::Expect(_)));
    if expects { Ok(steps) } else { Err((1, anyhow!("nothing is expected"))) }
}

fn step(line: usize, word: &str, lines: &[(usize, &str)]) -> Result<Step, Wrong> {
    let action = match word {
        "apply" => Action::Apply(manifests(lines)?),
        "delete" => Action::Delete(each(lines, reference)?),
        "address" => Action::Address(each(lines, address)?),
        wait if wait.starts_with("wait") => {
            empty(wait, lines)?;
            Action::Wait(duration(wait).map_err(|error| (line, error))?)
        }
        "expect" => Action::Expect(expectations(lines)?),
        "restart" | "kill" | "start" => {
            empty(word, lines)?;
            match word {
                "restart" => Action::Restart,
                "kill" => Action::Kill,
                _ => Action::Start,
            }
        }
        other => return Err((line, anyhow!("{other:?}: want apply, delete, address, wait, restart, kill, start or expect"))),
    };
    Ok(Step { line, action })
}

fn empty(word: &str, lines: &[(usize, &str)]) -> Result<(), Wrong> {
    content_of(lines).next().map_or(Ok(()), |(line, content)| Err((line, anyhow!("{content:?}: {word} has no content"))))
}

fn duration(content: &str) -> Result<Duration> {
    let seconds = content.strip_prefix("wait ").and_then(|rest| rest.trim().strip_suffix('s')).and_then(|rest| rest.parse().ok());
    seconds.map(Duration::from_secs).with_context(|| format!("{content:?}: want wait and whole seconds, such as wait 4s"))
}

fn address(_: usize, content: &str) -> Result<AddressChange> {
    let (word, ip) = content.split_once(' ').context("want add ADDRESS or remove ADDRESS")?;
    let added = match word {
        "add" => true,
        "remove" => false,
        other => bail!("{other:?}: want add or remove"),
    };
    let ip: IpAddr = ip.trim().parse().with_context(|| format!("{ip:?}: want an address"))?;
    Ok(AddressChange { ip, added })
}

/// The lines that are not empty and no comments.
pub(super) fn content_of<'a>(lines: &[(usize, &'a str)]) -> impl Iterator<Item = (usize, &'a str)> {
    lines.iter().copied().filter(|(_, content)| !content.trim_start().is_empty() && !content.starts_with('#'))
}

fn each<T>(lines: &[(usize, &str)], read: impl Fn(usize, &str) -> Result<T>) -> Result<Vec<T>, Wrong> {
    content_of(lines).map(|(line, content)| read(line, content).map_err(|error| (line, error))).collect()
}

fn manifests(lines: &[(usize, &str)]) -> Result<Vec<Manifest>, Wrong> {
    let documents = lines.split(|(_, content)| *content == "---");
    let documents = documents.filter(|document| content_of(document).next().is_some());
    documents.map(manifest).collect()
}

fn manifest(document: &[(usize, &str)]) -> Result<Manifest, Wrong> {
    let first = document.first().map_or(0, |(line, _)| *line);
    let text: String = document.iter().flat_map(|(_, content)| [content, "\n"]).collect();
    let wrong = |(line, error): Wrong| (first + line, error);
    let head: Head = yaml_of(&text).map_err(wrong)?;
    let object = match (&*head.api_version, &*head.kind) {
        ("v1", "Service") => Object::Service(Box::new(yaml_of(&text).map_err(wrong)?)),
        ("discovery.k8s.io/v1", "EndpointSlice") => Object::Slice(yaml_of(&text).map_err(wrong)?),
        ("v1", "Node") => {
            let node = complete_node(yaml_of(&text).map_err(wrong)?);
            return Ok(Manifest { text: node.to_string(), object: Object::Node(node) });
        }
        ("networking.k8s.io/v1", "ServiceCIDR") => {
            let value = yaml_of(&text).map_err(wrong)?;
            check_service_cidr(&value).map_err(|error| (first, error))?;
            Object::ServiceCidr(value)
        }
        (version, kind) => {
            let wanted = "v1 Service, discovery.k8s.io/v1 EndpointSlice, v1 Node or networking.k8s.io/v1 ServiceCIDR";
            return Err((first, anyhow!("{version} {kind}: want {wanted}")));
        }
    };
    Ok(Manifest { text, object })
}

fn check_service_cidr(value: &Value) -> Result<()> {
    let cidrs = value["spec"]["cidrs"].as_array().context("want spec.cidrs of a ServiceCIDR")?;
    for cidr in cidrs.iter().filter_map(Value::as_str).filter(|cidr| cidr.contains(':')) {
        let length: Option<u8> = cidr.split_once('/').and_then(|(_, length)| length.parse().ok());
        ensure!(
            length.is_none_or(|length| length >= 64),
            "{cidr}: the API server gives out no addresses of it: want a /24, which is a /112"
        );
    }
    Ok(())
}

/// What YAML says. An error has its line, from 0.
fn yaml_of<T: DeserializeOwned>(text: &str) -> Result<T, Wrong> {
    serde_saphyr::from_str(text).map_err(|error: serde_saphyr::Error| {
        let line = error.location().map_or(0, |at| (at.line() as usize).saturating_sub(1));
        (line, anyhow!("{}", error.without_snippet()))
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: String,
    kind: String,
}

fn reference(_: usize, content: &str) -> Result<(ObjectKind, ObjectName)> {
    let (word, name) = content.split_once(' ').context("want KIND NAMESPACE/NAME, or KIND NAME")?;
    let kind = ObjectKind::ALL.into_iter().find(|(known, _)| *known == word).map(|(_, kind)| kind);
    let kind = kind.with_context(|| format!("{word:?}: want service, endpointslice, node or servicecidr"))?;
    let name = name.trim();
    if kind.is_namespaced() {
        let (namespace, name) = name.split_once('/').context("want KIND NAMESPACE/NAME")?;
        return Ok((kind, ObjectName::new(namespace, name)));
    }
    ensure!(!name.contains('/'), "{name:?}: a {word} is in no namespace");
    Ok((kind, ObjectName::new("", name)))
}
