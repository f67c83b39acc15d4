//! Reads what the programs have counted.

use std::path::Path;

use anyhow::{Context, anyhow};
use aya::util::nr_cpus;
use proxy_abi as abi;
use proxy_core::lower::bpf::{frontend_key, frontend_of};
use proxy_core::model::Frontend;

use super::maps;
use super::sys::Map;
use crate::dataplane::Meter;

/// `COUNTS`, in which every processor has a count of its own.
pub struct BpfMeter {
    counts: Map<abi::FrontendKey, u64>,
    processors: usize,
}

impl BpfMeter {
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        let processors = nr_cpus().map_err(|(path, reason)| anyhow!("{path}: {reason}"))?;
        Ok(Self { counts: maps::open(dir, "COUNTS")?, processors })
    }
}

impl Meter for BpfMeter {
    fn read(&mut self) -> anyhow::Result<Vec<(Frontend, u64)>> {
        let sums = self.counts.sums(self.processors).context("map COUNTS: cannot be read")?;
        Ok(sums.into_iter().filter_map(|(key, count)| Some((frontend_of(&key)?, count))).collect())
    }

    fn forget(&mut self, frontends: &[Frontend]) -> anyhow::Result<()> {
        let mut keys: &[abi::FrontendKey] = &frontends.iter().map(frontend_key).collect::<Vec<_>>();
        while !keys.is_empty() {
            let batch = self.counts.delete(keys);
            match batch.error {
                None => break,
                // The next one is not there.
                Some(error) if error.raw_os_error() == Some(libc::ENOENT) => keys = &keys[batch.done + 1..],
                Some(error) => return Err(error).context("map COUNTS: an entry cannot be deleted"),
            }
        }
        Ok(())
    }
}
