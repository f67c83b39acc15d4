//! The kernel seam: two words, observe and commit, for every mechanism.

use std::collections::BTreeMap;
use std::sync::Arc;

use proxy_core::lower::{Lowering, ObjectsOf, StepOf};
use proxy_core::model::Frontend;
use tokio::sync::Notify;

/// Rings in the agent's loop when somebody else has changed what a kernel holds.
pub type Alarm = Arc<Notify>;

/// So many names of others are kept.
const NAMES: usize = 10;
/// Of more objects than this it is no longer known which were changed: reading all is cheaper than a list without end.
pub const MOST_KNOWN: usize = 4096;

/// What somebody else has changed in what the kernel holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disturbance<K, V> {
    /// Who, in words.
    pub by: Vec<String>,
    /// The objects, with what the kernel held under their keys afterwards; `None` if it may be anything.
    pub objects: Option<BTreeMap<K, Option<V>>>,
}

/// The disturbance of a lowering's objects.
pub type DisturbanceOf<L> = Disturbance<<L as Lowering>::Key, <L as Lowering>::Value>;

impl<K: Ord, V> Disturbance<K, V> {
    /// Adds what was changed later.
    pub fn merge(&mut self, later: Self) {
        for name in later.by {
            if self.by.len() < NAMES && !self.by.contains(&name) {
                self.by.push(name);
            }
        }
        self.objects = self.objects.take().zip(later.objects).and_then(|(mut objects, later)| {
            objects.extend(later);
            (objects.len() <= MOST_KNOWN).then_some(objects)
        });
    }
}

/// What counts, in the kernel, the connections that are led to a backend. Its calls block for as long as the kernel takes.
pub trait Meter: Send {
    /// Reads the counts of all frontends that have had a connection.
    ///
    /// # Errors
    ///
    /// The kernel cannot be read.
    fn read(&mut self) -> anyhow::Result<Vec<(Frontend, u64)>>;

    /// Deletes the counts of these frontends; a later connection begins anew. That there is none is no error.
    ///
    /// # Errors
    ///
    /// The kernel refuses; some may be deleted.
    fn forget(&mut self, frontends: &[Frontend]) -> anyhow::Result<()>;
}

/// The objects that the kernel refused, each with the reason: errno in words, and what to do where that is known.
pub type Refused<L> = BTreeMap<<L as Lowering>::Key, String>;

/// One kernel mechanism. Its calls block for as long as the kernel takes.
pub trait Dataplane: Send {
    /// How it holds the routes.
    type L: Lowering;

    /// Reads back everything of ours that the kernel holds.
    fn observe(&mut self) -> anyhow::Result<ObjectsOf<Self::L>>;

    /// Carries the steps out in their order. An error says that nothing is known of any of them: observe again.
    fn commit(&mut self, steps: &[StepOf<Self::L>]) -> anyhow::Result<Refused<Self::L>>;

    /// Everything that is wanted is in place for the first time: what served until then, of another layout, may go.
    fn filled(&mut self) -> anyhow::Result<()> {
        Ok(())
    }

    /// What somebody else has changed since this was last asked; nothing as far as is known, if there is no result. A dataplane
    /// that learns of it by itself rings an [`Alarm`].
    fn disturbance(&mut self) -> Option<DisturbanceOf<Self::L>> {
        None
    }

    /// How many objects there is room for, by [kind](Lowering::kind), where that is limited.
    fn capacities(&self) -> Vec<(&'static str, u32)> {
        Vec::new()
    }

    /// Leaves no trace.
    fn remove(&mut self) -> anyhow::Result<()>;
}
