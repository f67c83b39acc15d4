//! What the API server sends, decoded without allocating what is not used: most of an object is managedFields and status.
//!
//! A line of a watch is read twice: once for what is needed to go on (its type and version), once for the object. So an object
//! of an unexpected shape is one [`Problem`](proxy_core::input::Problem), and the watch goes on; skipping JSON is cheap.

use proxy_core::cluster::Kind;
use proxy_core::input::{Converted, convert_endpoint_slice, convert_service, object};
use proxy_core::model::ObjectName;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

use crate::source::{noun, removal, report, subject};

/// One of the resources that are watched.
pub(super) trait Resource: Send + 'static {
    /// Which list its events are about.
    const KIND: Kind;
    /// Plural name, as in RBAC rules.
    const PLURAL: &'static str;
    /// Path of its collection.
    const PATH: &'static str;
    /// Which objects the API server leaves out.
    const LABELS: &'static str;
    /// Which objects the API server leaves out.
    const FIELDS: Option<&'static str>;
    /// The object as it is sent.
    type Object: DeserializeOwned;
    /// What an object says.
    fn convert(object: &Self::Object) -> Converted;
}

/// Services that have a ClusterIP and are not another proxy's (SVC-01).
pub(super) struct Services;

impl Resource for Services {
    const KIND: Kind = Kind::Service;
    const PLURAL: &'static str = "services";
    const PATH: &'static str = "/api/v1/services";
    const LABELS: &'static str = "!service.kubernetes.io/service-proxy-name";
    const FIELDS: Option<&'static str> = Some("spec.clusterIP!=None");
    type Object = object::Service;

    fn convert(object: &object::Service) -> Converted {
        convert_service(object)
    }
}

/// EndpointSlices of Services that are not headless (EP-01).
pub(super) struct EndpointSlices;

impl Resource for EndpointSlices {
    const KIND: Kind = Kind::Slice;
    const PLURAL: &'static str = "endpointslices";
    const PATH: &'static str = "/apis/discovery.k8s.io/v1/endpointslices";
    const LABELS: &'static str = "!service.kubernetes.io/headless";
    const FIELDS: Option<&'static str> = None;
    type Object = object::EndpointSlice;

    fn convert(object: &object::EndpointSlice) -> Converted {
        convert_endpoint_slice(object)
    }
}

/// An object of a watch or list. One that could not be decoded has no change, and mostly still a name.
#[derive(PartialEq, Debug)]
pub(super) struct Seen {
    /// The object's name, if it has one.
    pub(super) name: Option<ObjectName>,
    /// What it says.
    pub(super) converted: Converted,
}

/// One line of a watch.
#[derive(PartialEq, Debug)]
pub(super) enum Line {
    /// An object was added or altered.
    Object(Seen, String),
    /// An object is gone, or no longer selected.
    Gone(Seen, String),
    /// Nothing happened up to this version; `true` where the initial list is complete with it.
    Bookmark(String, bool),
    /// The watch has failed.
    Failed(Status),
    /// A type that a later version of the API may bring.
    Unknown,
}

/// A page of a list.
#[derive(PartialEq, Debug)]
pub(super) struct Page {
    /// Its objects.
    pub(super) objects: Vec<Seen>,
    /// What to watch from.
    pub(super) version: String,
    /// Where the next page begins; empty for the last one.
    pub(super) next: String,
}

/// Why a request was refused.
#[derive(Deserialize, Clone, PartialEq, Default, Debug)]
pub(super) struct Status {
    /// As in HTTP.
    #[serde(default)]
    pub(super) code: u16,
    /// For people.
    #[serde(default)]
    pub(super) message: String,
}

/// Decodes one line of a watch.
pub(super) fn line<R: Resource>(text: &[u8]) -> serde_json::Result<Line> {
    let head: Envelope<Head> = serde_json::from_slice(text)?;
    let metadata = head.object.metadata;
    Ok(match head.kind {
        EventType::Added | EventType::Modified => {
            let object = serde_json::from_slice::<Envelope<R::Object>>(text).map(|line| line.object);
            Line::Object(decode::<R>(object, || name(text)), metadata.version)
        }
        EventType::Deleted => Line::Gone(gone::<R>(name(text)), metadata.version),
        EventType::Bookmark => Line::Bookmark(metadata.version, metadata.annotations.initial_events_end.is_some()),
        EventType::Error => Line::Failed(serde_json::from_slice::<Envelope<Status>>(text)?.object),
        EventType::Unknown => Line::Unknown,
    })
}

