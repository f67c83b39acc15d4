//! Who wants which object, desired against believed: yields what is left to do as steps and learns from what became of them.
//!
//! Only what differs is kept here, and a count for each object that several Services may want. An object that is wanted and that the kernel holds has no entry: it follows from what its
//! Service was given, which whoever speaks to the ledger knows, and names when it changes. So memory follows what is to be done,
//! not the size of the cluster.
//!
//! An object that several Services want goes when the last of them lets it go. An object that may still be read by packets on
//! their way *lingers*: it is deleted by a later [`sweep`](Ledger::sweep), if nobody wants it again before.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};

/// Objects by key.
pub type Objects<K, V> = BTreeMap<K, V>;

/// One change of one object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step<K, V> {
    /// The kernel holds nothing under this key yet.
    Add(K, V),
    /// The kernel holds another value (the second) under this key.
    Replace(K, V, V),
    /// The kernel holds this value under this key.
    Delete(K, V),
}

impl<K, V> Step<K, V> {
    /// The object's key.
    pub fn key(&self) -> &K {
        match self {
            Step::Add(key, _) | Step::Replace(key, _, _) | Step::Delete(key, _) => key,
        }
    }
}

impl<K: Ord + Clone, V: Eq + Clone> Step<K, V> {
    /// Applies the step to objects that stand for the kernel's. Whether they were as the step says; if not, they stay as they are.
    pub fn apply(&self, objects: &mut Objects<K, V>) -> bool {
        let (key, expected, value) = match self {
            Step::Add(key, value) => (key, None, Some(value)),
            Step::Replace(key, value, old) => (key, Some(old), Some(value)),
            Step::Delete(key, old) => (key, Some(old), None),
        };
        if objects.get(key) != expected {
            return false;
        }
        match value {
            Some(value) => objects.insert(key.clone(), value.clone()),
            None => objects.remove(key),
        };
        true
    }
}

impl<K: fmt::Display, V: fmt::Display> fmt::Display for Step<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Add(key, value) => write!(f, "+ {key} = {value}"),
            Step::Replace(key, value, old) => write!(f, "~ {key} = {value} (was {old})"),
            Step::Delete(key, old) => write!(f, "- {key} (was {old})"),
        }
    }
}

/// An object of which something is left to do.
#[derive(Debug)]
struct Entry<V> {
    state: State<V>,
    /// Its key is in the queue.
    queued: bool,
    /// The last round in which it was found there: an entry that was gone and came again is there twice.
    round: u64,
}

/// What is wanted of an object, and what the kernel is believed to hold.
#[derive(Debug)]
enum State<V> {
    /// Desired and believed. Only while steps are under way: what they will have done is not known yet.
    Held(V),
    /// Desired; the kernel holds nothing.
    Missing(V),
    /// Desired (first); the kernel holds another (second).
    Differs(V, V),
    /// The kernel holds it and nobody wants it.
    Unwanted(V),
    /// The same since this round, and it is not to be deleted yet.
    Lingering(V, u64),
    /// Not desired, and the kernel holds nothing. Only while steps are under way.
    Absent,
}

/// What one dataplane has still to do.
#[derive(Debug)]
pub struct Ledger<K, V> {
    /// What was observed at the start and nobody has asked for yet.
    found: Objects<K, V>,
    /// Objects of which something is left to do, now or later.
    open: HashMap<K, Entry<V>>,
    /// How many Services want each of the keys that several may want.
    owners: Owners,
    /// Keys of `open` that may be due.
    queue: Vec<K>,
    /// Keys that became unwanted and linger, with the round in which they did; some may be wanted again.
    lingering: VecDeque<(u64, K)>,
    /// Keys that the kernel refused: left alone until they change or [`retry`](Self::retry).
    refused: BTreeSet<K>,
    /// Keys of `open` that go from there when the steps under way are settled, unless that leaves something to do.
    settled: Vec<K>,
    under_way: bool,
    kinds: Kinds<K>,
    round: u64,
}

