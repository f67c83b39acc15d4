//! Classes as numbers: what `services` says of a frontend, in 32 bits that look like nobody else's mark or priority.

use proxy_core::lower::nft::{Class, Pick, Target};
use proxy_core::route::{Masquerade, Pool};

/// The high byte of every class.
const TAG: u32 = 0x70 << 24;
/// Number of backends, or seconds.
const VALUE: u32 = (1 << 17) - 1;
const STICKY: u32 = 1 << 17;
const LOCAL: u32 = 1 << 18;
const NODE_PORT: u32 = 1 << 19;
/// Two bits of [`Masquerade`], or [`BY_SOURCE`].
const MASQUERADE: u32 = 20;
const BY_SOURCE: u32 = 3;
/// The class, in chains by source, of what goes nowhere.
const NOWHERE: u32 = TAG | BY_SOURCE << MASQUERADE | 1;

/// The number of a class. None: a value that is 0 or too large.
pub(super) fn number(class: Class) -> Option<u32> {
    let (masquerade, is_node_port, rest) = match class {
        Class::BySource { is_node_port } => (BY_SOURCE, is_node_port, 0),
        Class::Target(Target { masquerade, is_node_port, pool, pick }) => {
            let masquerade = match masquerade {
                Masquerade::Never => 0,
                Masquerade::UnlessPod => 1,
                Masquerade::Always => 2,
            };
            let (value, sticky) = match pick {
                Pick::Even(count) => (count.into(), 0),
                Pick::Sticky(seconds) => (seconds, STICKY),
            };
            if value == 0 || value > VALUE {
                return None;
            }
            (masquerade, is_node_port, value | sticky | if pool == Pool::Local { LOCAL } else { 0 })
        }
    };
    Some(TAG | masquerade << MASQUERADE | if is_node_port { NODE_PORT } else { 0 } | rest)
}

/// The inverse of [`number`].
pub(super) fn of_number(number: u32) -> Option<Class> {
    let is_node_port = number & NODE_PORT != 0;
    let value = number & VALUE;
    let masquerade = match number >> MASQUERADE & 3 {
        0 => Some(Masquerade::Never),
        1 => Some(Masquerade::UnlessPod),
        2 => Some(Masquerade::Always),
        _ => None,
    };
    let class = match masquerade {
        None => Class::BySource { is_node_port },
        Some(masquerade) => {
            let pick = if number & STICKY == 0 { Pick::Even(u16::try_from(value).ok()?) } else { Pick::Sticky(value) };
            let pool = if number & LOCAL == 0 { Pool::Cluster } else { Pool::Local };
            Class::Target(Target { masquerade, is_node_port, pool, pick })
        }
    };
    // Whatever else is set in it, it is not ours.
    (self::number(class) == Some(number)).then_some(class)
}

/// The number of where packets go by who sends them.
pub(super) fn number_by_source(target: Option<Target>) -> Option<u32> {
    target.map_or(Some(NOWHERE), |target| number(Class::Target(target)))
}

/// The inverse of [`number_by_source`].
pub(super) fn by_source_of_number(number: u32) -> Option<Option<Target>> {
    match of_number(number) {
        Some(Class::Target(target)) => Some(Some(target)),
        Some(Class::BySource { .. }) => None,
        None => (number == NOWHERE).then_some(None),
    }
}

/// The class under which `stick-classes` has the chain that picks among so many sticky backends.
pub(super) fn of_stick_pick(pool: Pool, count: u16) -> Class {
    Class::Target(Target { masquerade: Masquerade::Never, is_node_port: false, pool, pick: Pick::Even(count) })
}

/// The inverse of [`of_stick_pick`].
pub(super) fn stick_pick_of(class: Class) -> Option<(Pool, u16)> {
    match class {
        Class::Target(Target { pool, pick: Pick::Even(count), .. }) if class == of_stick_pick(pool, count) => Some((pool, count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_a_number_of_its_own() {
        let mut numbers = std::collections::BTreeSet::new();
        for is_node_port in [false, true] {
            let mut classes = vec![Class::BySource { is_node_port }];
            for masquerade in [Masquerade::Never, Masquerade::UnlessPod, Masquerade::Always] {
                for pool in [Pool::Cluster, Pool::Local] {
                    for pick in [Pick::Even(1), Pick::Even(u16::MAX), Pick::Sticky(1), Pick::Sticky(86_400)] {
                        classes.push(Class::Target(Target { masquerade, is_node_port, pool, pick }));
                    }
                }
            }
            for class in classes {
                let number = number(class).expect("a number");
                assert_eq!(of_number(number), Some(class));
                assert!(numbers.insert(number), "{class:?}");
            }
        }
    }

    #[test]
    fn what_is_no_class_is_not_read_as_one() {
        for number in [0, 1, 0x7072_0003, TAG, TAG | STICKY, TAG | BY_SOURCE << MASQUERADE | 1, TAG | 1 << 22 | 1, 0x7172_0003] {
            assert_eq!(of_number(number), None, "{number:#x}");
        }
        assert_eq!(number(of_stick_pick(Pool::Local, 0)), None);
        assert_eq!(number_by_source(None).and_then(of_number), None);
        assert_eq!(number_by_source(None).and_then(by_source_of_number), Some(None));
    }
}
