//! The kernel seam: two words, observe and commit, for every mechanism.

use std::collections::BTreeMap;
use std::sync::Arc;

use proxy_core::lower::{Lowering, ObjectsOf, StepOf};
use tokio::sync::Notify;

/// Rings in the agent's loop when somebody else has changed what a kernel holds.
pub type Alarm = Arc<Notify>;

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

    /// Who else has changed what the kernel holds since this was last asked, in words; empty if nobody has as far as is known. What
    /// this dataplane has an [`Alarm`] for rings it.
    fn disturbed_by(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// Leaves no trace.
    fn remove(&mut self) -> anyhow::Result<()>;
}