/// How many own each key. There may be as many keys as endpoints in a cluster, so that only a hash of each is kept, of 64 bits: that
/// two of a million keys share one is less likely than one in ten million.
#[derive(Debug, Default)]
struct Owners {
    counts: HashMap<u64, u32>,
    hasher: RandomState,
}

impl Owners {
    /// Some give a key up, others take it: whether it had owners, and whether it has.
    fn change<K: Hash>(&mut self, key: &K, fewer: usize, more: usize) -> [bool; 2] {
        let hash = self.hasher.hash_one(key);
        let before = self.counts.get(&hash).copied().unwrap_or(0);
        let after = (before + more as u32).saturating_sub(fewer as u32);
        if after == 0 {
            self.counts.remove(&hash);
        } else {
            self.counts.insert(hash, after);
        }
        [before > 0, after > 0]
    }
}

/// What there is to know about keys.
#[derive(Clone, Copy, Debug)]
pub struct Kinds<K> {
    /// Whether packets on their way may still look for an object after it went out of use: it is not deleted at once.
    pub lingers: fn(&K) -> bool,
    /// Whether several Services may want the key. They want the same value.
    pub is_shared: fn(&K) -> bool,
}

impl<K: Ord + Hash + Clone, V: Eq + Clone> Ledger<K, V> {
    /// A ledger that starts from what the kernel holds. Nothing of that is deleted before [`disown`](Self::disown).
    pub fn new(observed: Objects<K, V>, kinds: Kinds<K>) -> Self {
        Self {
            found: observed,
            open: HashMap::new(),
            owners: Owners::default(),
            queue: Vec::new(),
            lingering: VecDeque::new(),
            refused: BTreeSet::new(),
            settled: Vec::new(),
            under_way: false,
            kinds,
            round: 0,
        }
    }

    /// Says what some Services want, all that changes at once: what they wanted `before` and what they want `after`. Both are
    /// sorted by key, with a key as often as Services want it. A key that passes from one Service to another is in both.
    pub fn exchange(&mut self, before: Vec<(K, V)>, after: Vec<(K, V)>) {
        let (mut before, mut after) = (before.into_iter().peekable(), after.into_iter().peekable());
        loop {
            let key = match (before.peek(), after.peek()) {
                (Some((b, _)), Some((a, _))) => b.min(a),
                (Some((key, _)), None) | (None, Some((key, _))) => key,
                (None, None) => return,
            };
            let key = key.clone();
            let of_key = |list: &mut std::iter::Peekable<std::vec::IntoIter<(K, V)>>| {
                let first = list.next_if(|(k, _)| *k == key).map(|(_, value)| value);
                let more = std::iter::from_fn(|| list.next_if(|(k, _)| *k == key)).count();
                (usize::from(first.is_some()) + more, first)
            };
            let ((fewer, old), (more, new)) = (of_key(&mut before), of_key(&mut after));
            let shared = fewer != more && (self.kinds.is_shared)(&key);
            let owned = if shared { self.owners.change(&key, fewer, more) } else { [fewer > 0, more > 0] };
            match (owned, old, new) {
                ([true, false], Some(old), _) => self.let_go(key, old),
                ([false, true], _, Some(new)) => self.desire(key, None, new),
                ([true, true], Some(old), Some(new)) if old != new => self.desire(key, Some(old), new),
                _ => {}
            }
        }
    }

    /// Somebody wants `value`; `old` is what was wanted and, without an entry that says otherwise, is held.
    fn desire(&mut self, key: K, old: Option<V>, value: V) {
        let believed = match self.open.get(&key) {
            Some(entry) => entry.state.believed().cloned(),
            None => old.or_else(|| self.found.remove(&key)),
        };
        self.refused.remove(&key);
        self.put(key, State::wanted(value, believed));
    }

