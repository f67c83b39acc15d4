//! Feature gates: the names that kube-proxy v1.37 knows (CFG-15). One that nobody knows is a spelling mistake; one that is locked cannot
//! be changed. What they switch is code that is not here, so that they are accepted and change nothing but what is checked below.

use std::collections::BTreeMap;

/// A gate a line: its name, its default, `locked` if it has that for good, and how far it has come.
const KNOWN: &str = include_str!("gates.txt");

/// A gate that is known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gate {
    /// Its name.
    pub name: &'static str,
    /// Whether it is on if nothing is said.
    pub default: bool,
    /// Whether that can be changed.
    pub locked: bool,
    /// ALPHA, BETA, GA or DEPRECATED.
    pub stage: &'static str,
}

/// All gates.
pub fn known() -> impl Iterator<Item = Gate> {
    KNOWN.lines().filter_map(|line| {
        let words: Vec<&'static str> = line.split(' ').collect();
        let (name, default, stage) = (words.first()?, words.get(1)?, words.last()?);
        Some(Gate { name, default: *default == "true", locked: words.get(2) == Some(&"locked"), stage })
    })
}

/// What is wrong with these settings: the name of the gate, and why.
pub fn flaws(set: &BTreeMap<String, bool>) -> Vec<(String, String)> {
    let flaw = |(name, value): (&String, &bool)| match known().find(|gate| gate.name == name) {
        None => Some((name.clone(), "is no feature gate of Kubernetes 1.37".to_owned())),
        Some(gate) if gate.locked && gate.default != *value => {
            Some((name.clone(), format!("is {} for good in Kubernetes 1.37", gate.default)))
        }
        Some(_) => None,
    };
    set.iter().filter_map(flaw).collect()
}

/// Whether a gate is on: as it is set, or as all of its stage are, or by its default.
pub fn enabled(set: &BTreeMap<String, bool>, name: &str) -> bool {
    let Some(gate) = known().find(|gate| gate.name == name) else { return false };
    let of_stage = match gate.stage {
        "ALPHA" => set.get("AllAlpha"),
        "BETA" => set.get("AllBeta"),
        _ => None,
    };
    set.get(name).or(of_stage).copied().unwrap_or(gate.default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_and_locked_gates_are_named() {
        let set = |pairs: &[(&str, bool)]| pairs.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect::<BTreeMap<_, _>>();
        assert!(known().count() > 200, "{}", known().count());
        let locked = known().find(|gate| gate.locked && gate.default).expect("one that is locked");
        let found = flaws(&set(&[("Nonsense", true), (locked.name, false), ("AllAlpha", true)]));
        let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        assert!(names.len() == 2 && names.contains(&"Nonsense") && names.contains(&locked.name), "{found:?}");
        assert_eq!(flaws(&set(&[(locked.name, true)])), []);
    }

    #[test]
    fn a_gate_is_on_as_it_is_set_or_as_its_stage_is() {
        let set = |pairs: &[(&str, bool)]| pairs.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect::<BTreeMap<_, _>>();
        assert!(!enabled(&set(&[]), "LoggingAlphaOptions"));
        assert!(enabled(&set(&[("AllAlpha", true)]), "LoggingAlphaOptions"));
        assert!(!enabled(&set(&[("AllAlpha", true), ("LoggingAlphaOptions", false)]), "LoggingAlphaOptions"));
        assert!(enabled(&set(&[]), "LoggingBetaOptions") && !enabled(&set(&[("AllBeta", false)]), "LoggingBetaOptions"));
    }
}
