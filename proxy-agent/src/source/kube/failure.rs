//! What can go wrong between the agent and the API server, said once, with the way out; and how long to wait then.

use std::collections::BTreeMap;
use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::wire::{Garbled, Status};

/// Kinds of failure: the log names each once until the connection works again.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    /// No answer, or the connection broke.
    Unreachable,
    /// The API server does not know us.
    Unauthorized,
    /// It knows us and says no.
    Forbidden,
    /// The version that we would go on from is too old: a new list is needed. Part of normal operation.
    Expired,
    /// It does not take this request at all.
    Refused,
    /// It has no such resource.
    Absent,
    /// It is busy or ill.
    Busy,
    /// What it says makes no sense.
    Garbled,
}

/// Something went wrong.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// For the operator: what happened, in the server's words where it has some.
    pub(super) text: String,
}

impl Failure {
    pub(super) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// What to do about it.
    fn way_out(&self, resource: &str, optional: Option<&str>) -> String {
        let since = optional.map(|since| format!("servers have {resource} since {since}"));
        match (self.kind, since) {
            // A server says no to whatever a role does not name, be it there or not.
            (Kind::Forbidden, since) => format!(
                "the agent must be allowed to list and watch {resource} in all namespaces: bind ClusterRole system:node-proxier to its \
                 ServiceAccount or user{}",
                since.map(|since| format!(" ({since})")).unwrap_or_default()
            ),
            (Kind::Absent, Some(since)) => since,
            (Kind::Absent, None) => "check that the server in --kubeconfig is a Kubernetes API server, 1.21 or later".to_owned(),
            (Kind::Unauthorized, _) => {
                "the token or client certificate is missing, has expired, or is another cluster's: check --kubeconfig \
                 or the pod's ServiceAccount; files are read again at each attempt"
                    .to_owned()
            }
            (Kind::Unreachable, _) if self.text.contains("certificate") => {
                "check certificate-authority and server in --kubeconfig, and the server's certificate".to_owned()
            }
            _ => "trying again".to_owned(),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let kind = match status.code {
            401 => Kind::Unauthorized,
            403 => Kind::Forbidden,
            404 => Kind::Absent,
            410 => Kind::Expired,
            400 | 405 | 406 | 422 => Kind::Refused,
            _ => Kind::Busy,
        };
        Self::new(kind, format!("{} ({})", status.message, status.code))
    }
}

impl From<Garbled> for Failure {
    fn from(Garbled(why): Garbled) -> Self {
        Self::new(Kind::Garbled, format!("an answer that cannot be decoded: {why}"))
    }
}

impl From<::kube::Error> for Failure {
    fn from(error: ::kube::Error) -> Self {
        match error {
            ::kube::Error::Api(status) => Status { code: status.code, message: status.message }.into(),
            ::kube::Error::Auth(error) => Self::new(Kind::Unauthorized, chain(&error)),
            ::kube::Error::Service(error) => Self::new(Kind::Unreachable, chain(error.as_ref())),
            error => Self::new(Kind::Unreachable, chain(&error)),
        }
    }
}

/// An error and its causes; some errors repeat their cause in their own text.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
        source = error.source();
    }
    text
}

/// Says what goes wrong, each kind of it once, and when all is well again.
pub(super) struct Journal {
    resource: &'static str,
    /// Since when servers have it, and what is not done without; where not all have it.
    optional: Option<&'static str>,
    /// URL of the API server.
    server: String,
    /// How often each kind was met since it last worked.
    met: BTreeMap<Kind, u32>,
}

/// An API server that starts answers anything for some seconds, for example that everything is forbidden: its answers count
/// when it insists on them.
fn is_said(kind: Kind, met: u32) -> bool {
    match kind {
        Kind::Unreachable => met == 1,
        Kind::Expired => false,
        _ => met == 3,
    }
}

impl Journal {
    pub(super) fn new(resource: &'static str, optional: Option<&'static str>, server: String) -> Self {
        Self { resource, optional, server, met: BTreeMap::new() }
    }

    /// The server with its port, as metrics name it.
    pub(super) fn host(&self) -> &str {
        let rest = self.server.split_once("://").map_or(&*self.server, |(_, rest)| rest);
        rest.split_once('/').map_or(rest, |(host, _)| host)
    }

    /// The kubeconfig may have come to name another server.
    pub(super) fn is_at(&mut self, server: String) {
        self.server = server;
    }

