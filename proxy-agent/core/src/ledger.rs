//! Who wants which object, desired against believed: one map of entries with a state. Yields what is left to do as steps and
//! learns from what became of them.
//!
//! An object that several Services want goes when the last of them lets it go. An object that may still be read by packets on
//! their way *lingers*: it is deleted by a later [`sweep`](Ledger::sweep), if nobody wants it again before.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;

use crate::model::ObjectName;

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

#[derive(Debug)]
struct Entry<V> {
    /// How many Services want it.
    owners: u32,
    state: State<V>,
}

#[derive(Debug)]
enum State<V> {
    /// Desired and believed.
    Held(V),
    /// Desired; the kernel holds nothing.
    Missing(V),
    /// Desired (first); the kernel holds another (second). Boxed: rare, and the map is large.
    Differs(Box<(V, V)>),
    /// The kernel holds it and nobody wants it, since this round.
    Unwanted(V, u64),
}

/// The objects of one dataplane.
#[derive(Debug)]
pub struct Ledger<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    /// The keys that each Service wants, sorted.
    wanted: HashMap<ObjectName, Box<[K]>>,
    /// Keys whose entry may not be held.
    dirty: BTreeSet<K>,
    /// Keys that became unwanted and linger, with the round in which they did; some may be wanted again.
    lingering: VecDeque<(u64, K)>,
    /// Keys that the kernel refused: left alone until they change or [`retry`](Self::retry).
    refused: BTreeSet<K>,
    lingers: fn(&K) -> bool,
    round: u64,
}

impl<K: Ord + Clone, V: Eq + Clone> Ledger<K, V> {
    /// A ledger that starts from what the kernel holds. `lingers` tells which keys are not deleted at once.
    pub fn new(observed: Objects<K, V>, lingers: fn(&K) -> bool) -> Self {
        let dirty = observed.keys().filter(|k| !lingers(k)).cloned().collect();
        let lingering = observed.keys().filter(|k| lingers(k)).map(|k| (0, k.clone())).collect();
        let entries = observed.into_iter().map(|(key, value)| (key, Entry { owners: 0, state: State::Unwanted(value, 0) }));
        Self { entries: entries.collect(), wanted: HashMap::new(), dirty, lingering, refused: BTreeSet::new(), lingers, round: 0 }
    }

    /// Says what a Service wants, instead of what it wanted before. Services that want one key want the same value.
    pub fn want(&mut self, owner: &ObjectName, objects: Objects<K, V>) {
        let before = self.wanted.remove(owner).unwrap_or_default();
        for key in before.iter().filter(|key| !objects.contains_key(key)) {
            self.let_go(key);
        }
        let keys: Box<[K]> = objects.keys().cloned().collect();
        for (key, value) in objects {
            let newly = before.binary_search(&key).is_err();
            self.desire(key, value, newly);
        }
        if !keys.is_empty() {
            self.wanted.insert(owner.clone(), keys);
        }
    }

    fn desire(&mut self, key: K, value: V, newly: bool) {
        let Some(entry) = self.entries.get_mut(&key) else {
            self.refused.remove(&key);
            self.dirty.insert(key.clone());
            self.entries.insert(key, Entry { owners: 1, state: State::Missing(value) });
            return;
        };
        entry.owners += u32::from(newly);
        let unchanged = match &entry.state {
            State::Held(known) | State::Missing(known) => *known == value,
            State::Differs(both) => both.0 == value,
            State::Unwanted(..) => false,
        };
        if unchanged {
            return;
        }
        entry.state = State::wanted(value, entry.believed());
        self.refused.remove(&key);
        self.dirty.insert(key);
    }

