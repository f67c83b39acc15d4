use super::*;

/// A ledger with what everybody wants of it. Keys from 100 linger, those from 50 may have several owners.
#[derive(Debug)]
struct Small {
    ledger: Ledger<u8, char>,
    wanted: BTreeMap<&'static str, Objects<u8, char>>,
}

fn objects(objects: &[(u8, char)]) -> Objects<u8, char> {
    objects.iter().copied().collect()
}

fn ledger(observed: &[(u8, char)]) -> Small {
    let kinds = Kinds { lingers: |key| *key >= 100, is_shared: |key| (50..100).contains(key) };
    Small { ledger: Ledger::new(objects(observed), kinds), wanted: BTreeMap::new() }
}

impl Small {
    fn want(&mut self, owner: &'static str, objects: &[(u8, char)]) {
        self.want_together(&[(owner, objects)]);
    }

    fn want_together(&mut self, wants: &[(&'static str, &[(u8, char)])]) {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for (owner, wanted) in wants {
            before.extend(self.wanted.insert(owner, objects(wanted)).unwrap_or_default());
            after.extend(wanted.iter().copied());
        }
        before.sort_unstable();
        after.sort_unstable();
        self.ledger.exchange(before, after);
    }

    fn desired(&self) -> Objects<u8, char> {
        self.wanted.values().flatten().map(|(key, value)| (*key, *value)).collect()
    }

    fn believed(&self) -> Objects<u8, char> {
        self.ledger.believed(self.desired())
    }

    /// Commits what is due but for `refused`.
    fn commit(&mut self, refused: &[u8]) -> Vec<Step<u8, char>> {
        let steps = self.ledger.due();
        self.ledger.settle(&steps, &refused.iter().copied().collect());
        steps
    }

    fn sweep(&mut self) -> Vec<Step<u8, char>> {
        let steps = self.ledger.sweep(self.ledger.round());
        self.ledger.settle(&steps, &BTreeSet::new());
        steps
    }
}

#[test]
fn what_is_observed_and_wanted_stays() {
    let mut ledger = ledger(&[(1, 'a'), (2, 'b'), (3, 'c'), (100, 'd'), (101, 'e')]);
    ledger.want("web", &[(1, 'a'), (2, 'x'), (4, 'n'), (100, 'd')]);
    assert_eq!(ledger.commit(&[]), [Step::Replace(2, 'x', 'b'), Step::Add(4, 'n')], "others may still ask for the rest");
    ledger.ledger.disown();
    assert_eq!(ledger.commit(&[]), [Step::Delete(3, 'c')]);
    assert_eq!(ledger.sweep(), [Step::Delete(101, 'e')]);
    assert_eq!(ledger.believed(), ledger.desired());
}

#[test]
fn the_last_owner_decides() {
    let mut ledger = ledger(&[(51, 'b')]);
    for name in ["web", "dns", "web"] {
        ledger.want(name, &[(50, 'a'), (51, 'b')]);
    }
    assert_eq!(ledger.commit(&[]), [Step::Add(50, 'a')]);
    ledger.want("web", &[]);
    assert_eq!(ledger.commit(&[]), []);
    ledger.want_together(&[("dns", &[]), ("web", &[(51, 'b')])]);
    assert_eq!(ledger.commit(&[]), [Step::Delete(50, 'a')]);
    ledger.want("web", &[]);
    assert_eq!(ledger.commit(&[]), [Step::Delete(51, 'b')]);
}

/// A frontend passes from one Service to another, told in either order.
#[test]
fn a_key_changes_hands() {
    for winner_first in [true, false] {
        let mut ledger = ledger(&[]);
        ledger.want("old", &[(1, 'o'), (2, 's'), (100, 'o')]);
        ledger.commit(&[]);
        let (new, old): ((_, &[_]), (_, &[_])) = (("new", &[(1, 'n'), (2, 's'), (100, 'n')]), ("old", &[]));
        ledger.want_together(&if winner_first { [new, old] } else { [old, new] });
        assert_eq!(ledger.commit(&[]), [Step::Replace(1, 'n', 'o'), Step::Replace(100, 'n', 'o')]);
        assert_eq!(ledger.sweep(), []);
        assert_eq!(ledger.believed(), ledger.desired());
    }
}

#[test]
fn what_is_let_go_and_wanted_again_costs_nothing() {
    let mut ledger = ledger(&[]);
    ledger.want("web", &[(1, 'a')]);
    ledger.commit(&[]);
    ledger.want("web", &[(2, 'b')]);
    ledger.want("web", &[(1, 'a')]);
    assert_eq!(ledger.commit(&[]), []);
}

#[test]
fn lingering_is_swept_a_round_later() {
    let mut ledger = ledger(&[]);
    ledger.want("web", &[(100, 'a')]);
    ledger.commit(&[]);
    ledger.want("web", &[]);
    assert_eq!(ledger.sweep(), [], "packets that read what points there have not been given a new round");
    assert!(ledger.ledger.has_lingering());
    assert_eq!(ledger.commit(&[]), []);
    assert_eq!(ledger.sweep(), [Step::Delete(100, 'a')]);
    assert!(!ledger.ledger.has_lingering());
}

#[test]
fn flapping_within_a_round_is_deleted_once() {
    let mut ledger = ledger(&[]);
    ledger.want("web", &[(100, 'a')]);
    ledger.commit(&[]);
    for wanted in [&[][..], &[(100, 'a')], &[]] {
        ledger.want("web", wanted);
    }
    assert_eq!(ledger.commit(&[]), []);
    assert_eq!(ledger.sweep(), [Step::Delete(100, 'a')]);
}

#[test]
fn refused_is_left_alone_until_it_changes_or_is_retried() {
    let mut ledger = ledger(&[]);
    ledger.want("web", &[(1, 'a'), (2, 'b')]);
    ledger.commit(&[1]);
    assert_eq!(ledger.commit(&[]), []);
    assert_eq!(ledger.believed(), objects(&[(2, 'b')]));
    ledger.want("web", &[(1, 'x'), (2, 'b')]);
    assert_eq!(ledger.commit(&[1]), [Step::Add(1, 'x')]);
    assert!(ledger.ledger.retry());
    assert_eq!(ledger.commit(&[]), [Step::Add(1, 'x')]);
    assert!(!ledger.ledger.retry());
}

/// What is wanted changes while steps are under way.
#[test]
fn a_settlement_does_not_undo_what_came_since() {
    for (since, then) in
        [(&[(1, 'b')][..], Step::Replace(1, 'b', 'a')), (&[], Step::Delete(1, 'a')), (&[(1, 'a'), (2, 'n')], Step::Add(2, 'n'))]
    {
        let mut ledger = ledger(&[]);
        ledger.want("web", &[(1, 'a')]);
        let steps = ledger.ledger.due();
        ledger.want("web", since);
        ledger.ledger.settle(&steps, &BTreeSet::new());
        assert_eq!(ledger.ledger.due(), [then]);
    }
}

#[test]
fn a_deletion_under_way_is_made_up_for() {
    let mut ledger = ledger(&[(1, 'a')]);
    ledger.ledger.disown();
    let steps = ledger.ledger.due();
    assert_eq!(steps, [Step::Delete(1, 'a')]);
    ledger.want("web", &[(1, 'a')]);
    ledger.ledger.settle(&steps, &BTreeSet::new());
    assert_eq!(ledger.commit(&[]), [Step::Add(1, 'a')]);
}

#[test]
fn a_refusal_is_of_what_was_tried() {
    let mut ledger = ledger(&[]);
    ledger.want("web", &[(1, 'a')]);
    let steps = ledger.ledger.due();
    ledger.want("web", &[(1, 'b')]);
    ledger.ledger.settle(&steps, &BTreeSet::from([1]));
    assert_eq!(ledger.ledger.due(), [Step::Add(1, 'b')]);
}

#[test]
fn what_somebody_else_changed_is_put_right() {
    let mut ledger = ledger(&[]);
    ledger.want("web", &[(1, 'a'), (2, 'b'), (3, 'c'), (100, 'l'), (101, 'm')]);
    ledger.commit(&[3]);
    ledger.want("web", &[(1, 'a'), (2, 'b'), (3, 'c')]);
    ledger.commit(&[]);
    // Deleted, altered, what was refused put there, one that lingers deleted, and one that is nobody's added.
    for (key, believed, held) in
        [(1, Some('a'), None), (2, Some('b'), Some('x')), (3, None, Some('c')), (100, Some('l'), None), (4, None, Some('n'))]
    {
        ledger.ledger.correct(key, believed, held);
    }
    assert_eq!(ledger.commit(&[]), [Step::Add(1, 'a'), Step::Replace(2, 'b', 'x'), Step::Delete(4, 'n')]);
    assert!(ledger.ledger.refused().is_empty());
    assert_eq!(ledger.sweep(), [Step::Delete(101, 'm')]);
    assert_eq!(ledger.believed(), ledger.desired());
}

/// Memory follows what is to be done: nothing stays of what is done.
#[test]
fn what_is_in_place_is_not_kept() {
    let mut ledger = ledger(&[(1, 'a'), (2, 'b')]);
    ledger.want("web", &[(1, 'a'), (2, 'x'), (3, 'n'), (100, 'l')]);
    ledger.ledger.disown();
    ledger.commit(&[]);
    ledger.want("web", &[(3, 'n')]);
    ledger.commit(&[]);
    ledger.sweep();
    let Ledger { found, open, queue, lingering, settled, .. } = &ledger.ledger;
    assert!(found.is_empty() && open.is_empty() && queue.is_empty() && lingering.is_empty() && settled.is_empty(), "{ledger:?}");
}
