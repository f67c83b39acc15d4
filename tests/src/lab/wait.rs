//! Waiting for a condition.

use std::time::{Duration, Instant};
use std::{env, fmt, thread};

use anyhow::{Context, Result, bail};

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How many times as long all is waited for, on a machine that is slow, as an emulated one is.
const PATIENCE: &str = "PROXY_LAB_PATIENCE";

/// What a condition's function tells of a try: the value, or what it saw instead.
#[derive(Debug)]
pub enum Seen<T> {
    /// The condition holds.
    Done(T),
    /// It does not, and this is what was seen.
    NotYet(String),
}

impl<T> Seen<T> {
    /// Not yet, in words.
    pub fn not_yet(observed: impl fmt::Display) -> Self {
        Seen::NotYet(observed.to_string())
    }
}

impl<T> From<Option<T>> for Seen<T> {
    fn from(option: Option<T>) -> Self {
        option.map_or_else(|| Seen::NotYet("nothing".to_owned()), Seen::Done)
    }
}

/// Calls `observe` until it gives a value, an `Option` or, with words for what it saw instead, a [`Seen`]. An error counts as
/// "not yet" too. After `deadline`, times `PROXY_LAB_PATIENCE` from the environment, the error says what was awaited and what was
/// seen last.
pub fn wait<T, S: Into<Seen<T>>>(deadline: Duration, what: &str, mut observe: impl FnMut() -> Result<S>) -> Result<T> {
    let deadline = deadline * patience()?;
    let end = Instant::now() + deadline;
    let mut pause = FIRST_PAUSE;
    loop {
        let last = match observe().map(Into::into) {
            Ok(Seen::Done(value)) => return Ok(value),
            Ok(Seen::NotYet(last)) => last,
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() >= end {
            bail!("waited {deadline:?} for {what}; last seen: {last}");
        }
        thread::sleep(pause);
        pause = (pause * 3 / 2).min(LONGEST_PAUSE);
    }
}

/// How many times as long as elsewhere all is to be waited for on this machine.
pub fn patience() -> Result<u32> {
    let Some(factor) = env::var_os(PATIENCE) else { return Ok(1) };
    let number = factor.to_str().and_then(|text| text.parse().ok());
    number.with_context(|| format!("{PATIENCE}={}: a whole number is wanted", factor.display()))
}
