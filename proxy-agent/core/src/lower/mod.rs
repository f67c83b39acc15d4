//! What each dataplane must hold for the routes: one [`Lowering`] per kernel mechanism, pure.

pub mod bpf;
pub mod nft;

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::hash::Hash;

use crate::forward::{Flow, Verdict};
use crate::ledger::{Objects, Step};
use crate::model::{Family, ObjectName};
use crate::route::{PortKey, Route};
use crate::slots::{Observed, Seat};
use crate::surroundings::Surroundings;
use crate::view::{PortView, ServiceView};

/// The most backends of one Service port and family. Slots above are left to the sets of local backends.
pub const MAX_BACKENDS: usize = 32_767;

/// The objects of a lowering.
pub type ObjectsOf<L> = Objects<<L as Lowering>::Key, <L as Lowering>::Value>;
/// A step of a lowering.
pub type StepOf<L> = Step<<L as Lowering>::Key, <L as Lowering>::Value>;

/// How one kernel mechanism holds the routes.
pub trait Lowering: Clone + Debug + Send {
    /// Names an object in the kernel.
    type Key: Ord + Hash + Clone + Display + Debug + Send;
    /// What the kernel holds under a key.
    type Value: Eq + Clone + Display + Debug + Send;

    /// Whether frontends have numbers in this mechanism.
    const IS_NUMBERED: bool;

    /// Whether frontends of this family are there.
    fn serves(&self, family: Family) -> bool;

    /// Whether clients can stay with their backends. If not, each new connection goes to any.
    fn is_sticky(&self) -> bool;

    /// Objects that are there whatever the Services.
    fn base(&self, surroundings: &Surroundings) -> ObjectsOf<Self>;

    /// The objects of a Service whose backends sit like this, in any order. They follow from the seats alone, so that they need
    /// not be remembered. A key may be there several times, with the same value.
    fn objects(&self, name: &ObjectName, seats: &[Seat], out: &mut Vec<(Self::Key, Self::Value)>);

    /// Puts steps in an order in which every prefix is safe: what is pointed at comes before what points there, and goes after.
    fn order(steps: &mut Vec<StepOf<Self>>);

    /// Whether packets on their way may still look for an object after it went out of use.
    fn lingers(key: &Self::Key) -> bool;

    /// The set, map or kind that an object is in, for reports.
    fn kind(key: &Self::Key) -> &'static str;

    /// Whether several Services may want this object.
    fn is_shared(key: &Self::Key) -> bool;

    /// The slots and numbers that the objects hold.
    fn seats(objects: &ObjectsOf<Self>) -> BTreeMap<(ObjectName, PortKey), Observed>;

    /// Reads the objects as the kernel does: what becomes of a flow.
    fn decide(&self, objects: &ObjectsOf<Self>, flow: &Flow) -> Verdict;

    /// What the objects say, for people.
    fn view(objects: &ObjectsOf<Self>) -> Vec<ServiceView>;

    /// What the objects of a route say.
    fn show(&self, route: &Route) -> Option<PortView>;
}
