//! Somebody else changes what the kernel holds.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proxy_core::lower::bpf::Bpf;
use proxy_core::lower::nft::Nft;
use proxy_core::settings::Settings;

use super::kernel::{Agent, Subject};
use super::restart::Stray;
use super::world::{Event, config, events, flows, settings};

proptest! {
    #![proptest_config(config())]

    #[test]
    fn bpf_is_repaired(around in settings(), events in events(), noise in any::<u64>()) {
        is_repaired::<Bpf>(&around, &events, noise);
    }

    #[test]
    fn nft_is_repaired(around in settings(), events in events(), noise in any::<u64>()) {
        is_repaired::<Nft>(&around, &events, noise);
    }
}

/// What was deleted and added is repaired, nothing else is written, and what lingers goes on to linger.
fn is_repaired<L: Subject + Stray>(around: &Settings, events: &[Event], noise: u64) {
    for lowering in L::all(around) {
        let mut agent = Agent::new(lowering, around);
        for event in events {
            agent.event(event.clone());
        }
        agent.commit();
        assert_eq!(agent.plan.correct(agent.kernel.0.clone()), [], "nobody else has changed anything");
        let before = agent.kernel.0.clone();
        let mut i = 0;
        agent.kernel.0.retain(|_, _| {
            i += 1;
            !noise.rotate_left(i * 5).is_multiple_of(4)
        });
        agent.kernel.0.extend(L::strays(noise as u32 % 16));
        let differs = |key: &L::Key| agent.kernel.0.get(key) != before.get(key);
        let broken: Vec<_> = before
            .keys()
            .chain(agent.kernel.0.keys().filter(|key| !before.contains_key(key)))
            .filter(|key| differs(key))
            .cloned()
            .collect();
        if noise.is_multiple_of(2) {
            assert_eq!(agent.plan.correct(agent.kernel.0.clone()), broken);
        } else {
            // Told of some that are as they were, too.
            let told = broken.iter().chain(before.keys().step_by(3)).map(|key| (key.clone(), agent.kernel.0.get(key).cloned()));
            let told: BTreeMap<_, _> = told.collect();
            let found: BTreeSet<_> = agent.plan.correct_some(told).into_iter().collect();
            assert_eq!(found, broken.iter().cloned().collect());
        }
        for step in agent.commit() {
            assert!(broken.contains(step.key()), "{step} was not broken");
        }
        agent.check(&agent.kernel.0, &flows(), "kernel");
        agent.sweep();
        assert_eq!(agent.kernel.0, agent.plan.desired());
        assert_eq!(agent.plan.correct(agent.kernel.0.clone()), []);
    }
}
