//! Sources.
use std::collections::HashSet;
use proxy_core::cluster::Kind;
use proxy_core::input::Converted;
use proxy_core::model::ObjectName;
/// What a source says.
#[derive(Debug)]
pub enum Event {
    /// An object was added, altered or is gone; with what in it could not be used.
    Object(Converted),
    /// A complete list of one kind has ended: what is not named is gone.
    Listed(Kind, HashSet<ObjectName>),
}
/// sender
pub type Sender = tokio::sync::mpsc::Sender<Event>;