    /// Nobody wants it any more; without an entry that says otherwise, the kernel holds `old`.
    fn let_go(&mut self, key: K, old: V) {
        self.refused.remove(&key);
        let believed = self.open.get(&key).map_or(Some(old), |entry| entry.state.believed().cloned());
        self.unwanted(key, believed);
    }

    /// Nobody wants it, and the kernel holds `believed`.
    fn unwanted(&mut self, key: K, believed: Option<V>) {
        let state = match believed {
            None => State::Absent,
            Some(believed) if (self.kinds.lingers)(&key) => {
                self.lingering.push_back((self.round, key.clone()));
                State::Lingering(believed, self.round)
            }
            Some(believed) => State::Unwanted(believed),
        };
        self.put(key, state);
    }

    /// Enters a state, or forgets one that leaves nothing to do.
    fn put(&mut self, key: K, state: State<V>) {
        if !state.is_open() {
            if !self.under_way {
                self.open.remove(&key);
                return;
            }
            self.settled.push(key.clone());
        }
        let due = state.is_due();
        let queue = match self.open.get_mut(&key) {
            Some(entry) => {
                entry.state = state;
                let queue = due && !entry.queued;
                entry.queued |= due;
                queue
            }
            None => {
                self.open.insert(key.clone(), Entry { state, queued: due, round: 0 });
                due
            }
        };
        if queue {
            self.queue.push(key);
        }
    }

    /// All Services have been told of: what was observed and nobody wants may go.
    pub fn disown(&mut self) {
        for (key, value) in std::mem::take(&mut self.found) {
            self.unwanted(key, Some(value));
        }
    }

    /// What is left to do now, in no order. Ends a round. Steps are settled before the next are asked for.
    pub fn due(&mut self) -> Vec<Step<K, V>> {
        self.round += 1;
        let (round, open, refused, mut steps) = (self.round, &mut self.open, &self.refused, Vec::with_capacity(self.queue.len()));
        self.queue.retain(|key| {
            let Some(entry) = open.get_mut(key).filter(|entry| entry.round != round) else { return false };
            (entry.round, entry.queued) = (round, entry.state.is_due());
            if entry.queued && !refused.contains(key) {
                steps.extend(entry.state.step(key));
            }
            // It stays until it is settled.
            entry.queued
        });
        self.under_way |= !steps.is_empty();
        steps
    }

    /// The round that is under way; what became unwanted before it may be swept once packets on their way have passed.
    pub fn round(&self) -> u64 {
        self.round
    }

    /// Whether anything waits to be swept.
    pub fn has_lingering(&self) -> bool {
        !self.lingering.is_empty()
    }

    /// Deletes what lingers since before `round`.
    pub fn sweep(&mut self, round: u64) -> Vec<Step<K, V>> {
        let mut steps = Vec::new();
        while let Some((since, key)) = self.lingering.pop_front_if(|(since, _)| *since < round) {
            // One that was wanted again has another state; if it was let go again since, it is here once more.
            let value = match self.open.get(&key).map(|entry| &entry.state) {
                Some(State::Lingering(value, s)) if *s == since => value.clone(),
                _ => continue,
            };
            let state = State::Unwanted(value);
            steps.extend(state.step(&key));
            self.put(key, state);
        }
        self.under_way |= !steps.is_empty();
        steps
    }

    /// Learns what became of steps: all are done but those whose keys are in `refused`. What is wanted may have changed since the
    /// steps were due; what that leaves to do is due next.
    pub fn settle(&mut self, steps: &[Step<K, V>], refused: &BTreeSet<K>) {
        self.under_way = false;
        for step in steps {
            let key = step.key();
            if refused.contains(key) {
                // What has changed since has not been refused yet.
                if self.open.get(key).and_then(|entry| entry.state.step(key)).is_some_and(|now| now == *step) {
                    self.refused.insert(key.clone());
                }
                continue;
            }
            self.refused.remove(key);
            match step {
                Step::Delete(..) => self.learn(key, None),
                Step::Add(_, value) | Step::Replace(_, value, _) => self.learn(key, Some(value)),
            }
        }
        for key in std::mem::take(&mut self.settled) {
            if self.open.get(&key).is_some_and(|entry| !entry.state.is_open()) {
                self.open.remove(&key);
            }
        }
        let open = &self.open;
        self.queue.retain(|key| open.contains_key(key));
    }

