//! The cases of one size of cluster: what is prepared, what is measured.

use std::hint::black_box;

use proxy_core::forward::Forwarding;
use proxy_core::lower::Lowering;
use proxy_core::lower::bpf::Bpf;
use proxy_core::lower::nft::Nft;
use proxy_core::model::{Change, Family, ObjectName};
use proxy_core::settings::Settings;

use crate::alloc::resident;
use crate::meter::{Meter, Row};
use crate::objects;
use crate::subject::{Diff, Lower, Selected, Whole, convert_one_service, convert_one_slice, routes, select, service_object, slice_object};

/// Changes that are measured, each of another Service.
const CHANGES: u32 = 1_000;
/// Services that are taken in at a time, about as the agent does at its start; preparing all at once would take gigabytes.
const AT_ONCE: u32 = 1_000;

/// Measures everything in a cluster of so many Services.
pub(crate) fn run(services: u32, load: Meter, change: Meter) -> Vec<Row> {
    let mut cases = Cases { services, load, change, rows: Vec::new() };
    let mut forwarding = Forwarding::default();
    let mut selected = cases.load(&mut forwarding);
    let changes = cases.change(&mut forwarding);
    cases.lowering("bpf", Bpf::default, &mut forwarding, &changes);
    cases.lowering("nft", || Nft::new(Family::V4, &Settings::default()), &mut forwarding, &changes);
    // The changes share what they say with those that took them in.
    drop(changes);
    selected.resident = resident(forwarding);
    // In the order of the stages, after both rows of *convert*.
    cases.rows.insert(2, selected);
    cases.rows
}

/// Changes, each of another Service: one of its endpoints is replaced; and the same ones undone.
struct Changes {
    there: Vec<Change>,
    back: Vec<Change>,
}

struct Cases {
    services: u32,
    load: Meter,
    change: Meter,
    rows: Vec<Row>,
}

impl Cases {
    fn per_service(&self, stage: impl Into<String>) -> Row {
        Row::new(stage, "service", self.services, self.services)
    }

    fn per_change(&self, stage: impl Into<String>) -> Row {
        Row::new(stage, "change", self.services, CHANGES)
    }

    /// The first load, up to routes. The row of *select* still lacks what it keeps.
    fn load(&mut self, forwarding: &mut Forwarding) -> Row {
        let (mut convert, mut selected) = (self.per_service("convert"), self.per_service("select"));
        for first in (0..self.services).step_by(AT_ONCE as usize) {
            let numbers = first..self.services.min(first + AT_ONCE);
            let objects: Vec<_> = numbers.map(|i| (service_object(&objects::service(i)), slice_object(&objects::slice(i, 0)))).collect();
            let mut changes = Vec::with_capacity(2 * objects.len());
            self.load.measure(&mut convert, || {
                for (service, slice) in &objects {
                    changes.extend([convert_one_service(service), convert_one_slice(slice)]);
                }
            });
            self.load.measure(&mut selected, || {
                changes.into_iter().for_each(|change| {
                    forwarding.apply(change);
                })
            });
        }
        self.load.measure(&mut selected, || select(forwarding, |routes| drop(black_box(routes))));
        self.rows.push(convert);
        selected
    }

    /// Changes, up to routes.
    fn change(&mut self, forwarding: &mut Forwarding) -> Changes {
        let (mut convert, mut selected) = (self.per_change("convert"), self.per_change("select"));
        let numbers = || (0..CHANGES).map(|i| i * (self.services / CHANGES));
        let back = numbers().map(|i| convert_one_slice(&slice_object(&objects::slice(i, 0)))).collect();
        let objects: Vec<_> = numbers().map(|i| slice_object(&objects::slice(i, 1))).collect();
        let mut there = Vec::with_capacity(objects.len());
        self.change.measure(&mut convert, || there.extend(objects.iter().map(convert_one_slice)));
        let changes = Changes { there, back };

        let mut touched = 0;
        let owned = changes.there.clone();
        self.change.measure(&mut selected, || {
            for change in owned {
                forwarding.apply(change);
                select(forwarding, |routes| {
                    touched += 1;
                    drop(black_box(routes));
                });
            }
        });
        assert_eq!(touched, CHANGES, "every change touches its Service");
        apply(forwarding, &changes.back);
        self.rows.extend([convert, selected]);
        changes
    }

