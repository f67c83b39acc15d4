//! How changes get from the API server into the kernel.

use super::{Area, Elsewhere, nowhere};

/// The loop, and the API server.
pub(super) const AREAS: [Area; 2] = [
    Area {
        name: "SYNC",
        about: "how changes get into the kernel",
        behaviours: &[
            "nothing is written before Services and EndpointSlices are listed",
            "what is programmed stays in force through a restart",
            "changes within minSyncPeriod of a sync wait for its end together",
            "a sync that has failed is tried again, as a full one",
            "each family by itself, and no moment with half of the rules",
            "a change touches what it changes",
            "a canary tells that rules have been flushed",
            "rules of others stay as they are",
            "with many endpoints: fewer comments, stale chains later",
            "one table for each family, of which elements change",
            "kernels from 5.13",
            "both families, or the one that there is",
            "the end of the proxy leaves everything in force; so does the absence of the API server",
            "what other modes have left is removed at the start",
            "cleanup removes everything of every mode, and nothing of others",
            "ServiceCIDRs that come and go",
            "what kube-proxy has left is found by its names",
            "health checks and connection tracking follow the kernel",
        ],
    },
    Area {
        name: "API",
        about: "the API server",
        behaviours: &[
            "the Node of the host's name, or the one that is named, and no other",
            "the Node's addresses: the first, and the first of the other family; they are not waited for",
            "bindAddress takes the place of the Node's address",
            "what changes of the Node (here: live, without an end of the process)",
            "no rights but those of system:node-proxier",
            "Events",
            "deletions that a watch has missed",
            "where the API server is, and in which encoding it is spoken to",
            "how it is deployed",
        ],
    },
];

/// One that is about what no scenario does.
const fn by(id: &'static str, test: &'static str, why: &'static str) -> Elsewhere {
    Elsewhere { id, test: Some(test), why }
}

const SERVER: &str = "scenarios have no API server";
const ALONE: &str = "what a loop does among failures is no step of a scenario";

/// Where each is shown that no scenario shows.
pub(super) const ELSEWHERE: &[Elsewhere] = &[
    by(
        "SYNC-01",
        "proxy-agent/src/agent/tests.rs nothing_is_read_or_written_before_both_lists_are_complete",
        "a scenario begins with a complete list",
    ),
    by(
        "SYNC-03",
        "proxy-agent/src/agent/tests.rs changes_wait_for_their_time_together_and_not_longer_than_to_the_end",
        "there is no time in scenarios",
    ),
    by("SYNC-04", "tests/it/serve/stale.rs a_change_that_cannot_be_written_is_an_illness_until_it_is", ALONE),
    by(
        "SYNC-05",
        "tests/it/load.rs what_changes_is_for_new_connections_only",
        "that there is no moment without rules shows under load only",
    ),
    by("SYNC-07", "tests/it/drift.rs what_somebody_else_breaks_is_repaired_and_nothing_else", "others change nothing in scenarios"),
    by("SYNC-08", "tests/it/coexist.rs migration_from_iptables_loses_no_connection", "there are no rules of others in scenarios"),
    nowhere("SYNC-09", "what rules of kube-proxy's iptables mode cost; here elements change, whatever their number"),
    nowhere("SYNC-10", "how kube-proxy's own table is kept; docs/architecture.md has ours"),
    nowhere("SYNC-11", "`cargo xtask vm` runs scenarios on older kernels; no nft program is needed"),
    nowhere(
        "SYNC-12",
        "a host without a family does not exist in the lab; each family's table is a dataplane of its own, which may fail alone",
    ),
    by("SYNC-13", "tests/it/node.rs a_restart_and_a_crash_lose_no_connection", "no scenario ends the agent and then looks"),
    by(
        "SYNC-14",
        "tests/it/handover.rs modes_are_switched_without_losing_a_connection",
        "here only once the new rules are in place (W-17); what kube-proxy has left goes if it is asked for",
    ),
    by("SYNC-15", "tests/it/coexist.rs migration_from_nftables_loses_no_connection", "scenarios end without it"),
    by("SYNC-17", "tests/it/coexist.rs migration_from_iptables_loses_no_connection", "there is no kube-proxy beside us in scenarios"),
    by("SYNC-18", "tests/it/serve/stale.rs a_change_that_cannot_be_written_is_an_illness_until_it_is", ALONE),
    by("API-01", "tests/it/kubeadm.rs the_stock_config_map_and_arguments_drive_the_agent", SERVER),
    by("API-02", "tests/it/e2e.rs nftables_follows_a_real_api_server", SERVER),
    by(
        "API-03",
        "proxy-agent/src/config/launch_tests.rs servers_listen_by_the_family_of_the_bind_address",
        "which of its addresses a node serves on is said by nodePortAddresses; no socket binds to bindAddress",
    ),
    by("API-04", "tests/it/e2e.rs nftables_follows_a_real_api_server", "kube-proxy ends there; here it counts at once"),
    by("API-05", "tests/it/chart.rs the_charts_rights_are_what_the_agent_uses", SERVER),
    by("API-06", "tests/it/e2e.rs nftables_follows_a_real_api_server", SERVER),
    by("API-07", "tests/it/endure.rs changes_among_faults_are_not_missed_on_nftables", SERVER),
    by("API-08", "proxy-agent/src/source/kube/mod.rs a_configuration_that_cannot_work_is_an_error_with_a_way_out", SERVER),
    by("API-09", "tests/it/chart.rs the_chart_is_accepted_with_every_combination_of_values", "the chart says it"),
];