    fn let_go(&mut self, key: &K) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.owners = entry.owners.saturating_sub(1);
        if entry.owners > 0 {
            return;
        }
        self.refused.remove(key);
        match entry.believed().cloned() {
            None => {
                self.entries.remove(key);
                self.dirty.remove(key);
            }
            Some(believed) => {
                entry.state = State::Unwanted(believed, self.round);
                self.discard(key);
            }
        }
    }

    /// What is left to do now, in the order of keys. Ends a round.
    pub fn due(&mut self) -> Vec<Step<K, V>> {
        self.round += 1;
        let dirty = std::mem::take(&mut self.dirty);
        let steps: Vec<_> = dirty.iter().filter_map(|key| self.entries.get(key)?.step(key)).collect();
        // Held again without ever being written: nothing to wait for. The others stay until settled.
        self.dirty = steps.iter().map(|step| step.key().clone()).collect();
        steps.into_iter().filter(|step| !self.refused.contains(step.key())).collect()
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
            let still = self.entries.get(&key).filter(|e| matches!(e.state, State::Unwanted(_, s) if s == since));
            // A key that was wanted and let go again within a round is here twice.
            if let Some(step) = still.and_then(|entry| entry.step(&key))
                && self.dirty.insert(key)
            {
                steps.push(step);
            }
        }
        steps
    }

    /// Learns what became of steps: all are done but those whose keys are in `refused`. What is wanted may have changed since the
    /// steps were due; what that leaves to do is due next.
    pub fn settle(&mut self, steps: &[Step<K, V>], refused: &BTreeSet<K>) {
        for step in steps {
            let key = step.key();
            if refused.contains(key) {
                // What has changed since has not been refused yet.
                if self.entries.get(key).and_then(|entry| entry.step(key)).is_some_and(|now| now == *step) {
                    self.refused.insert(key.clone());
                }
                continue;
            }
            self.refused.remove(key);
            self.dirty.remove(key);
            match step {
                Step::Delete(..) => self.learn(key, None),
                Step::Add(_, value) | Step::Replace(_, value, _) => self.learn(key, Some(value)),
            }
        }
    }

    /// The kernel holds `held` under `key`.
    fn learn(&mut self, key: &K, held: Option<&V>) {
        let desired = self.entries.get(key).and_then(Entry::desired).cloned();
        match (desired, held) {
            (Some(desired), held) => {
                let state = State::wanted(desired, held);
                if !matches!(state, State::Held(_)) {
                    self.dirty.insert(key.clone());
                }
                if let Some(entry) = self.entries.get_mut(key) {
                    entry.state = state;
                }
            }
            (None, None) => {
                self.entries.remove(key);
            }
            (None, Some(held)) => {
                self.entries.insert(key.clone(), Entry { owners: 0, state: State::Unwanted(held.clone(), self.round) });
                self.discard(key);
            }
        }
    }

    /// Sees to it that an unwanted object is deleted: at the next [`due`](Self::due), or by a later [`sweep`](Self::sweep).
    fn discard(&mut self, key: &K) {
        if (self.lingers)(key) {
            self.dirty.remove(key);
            self.lingering.push_back((self.round, key.clone()));
        } else {
            self.dirty.insert(key.clone());
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

    /// The keys that a Service wants.
    pub fn wanted_by(&self, owner: &ObjectName) -> &[K] {
        self.wanted.get(owner).map_or(&[], |keys| keys)
    }

    /// The Services that want a key, by a walk over all: for reports.
    pub fn owners_of(&self, key: &K) -> Vec<&ObjectName> {
        self.wanted.iter().filter(|(_, keys)| keys.binary_search(key).is_ok()).map(|(owner, _)| owner).collect()
    }

    /// Everything that is wanted.
    pub fn desired(&self) -> Objects<K, V> {
        self.entries.iter().filter_map(|(key, entry)| Some((key.clone(), entry.desired()?.clone()))).collect()
    }

    /// Everything that the kernel is believed to hold.
    pub fn believed(&self) -> Objects<K, V> {
        self.entries.iter().filter_map(|(key, entry)| Some((key.clone(), entry.believed()?.clone()))).collect()
    }
}

impl<V: Eq + Clone> State<V> {
    /// The state of what is desired where the kernel holds `believed`.
    fn wanted(desired: V, believed: Option<&V>) -> Self {
        match believed {
            Some(believed) if *believed == desired => State::Held(desired),
            Some(believed) => State::Differs(Box::new((desired, believed.clone()))),
            None => State::Missing(desired),
        }
    }
}

impl<V: Clone> Entry<V> {
    fn desired(&self) -> Option<&V> {
        match &self.state {
            State::Held(value) | State::Missing(value) => Some(value),
            State::Differs(both) => Some(&both.0),
            State::Unwanted(..) => None,
        }
    }

    fn believed(&self) -> Option<&V> {
        match &self.state {
            State::Held(value) | State::Unwanted(value, _) => Some(value),
            State::Differs(both) => Some(&both.1),
            State::Missing(_) => None,
        }
    }

    fn step<K: Clone>(&self, key: &K) -> Option<Step<K, V>> {
        match &self.state {
            State::Held(_) => None,
            State::Missing(value) => Some(Step::Add(key.clone(), value.clone())),
            State::Differs(both) => Some(Step::Replace(key.clone(), both.0.clone(), both.1.clone())),
            State::Unwanted(value, _) => Some(Step::Delete(key.clone(), value.clone())),
        }
    }
}
