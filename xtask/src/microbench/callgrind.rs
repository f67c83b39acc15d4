//! Counts instructions with callgrind, which runs the program on a simulated processor. The program says what is to be counted
//! (`proxy-agent/core/benches/micro/valgrind.rs`), and callgrind writes a file for each stretch.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::figures::{Figures, each};
use crate::run::output;

/// Adds the instructions to `cases`. A case that the program does not count stays without.
pub(super) fn count(program: &Path, folder: &Path, cases: &mut [Figures]) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut out = std::ffi::OsString::from("--callgrind-out-file=");
    out.push(folder.join("out"));
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--instr-atstart=no"]).arg(out).arg(program).arg("--instructions");
    // The libc takes tunings from there.
    valgrind.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    output(&mut valgrind)?;
    add(&read(folder)?, cases)
}

/// The sums by case.
fn read(folder: &Path) -> Result<HashMap<String, u64>> {
    let mut sums = HashMap::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        if let Some((case, instructions)) = stretch(&text).with_context(|| format!("{}", path.display()))? {
            *sums.entry(case).or_default() += instructions;
        }
    }
    Ok(sums)
}

fn add(sums: &HashMap<String, u64>, cases: &mut [Figures]) -> Result<()> {
    if let Some(stray) = sums.keys().find(|name| !cases.iter().any(|case| case.case == **name)) {
        bail!("callgrind counted {stray}, which has no other figures");
    }
    for case in cases.iter_mut() {
        case.instructions = sums.get(&case.case).map(|&sum| each(sum, case.count).round());
    }
    if sums.is_empty() {
        bail!("callgrind counted nothing");
    }
    Ok(())
}

/// The name and the instructions of a stretch that the program had counted; `None` for the file of the end of the program.
///
/// ```text
/// desc: Trigger: Client Request: lower bpf/change/50000
/// events: Ir
/// ob=(2) /usr/lib/x86_64-linux-gnu/libc.so.6
/// fn=(486) memset
/// 167 4000
/// calls=2 100
/// +5 2000
/// totals: 24083206
/// ```
fn stretch(text: &str) -> Result<Option<(String, u64)>> {
    let find = |prefix: &str| text.lines().find_map(|line| line.strip_prefix(prefix).map(str::trim));
    let Some(name) = find("desc: Trigger: Client Request:") else { return Ok(None) };
    if find("events:") != Some("Ir") {
        bail!("callgrind counted {:?} instead of instructions (Ir) alone", find("events:").unwrap_or_default());
    }
    let total = find("totals:").context("callgrind's file has no totals: it is cut off")?;
    let total: u64 = total.parse().with_context(|| format!("totals: {total:?} is not a number"))?;
    let (all, ours) = sums(text)?;
    if all != total {
        bail!("{name}: the functions take {all} instructions, which is not callgrind's total of {total}");
    }
    if ours == 0 {
        bail!("{name}: callgrind counted no instruction");
    }
    Ok(Some((name.to_owned(), ours)))
}

/// The instructions of all functions, and of those that count.
fn sums(text: &str) -> Result<(u64, u64)> {
    // A name is written out where it first occurs, with a number that stands for it afterwards.
    let (mut objects, mut functions) = (HashMap::new(), HashMap::new());
    let (mut object, mut function) = ("", "");
    let (mut all, mut ours, mut of_callee) = (0, 0, false);
    for line in text.lines() {
        if let Some((key, value)) = line.split_once('=') {
            match key {
                "ob" => object = named(&mut objects, value),
                "cob" => _ = named(&mut objects, value),
                "fn" => function = named(&mut functions, value),
                "cfn" => _ = named(&mut functions, value),
                // The line that follows has what the callee took, which stands with the callee as well.
                "calls" => of_callee = true,
                _ => {}
            }
        } else if line.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '*')) {
            if std::mem::take(&mut of_callee) {
                continue;
            }
            // Callgrind leaves a figure out that is zero.
            let cost = line.split_once(' ').map_or(Ok(0), |(_, cost)| cost.parse::<u64>());
            let cost = cost.with_context(|| format!("{line:?} is not a position with its instructions"))?;
            all += cost;
            ours += if counts(object, function) { cost } else { 0 };
        }
    }
    Ok((all, ours))
}

