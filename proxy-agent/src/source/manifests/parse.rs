//! The objects of one manifest file, with the line and column of what is wrong in it.
//!
//! Each document is read twice: first for its kind, then as that kind, so that other kinds may look as they like. Reading
//! straight into the target type is what keeps the line and column of a wrong value.

use std::collections::BTreeSet;
use std::fmt;

use proxy_core::cluster::Kind;
use proxy_core::input::{Converted, convert_endpoint_slice, convert_node, convert_service, convert_service_cidr, object};
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::MessageFormatter;

use crate::source::report;

/// What a file holds.
#[derive(PartialEq, Default, Debug)]
pub(super) struct Parsed {
    /// Its objects, each with the line where its document says something first.
    pub(super) objects: Vec<(usize, Converted)>,
    /// Kinds that are of no use here.
    pub(super) ignored: BTreeSet<String>,
}

/// Why a file cannot be used.
#[derive(PartialEq, Debug)]
pub(super) struct Broken {
    /// From 1.
    pub(super) line: usize,
    /// From 1.
    pub(super) column: usize,
    /// What is wrong there.
    pub(super) what: String,
}

/// Reads a file of YAML, in which `---` separates documents, on the Node of this name.
pub(super) fn yaml(text: &str, node: &str) -> Result<Parsed, Broken> {
    let mut parsed = Parsed::default();
    for (before, document) in documents(text) {
        let broken = |error: serde_saphyr::Error| broken_yaml(before, &error);
        let head: Option<Head> = serde_saphyr::from_str_with_options(document, options()).map_err(broken)?;
        // A document that is null says nothing.
        let Some(head) = head else { continue };
        let line = before + 1 + document.lines().position(is_content).unwrap_or(0);
        let content = head.document(line, || serde_saphyr::from_str_with_options(document, options()).map_err(broken))?;
        let objects = serde_saphyr::with_deserializer_from_str_with_options(document, options(), |d| content.on(node).deserialize(d));
        parsed.objects.extend(objects.map_err(broken)?.into_iter().map(|converted| (line, converted)));
        content.name_ignored(&mut parsed.ignored);
    }
    Ok(parsed)
}

/// Reads a file of JSON, one object or list, on the Node of this name.
pub(super) fn json(text: &str, node: &str) -> Result<Parsed, Broken> {
    if text.trim_start().is_empty() {
        return Ok(Parsed::default());
    }
    let head: Option<Head> = serde_json::from_str(text).map_err(|error| broken_json(&error))?;
    let Some(head) = head else { return Ok(Parsed::default()) };
    let content = head.document(1, || serde_json::from_str(text).map_err(|error| broken_json(&error)))?;
    let objects = content.on(node).deserialize(&mut serde_json::Deserializer::from_str(text)).map_err(|error| broken_json(&error))?;
    let mut parsed = Parsed { objects: objects.into_iter().map(|converted| (1, converted)).collect(), ignored: BTreeSet::new() };
    content.name_ignored(&mut parsed.ignored);
    Ok(parsed)
}

/// The documents of a YAML text, each with the number of lines before it. A marker at the beginning of a line is one wherever it
/// stands: YAML allows it in no scalar.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut before, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let end = offset + line.len();
        if is_marker(line, "---") {
            documents.push((before, &text[start..offset]));
            (start, before) = (offset, number);
        } else if is_marker(line, "...") {
            documents.push((before, &text[start..offset]));
            (start, before) = (end, number + 1);
        }
        offset = end;
    }
    documents.push((before, &text[start..]));
    documents.retain(|(_, document)| document.lines().any(is_content));
    documents
}

fn is_marker(line: &str, marker: &str) -> bool {
    line.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// Comments, directives (`%YAML 1.2`) and bare markers are no document.
fn is_content(line: &str) -> bool {
    let line = if is_marker(line, "---") { &line[3..] } else { line };
    !line.starts_with('%') && !matches!(line.trim_start().chars().next(), None | Some('#'))
}

/// What aliases may do stays limited (a short text must not become a large one); the text itself may be large, since one list
/// may hold tens of thousands of objects.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 100_000_000,
            max_nodes: 100_000_000,
            max_total_scalar_bytes: 1 << 30,
        },
        with_snippet: false,
    }
}

fn broken_yaml(before: usize, error: &serde_saphyr::Error) -> Broken {
    let at = error.location().filter(|at| at.line() > 0);
    let (line, column) = at.map_or((1, 1), |at| (at.line() as usize, at.column().max(1) as usize));
    // The text without the location: that is said apart, and counts from the top of the file.
    let what = serde_saphyr::DefaultMessageFormatter.format_message(error.without_snippet()).escape_debug().to_string();
    Broken { line: before + line, column, what: what.replace("\\\"", "\"").replace("\\'", "'") }
}

fn broken_json(error: &serde_json::Error) -> Broken {
    let text = error.to_string();
    let what = text.rsplit_once(" at line ").map_or(text.as_str(), |(what, _)| what);
    Broken { line: error.line().max(1), column: error.column().max(1), what: what.to_owned() }
}

/// What a document or an item of a list says of itself.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    api_version: Option<String>,
    kind: Option<String>,
}

