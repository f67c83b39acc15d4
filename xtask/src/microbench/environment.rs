//! What the number of instructions depends on, besides the code.

use std::process::Command;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::run::output;

/// The tools that made and counted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Environment {
    /// The compiler.
    pub(super) rustc: String,
    /// What it compiles for.
    pub(super) target: String,
    /// Has memcpy and its like.
    pub(super) libc: String,
    /// Has a processor of its own.
    pub(super) valgrind: String,
    /// Whether that processor has AVX2, as this one has: libc's memcpy differs.
    pub(super) avx2: bool,
}

impl Environment {
    pub(super) fn here() -> Result<Self> {
        let rustc = output(Command::new("rustc").arg("-vV").current_dir(crate::workspace()))?;
        let target = rustc.lines().find_map(|line| line.strip_prefix("host: ")).context("`rustc -vV` names no host")?;
        Ok(Self {
            rustc: rustc.lines().next().unwrap_or_default().to_owned(),
            target: target.to_owned(),
            libc: output(Command::new("getconf").arg("GNU_LIBC_VERSION"))?.trim().to_owned(),
            valgrind: output(Command::new("valgrind").arg("--version"))?.trim().to_owned(),
            avx2: has_avx2(),
        })
    }

    /// What differs, for people.
    pub(super) fn differences(&self, other: &Self) -> Vec<String> {
        let avx2 = |here: bool| if here { "with AVX2" } else { "without AVX2" };
        let pairs = [
            (&*self.rustc, &*other.rustc),
            (&self.target, &other.target),
            (&self.libc, &other.libc),
            (&self.valgrind, &other.valgrind),
            (avx2(self.avx2), avx2(other.avx2)),
        ];
        pairs.iter().filter(|(a, b)| a != b).map(|(a, b)| format!("{a}, here {b}")).collect()
    }
}

/// Whether the benchmarks can ask callgrind: they know how on this processor only.
pub(super) fn counts_instructions() -> bool {
    cfg!(target_arch = "x86_64")
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    std::is_x86_feature_detected!("avx2")
}

#[cfg(not(target_arch = "x86_64"))]
fn has_avx2() -> bool {
    false
}
