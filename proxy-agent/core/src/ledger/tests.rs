use super::*;

type Small = Ledger<u8, char>;

fn owner(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn objects(objects: &[(u8, char)]) -> Objects<u8, char> {
    objects.iter().copied().collect()
}

/// Keys from 100 linger.
fn ledger(observed: &[(u8, char)]) -> Small {
    Ledger::new(objects(observed), |key| *key >= 100)
}

/// Commits what is due but for `refused`.
fn commit(ledger: &mut Small, refused: &[u8]) -> Vec<Step<u8, char>> {
    let steps = ledger.due();
    ledger.settle(&steps, &refused.iter().copied().collect());
    steps
}

fn sweep(ledger: &mut Small) -> Vec<Step<u8, char>> {
    let steps = ledger.sweep(ledger.round());
    ledger.settle(&steps, &BTreeSet::new());
    steps
}

#[test]
fn what_is_observed_and_wanted_stays() {
    let mut ledger = ledger(&[(1, 'a'), (2, 'b'), (3, 'c'), (100, 'd'), (101, 'e')]);
    ledger.want(&owner("web"), objects(&[(1, 'a'), (2, 'x'), (4, 'n'), (100, 'd')]));
    assert_eq!(commit(&mut ledger, &[]), [Step::Replace(2, 'x', 'b'), Step::Delete(3, 'c'), Step::Add(4, 'n')]);
    assert_eq!(sweep(&mut ledger), [Step::Delete(101, 'e')]);
    assert_eq!(ledger.believed(), ledger.desired());
}

#[test]
fn the_last_owner_decides() {
    let mut ledger = ledger(&[]);
    for name in ["web", "dns", "web"] {
        ledger.want(&owner(name), objects(&[(1, 'a')]));
    }
    assert_eq!(ledger.owners_of(&1).len(), 2);
    assert_eq!(commit(&mut ledger, &[]), [Step::Add(1, 'a')]);
    ledger.want(&owner("web"), objects(&[]));
    assert_eq!(commit(&mut ledger, &[]), []);
    assert_eq!(ledger.wanted_by(&owner("dns")), [1]);
    ledger.want(&owner("dns"), objects(&[]));
    assert_eq!(commit(&mut ledger, &[]), [Step::Delete(1, 'a')]);
}

/// A frontend passes from one Service to another, told in either order.
#[test]
fn a_key_changes_hands() {
    for winner_first in [true, false] {
        let mut ledger = ledger(&[]);
        ledger.want(&owner("old"), objects(&[(1, 'o'), (100, 'o')]));
        commit(&mut ledger, &[]);
        for takes in [winner_first, !winner_first] {
            if takes {
                ledger.want(&owner("new"), objects(&[(1, 'n'), (100, 'n')]));
            } else {
                ledger.want(&owner("old"), objects(&[]));
            }
        }
        assert_eq!(commit(&mut ledger, &[]), [Step::Replace(1, 'n', 'o'), Step::Replace(100, 'n', 'o')]);
        assert_eq!(sweep(&mut ledger), []);
    }
}

#[test]
fn what_is_let_go_and_wanted_again_costs_nothing() {
    let mut ledger = ledger(&[]);
    ledger.want(&owner("web"), objects(&[(1, 'a')]));
    commit(&mut ledger, &[]);
    ledger.want(&owner("web"), objects(&[(2, 'b')]));
    ledger.want(&owner("web"), objects(&[(1, 'a')]));
    assert_eq!(commit(&mut ledger, &[]), []);
}

#[test]
fn lingering_is_swept_a_round_later() {
    let mut ledger = ledger(&[]);
    ledger.want(&owner("web"), objects(&[(100, 'a')]));
    commit(&mut ledger, &[]);
    ledger.want(&owner("web"), objects(&[]));
    assert_eq!(sweep(&mut ledger), [], "packets that read what points there have not been given a new round");
    assert!(ledger.has_lingering());
    assert_eq!(commit(&mut ledger, &[]), []);
    assert_eq!(sweep(&mut ledger), [Step::Delete(100, 'a')]);
    assert!(!ledger.has_lingering());
}

#[test]
fn flapping_within_a_round_is_deleted_once() {
    let mut ledger = ledger(&[]);
    ledger.want(&owner("web"), objects(&[(100, 'a')]));
    commit(&mut ledger, &[]);
    for wanted in [&[][..], &[(100, 'a')], &[]] {
        ledger.want(&owner("web"), objects(wanted));
    }
    assert_eq!(commit(&mut ledger, &[]), []);
    assert_eq!(sweep(&mut ledger), [Step::Delete(100, 'a')]);
}

#[test]
fn refused_is_left_alone_until_it_changes_or_is_retried() {
    let mut ledger = ledger(&[]);
    ledger.want(&owner("web"), objects(&[(1, 'a'), (2, 'b')]));
    commit(&mut ledger, &[1]);
    assert_eq!(commit(&mut ledger, &[]), []);
    assert_eq!(ledger.believed(), objects(&[(2, 'b')]));
    ledger.want(&owner("web"), objects(&[(1, 'x'), (2, 'b')]));
    assert_eq!(commit(&mut ledger, &[1]), [Step::Add(1, 'x')]);
    assert!(ledger.retry());
    assert_eq!(commit(&mut ledger, &[]), [Step::Add(1, 'x')]);
    assert!(!ledger.retry());
}

/// What is wanted changes while steps are under way.
#[test]
fn a_settlement_does_not_undo_what_came_since() {
    for (since, then) in [
        (objects(&[(1, 'b')]), Step::Replace(1, 'b', 'a')),
        (objects(&[]), Step::Delete(1, 'a')),
        (objects(&[(1, 'a'), (2, 'n')]), Step::Add(2, 'n')),
    ] {
        let mut ledger = ledger(&[]);
        ledger.want(&owner("web"), objects(&[(1, 'a')]));
        let steps = ledger.due();
        ledger.want(&owner("web"), since);
        ledger.settle(&steps, &BTreeSet::new());
        assert_eq!(ledger.due(), [then]);
    }
}

#[test]
fn a_deletion_under_way_is_made_up_for() {
    let mut ledger = ledger(&[(1, 'a')]);
    let steps = ledger.due();
    assert_eq!(steps, [Step::Delete(1, 'a')]);
    ledger.want(&owner("web"), objects(&[(1, 'a')]));
    ledger.settle(&steps, &BTreeSet::new());
    assert_eq!(commit(&mut ledger, &[]), [Step::Add(1, 'a')]);
}

#[test]
fn a_refusal_is_of_what_was_tried() {
    let mut ledger = ledger(&[]);
    ledger.want(&owner("web"), objects(&[(1, 'a')]));
    let steps = ledger.due();
    ledger.want(&owner("web"), objects(&[(1, 'b')]));
    ledger.settle(&steps, &BTreeSet::from([1]));
    assert_eq!(ledger.due(), [Step::Add(1, 'b')]);
}
