//! The baseline, and what counts as more than it.
//!
//! Allocations and bytes follow from the code and the versions in Cargo.lock alone, so they are compared wherever this runs. So do
//! instructions, but for those of the compiler and the libc: with the same ones as the baseline's, two runs differ by less than a
//! millionth; with others, only what is much more counts.

use std::fmt;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::environment::{Environment, counts_instructions};
use super::figures::Figures;

/// Instructions, where the tools are the baseline's. A change of one function can move some of another, by inlining.
const INSTRUCTIONS: Tolerance = Tolerance { percent: 2.0, absolute: 50.0 };
/// Instructions, where they are not.
const INSTRUCTIONS_ELSEWHERE: Tolerance = Tolerance { percent: 20.0, absolute: 50.0 };
/// One allocation more for each Service or change is always too many.
const ALLOCATIONS: Tolerance = Tolerance { percent: 0.5, absolute: 0.05 };
const BYTES: Tolerance = Tolerance { percent: 1.0, absolute: 8.0 };

/// How much more is still the same: the larger of the two.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Tolerance {
    percent: f64,
    absolute: f64,
}

impl Tolerance {
    fn of(self, baseline: f64) -> f64 {
        (baseline * self.percent / 100.0).max(self.absolute)
    }
}

/// What was measured, and where.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Baseline {
    pub(super) environment: Environment,
    pub(super) cases: Vec<Figures>,
}

impl Baseline {
    pub(super) fn from_json(text: &str) -> Result<Self> {
        Ok(serde_json::from_str(text)?)
    }

    /// One case a line, so that a difference shows which.
    pub(super) fn to_json(&self) -> Result<String> {
        let cases = self.cases.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        let environment = serde_json::to_string(&self.environment)?;
        Ok(format!("{{\n  \"environment\": {environment},\n  \"cases\": [\n    {}\n  ]\n}}\n", cases.join(",\n    ")))
    }
}

/// What became of the comparison.
#[derive(Default, Debug)]
pub(super) struct Verdict {
    /// More than the baseline allows, or not comparable.
    worse: Vec<String>,
    /// Less than the baseline by more than what is still the same.
    better: Vec<String>,
    /// Why instructions are not compared as they should be.
    elsewhere: Option<String>,
}

impl Verdict {
    pub(super) fn passes(&self) -> bool {
        self.worse.is_empty()
    }

    fn figure(&mut self, case: &str, what: &str, baseline: f64, now: f64, tolerance: Tolerance) {
        let allowed = tolerance.of(baseline);
        if (now - baseline).abs() <= allowed {
            return;
        }
        let percent = if baseline > 0.0 { format!("{:+.1} %, ", (now / baseline - 1.0) * 100.0) } else { String::new() };
        let line = format!("{case}: {baseline} {what} in the baseline, now {now} ({percent}up to {allowed:.2} is the same)");
        if now > baseline { &mut self.worse } else { &mut self.better }.push(line);
    }
}

