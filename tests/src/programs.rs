//! Which programs of the eBPF object are in the kernel, counted without the agent's help.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use aya::programs::loaded_programs;
use aya_obj::Object;

/// The object that the agent embeds.
const OBJECT: &[u8] = include_bytes!("../../proxy-ebpf/proxy-ebpf.o");

/// The kernel keeps so much of a name (BPF_OBJ_NAME_LEN, less the zero at its end).
const LONGEST_NAME: usize = 15;

/// The programs that the kernel had at some time, by id: all namespaces see all.
pub struct Before(BTreeSet<u32>);

impl Before {
    /// Now.
    pub fn now() -> Result<Self> {
        let ids = loaded()?.into_iter().map(|(id, _)| id).collect();
        Ok(Self(ids))
    }

    /// Makes sure that every program of the object has been loaded since, once for each of so many agents, and returns how many
    /// programs the object has. (Where others load the same programs at the same time, theirs are counted too.)
    pub fn all_loaded_since(&self, agents: usize) -> Result<usize> {
        let object = Object::parse(OBJECT).context("proxy-ebpf.o")?;
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for (_, name) in loaded()?.into_iter().filter(|(id, _)| !self.0.contains(id)) {
            *counts.entry(name).or_default() += 1;
        }
        let count = |name: &str| counts.get(&name[..name.len().min(LONGEST_NAME)]).copied().unwrap_or(0);
        let missing: Vec<&String> = object.programs.keys().filter(|name| count(name) < agents).collect();
        ensure!(missing.is_empty(), "{agents} agents run, but the kernel has not so many of {missing:?}; new in the kernel: {counts:?}");
        Ok(object.programs.len())
    }
}

/// Id and name of every program in the kernel.
fn loaded() -> Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for program in loaded_programs() {
        // One that goes in this moment is none.
        let Ok(program) = program else { continue };
        found.push((program.id(), program.name_as_str().unwrap_or_default().to_owned()));
    }
    Ok(found)
}
