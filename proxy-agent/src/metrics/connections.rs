//! Connections by Service port. The series come and go with Service ports: each reading of the kernel shows all of them anew.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounterVec, Opts};
use proxy_core::connections::Connections as Counted;

use super::catalogue::{Catalogue, Entry, VALID};

const NAME: &str = "proxy_agent_service_connections_total";
const HELP: &str = "New connections (TCP, SCTP) and flows (UDP) that a Service port of this node has led to an endpoint";
const LABELS: &[&str] = &["namespace", "service", "port", "protocol", "ip_family"];
/// What all labels say of the sum of the Service ports that have no series: no object has such a name.
const OTHERS: &str = "_other";

/// The counters of Service ports.
#[derive(Clone)]
pub struct Connections {
    desc: Desc,
    counters: Arc<Mutex<IntCounterVec>>,
}

impl Connections {
    pub(super) fn new(main: &mut Catalogue) -> Self {
        let labels = LABELS.iter().map(|label| (*label).to_owned()).collect();
        let desc = Desc::new(NAME.into(), HELP.into(), labels, HashMap::new()).expect(VALID);
        main.add(Entry { name: NAME, kind: "counter", labels: LABELS, help: HELP }, Self { desc, counters: Arc::new(Mutex::new(none())) })
    }

    /// Shows what has been counted.
    pub fn show(&self, counted: &Counted) {
        let counters = none();
        for (port, total) in counted.series() {
            let (number, protocol, family) = (port.number.to_string(), port.protocol.to_string(), port.family.to_string());
            let labels = [&*port.service.namespace, &*port.service.name, &*number, &*protocol, &*family];
            counters.with_label_values(&labels).inc_by(total);
        }
        if let Some(total) = counted.others() {
            counters.with_label_values(&[OTHERS; LABELS.len()]).inc_by(total);
        }
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }
}

impl Collector for Connections {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.counters.lock().unwrap_or_else(PoisonError::into_inner).collect()
    }
}

fn none() -> IntCounterVec {
    IntCounterVec::new(Opts::new(NAME, HELP), LABELS).expect(VALID)
}