/// Decodes a page of a list. An item that does not decode costs a second, slower decoding of its page and nothing else.
pub(super) fn page<R: Resource>(text: &str) -> serde_json::Result<Page> {
    if let Ok(list) = serde_json::from_str::<List<R::Object>>(text) {
        return Ok(list.into_page(|item| decode::<R>(Ok(item), || None)));
    }
    let list: List<serde_json::Value> = serde_json::from_str(text)?;
    Ok(list.into_page(|item| {
        decode::<R>(R::Object::deserialize(&item), || Named::deserialize(&item).ok().and_then(|named| named.metadata.object_name()))
    }))
}

fn decode<R: Resource>(object: serde_json::Result<R::Object>, name: impl FnOnce() -> Option<ObjectName>) -> Seen {
    match object {
        Ok(object) => {
            let converted = R::convert(&object);
            Seen { name: subject(&converted).map(|(_, name)| name.clone()), converted }
        }
        Err(error) => {
            let name = name();
            let shown = name.as_ref().map_or_else(|| "?".to_owned(), ObjectName::to_string);
            let text = format!("cannot be decoded, so what is known of it stays: {error}");
            Seen { name, converted: report(format!("{} {shown}", noun(R::KIND)), text) }
        }
    }
}

fn gone<R: Resource>(name: Option<ObjectName>) -> Seen {
    let converted = match &name {
        Some(name) => removal(R::KIND, name.clone()),
        None => report(format!("{} ?", noun(R::KIND)), "was deleted, but its name cannot be decoded".to_owned()),
    };
    Seen { name, converted }
}

/// The name of a line's object, whatever the rest of it looks like.
fn name(text: &[u8]) -> Option<ObjectName> {
    serde_json::from_slice::<Envelope<Named>>(text).ok()?.object.metadata.object_name()
}

/// A line of a watch. Its type decides what its object is.
#[derive(Deserialize)]
struct Envelope<T> {
    #[serde(rename = "type")]
    kind: EventType,
    object: T,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "UPPERCASE")]
enum EventType {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
    #[serde(other)]
    Unknown,
}

/// What is needed of any object to go on.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: HeadMetadata,
}

#[derive(Deserialize, Default)]
struct HeadMetadata {
    #[serde(rename = "resourceVersion", default)]
    version: String,
    #[serde(default, deserialize_with = "nullable")]
    annotations: HeadAnnotations,
}

#[derive(Deserialize, Default)]
struct HeadAnnotations {
    #[serde(rename = "k8s.io/initial-events-end")]
    initial_events_end: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Named {
    metadata: NameMetadata,
}

#[derive(Deserialize)]
struct NameMetadata {
    namespace: String,
    name: String,
}

impl NameMetadata {
    fn object_name(self) -> Option<ObjectName> {
        (!self.name.is_empty()).then(|| ObjectName::new(self.namespace, self.name))
    }
}

#[derive(Deserialize)]
#[serde(bound = "T: DeserializeOwned")]
struct List<T> {
    metadata: ListMetadata,
    #[serde(default, deserialize_with = "nullable")]
    items: Vec<T>,
}

#[derive(Deserialize)]
struct ListMetadata {
    #[serde(rename = "resourceVersion", default)]
    version: String,
    #[serde(rename = "continue", default)]
    next: String,
}

impl<T> List<T> {
    fn into_page(self, object: impl FnMut(T) -> Seen) -> Page {
        let ListMetadata { version, next } = self.metadata;
        Page { objects: self.items.into_iter().map(object).collect(), version, next }
    }
}

/// Absent and null are both "not set": Go writes an empty list as null.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(d: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(d).map(Option::unwrap_or_default)
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
