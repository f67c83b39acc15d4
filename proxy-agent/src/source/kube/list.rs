//! A list that is decoded as it arrives, so that a large one takes no more memory than an object at a time.
//!
//! ```text
//! magic  Unknown { 1: type  2: List { 1: metadata  2: item  2: item ... }  3, 4: nothing of use }
//! ```

use bytes::{Buf, Bytes, BytesMut};
use prost::Message;

use super::proto::ListMetadata;
use super::resource::Resource;
use super::wire::{Garbled, LONGEST, MAGIC, Seen, no_magic, seen, undecoded};

/// What has been read of a list.
#[derive(Default)]
pub(super) struct List {
    /// What has been read and not been taken.
    read: BytesMut,
    place: Place,
    version: String,
}

/// Where what is read next stands.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
enum Place {
    #[default]
    Magic,
    /// In front of the list itself.
    Head,
    /// Within the list, of which so many bytes are left.
    Items(usize),
    /// Behind it.
    Tail,
}

/// The beginning of a field: its tag, how long it is itself, and how long what follows is.
struct Header {
    tag: u64,
    len: usize,
    content: usize,
}

impl List {
    /// Takes in what was read.
    pub(super) fn push(&mut self, data: &[u8]) {
        self.read.extend_from_slice(data);
    }

    /// The next object that is complete.
    pub(super) fn next<R: Resource>(&mut self, resource: &R) -> Result<Option<Seen>, Garbled> {
        loop {
            match self.place {
                Place::Magic if self.read.len() < MAGIC.len() => return Ok(None),
                Place::Magic if !self.read.starts_with(MAGIC) => return Err(no_magic(&self.read)),
                Place::Magic => {
                    self.read.advance(MAGIC.len());
                    self.place = Place::Head;
                }
                Place::Head => {
                    let Some(header) = header(&self.read)? else { return Ok(None) };
                    if header.tag == 2 {
                        self.read.advance(header.len);
                        self.place = Place::Items(header.content);
                    } else if self.field(&header)?.is_none() {
                        return Ok(None);
                    }
                }
                Place::Items(0) => self.place = Place::Tail,
                Place::Items(left) => {
                    let Some(header) = header(&self.read)? else { return Ok(None) };
                    let Some(field) = self.field(&header)? else { return Ok(None) };
                    let left = left.checked_sub(header.len + header.content).ok_or_else(|| Garbled("an item beyond the list".into()))?;
                    self.place = Place::Items(left);
                    match header.tag {
                        1 => self.version = ListMetadata::decode(field)?.resource_version,
                        2 => return Ok(Some(item(resource, &field))),
                        _ => {}
                    }
                }
                Place::Tail => {
                    self.read.clear();
                    return Ok(None);
                }
            }
        }
    }

    /// The version of the list, which must be complete.
    pub(super) fn end(self) -> Result<String, Garbled> {
        match self.place {
            Place::Tail if self.version.is_empty() => Err(Garbled("a list without a resourceVersion".into())),
            Place::Tail => Ok(self.version),
            _ => Err(Garbled("the connection ended before the list was complete".into())),
        }
    }

    /// The content of a field, once it is complete.
    fn field(&mut self, header: &Header) -> Result<Option<Bytes>, Garbled> {
        if header.content > LONGEST {
            return Err(Garbled(format!("an item of {} bytes", header.content)));
        }
        if self.read.len() < header.len + header.content {
            return Ok(None);
        }
        self.read.advance(header.len);
        Ok(Some(self.read.split_to(header.content).freeze()))
    }
}

/// One that cannot be decoded costs only itself.
fn item<R: Resource>(resource: &R, raw: &Bytes) -> Seen {
    seen(resource, raw).map_or_else(|Garbled(why)| undecoded::<R>(None, &why), |(seen, _)| seen)
}

/// Reads the beginning of a field, which has a length: all fields here do.
fn header(read: &[u8]) -> Result<Option<Header>, Garbled> {
    let Some((key, a)) = varint(read)? else { return Ok(None) };
    let Some((content, b)) = varint(&read[a..])? else { return Ok(None) };
    if key & 7 != 2 {
        return Err(Garbled(format!("a field of wire type {}", key & 7)));
    }
    Ok(Some(Header { tag: key >> 3, len: a + b, content: usize::try_from(content).map_err(|e| Garbled(e.to_string()))? }))
}

/// A number in groups of seven bits, the lowest first, and how many bytes it takes; `None` where its end has not been read.
fn varint(read: &[u8]) -> Result<Option<(u64, usize)>, Garbled> {
    let mut value = 0;
    for (i, byte) in read.iter().take(9).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Ok(Some((value, i + 1)));
        }
    }
    if read.len() < 9 { Ok(None) } else { Err(Garbled("a length beyond belief".into())) }
}
