//! What an expectation wants, what was seen, and whether the one is the other.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;

use super::Host;

/// What an expectation wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// No Service: the packet passes as it is.
    Untouched,
    /// Refused at once.
    Refused,
    /// Dropped: it goes nowhere, and whoever sent it is told nothing.
    Dropped,
    /// To these backends.
    Backends {
        /// Each of them, no other.
        backends: BTreeSet<SocketAddr>,
        /// How one of them is chosen.
        choice: Choice,
        /// Whom the backend sees.
        source: Source,
    },
    /// To the backend that was chosen for this sender before, under this name.
    Pinned {
        /// The name that [`Choice::One`] gave it.
        name: String,
        /// Whom the backend sees.
        source: Source,
    },
}

/// How backends are chosen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Choice {
    /// Each is equally likely for every connection.
    Any,
    /// The same, and it is looked at whether each gets its share.
    Evenly,
    /// All connections of a sender go to the same one, which is remembered under this name.
    One(String),
}

/// Whom a backend is to see.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Whoever it is.
    Any,
    /// The sender's own address.
    Kept,
    /// An address of the node, and not the sender's.
    Masqueraded,
}

/// What became of packets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Observed {
    /// Every one passed as it was: to where nobody is, or the destination itself answered.
    Untouched,
    /// Every one was refused.
    Refused,
    /// Every one was dropped, with no answer of any kind.
    Dropped,
    /// Every one was answered by these backends.
    Backends {
        /// All that answered.
        backends: BTreeSet<SocketAddr>,
        /// In shares that chance explains.
        evenly: bool,
        /// Whether a sender stays with one of them. Only who sees the decision itself knows.
        sticky: bool,
        /// Whom they saw.
        seen: Seen,
    },
    /// Every one of several was answered by this one backend, although there was a choice.
    One {
        /// The backend.
        backend: SocketAddr,
        /// Whom it saw.
        seen: Seen,
    },
    /// This executor cannot send such packets.
    NotTried,
    /// Anything else, in words.
    Other(String),
}

/// Whom backends saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// The sender's own address.
    Own,
    /// An address of the node, which the sender is not on.
    Node,
    /// An address of the node, which is the sender.
    OwnNode,
    /// Another, or now this and now that.
    Other,
}

/// What [`Choice::One`] has chosen so far in a scenario.
#[derive(Default, Debug)]
pub struct Pins {
    /// By its name: the backends that it might have been.
    candidates: BTreeMap<String, BTreeSet<SocketAddr>>,
    /// By its name and the sender's: the one that it was.
    chosen: BTreeMap<(String, &'static str), SocketAddr>,
}

impl Pins {
    /// Remembers what was chosen for a sender.
    pub fn remember(&mut self, source: Host, wanted: &Outcome, observed: &Observed) {
        let Outcome::Backends { backends, choice: Choice::One(name), .. } = wanted else { return };
        self.candidates.insert(name.clone(), backends.clone());
        if let Observed::One { backend, .. } = observed {
            self.chosen.insert((name.clone(), source.name), *backend);
        }
    }
}

impl Seen {
    fn satisfies(self, wanted: Source) -> bool {
        match wanted {
            Source::Any => true,
            Source::Kept => matches!(self, Seen::Own | Seen::OwnNode),
            Source::Masqueraded => matches!(self, Seen::Node | Seen::OwnNode),
        }
    }
}

impl Observed {
    /// Whether this is what was wanted of packets of this sender.
    pub fn satisfies(&self, wanted: &Outcome, from: Host, pins: &Pins) -> bool {
        match (wanted, self) {
            (_, Observed::NotTried)
            | (Outcome::Untouched, Observed::Untouched)
            | (Outcome::Refused, Observed::Refused)
            | (Outcome::Dropped, Observed::Dropped) => true,
            (Outcome::Backends { backends: wanted, choice, source }, Observed::Backends { backends, evenly, sticky, seen }) => {
                let chosen = match choice {
                    Choice::Any => !sticky || backends.len() == 1,
                    Choice::Evenly => *evenly && !sticky,
                    Choice::One(_) => *sticky,
                };
                wanted == backends && chosen && seen.satisfies(*source)
            }
            (Outcome::Backends { backends, choice: Choice::One(_), source }, Observed::One { backend, seen }) => {
                backends.contains(backend) && seen.satisfies(*source)
            }
            (Outcome::Backends { backends, choice: Choice::Any, source }, Observed::One { backend, seen }) => {
                backends.len() == 1 && backends.contains(backend) && seen.satisfies(*source)
            }
            (Outcome::Pinned { name, source }, Observed::Backends { backends, sticky: true, seen, .. }) => {
                pins.candidates.get(name).is_some_and(|candidates| candidates.is_subset(backends)) && seen.satisfies(*source)
            }
            (Outcome::Pinned { name, source }, Observed::One { backend, seen }) => {
                pins.chosen.get(&(name.clone(), from.name)) == Some(backend) && seen.satisfies(*source)
            }
            _ => false,
        }
    }
}

impl Outcome {
    /// The backends that it names.
    pub fn backends(&self) -> impl Iterator<Item = &SocketAddr> {
        let backends = match self {
            Outcome::Backends { backends, .. } => Some(backends),
            _ => None,
        };
        backends.into_iter().flatten()
    }

    /// Whether all connections of a sender go to one backend.
    pub fn is_pinned(&self) -> bool {
        matches!(self, Outcome::Pinned { .. } | Outcome::Backends { choice: Choice::One(_), .. })
    }

    /// Whom a backend is to see.
    pub fn source(&self) -> Source {
        match self {
            Outcome::Backends { source, .. } | Outcome::Pinned { source, .. } => *source,
            Outcome::Untouched | Outcome::Refused | Outcome::Dropped => Source::Any,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Source::Any => "",
            Source::Kept => ", source kept",
            Source::Masqueraded => ", masqueraded",
        })
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Seen::Own => ", source kept",
            Seen::Node => ", masqueraded",
            Seen::OwnNode => ", from the node itself",
            Seen::Other => ", source neither kept nor masqueraded throughout",
        })
    }
}

fn list(backends: &BTreeSet<SocketAddr>) -> String {
    backends.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ")
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Untouched => f.write_str("untouched"),
            Outcome::Refused => f.write_str("refused"),
            Outcome::Dropped => f.write_str("dropped"),
            Outcome::Backends { backends, choice: Choice::One(name), source } => write!(f, "one of {} as {name}{source}", list(backends)),
            Outcome::Backends { backends, source, .. } => write!(f, "{}{source}", list(backends)),
            Outcome::Pinned { name, source } => write!(f, "pinned {name}{source}"),
        }
    }
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Observed::Untouched => f.write_str("untouched"),
            Observed::Refused => f.write_str("refused"),
            Observed::Dropped => f.write_str("dropped"),
            Observed::Backends { backends, evenly, sticky, seen } => {
                write!(f, "{}{}{seen}", if *sticky { "one of " } else { "" }, list(backends))?;
                f.write_str(if *evenly { "" } else { ", unevenly" })
            }
            Observed::One { backend, seen } => write!(f, "always {backend}{seen}"),
            Observed::NotTried => f.write_str("not tried"),
            Observed::Other(text) => f.write_str(text),
        }
    }
}