/// Compares what is measured `now` with the baseline.
pub(super) fn compare(baseline: &Baseline, now: &Baseline) -> Verdict {
    let mut verdict = Verdict::default();
    let differences = baseline.environment.differences(&now.environment);
    let mut instructions = INSTRUCTIONS;
    if !counts_instructions() {
        verdict.elsewhere = Some("INSTRUCTIONS ARE NOT COMPARED: they can be counted on x86-64 only".to_owned());
    } else if !differences.is_empty() {
        instructions = INSTRUCTIONS_ELSEWHERE;
        verdict.elsewhere = Some(format!(
            "INSTRUCTIONS MAY BE {:.0} % MORE, not {:.0} %: the baseline was made with {}",
            instructions.percent,
            INSTRUCTIONS.percent,
            differences.join("; ")
        ));
    }
    for before in &baseline.cases {
        let Some(after) = now.cases.iter().find(|case| case.case == before.case) else {
            verdict.worse.push(format!("{}: in the baseline, but no longer measured", before.case));
            continue;
        };
        let case = &before.case;
        verdict.figure(case, "allocations", before.allocations, after.allocations, ALLOCATIONS);
        verdict.figure(case, "bytes allocated", before.bytes, after.bytes, BYTES);
        verdict.figure(case, "bytes resident", before.resident.unwrap_or(0.0), after.resident.unwrap_or(0.0), BYTES);
        match (before.instructions, after.instructions) {
            (Some(before), Some(after)) => verdict.figure(case, "instructions", before, after, instructions),
            (None, Some(_)) => verdict.worse.push(format!("{case}: the baseline has no instructions")),
            (Some(_), None) if counts_instructions() => verdict.worse.push(format!("{case}: instructions are no longer counted")),
            (_, None) => {}
        }
    }
    let known = |case: &Figures| baseline.cases.iter().any(|other| other.case == case.case);
    let new = now.cases.iter().filter(|case| !known(case));
    verdict.worse.extend(new.map(|case| format!("{}: not in the baseline", case.case)));
    verdict
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.elsewhere {
            writeln!(f, "\n!! {why}")?;
        }
        if !self.better.is_empty() {
            writeln!(f, "\nCheaper than the baseline; `cargo xtask microbench --update` keeps it so:")?;
            self.better.iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        }
        if self.worse.is_empty() {
            return writeln!(f, "\nNothing costs more than the baseline.");
        }
        writeln!(f, "\nMore than the baseline allows, or not in both:")?;
        self.worse.iter().try_for_each(|line| writeln!(f, "  {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(case: &str) -> Figures {
        let case = case.to_owned();
        let (resident, instructions) = (Some(1000.0), Some(10_000.0));
        Figures { case, count: 1, nanoseconds: 1.0, allocations: 20.0, bytes: 4000.0, resident, instructions }
    }

    fn baseline() -> Baseline {
        let [rustc, target, libc, valgrind] = ["rustc 1", "x86_64-unknown-linux-gnu", "glibc 2", "valgrind-3"].map(str::to_owned);
        let environment = Environment { rustc, target, libc, valgrind, avx2: true };
        Baseline { environment, cases: vec![figures("select/change/1000"), figures("diff bpf/change/50000")] }
    }

    /// The verdict where the second case is changed like this.
    fn verdict(change: impl FnOnce(&mut Figures)) -> Verdict {
        let mut now = baseline();
        change(&mut now.cases[1]);
        compare(&baseline(), &now)
    }

    #[test]
    fn the_same_passes_whatever_the_time() {
        let verdict = verdict(|case| case.nanoseconds = 1e9);
        assert!(verdict.passes() && verdict.better.is_empty() && verdict.elsewhere.is_none(), "{verdict:?}");
    }

    #[test]
    fn little_more_is_the_same() {
        let verdict = verdict(|case| {
            case.allocations += 0.09;
            case.bytes += 39.0;
            case.resident = Some(1009.0);
            case.instructions = Some(10_199.0);
        });
        assert!(verdict.passes() && verdict.better.is_empty(), "{verdict:?}");
    }

    /// One allocation for each Service or change, even where there were many.
    #[test]
    fn one_allocation_more_fails() {
        let verdict = verdict(|case| case.allocations += 1.0);
        assert_eq!(verdict.worse, ["diff bpf/change/50000: 20 allocations in the baseline, now 21 (+5.0 %, up to 0.10 is the same)"]);
        let many = Baseline { cases: vec![Figures { allocations: 150.0, ..figures("convert/service/1000") }], ..baseline() };
        let more = Baseline { cases: vec![Figures { allocations: 151.0, ..figures("convert/service/1000") }], ..baseline() };
        assert!(!compare(&many, &more).passes());
    }

    #[test]
    fn each_figure_is_compared() {
        type Change = fn(&mut Figures);
        let changes: [(&str, Change); 4] = [
            ("bytes allocated", |case| case.bytes += 41.0),
            ("bytes resident", |case| case.resident = Some(1011.0)),
            ("instructions", |case| case.instructions = Some(10_201.0)),
            ("allocations", |case| case.allocations += 0.2),
        ];
        for (what, change) in changes {
            let verdict = verdict(change);
            assert!(matches!(&verdict.worse[..], [line] if line.contains(what)), "{what}: {verdict:?}");
        }
    }

    #[test]
    fn less_passes_with_a_hint() {
        let verdict = verdict(|case| case.instructions = Some(5000.0));
        assert!(verdict.passes(), "{verdict:?}");
        assert_eq!(
            verdict.better,
            ["diff bpf/change/50000: 10000 instructions in the baseline, now 5000 (-50.0 %, up to 200.00 is the same)"]
        );
        assert!(verdict.to_string().contains("--update"));
    }

    /// A case that is renamed or dropped would otherwise never be judged again.
    #[test]
    fn the_cases_are_those_of_the_baseline() {
        let verdict = verdict(|case| case.case = "diff bpf/change/40000".to_owned());
        let expected = ["diff bpf/change/50000: in the baseline, but no longer measured", "diff bpf/change/40000: not in the baseline"];
        assert_eq!(verdict.worse, expected);
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn instructions_do_not_go_missing() {
        assert!(!verdict(|case| case.instructions = None).passes());
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn with_other_tools_only_much_more_instructions_fail() {
        let compare_at = |instructions: f64, allocations: f64| {
            let mut now = baseline();
            now.environment.libc = "glibc 3".to_owned();
            (now.cases[0].instructions, now.cases[0].allocations) = (Some(instructions), allocations);
            compare(&baseline(), &now)
        };
        let verdict = compare_at(11_900.0, 20.0);
        assert!(verdict.passes() && verdict.to_string().contains("glibc 2, here glibc 3"), "{verdict}");
        assert!(!compare_at(12_100.0, 20.0).passes());
        assert!(!compare_at(10_000.0, 21.0).passes(), "allocations count everywhere");
    }

    #[test]
    fn the_file_says_all_but_time() {
        let mut written = baseline();
        written.cases[0].resident = None;
        let text = written.to_json().expect("JSON");
        assert!(text.lines().any(|line| line.contains("select/change/1000") && !line.contains("diff")), "a line for each case: {text}");
        let read = Baseline::from_json(&text).expect("what was written");
        let verdict = compare(&written, &read);
        assert!(verdict.passes() && verdict.better.is_empty(), "{verdict}");
        assert_eq!(read.environment, written.environment);
        assert!(Baseline::from_json("{}").is_err());
    }
}
