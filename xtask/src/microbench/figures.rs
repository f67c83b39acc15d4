//! What one case costs, for each Service or change.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The figures of a case. Time is not kept in the baseline.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Figures {
    /// Stage, what it is per, size of the cluster: `lower bpf/change/50000`.
    pub(super) case: String,
    /// How many there were.
    #[serde(skip)]
    pub(super) count: u64,
    #[serde(skip)]
    pub(super) nanoseconds: f64,
    pub(super) allocations: f64,
    pub(super) bytes: f64,
    /// Bytes that stay in use per Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) resident: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) instructions: Option<f64>,
}

/// A line of the program.
#[derive(Deserialize)]
struct Line {
    stage: String,
    per: String,
    services: u32,
    count: u64,
    nanoseconds: u64,
    allocations: u64,
    bytes: u64,
    resident: u64,
}

impl Figures {
    /// Reads a line of the program, which has sums.
    pub(super) fn from_line(line: &str) -> Result<Self> {
        let line: Line = serde_json::from_str(line).with_context(|| format!("the microbenchmarks printed {line:?}"))?;
        let count = line.count.max(1);
        Ok(Self {
            case: format!("{}/{}/{}", line.stage, line.per, line.services),
            count,
            nanoseconds: each(line.nanoseconds, count),
            allocations: each(line.allocations, count),
            bytes: each(line.bytes, count),
            resident: (line.resident > 0).then(|| each(line.resident, u64::from(line.services))),
            instructions: None,
        })
    }

    /// The parts of the name.
    pub(super) fn parts(&self) -> (&str, &str, &str) {
        let mut parts = self.case.splitn(3, '/');
        let mut next = || parts.next().unwrap_or_default();
        (next(), next(), next())
    }
}

/// A sum by its count, without digits that say nothing.
pub(super) fn each(sum: u64, count: u64) -> f64 {
    (sum as f64 / count as f64 * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_divided() {
        let line = r#"{"allocations":25000,"bytes":6239000,"count":1000,"nanoseconds":22176749,"per":"change","resident":0,
            "services":50000,"stage":"plan bpf"}"#;
        let figures = Figures::from_line(line).expect("a line");
        assert_eq!((&*figures.case, figures.parts()), ("plan bpf/change/50000", ("plan bpf", "change", "50000")));
        assert_eq!((figures.allocations, figures.bytes, figures.resident), (25.0, 6239.0, None));
        let line = line.replace("\"resident\":0", "\"resident\":75000");
        assert_eq!(Figures::from_line(&line).expect("a line").resident, Some(1.5), "for each Service of the cluster");
        assert!(Figures::from_line("no JSON").is_err());
    }
}