/// A document that is known to be a list.
#[derive(Deserialize)]
struct ListHead {
    items: Option<Vec<Head>>,
}

impl Head {
    /// What is to be done with a document; `list` reads it as a list.
    fn document(&self, line: usize, list: impl FnOnce() -> Result<ListHead, Broken>) -> Result<Content, Broken> {
        let broken = |what| Broken { line, column: 1, what };
        let (api_version, kind) = self.names().map_err(broken)?;
        // Only `List` repeats in each item what it is.
        let of = match (api_version, kind) {
            ("v1", "List") => None,
            ("v1", "ServiceList") => Some(Kind::Service),
            ("v1", "NodeList") => Some(Kind::Node),
            ("discovery.k8s.io/v1", "EndpointSliceList") => Some(Kind::Slice),
            ("networking.k8s.io/v1", "ServiceCIDRList") => Some(Kind::ServiceCidr),
            _ => return self.object().map_err(broken),
        };
        let items = list()?.items.unwrap_or_default();
        let item = |(i, head): (usize, &Head)| match of {
            Some(kind) => Ok(Content::Object(kind)),
            None => head.object().map_err(|what| broken(format!("items[{i}].{what}"))),
        };
        items.iter().enumerate().map(item).collect::<Result<_, _>>().map(Content::List)
    }

    /// What is to be done with what is not a list.
    fn object(&self) -> Result<Content, String> {
        Ok(match self.names()? {
            ("v1", "Service") => Content::Object(Kind::Service),
            ("v1", "Node") => Content::Object(Kind::Node),
            ("discovery.k8s.io/v1", "EndpointSlice") => Content::Object(Kind::Slice),
            ("networking.k8s.io/v1", "ServiceCIDR") => Content::Object(Kind::ServiceCidr),
            (api_version, kind) => Content::Ignored(format!("{api_version} {kind}")),
        })
    }

    fn names(&self) -> Result<(&str, &str), String> {
        match (self.api_version.as_deref().unwrap_or_default(), self.kind.as_deref().unwrap_or_default()) {
            (_, "") => Err("kind: missing".to_owned()),
            ("", kind) => Err(format!("apiVersion: missing (kind is {kind})")),
            names => Ok(names),
        }
    }
}

/// What is in a document.
enum Content {
    Object(Kind),
    List(Vec<Content>),
    Ignored(String),
}

impl Content {
    fn on<'a>(&'a self, node: &'a str) -> Reader<'a> {
        Reader { content: self, node }
    }

    fn name_ignored(self, ignored: &mut BTreeSet<String>) {
        match self {
            Content::Object(_) => {}
            Content::List(items) => items.into_iter().for_each(|item| item.name_ignored(ignored)),
            Content::Ignored(kind) => drop(ignored.insert(kind)),
        }
    }
}

/// Reads what is in a document.
#[derive(Clone, Copy)]
struct Reader<'a> {
    content: &'a Content,
    /// The name of the agent's own Node.
    node: &'a str,
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Vec<Converted>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        Ok(match self.content {
            Content::Object(Kind::Service) => vec![convert_service(&object::Service::deserialize(d)?)],
            Content::Object(Kind::Slice) => vec![convert_endpoint_slice(&object::EndpointSlice::deserialize(d)?, self.node)],
            Content::Object(Kind::Node) => own_node(&object::Node::deserialize(d)?, self.node),
            Content::Object(Kind::ServiceCidr) => vec![convert_service_cidr(&object::ServiceCidr::deserialize(d)?)],
            Content::List(items) => d.deserialize_map(ListVisitor { items, node: self.node })?,
            Content::Ignored(_) => {
                IgnoredAny::deserialize(d)?;
                Vec::new()
            }
        })
    }
}

/// Other nodes' objects are of no use here, and the same folder may be for all nodes.
fn own_node(object: &object::Node, node: &str) -> Vec<Converted> {
    match object.metadata.name.as_deref().unwrap_or_default() {
        "" => vec![report("node ?".into(), "metadata.name: missing; the object is ignored".into())],
        name if name == node => vec![convert_node(object)],
        _ => Vec::new(),
    }
}

/// Reads `items` of a list.
#[derive(Clone, Copy)]
struct ListVisitor<'a> {
    items: &'a [Content],
    node: &'a str,
}

impl<'de> Visitor<'de> for ListVisitor<'_> {
    type Value = Vec<Converted>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut objects = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" && !self.items.is_empty() {
                objects = map.next_value_seed(ItemsSeed(self))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(objects)
    }
}

struct ItemsSeed<'a>(ListVisitor<'a>);

impl<'de> DeserializeSeed<'de> for ItemsSeed<'_> {
    type Value = Vec<Converted>;

    fn deserialize<D: Deserializer<'de>>(self, d: D) -> Result<Self::Value, D::Error> {
        d.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for ItemsSeed<'_> {
    type Value = Vec<Converted>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut objects = Vec::new();
        for content in self.0.items {
            objects.extend(seq.next_element_seed(content.on(self.0.node))?.unwrap_or_default());
        }
        // Some formats want to be read to the end.
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(objects)
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