/// The name that `(2) name` gives to the number, or that `(2)` stands for.
fn named<'a>(names: &mut HashMap<&'a str, &'a str>, text: &'a str) -> &'a str {
    match text.split_once(' ') {
        Some((number, name)) => {
            names.insert(number, name);
            name
        }
        None => names.get(text).copied().unwrap_or(text),
    }
}

/// Of the libc, only what works on memory counts. What its allocator takes depends on all that was allocated and freed before, in
/// other stages as well: one that changes would seem to make another dearer. Allocations are counted as such.
fn counts(object: &str, function: &str) -> bool {
    let file = object.rsplit('/').next().unwrap_or_default();
    let memory = ["memcpy", "memmove", "memset", "memcmp", "bcmp"];
    !file.starts_with("libc.so") || memory.iter().any(|name| function.trim_start_matches('_').starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As callgrind 3.19 writes it: 4,000 and 2,000 in memset, 70 in malloc, 900 of our own.
    fn file(trigger: &str, events: &str, totals: &str) -> String {
        format!(
            "# callgrind format\nversion: 1\ncreator: callgrind-3.19.0\npid: 1\ncmd:  micro --instructions\npart: 9\n\n\n\
             desc: I1 cache: \ndesc: Timerange: Basic block 0 - 27567777\n{trigger}\n\npositions: line\n{events}\nsummary: 0\n\n\n\
             ob=(2) /usr/lib/libc.so.6\nfl=(72) memset.S\nfn=(486) __memset_avx2_unaligned_erms\n167 4000\n+5 2000\n\n\
             fl=(73) malloc.c\nfn=(487) malloc\n100 70\n\n\
             ob=(1) /target/micro\nfl=(1) slots.rs\nfn=(1) proxy_core::slots::seat\n5 400\n\
             cob=(2)\ncfi=(72)\ncfn=(486)\ncalls=3 100 \n+2 6000\n* 500\n\n{totals}\n"
        )
    }

    const TRIGGER: &str = "desc: Trigger: Client Request: lower bpf/change/50000";

    /// The callee's instructions once, the allocator's not at all.
    #[test]
    fn a_file_gives_a_name_and_a_sum() {
        let found = stretch(&file(TRIGGER, "events: Ir", "totals: 6970")).expect("a stretch");
        assert_eq!(found, Some(("lower bpf/change/50000".to_owned(), 6900)));
    }

    #[test]
    fn the_end_of_the_program_is_no_stretch() {
        assert_eq!(stretch(&file("desc: Trigger: Program termination", "events: Ir", "totals: 0")).expect("nothing"), None);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (events, totals) in
            [("events: Ir Dr", "totals: 6970 2"), ("events: Ir", ""), ("events: Ir", "totals: many"), ("events: Ir", "totals: 6971")]
        {
            assert!(stretch(&file(TRIGGER, events, totals)).is_err(), "{events} {totals}");
        }
    }

    fn case(name: &str, count: u64) -> Figures {
        let name = name.to_owned();
        Figures { case: name, count, nanoseconds: 0.0, allocations: 0.0, bytes: 0.0, resident: None, instructions: None }
    }

    #[test]
    fn instructions_are_divided_among_what_was_done() {
        let mut cases = [case("a/change/1", 1000), case("b/service/1", 1000)];
        add(&HashMap::from([("a/change/1".to_owned(), 24_083_206)]), &mut cases).expect("sums");
        assert_eq!(cases.map(|case| case.instructions), [Some(24_083.0), None]);
    }

    #[test]
    fn sums_belong_to_cases() {
        let stray = HashMap::from([("c/change/1".to_owned(), 1)]);
        assert!(add(&stray, &mut [case("a/change/1", 1)]).is_err());
        assert!(add(&HashMap::new(), &mut [case("a/change/1", 1)]).is_err());
    }
}
