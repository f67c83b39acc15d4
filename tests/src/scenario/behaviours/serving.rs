//! What servers answer: no scenario, which is about packets, shows any of it.

use super::{Area, Elsewhere, nowhere};

/// Health and metrics.
pub(super) const AREAS: [Area; 2] = [
    Area {
        name: "HC",
        about: "health",
        behaviours: &[
            "/healthz: 503 where a change of a family has waited for twice the sync period, or the node is not to be used",
            "a node is not to be used if it is not known, is asked to go, or has the cluster autoscaler's taint; nothing else counts",
            "/livez: the same without the node",
            "the body: when, whether the node is to be used, whether it is healthy, and each family",
            "lastUpdated is now where all is well; headers; other paths are not there",
            "nothing to do is healthy, and so is the start; the oldest change counts",
            "a server for each Service that has a health check port, for every path and method",
            "200 where there are endpoints and the proxy is healthy, else 503",
            "distinct addresses that are ready, in each family; those that end do not count",
            "the body, and how many there are in a header",
            "at the addresses of NodePorts, or all (here: as they change)",
            "a port that is taken is an event and is tried again; another port; policy Cluster closes it",
            "no rule lets the port in on nftables",
        ],
    },
    Area {
        name: "MET",
        about: "metrics",
        behaviours: &[
            "the pages of port 10249",
            "profiling, and the log level of a running program",
            "how long syncs take",
            "when a sync last succeeded, and was last asked for",
            "changes, and those that wait",
            "from the change of a pod to the rules",
            "ports with policy Local without a local endpoint",
            "the cleaning of connection tracking",
            "answers of the health server",
            "the size of iptables rules",
            "packets at rules of iptables",
            "failed syncs and clean-ups",
            "NodePorts on loopback by a proxy in user space",
            "the program, its process, and its requests to the API server",
        ],
    },
];

const fn answer(id: &'static str, test: &'static str) -> Elsewhere {
    Elsewhere { id, test: Some(test), why: "a server's answer" }
}

const NODE: &str = "tests/it/serve.rs health_follows_the_node_as_kube_proxys_does";
const SERVICE: &str = "tests/it/serve.rs health_checks_of_a_service_are_answered_as_kube_proxy_answers_them";
const STALE: &str = "tests/it/serve/stale.rs a_change_that_cannot_be_written_is_an_illness_until_it_is";
const NAMES: &str = "tests/it/serve/metrics.rs every_name_of_kube_proxys_metrics_is_there_or_listed_with_its_reason";
const TOLD: &str = "proxy-agent/src/agent/tests/told.rs health_counts_from_the_oldest_change_that_a_dataplane_lacks";

/// What shows each.
pub(super) const ELSEWHERE: &[Elsewhere] = &[
    answer("HC-01", STALE),
    answer("HC-02", NODE),
    answer("HC-03", STALE),
    answer("HC-04", NODE),
    answer("HC-05", "proxy-agent/src/health/tests.rs the_body_has_kube_proxys_fields_in_its_order_and_times_in_utc"),
    answer("HC-06", TOLD),
    answer("HC-07", SERVICE),
    answer("HC-08", STALE),
    answer("HC-09", SERVICE),
    answer("HC-10", SERVICE),
    answer("HC-11", "tests/it/serve/own.rs the_health_check_of_a_service_follows_the_nodes_addresses"),
    answer("HC-12", "tests/it/serve/own.rs a_health_check_port_that_is_taken_is_answered_once_it_is_free"),
    nowhere("HC-13", "there is none here either: the host's firewall decides what reaches the host"),
    answer("MET-01", NAMES),
    answer("MET-02", "proxy-agent/src/metrics/tests.rs profiling_is_answered_where_it_is_on"),
    answer("MET-03", "proxy-agent/src/metrics/tests.rs buckets_are_kube_proxys"),
    answer("MET-04", NAMES),
    answer("MET-05", TOLD),
    answer("MET-06", "proxy-agent/src/agent/tests/told.rs network_programming_is_counted_once_for_each_change_since_the_start"),
    answer("MET-07", NAMES),
    answer("MET-08", NAMES),
    answer("MET-09", "proxy-agent/src/health/tests.rs answers_are_counted_and_other_paths_are_not_there"),
    answer("MET-10", NAMES),
    nowhere("MET-11", "there are no rules of iptables here; `docs/operations.md` lists what is not there"),
    answer("MET-12", STALE),
    nowhere("MET-13", "an alpha feature of kube-proxy that is off by default"),
    answer("MET-14", NAMES),
];
