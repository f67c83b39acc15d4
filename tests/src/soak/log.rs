//! What the agent says of its commits, read as it is written.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::agent::{Agent, DEADLINE};
use crate::lab::{Program, Seen, wait};

/// A log of which all but the new lines has been read.
pub(super) struct Log {
    path: PathBuf,
    offset: u64,
    /// Lines that have been read and not looked at.
    lines: VecDeque<String>,
    /// The next commit is of what went out of use a while ago.
    sweeps: bool,
}

impl Log {
    /// The log of a program, from here on.
    pub(super) fn of(program: &Program) -> Self {
        Self { path: program.log_path().to_path_buf(), offset: program.log().len() as u64, lines: VecDeque::new(), sweeps: false }
    }

    /// Waits for the commit of a change, and returns how long it took, in microseconds.
    pub(super) fn commit(&mut self, agent: &Agent) -> Result<u64> {
        wait(DEADLINE, "the commit of a change", || Ok(self.next()?.map_or_else(|| Seen::not_yet(agent.tail()), Seen::Done)))
    }

    /// How many commits of changes are told that nobody has waited for.
    pub(super) fn rest(&mut self) -> Result<u64> {
        let mut count = 0;
        while self.next()?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    /// How long the next commit of a change took, in microseconds, if it is there.
    fn next(&mut self) -> Result<Option<u64>> {
        self.read()?;
        while let Some(line) = self.lines.pop_front() {
            if !line.contains("nftables IPv4") {
                continue;
            }
            if line.contains("deleting what went out of use") {
                self.sweeps = true;
            } else if line.contains(" committed ") && !std::mem::take(&mut self.sweeps) {
                let micros = line.split(' ').find_map(|word| word.strip_prefix("micros=")).context("how long it took")?;
                return Ok(Some(micros.parse()?));
            }
        }
        Ok(None)
    }

    /// Takes in the whole lines that are new.
    fn read(&mut self) -> Result<()> {
        let mut file = File::open(&self.path).with_context(|| self.path.display().to_string())?;
        file.seek(SeekFrom::Start(self.offset))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.offset += whole as u64;
        self.lines.extend(text[..whole].lines().map(str::to_owned));
        Ok(())
    }
}
