//! `run`: kube-proxy's command line.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use tokio::runtime::Runtime;
use tracing::{error, info};

use super::fields::FieldFlags;
use crate::config::resolve::Beside;
use crate::config::{Changes, Launch, Loaded, go, reload};
use crate::run::{self, Ending, Stop};
use crate::{coexist, log};

/// The release of kube-proxy whose flags and files these are.
const KUBE_PROXY: &str = "v1.37";
/// What still runs in threads when a run ends may take this long: it is about to write to the kernel.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// A configuration that has run for so long can be run: what ends it then is something else.
const TRIAL: Duration = Duration::from_secs(60);

/// Flags that are of no field of the configuration.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Configuration file: KubeProxyConfiguration, and beside it, as a document of its own, ProxyAgentConfiguration. The flags of
    /// kube-proxy's fields do not count then, but for --hostname-override and those of the log
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the API server, instead of the one in the kubeconfig
    #[arg(long, value_name = "URL")]
    master: Option<String>,
    /// Write the configuration with its defaults to this file, and end
    #[arg(long, value_name = "FILE")]
    write_config_to: Option<PathBuf>,
    /// Remove everything of ours from this node, and end; with --remove-kube-proxy-rules what kube-proxy has left too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = go::boolean, hide_default_value = true)]
    cleanup: bool,
    /// Do what needs more rights than serving does, and end
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", value_parser = go::boolean, hide_default_value = true)]
    init_only: bool,
    /// Deprecated: 0 turns the health server off, another number is its port
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    healthz_port: Option<u16>,
    /// Deprecated: 0 turns the metrics server off, another number is its port
    #[arg(long, value_name = "PORT", allow_negative_numbers = true)]
    metrics_port: Option<u16>,
    /// Print the version, and end; raw for more of it
    #[arg(long, value_name = "FORM", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    version: Option<String>,
    #[command(flatten)]
    fields: FieldFlags,
    /// There are none
    #[arg(hide = true)]
    positional: Vec<String>,
}

impl RunArgs {
    /// Runs to the end.
    pub(super) fn run(self) -> anyhow::Result<()> {
        let given: Vec<&String> = self.positional.iter().filter(|argument| !argument.is_empty()).collect();
        // CLI-06
        ensure!(given.is_empty(), "run takes flags only, not {given:?}");
        if self.version.as_deref().is_some_and(|form| go::boolean(form) != Ok(false) && !form.starts_with('v')) {
            let version = env!("CARGO_PKG_VERSION");
            match self.version.as_deref() {
                Some("raw") => println!("proxy-agent {version}, for kube-proxy {KUBE_PROXY}, layout of maps {}", proxy_abi::LAYOUT),
                _ => println!("proxy-agent {version} (kube-proxy {KUBE_PROXY})"),
            }
            return Ok(());
        }
        let launch = self.launch();
        let loaded = launch.load()?;
        let (format, level) = loaded.log();
        log::start(format, &level)?;
        loaded.introduce(&launch);
        loaded.report();
        if let Some(path) = &self.write_config_to {
            return fs::write(path, loaded.file()?).with_context(|| format!("{}: cannot be written", path.display()));
        }
        if self.cleanup {
            if loaded.config.remove_kube_proxy_rules {
                coexist::remove()?;
            }
            return super::cleanup(&loaded.config.bpf);
        }
        if self.init_only {
            return runtime()?.block_on(run::init(&loaded.config));
        }
        serve(launch, loaded)
    }
}

impl RunArgs {
    /// What it says of the configuration.
    fn launch(&self) -> Launch {
        Launch {
            file: self.config.clone(),
            given: self.fields.0.clone(),
            beside: Beside { master: self.master.clone(), healthz_port: self.healthz_port, metrics_port: self.metrics_port },
        }
    }
}

/// Serves until a signal ends it. Each configuration has a runtime of its own, so that nothing of one is left in the next; the kernel keeps
/// what is programmed meanwhile, and the next run starts from that. A change that this host cannot run gives way to what was there before.
fn serve(launch: Launch, mut loaded: Loaded) -> anyhow::Result<()> {
    let (mut before, mut refused) = (None, None);
    let (format, stop) = (loaded.log().0, Stop::new()?);
    loop {
        let start = Instant::now();
        let runtime = runtime()?;
        let changes = Changes::new(launch.clone(), loaded.clone(), refused.take());
        let ending = runtime.block_on(run::run(loaded.config.clone(), changes, stop.clone()));
        runtime.shutdown_timeout(LAST_WORDS);
        match (ending, before.take()) {
            (Ok(Ending::Stopped), _) => return Ok(()),
            (Ok(Ending::Changed(next)), _) => before = Some(std::mem::replace(&mut loaded, *next)),
            (Err(error), Some(last)) if start.elapsed() < TRIAL => {
                error!("what has changed cannot be run, so that what was there before is back: {error:#}");
                refused = Some(std::mem::replace(&mut loaded, last));
                loaded.config.notices.push(reload::invalid(&error));
            }
            (Err(error), _) => return Err(error),
        }
        if loaded.log().0 != format {
            info!("logging.format: counts from the next start of the process");
        }
        log::set_level(&loaded.log().1)?;
        loaded.report();
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("starting threads")
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