    /// From routes to steps: stage by stage, and all as the agent calls it.
    fn lowering<L: Lowering>(&mut self, name: &str, lowering: fn() -> L, forwarding: &mut Forwarding, changes: &Changes) {
        // The order in which the agent takes in what it finds at its start.
        let names: Vec<ObjectName> = forwarding.services().cloned().collect();
        self.stages(name, lowering, &names, forwarding, changes);
        self.whole(name, lowering, &names, forwarding, changes);
    }

    fn stages<L: Lowering>(
        &mut self,
        name: &str,
        lowering: fn() -> L,
        names: &[ObjectName],
        forwarding: &mut Forwarding,
        changes: &Changes,
    ) {
        let (mut lower_row, mut diff_row) = (self.per_service(format!("lower {name}")), self.per_service(format!("diff {name}")));
        let (mut lower, mut diff) = (Lower::new(lowering()), Diff::<L>::new());
        for names in names.chunks(AT_ONCE as usize) {
            let selected: Vec<Selected> = names.iter().map(|name| routes(forwarding, name)).collect();
            let mut lowered = Vec::with_capacity(selected.len());
            self.load.measure(&mut lower_row, || lowered.extend(selected.iter().map(|selected| lower.lower(selected))));
            let steps = self.load.measure(&mut diff_row, || {
                lowered.into_iter().for_each(|lowered| diff.want(lowered));
                diff.finish()
            });
            assert!(steps > names.len(), "all Services are new");
        }

        let (mut lower_change, mut diff_change) = (self.per_change(format!("lower {name}")), self.per_change(format!("diff {name}")));
        let mut selected = Vec::with_capacity(changes.there.len());
        for change in &changes.there {
            forwarding.apply(change.clone());
            select(forwarding, |routes| selected.push(routes));
        }
        let mut lowered = Vec::with_capacity(selected.len());
        self.change.measure(&mut lower_change, || lowered.extend(selected.iter().map(|selected| lower.lower(selected))));
        self.change.measure(&mut diff_change, || {
            for lowered in lowered {
                diff.want(lowered);
                assert!(diff.finish() > 0, "every change writes something");
            }
        });
        apply(forwarding, &changes.back);
        (lower_row.resident, diff_row.resident) = (resident(lower), resident(diff));
        self.rows.extend([lower_row, lower_change, diff_row, diff_change]);
    }

    fn whole<L: Lowering>(
        &mut self,
        name: &str,
        lowering: fn() -> L,
        names: &[ObjectName],
        forwarding: &mut Forwarding,
        changes: &Changes,
    ) {
        let (mut load, mut change) = (self.per_service(format!("plan {name}")), self.per_change(format!("plan {name}")));
        let mut whole = self.load.measure(&mut load, || {
            let mut whole = Whole::new(lowering());
            for names in names.chunks(AT_ONCE as usize) {
                assert!(whole.update(names, forwarding) > names.len(), "all Services are new");
            }
            whole
        });
        apply(forwarding, &changes.there);
        let touched: Vec<&ObjectName> = changes.there.iter().map(service_of).collect();
        self.change.measure(&mut change, || {
            for name in touched {
                assert!(whole.update(std::slice::from_ref(name), forwarding) > 0, "every change writes something");
            }
        });
        apply(forwarding, &changes.back);
        load.resident = resident(whole);
        self.rows.extend([load, change]);
    }
}

/// Takes changes in without measuring.
fn apply(forwarding: &mut Forwarding, changes: &[Change]) {
    changes.iter().cloned().for_each(|change| {
        forwarding.apply(change);
    });
    forwarding.take_touched();
}

fn service_of(change: &Change) -> &ObjectName {
    match change {
        Change::Slice(_, Some(slice)) => &slice.service,
        Change::Service(name, _) | Change::Slice(name, _) => name,
        Change::Node(_) | Change::ServiceCidr(..) | Change::HostAddresses(_) => unreachable!("the changes are of slices"),
    }
}
