//! What each dataplane must hold for the routes: one [`Lowering`] per kernel mechanism, pure.

pub mod bpf;
pub mod nft;

use std::collections::{BTreeMap, HashMap};
use std::fmt::{Debug, Display};

use crate::forward::{Flow, Route, Verdict};
use crate::ledger::{Objects, Step};
use crate::model::{Frontend, ObjectName};
use crate::slots::{Observed, PortKey, Seat, Slots};
use crate::view::ServiceView;

/// The most backends of one Service port and family. Slots above are left to the sets of local backends.
pub const MAX_BACKENDS: usize = 32_767;

/// The objects of a lowering.
pub type ObjectsOf<L> = Objects<<L as Lowering>::Key, <L as Lowering>::Value>;
/// A step of a lowering.
pub type StepOf<L> = Step<<L as Lowering>::Key, <L as Lowering>::Value>;

/// How one kernel mechanism holds the routes.
pub trait Lowering: Debug + Send {
    /// Names an object in the kernel.
    type Key: Ord + Clone + Display + Debug + Send;
    /// What the kernel holds under a key.
    type Value: Eq + Clone + Display + Debug + Send;

    /// Objects that are there whatever the Services: wanted from the start.
    fn base(&self) -> ObjectsOf<Self>;

    /// The objects of one Service, which seats its backends in `slots`. Frontends of a family that is not served are left out.
    fn service(&self, name: &ObjectName, routes: &[(Frontend, Route)], slots: &mut Slots) -> ObjectsOf<Self>;

    /// Puts steps in an order in which every prefix is safe: what is pointed at comes before what points there, and goes after.
    fn order(steps: &mut Vec<StepOf<Self>>);

    /// Whether packets on their way may still look for an object after it went out of use.
    fn lingers(key: &Self::Key) -> bool;

    /// The slots that the objects hold.
    fn seats(objects: &ObjectsOf<Self>) -> BTreeMap<(ObjectName, PortKey), Observed>;

    /// Reads the objects as the kernel does: what becomes of a flow.
    fn decide(objects: &ObjectsOf<Self>, flow: &Flow) -> Verdict;

    /// What the objects say, for people.
    fn view(objects: &ObjectsOf<Self>) -> Vec<ServiceView>;
}

/// Seats the backends of a Service's routes. The frontends come with the seat of their own.
fn seat<'a>(
    name: &ObjectName,
    routes: impl Iterator<Item = &'a (Frontend, Route)>,
    slots: &'a mut Slots,
) -> impl Iterator<Item = (&'a Frontend, &'a Route, &'a Seat)> {
    let mut places = HashMap::new();
    let mut ports: Vec<(PortKey, &[_])> = Vec::new();
    let routes: Vec<_> = routes
        .map(|(frontend, route)| {
            let place = *places.entry(port_key(frontend, route)).or_insert_with_key(|key| {
                ports.push((key.clone(), &route.backends[..route.backends.len().min(MAX_BACKENDS)]));
                ports.len() - 1
            });
            (frontend, route, place)
        })
        .collect();
    let seats = slots.seat(name, &ports);
    routes.into_iter().filter_map(move |(frontend, route, place)| Some((frontend, route, &seats.get(place)?.1)))
}

fn port_key(frontend: &Frontend, route: &Route) -> PortKey {
    PortKey { name: route.port.port.clone(), frontend: *frontend }
}
