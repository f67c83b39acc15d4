//! Configuration files: YAML or JSON, one document of kube-proxy's and one of ours, in any order.
//!
//! As kube-proxy does (CFG-01): an unknown or repeated field is named in a warning and does not count; another kind or version, or a
//! value of another type, is an error.

use std::cell::RefCell;
use std::fmt;
use std::path::Path;

use anyhow::{Context, anyhow, bail};
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::DuplicateKeyPolicy;

use super::kube_proxy::{self, KubeProxyConfiguration};
use super::own::{self, ProxyAgentConfiguration};

/// What a file says, before any default.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct File {
    /// kube-proxy's document.
    pub kube_proxy: KubeProxyConfiguration,
    /// Ours; the defaults if there is none.
    pub own: ProxyAgentConfiguration,
    /// Fields that do not count.
    pub warnings: Vec<String>,
}

/// Reads a file.
///
/// # Errors
///
/// Names the file, the document's kind and the field.
pub fn file(path: &Path) -> anyhow::Result<File> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{}: cannot be read", path.display()))?;
    parse(&text).with_context(|| path.display().to_string())
}

/// Reads the text of a file.
///
/// # Errors
///
/// Names the document's kind and the field.
pub fn parse(text: &str) -> anyhow::Result<File> {
    let mut file = File::default();
    let (mut kube_proxy, mut own) = (None, None);
    for Document { value, repeated } in documents(text)? {
        let head = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (version, kind) = (head("apiVersion"), head("kind"));
        let warnings = match (&*version, &*kind) {
            (kube_proxy::API_VERSION, kube_proxy::KIND) => fill(&kind, value, &mut kube_proxy)?,
            (own::API_VERSION, own::KIND) => fill(&kind, value, &mut own)?,
            _ => bail!(
                "apiVersion {version:?}, kind {kind:?}: want {}, {}; beside it there may be {}, {}",
                kube_proxy::API_VERSION,
                kube_proxy::KIND,
                own::API_VERSION,
                own::KIND
            ),
        };
        let repeated = repeated.into_iter().map(|path| format!("{kind}: {path} is there more than once; the last one counts"));
        file.warnings.extend(warnings.into_iter().chain(repeated));
    }
    file.kube_proxy = kube_proxy.with_context(|| format!("no document of kind {}", kube_proxy::KIND))?;
    file.own = own.unwrap_or_default();
    Ok(file)
}

/// Reads a document into its place, which must be free.
fn fill<T: DeserializeOwned>(kind: &str, value: Value, place: &mut Option<T>) -> anyhow::Result<Vec<String>> {
    if place.is_some() {
        bail!("{kind}: there is more than one such document");
    }
    let (document, unknown) = typed(without_nulls(value)).map_err(|error| anyhow!("{kind}: {error}"))?;
    *place = Some(document);
    Ok(unknown.into_iter().map(|path| format!("{kind}: {path} is no field that is known here; it does not count")).collect())
}

/// The value as its type, and the paths that the type has no room for.
fn typed<T: DeserializeOwned>(value: Value) -> Result<(T, Vec<String>), String> {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
    let result = serde_ignored::deserialize(deserializer, |path| unknown.push(dotted(&path.to_string())));
    match result {
        Ok(document) => Ok((document, unknown)),
        Err(error) => Err(format!("{}: {error}", dotted(&track.path().to_string()))),
    }
}

/// Without the marks of optional fields that the path's writer puts in.
fn dotted(path: &str) -> String {
    path.split('.').filter(|part| *part != "?").collect::<Vec<_>>().join(".")
}

/// A field that is null is one that is not said.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let said = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(said.map(|(name, value)| (name, without_nulls(value))).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_nulls).collect()),
        other => other,
    }
}

/// A document and the paths of the fields that it repeats.
struct Document {
    value: Value,
    repeated: Vec<String>,
}

fn documents(text: &str) -> anyhow::Result<Vec<Document>> {
    let repeated = RefCell::new(Vec::new());
    let seed = || Tree { path: String::new(), repeated: &repeated };
    let mut documents = Vec::new();
    let mut add = |value: Value| {
        let repeated = repeated.take();
        if !value.is_null() {
            documents.push(Document { value, repeated });
        }
    };
    if text.trim_start().starts_with('{') {
        // YAML knows no tabs between tokens; JSON may have them.
        let mut deserializer = serde_json::Deserializer::from_str(text);
        add(seed().deserialize(&mut deserializer)?);
        deserializer.end()?;
        return Ok(documents);
    }
    for document in separate(text) {
        let options = serde_saphyr::options! { duplicate_keys: DuplicateKeyPolicy::PassThrough, with_snippet: false };
        add(serde_saphyr::with_deserializer_from_str_with_options(&document, options, |d| seed().deserialize(d))?);
    }
    Ok(documents)
}

/// The documents of a YAML text. Each has the lines before it as empty ones, so that errors name the right line.
fn separate(text: &str) -> Vec<String> {
    let mut documents = vec![String::new()];
    for (number, line) in text.lines().enumerate() {
        if line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t'])) {
            documents.push("\n".repeat(number));
        }
        if let Some(document) = documents.last_mut() {
            document.push_str(line);
            document.push('\n');
        }
    }
    let has_content = |line: &str| !matches!(line.trim().chars().next(), None | Some('#')) && line.trim_end() != "---";
    documents.retain(|document| document.lines().any(has_content));
    documents
}

/// Reads any value, and notes the fields that are there more than once: the last one counts.
struct Tree<'a> {
    path: String,
    repeated: &'a RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom(format!("{value} is not a number")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(Tree { path: format!("{}[{}]", self.path, list.len()), repeated: self.repeated })? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            let path = if self.path.is_empty() { name.clone() } else { format!("{}.{name}", self.path) };
            let value = fields.next_value_seed(Tree { path: path.clone(), repeated: self.repeated })?;
            if map.insert(name, value).is_some() {
                self.repeated.borrow_mut().push(path);
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
