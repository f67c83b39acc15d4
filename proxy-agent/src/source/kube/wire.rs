//! What the API server sends, in protobuf: a third of the size of JSON and a fraction of its cost, on both sides.
//!
//! An object that cannot be decoded is one [`Problem`](proxy_core::input::Problem), and the watch goes on.

use bytes::{Buf, Bytes, BytesMut};
use prost::{DecodeError, Message};
use proxy_core::input::Converted;
use proxy_core::model::ObjectName;

use super::proto::{self, Versioned};
use super::resource::Resource;
use crate::source::{Event, Trigger, noun, removal, report, subject};

/// What is asked for. An error may come as JSON from something before the API server.
pub(super) const ACCEPT: &str = "application/vnd.kubernetes.protobuf";
/// The same for a watch.
pub(super) const ACCEPT_WATCH: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// Begins every object that stands by itself.
pub(super) const MAGIC: &[u8] = b"k8s\0";
/// The longest object that is believed: etcd takes 1.5 MiB.
pub(super) const LONGEST: usize = 64 << 20;

/// An object of a watch or list. One that could not be decoded has no change, and mostly still a name.
#[derive(PartialEq, Debug)]
pub(super) struct Seen {
    /// The object's name, if it has one.
    pub(super) name: Option<ObjectName>,
    /// What it says.
    pub(super) converted: Converted,
    /// When what led to it was changed.
    pub(super) trigger: Option<Trigger>,
}

impl Seen {
    /// What is said of it.
    pub(super) fn event(self) -> Event {
        match self.trigger {
            Some(trigger) => Event::Endpoints(self.converted, trigger),
            None => Event::Object(self.converted),
        }
    }
}

/// One frame of a watch.
#[derive(PartialEq, Debug)]
pub(super) enum Frame {
    /// An object was added or altered.
    Object(Seen, String),
    /// An object is gone, or no longer selected.
    Gone(Seen, String),
    /// Nothing happened up to this version.
    Bookmark(String),
    /// The watch has failed.
    Failed(Status),
    /// A type that a later version of the API may bring.
    Unknown,
}

/// Why a request was refused.
#[derive(Clone, PartialEq, Default, Debug)]
pub(super) struct Status {
    /// As in HTTP.
    pub(super) code: u16,
    /// For people.
    pub(super) message: String,
}

/// An answer that makes no sense.
#[derive(PartialEq, Debug)]
pub(super) struct Garbled(pub(super) String);

impl From<DecodeError> for Garbled {
    fn from(error: DecodeError) -> Self {
        Garbled(error.to_string())
    }
}

/// Takes the next complete frame from what has been read of a watch: four bytes of length, big-endian, then the frame.
pub(super) fn take_frame(read: &mut BytesMut) -> Result<Option<Bytes>, Garbled> {
    let Some(length) = read.first_chunk().map(|length| u32::from_be_bytes(*length) as usize) else { return Ok(None) };
    if length > LONGEST {
        return Err(Garbled(format!("a frame of {length} bytes")));
    }
    if read.len() < 4 + length {
        return Ok(None);
    }
    read.advance(4);
    Ok(Some(read.split_to(length).freeze()))
}

/// Decodes one frame of a watch.
pub(super) fn frame<R: Resource>(resource: &R, bytes: Bytes) -> Result<Frame, Garbled> {
    let event = proto::WatchEvent::decode(bytes)?;
    let object = || unwrapped(event.object.map(|object| object.raw).unwrap_or_default());
    Ok(match &*event.kind {
        "ADDED" | "MODIFIED" => {
            let (seen, version) = seen(resource, &object()?)?;
            Frame::Object(seen, version)
        }
        "DELETED" => {
            let head = head(&object()?)?;
            Frame::Gone(gone::<R>(object_name(&head)), head.resource_version)
        }
        "BOOKMARK" => Frame::Bookmark(head(&object()?)?.resource_version),
        "ERROR" => Frame::Failed(proto::Status::decode(object()?)?.into()),
        _ => Frame::Unknown,
    })
}

/// What a refusal says: as the API server writes it, or in any other form.
pub(super) fn refusal(code: u16, body: Bytes) -> Status {
    let said = unwrapped(body.clone()).and_then(|raw| Ok(Status::from(proto::Status::decode(raw)?)));
    let message = said.map_or_else(|_| String::from_utf8_lossy(&body).trim().to_owned(), |status| status.message);
    Status { code, message }
}

/// An object without what wraps it.
fn unwrapped(mut bytes: Bytes) -> Result<Bytes, Garbled> {
    if !bytes.starts_with(MAGIC) {
        return Err(no_magic(&bytes));
    }
    bytes.advance(MAGIC.len());
    Ok(proto::Unknown::decode(bytes)?.raw)
}

/// Something else than an object.
pub(super) fn no_magic(bytes: &[u8]) -> Garbled {
    let beginning = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]).into_owned();
    Garbled(format!("not protobuf of Kubernetes but {beginning:?}"))
}

/// Decodes an object, which may fail, and its version, without which there is no going on.
pub(super) fn seen<R: Resource>(resource: &R, raw: &Bytes) -> Result<(Seen, String), Garbled> {
    match R::Object::decode(raw.clone()) {
        Ok(object) => {
            let version = object.version().to_owned();
            let trigger = resource.trigger(&object);
            let converted = resource.convert(object);
            let name = subject(&converted, resource.node()).map(|(_, name)| name.clone());
            Ok((Seen { name, converted, trigger }, version))
        }
        Err(error) => {
            let head = head(raw)?;
            Ok((undecoded::<R>(object_name(&head), &error.to_string()), head.resource_version))
        }
    }
}

pub(super) fn undecoded<R: Resource>(name: Option<ObjectName>, why: &str) -> Seen {
    let shown = name.as_ref().map_or_else(|| "?".to_owned(), ObjectName::to_string);
    let text = format!("cannot be decoded, so what is known of it stays: {why}");
    Seen { name, converted: report(format!("{} {shown}", noun(R::KIND)), text), trigger: None }
}

fn gone<R: Resource>(name: Option<ObjectName>) -> Seen {
    let converted = match &name {
        Some(name) => removal(R::KIND, name.clone()),
        None => report(format!("{} ?", noun(R::KIND)), "was deleted, but it has no name".to_owned()),
    };
    Seen { name, converted, trigger: None }
}

fn head(raw: &Bytes) -> Result<proto::HeadMetadata, Garbled> {
    Ok(proto::Head::decode(raw.clone())?.metadata.unwrap_or_default())
}

fn object_name(head: &proto::HeadMetadata) -> Option<ObjectName> {
    (!head.name.is_empty()).then(|| ObjectName::new(&*head.namespace, &*head.name))
}

impl From<proto::Status> for Status {
    fn from(proto::Status { message, code }: proto::Status) -> Self {
        Self { code: u16::try_from(code).unwrap_or_default(), message }
    }
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
