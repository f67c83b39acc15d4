//! Every prefix of a commit is safe; what is refused hinders nothing else.

use std::collections::BTreeSet;

use proptest::prelude::*;
use proxy_core::forward::{Flow, Verdict};
use proxy_core::ledger::Step;
use proxy_core::lower::Lowering;
use proxy_core::lower::bpf::Bpf;
use proxy_core::lower::nft::{self, Nft};
use proxy_core::model::Change;
use proxy_core::settings::Settings;

use super::kernel::{Agent, Kernel, Subject};
use super::world::{changes, config, flows, object_changes, settings};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn bpf_prefixes_are_safe(around in settings(), before in changes(), after in object_changes()) {
        prefixes_are_safe::<Bpf>(&around, &before, &after);
    }

    /// One batch is atomic, but a large one may have to be split.
    #[test]
    fn nft_prefixes_are_safe(around in settings(), before in changes(), after in object_changes()) {
        prefixes_are_safe::<Nft>(&around, &before, &after);
    }

    #[test]
    fn nft_packets_on_their_way(around in settings(), before in changes(), after in object_changes()) {
        packets_on_their_way_find_what_they_look_for(&around, &before, &after);
    }

    #[test]
    fn bpf_refusals(around in settings(), before in changes(), after in changes(), seed in any::<u64>()) {
        refusals::<Bpf>(&around, &before, &after, seed);
    }

    #[test]
    fn nft_refusals(around in settings(), before in changes(), after in changes(), seed in any::<u64>()) {
        refusals::<Nft>(&around, &before, &after, seed);
    }
}

/// A packet has read `services` before a commit and reads the rest after it: what it looks for is still there until the sweep.
fn packets_on_their_way_find_what_they_look_for(around: &Settings, before: &[Change], after: &[Change]) {
    let flows = flows();
    for lowering in Nft::all(around) {
        let mut agent = Agent::new(lowering.clone(), around);
        for change in before {
            agent.change(change.clone());
        }
        agent.finish();
        let flows: Vec<&Flow> = agent.mine(&flows);
        let old: Vec<Verdict> = flows.iter().map(|flow| agent.decide(flow)).collect();
        // Who is let in is looked at before that.
        let is_read = |key: &nft::Key| matches!(key, nft::Key::Service(_) | nft::Key::Restricted(_) | nft::Key::Source(..));
        let read: Vec<_> = agent.kernel.0.clone().into_iter().filter(|(key, _)| is_read(key)).collect();
        for change in after {
            agent.change(change.clone());
        }
        agent.commit();
        let mut met = agent.kernel.0.clone();
        met.retain(|key, _| !is_read(key));
        met.extend(read);
        for (flow, old) in flows.iter().zip(&old) {
            let now = lowering.decide(&met, flow);
            let new = agent.forwarding.decide(flow);
            assert!(is_between(old, &now, &new), "{flow:?}: {old:?}, {now:?}, then {new:?}");
        }
    }
}

/// Whether a packet may meet `now` while `old` becomes `new`: a backend of either. Only where one of them does not serve it, it may
/// not be served, in whatever way.
pub(crate) fn is_between(old: &Verdict, now: &Verdict, new: &Verdict) -> bool {
    let backends = |verdict: &Verdict| match verdict {
        Verdict::Backends { backends, .. } => Some(backends.clone()),
        _ => None,
    };
    match (backends(old), backends(now), backends(new)) {
        _ if now == old || now == new => true,
        (old, Some(now), new) => now.iter().all(|b| old.iter().chain(&new).any(|backends| backends.contains(b))),
        (old, None, new) => old.is_none() || new.is_none(),
    }
}

fn prefixes_are_safe<L: Subject>(around: &Settings, before: &[Change], after: &[Change]) {
    let flows = flows();
    for lowering in L::all(around) {
        let mut agent = Agent::new(lowering.clone(), around);
        for change in before {
            agent.change(change.clone());
        }
        agent.commit();
        let flows: Vec<&Flow> = agent.mine(&flows);
        let old: Vec<Verdict> = flows.iter().map(|flow| agent.decide(flow)).collect();
        for change in after {
            agent.change(change.clone());
        }
        let (steps, desired) = (agent.plan.due(), agent.plan.desired());
        let new: Vec<Verdict> = flows.iter().map(|flow| lowering.decide(&desired, flow)).collect();
        for (done, step) in steps.iter().enumerate() {
            agent.kernel.apply(step);
            for ((flow, old), new) in flows.iter().zip(&old).zip(&new) {
                let now = agent.decide(flow);
                let after = || steps[..=done].iter().map(|step| format!("{step}\n")).collect::<String>();
                assert!(is_between(old, &now, new), "{flow:?}: {old:?}, {now:?}, then {new:?} after\n{}", after());
            }
        }
        agent.plan.settle(&steps, &BTreeSet::new());
        agent.sweep();
        let desired = agent.plan.desired();
        let swept: Vec<_> = agent.kernel.0.keys().filter(|key| !desired.contains_key(key)).collect();
        assert!(swept.is_empty(), "{swept:?}");
    }
}

/// Some keys are refused: all others go in, a second commit leaves the refused ones alone, and a retry completes.
fn refusals<L: Subject>(around: &Settings, before: &[Change], after: &[Change], seed: u64) {
    for lowering in L::all(around) {
        let mut agent = Agent::new(lowering.clone(), around);
        for change in before {
            agent.change(change.clone());
        }
        agent.finish();
        for change in after {
            agent.change(change.clone());
        }
        let steps = agent.plan.due();
        let is_refused = |i: usize| seed.rotate_left(i as u32 * 7).is_multiple_of(3);
        let refused: BTreeSet<_> = steps.iter().enumerate().filter(|(i, _)| is_refused(*i)).map(|(_, s)| s.key().clone()).collect();
        for step in steps.iter().filter(|step| !refused.contains(step.key())) {
            agent.kernel.apply(step);
        }
        agent.plan.settle(&steps, &refused);
        let desired = agent.plan.desired();
        let still_wanted = desired.iter().filter(|(key, value)| !refused.contains(*key) && agent.kernel.0.get(*key) != Some(*value));
        assert_eq!(still_wanted.count(), 0, "everything else is in");
        assert_eq!(agent.plan.due(), [], "what was refused is left alone");
        assert_eq!(agent.plan.ledger().retry(), !refused.is_empty());
        let again: BTreeSet<_> = agent.plan.due().iter().map(|step| step.key().clone()).collect();
        assert_eq!(again, refused);
        agent.finish();
        assert_eq!(agent.kernel.0, desired);
        assert!(!agent.plan.ledger().retry());
    }
}

/// The simulated kernel is as strict as the real one.
#[test]
#[should_panic(expected = "the kernel holds something else")]
fn the_kernel_refuses_what_is_not_there() {
    let key = proxy_core::lower::bpf::Key::Name(1);
    let value = proxy_core::lower::bpf::Value::Name("a/web".into());
    Kernel::<Bpf>(Default::default()).apply(&Step::Delete(key, value));
}