    /// Somebody else has changed an object: the kernel holds `held`, not what it was `believed` to hold. What is to be done about it
    /// is due next.
    pub fn correct(&mut self, key: K, believed: Option<V>, held: Option<V>) {
        let desired = match self.open.get(&key) {
            Some(entry) => entry.state.desired().cloned(),
            // Nothing was left to do: what it was believed to hold is what is wanted.
            None => believed,
        };
        self.refused.remove(&key);
        match desired {
            Some(desired) => self.put(key, State::wanted(desired, held)),
            None => self.unwanted(key, held),
        }
    }

    /// The kernel holds `held` under `key`.
    fn learn(&mut self, key: &K, held: Option<&V>) {
        let Some(entry) = self.open.get(key) else { return };
        match entry.state.desired() {
            // Mostly what was wanted is what is done.
            Some(desired) if held == Some(desired) => drop(self.open.remove(key)),
            Some(desired) => {
                let state = State::wanted(desired.clone(), held.cloned());
                self.put(key.clone(), state);
            }
            None => self.unwanted(key.clone(), held.cloned()),
        }
    }

    /// What the kernel refused and is still wanted, or unwanted and still there.
    pub fn refused(&self) -> &BTreeSet<K> {
        &self.refused
    }

    /// Lets what the kernel refused be tried again at the next [`due`](Self::due). Whether there is any.
    pub fn retry(&mut self) -> bool {
        let any = !self.refused.is_empty();
        self.refused.clear();
        any
    }

    /// What the kernel is believed to hold, given everything that is `desired`.
    pub fn believed(&self, mut desired: Objects<K, V>) -> Objects<K, V> {
        desired.extend(self.found.clone());
        for (key, entry) in &self.open {
            match entry.state.believed() {
                Some(believed) => desired.insert(key.clone(), believed.clone()),
                None => desired.remove(key),
            };
        }
        desired
    }
}

impl<V: Eq + Clone> State<V> {
    /// The state of what is desired where the kernel holds `believed`.
    fn wanted(desired: V, believed: Option<V>) -> Self {
        match believed {
            Some(believed) if believed == desired => State::Held(desired),
            Some(believed) => State::Differs(desired, believed),
            None => State::Missing(desired),
        }
    }

    /// Whether anything is left to do, now or later.
    fn is_open(&self) -> bool {
        !matches!(self, State::Held(_) | State::Absent)
    }

    /// Whether it is to be done now.
    fn is_due(&self) -> bool {
        matches!(self, State::Missing(_) | State::Differs(..) | State::Unwanted(_))
    }

    fn desired(&self) -> Option<&V> {
        match self {
            State::Held(value) | State::Missing(value) | State::Differs(value, _) => Some(value),
            State::Unwanted(_) | State::Lingering(..) | State::Absent => None,
        }
    }

    fn believed(&self) -> Option<&V> {
        match self {
            State::Held(value) | State::Unwanted(value) | State::Lingering(value, _) | State::Differs(_, value) => Some(value),
            State::Missing(_) | State::Absent => None,
        }
    }

    fn step<K: Clone>(&self, key: &K) -> Option<Step<K, V>> {
        match self {
            State::Held(_) | State::Lingering(..) | State::Absent => None,
            State::Missing(value) => Some(Step::Add(key.clone(), value.clone())),
            State::Differs(desired, believed) => Some(Step::Replace(key.clone(), desired.clone(), believed.clone())),
            State::Unwanted(value) => Some(Step::Delete(key.clone(), value.clone())),
        }
    }
}
