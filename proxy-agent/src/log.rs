//! Log lines on standard error.

use std::sync::OnceLock;

use anyhow::{Context, anyhow};
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

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

/// Replaces the filter.
type Reload = Box<dyn Fn(EnvFilter) -> anyhow::Result<()> + Send + Sync>;
static RELOAD: OnceLock<Reload> = OnceLock::new();

/// Starts logging; once per process.
///
/// # Errors
///
/// `level` is no level and no filter.
pub fn start(format: Format, level: &str) -> anyhow::Result<()> {
    let filter = filter(level)?;
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr);
    // Each format is a type of its own, down to its filter.
    let (reload, result): (Reload, _) = match format {
        Format::Text => {
            let builder = builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_target(false);
            let builder = builder.with_env_filter(filter).with_filter_reloading();
            let handle = builder.reload_handle();
            (Box::new(move |filter| handle.reload(filter).context("the log's filter")), builder.try_init())
        }
        Format::Json => {
            let builder = builder.json().flatten_event(true).with_env_filter(filter).with_filter_reloading();
            let handle = builder.reload_handle();
            (Box::new(move |filter| handle.reload(filter).context("the log's filter")), builder.try_init())
        }
    };
    result.map_err(|e| anyhow!("logging: {e}"))?;
    // Set once: a second start has failed above.
    let _ = RELOAD.set(reload);
    Ok(())
}

/// Writes other lines from now on; nothing before [`start`].
///
/// # Errors
///
/// `level` is no level and no filter.
pub fn set_level(level: &str) -> anyhow::Result<()> {
    RELOAD.get().map_or(Ok(()), |reload| reload(filter(level)?))
}

fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    let is_filter = level.contains(['=', ',']);
    let directives = if is_filter { level.to_string() } else { format!("{level},{QUIET}") };
    EnvFilter::try_new(directives).with_context(|| format!("--log-level {level:?}: is neither a level nor a filter"))
}
