//! Log lines on standard error.

use std::sync::OnceLock;

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload::Handle;

/// How log lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// Libraries that write a line at every retry, which our own sources say once.
const QUIET: &str = "kube_client=off,rustls_platform_verifier=off";

/// Starts logging; once per process.
///
/// # Errors
///
/// `level` is no level and no filter.
pub fn start(format: Format, level: &str) -> anyhow::Result<()> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(level).context("--log-level")?).with_writer(std::io::stderr);
    // A line that cannot be written, on a full disk, is lost and no more: to report it would end the process.
    let builder = builder.log_internal_errors(false);
    let result = match format {
        Format::Text => {
            let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            let builder = builder.with_ansi(is_terminal).with_target(false).with_filter_reloading();
            remember(builder.reload_handle());
            builder.try_init()
        }
        Format::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            remember(builder.reload_handle());
            builder.try_init()
        }
    };
    result.map_err(|e| anyhow!("logging: {e}"))
}

/// Changes which log lines are written from now on.
///
/// # Errors
///
/// `level` is no level, no filter and no number, or logging has not been started.
pub fn set_level(level: &str) -> anyhow::Result<()> {
    let set = SET.get().context("logging has not been started")?;
    set(filter(level)?)
}

/// Changes the filter of the log that has been started.
type Set = Box<dyn Fn(EnvFilter) -> anyhow::Result<()> + Send + Sync>;

static SET: OnceLock<Set> = OnceLock::new();

fn remember<S: 'static>(handle: Handle<EnvFilter, S>) {
    // The first one is the one that counts: it is started once.
    let _ = SET.set(Box::new(move |filter| handle.reload(filter).context("logging")));
}

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    let is_filter = level.contains(['=', ',']);
    let directives = match level.parse::<u32>() {
        // As verbose as kube-proxy is at such a number.
        Ok(0..=2) => format!("info,{QUIET}"),
        Ok(3..=5) => format!("debug,{QUIET}"),
        Ok(_) => format!("trace,{QUIET}"),
        Err(_) if is_filter => level.to_string(),
        Err(_) => format!("{level},{QUIET}"),
    };
    EnvFilter::try_new(directives).with_context(|| format!("{level:?} is neither a level nor a filter"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_words_filters_or_kube_proxys_numbers() -> anyhow::Result<()> {
        for (level, said) in
            [("warn", "warn"), ("2", "info"), ("4", "debug"), ("10", "trace"), ("info,proxy_agent=debug", "proxy_agent=debug")]
        {
            assert!(filter(level)?.to_string().contains(said), "{level}: {}", filter(level)?);
        }
        assert!(filter("loud=very").is_err());
        Ok(())
    }
}