    /// `true` where it is said.
    pub(super) fn failed(&mut self, failure: &Failure) -> bool {
        let Failure { kind, text } = failure;
        let met = self.met.entry(*kind).or_default();
        *met = met.saturating_add(1);
        let said = is_said(*kind, *met);
        if said {
            let (resource, server, way_out) = (self.resource, &self.server, failure.way_out(self.resource, self.optional));
            tracing::warn!("watch of {resource} at {server}: {text}; {way_out}. What is known stays in force");
        } else {
            tracing::debug!("watch of {}: {text}", self.resource);
        }
        said
    }

    /// `true` where it is said.
    pub(super) fn works(&mut self) -> bool {
        let said = std::mem::take(&mut self.met).into_iter().any(|(kind, met)| (1..=met).any(|met| is_said(kind, met)));
        if said {
            tracing::info!("watch of {} at {}: works again", self.resource, self.server);
        }
        said
    }
}

/// How long to wait after a failure: longer each time, and not the same on all nodes, so that an API server that comes back is
/// not met by all of them at once.
#[derive(Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(500);
    const LONGEST: Duration = Duration::from_secs(30);

    /// Waits do not grow any more.
    pub(super) fn is_longest(&self) -> bool {
        self.longest() == Self::LONGEST
    }

    fn longest(&self) -> Duration {
        (Self::FIRST * 2u32.saturating_pow(self.failures.min(16))).min(Self::LONGEST)
    }

    pub(super) fn next(&mut self) -> Duration {
        let longest = self.longest();
        self.failures += 1;
        longest.div_f64(2.0) + longest.mul_f64(random() / 2.0)
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

/// From 0 to 1. The standard library has no other source of chance; nothing secret hangs on this one.
pub(super) fn random() -> f64 {
    f64::from((RandomState::new().hash_one(0) >> 32) as u32) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_out_names_verbs_resource_and_role() {
        let forbidden = Failure::from(Status { code: 403, message: "services is forbidden".into() });
        let text = forbidden.way_out("services", None);
        assert!(text.contains("list and watch services") && text.contains("system:node-proxier"), "{text}");
    }

    #[test]
    fn what_a_server_is_too_old_for_is_told_from_what_is_no_server() {
        let absent = Failure::from(Status { code: 404, message: "not found".into() });
        assert_eq!(absent.way_out("servicecidrs", Some("1.33")), "servers have servicecidrs since 1.33");
        assert!(absent.way_out("services", None).contains("check that the server"), "{}", absent.way_out("services", None));
        let forbidden = Failure::from(Status { code: 403, message: "no".into() }).way_out("servicecidrs", Some("1.33"));
        assert!(forbidden.contains("system:node-proxier") && forbidden.contains("since 1.33"), "{forbidden}");
    }

    #[test]
    fn each_kind_is_said_once_until_it_works_again() {
        let mut journal = Journal::new("services", None, "https://192.0.2.1".into());
        let away = Failure::new(Kind::Unreachable, "connection refused");
        assert!(!journal.works());
        assert!(journal.failed(&away));
        assert!(!journal.failed(&away));
        let forbidden = Failure::new(Kind::Forbidden, "no");
        assert_eq!([(); 4].map(|()| journal.failed(&forbidden)), [false, false, true, false]);
        assert!(journal.works());
        assert!(!journal.works());
        assert!(journal.failed(&away));
    }

    #[test]
    fn what_an_api_server_says_while_it_starts_is_not_said() {
        let mut journal = Journal::new("services", None, "https://192.0.2.1".into());
        for kind in [Kind::Forbidden, Kind::Busy, Kind::Forbidden, Kind::Expired, Kind::Expired, Kind::Expired] {
            assert!(!journal.failed(&Failure::new(kind, "starting")));
        }
        assert!(!journal.works());
    }

    #[test]
    fn waits_grow_with_jitter_to_a_limit_and_start_over() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..40).map(|_| backoff.next()).collect();
        assert!(waits[0] >= Duration::from_millis(250) && waits[0] <= Duration::from_millis(500));
        assert!(waits[39] >= Duration::from_secs(15) && waits[39] <= Duration::from_secs(30));
        assert!(waits[20..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter: {waits:?}");
        assert!(backoff.is_longest());
        backoff.reset();
        assert!(!backoff.is_longest());
        assert!(backoff.next() <= Duration::from_millis(500));
    }

    #[test]
    fn causes_are_named_once() {
        let inner = std::io::Error::new(std::io::ErrorKind::ConnectionRefused, "connection refused");
        let outer = ::kube::Error::Service(Box::new(std::io::Error::other(inner)));
        let text = Failure::from(outer).text;
        assert_eq!(text.matches("connection refused").count(), 1, "{text}");
    }
}
