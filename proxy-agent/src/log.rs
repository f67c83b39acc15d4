//! Log lines on standard error.

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

/// Starts logging; once per process.
///
/// # Errors
///
/// `level` is no level and no filter.
pub fn start(format: Format, level: &str) -> anyhow::Result<()> {
    let is_filter = level.contains(['=', ',']);
    let directives = if is_filter { level.to_string() } else { format!("{level},{QUIET}") };
    let filter = EnvFilter::try_new(directives).with_context(|| format!("--log-level {level:?}: is neither a level nor a filter"))?;
    // A line that cannot be written, on a full disk, is lost and no more: to report it would end the process.
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    let result = match format {
        Format::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_target(false).try_init(),
        Format::Json => builder.json().flatten_event(true).try_init(),
    };
    result.map_err(|e| anyhow!("logging: {e}"))
}
