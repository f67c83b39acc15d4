//! The server on port 10249 (MET-01, MET-02): metrics, and what people ask an agent that runs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::Method;
use jiff::Timestamp;
use proxy_core::model::ObjectName;
use serde_json::Value;
use tokio::time::timeout;

use super::{CONTENT_TYPE, Metrics};
use crate::connections::Counter;
use crate::http::{Answer, Asked, Site};
use crate::log;
use crate::programmed::Questions;

/// How long the loop may take to answer a question: it may be writing to the kernel.
const PATIENCE: Duration = Duration::from_secs(10);
/// The paths that `/statusz` names.
const PATHS: [&str; 8] = ["/configz", "/flagz", "/healthz", "/metrics", "/metrics/slis", "/programmed", "/proxyMode", "/statusz"];
/// What is said before pages that nobody is to parse.
const WARNING: &str = "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is for \
                       debugging purposes only.";
/// Why there are no profiles.
const NO_PROFILES: &str = "there are no profiles of the Go runtime in this program: `perf record -p PID`, or any other profiler of \
                           native programs, takes them; /metrics has its CPU time and memory\n";

/// What the server says.
pub struct MetricsSite {
    /// What is measured.
    pub metrics: Arc<Metrics>,
    /// The mode, in one word.
    pub mode: String,
    /// The configuration in force, by component.
    pub config: Box<dyn Fn() -> Value + Send + Sync>,
    /// All flags with their values.
    pub flags: BTreeMap<String, String>,
    /// Whether profiling requests are answered.
    pub profiling: bool,
    /// Where to ask about Services.
    pub questions: Questions,
    /// What reads the kernel's counts of connections before a scrape, if they are counted.
    pub connections: Option<Arc<Counter>>,
    /// When the agent started.
    pub started: SystemTime,
}

impl Site for MetricsSite {
    async fn answer(&self, asked: Asked) -> Answer {
        match &*asked.path {
            "/metrics" => {
                if let Some(connections) = &self.connections {
                    connections.refresh().await;
                }
                Answer::new(200, CONTENT_TYPE, self.metrics.text())
            }
            "/metrics/slis" if asked.method == Method::DELETE => {
                self.metrics.reset_slis();
                Answer::plain(200, "metrics reset\n")
            }
            "/metrics/slis" => Answer::new(200, CONTENT_TYPE, self.metrics.slis_text()),
            "/healthz" | "/healthz/ping" => {
                self.metrics.pinged();
                let verbose = asked.path == "/healthz" && asked.query.split('&').any(|word| word == "verbose");
                Answer::plain(200, if verbose { "[+]ping ok\nhealthz check passed\n" } else { "ok" })
            }
            "/proxyMode" => Answer::plain(200, self.mode.clone()),
            "/configz" => Answer::json(200, (self.config)().to_string()),
            "/flagz" => Answer::plain(200, self.flagz()),
            "/statusz" => Answer::plain(200, self.statusz()),
            "/programmed" => self.programmed(&asked).await,
            path if path.starts_with("/debug/") && self.profiling => debug(&asked),
            _ => Answer::nothing_there(),
        }
    }
}

impl MetricsSite {
    fn flagz(&self) -> String {
        let mut page = format!("\nproxy-agent flagz\n{WARNING}\n\n");
        for (name, value) in &self.flags {
            // Writing to a string does not fail.
            let _ = writeln!(page, "{name}={value}");
        }
        page
    }

    fn statusz(&self) -> String {
        let started = Timestamp::try_from(self.started).unwrap_or_default().strftime("%a %b %e %H:%M:%S UTC %Y").to_string();
        let up = self.started.elapsed().unwrap_or_default().as_secs();
        let (hours, minutes, seconds) = (up / 3600, up / 60 % 60, up % 60);
        format!(
            "\nproxy-agent statusz\n{WARNING}\n\nStarted: {started}\nUp: {hours} hr {minutes:02} min {seconds:02} sec\nBinary version: \
             {}\nMode: {}\nPaths: {}\n",
            env!("CARGO_PKG_VERSION"),
            self.mode,
            PATHS.join(" ")
        )
    }

    async fn programmed(&self, asked: &Asked) -> Answer {
        let named = asked.parameter("service");
        let Some((namespace, name)) = named.as_deref().and_then(|text| text.split_once('/')) else {
            return Answer::plain(400, "name a Service: /programmed?service=NAMESPACE/NAME\n");
        };
        match timeout(PATIENCE, self.questions.ask(ObjectName::new(namespace, name))).await {
            // It always can be written.
            Ok(Some(programmed)) => Answer::json(200, serde_json::to_string(&programmed).unwrap_or_default()),
            Ok(None) => Answer::plain(503, "the agent ends\n"),
            Err(_) => Answer::plain(503, format!("the agent has been busy with the kernel for {PATIENCE:?}\n")),
        }
    }
}

/// MET-02
fn debug(asked: &Asked) -> Answer {
    match (&asked.method, &*asked.path) {
        (&Method::PUT, "/debug/flags/v") => match log::set_level(asked.body.trim()) {
            Ok(()) => Answer::plain(200, format!("successfully set the log level to {}", asked.body.trim())),
            Err(error) => Answer::plain(400, format!("{error:#}")),
        },
        (_, "/debug/flags/v") => Answer::plain(406, "unsupported http method"),
        (_, "/debug/flags" | "/debug/flags/") => {
            Answer::plain(200, "PUT /debug/flags/v sets the log level: a level, a filter or a number\n")
        }
        (_, path) if path.starts_with("/debug/pprof") => Answer::plain(501, NO_PROFILES),
        _ => Answer::nothing_there(),
    }
}
