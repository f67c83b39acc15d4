//! The areas of what the operator says: files and flags. No scenario shows them, since none starts the agent by a command line of its own.

use super::{Area, Elsewhere};

/// Both areas.
pub(super) const AREAS: [Area; 2] = [
    Area {
        name: "CFG",
        about: "configuration files",
        behaviours: &[
            "unknown and repeated fields are named and do not count; another kind or version is an error",
            "beside a file no flags count but those of the Node's name, the log, the API server, and what to do",
            "a file that changes",
            "modes, and the one that is not said",
            "the periods of syncs: their defaults and limits, in the section of the mode",
            "bindAddress is an IP address",
            "where health checks and metrics are answered",
            "the mark's bit, and masqueradeAll in the section of the mode",
            "oomScoreAdj",
            "connection tracking: nothing negative, and the defaults",
            "nodePortAddresses: ranges and words, no word twice",
            "what tells local pods, and what each way of it needs",
            "families that do not fit the node's",
            "whether the agent ends if an address cannot be bound",
            "the connection to the API server, feature gates, the log, hidden metrics",
            "fields that are read and do nothing",
        ],
    },
    Area {
        name: "CLI",
        about: "the command line",
        behaviours: &[
            "every field has its flag",
            "flags of the mode iptables that count in the mode nftables too",
            "the deprecated port 0 turns the health server off",
            "the configuration with its defaults can be written",
            "what needs more rights can be done beforehand",
            "no positional arguments; the version; flags and version in the log",
        ],
    },
];

const BY_A_TEST: &str = "no scenario has a command line or a file of its own";

macro_rules! by {
    ($id:literal, $test:literal) => {
        Elsewhere { id: $id, test: Some($test), why: BY_A_TEST }
    };
    ($id:literal, $test:literal, $why:literal) => {
        Elsewhere { id: $id, test: Some($test), why: $why }
    };
}

/// Where each is shown.
pub(super) const ELSEWHERE: &[Elsewhere] = &[
    by!("CFG-01", "proxy-agent/src/config/read_tests.rs unknown_and_repeated_fields_are_named_and_do_not_count"),
    by!("CFG-02", "proxy-agent/src/config/launch_tests.rs beside_a_file_few_flags_count_and_the_others_are_named"),
    by!(
        "CFG-03",
        "tests/it/kubeadm.rs a_config_map_that_is_swapped_counts_without_a_restart",
        "kube-proxy ends there, and does not notice a ConfigMap at all; we take it in the same process, and keep what was there if it cannot be \
         used"
    ),
    by!(
        "CFG-04",
        "proxy-agent/src/cli/run_tests.rs modes_of_kube_proxy_become_ours_with_a_warning",
        "iptables becomes nftables, ipvs and nothing at all become the best that the host can do"
    ),
    by!("CFG-05", "proxy-agent/src/config/launch_tests.rs the_section_of_the_mode_counts", "minSyncPeriod has no default here"),
    by!("CFG-06", "proxy-agent/src/config/launch_tests.rs servers_listen_by_the_family_of_the_bind_address"),
    by!("CFG-07", "proxy-agent/src/config/launch_tests.rs servers_listen_by_the_family_of_the_bind_address"),
    by!("CFG-08", "tests/it/config.rs both_write_the_same_configuration"),
    by!("CFG-09", "tests/it/config.rs what_kube_proxy_refuses_is_refused"),
    by!("CFG-10", "tests/it/config.rs what_kube_proxy_refuses_is_refused"),
    by!("CFG-11", "tests/it/config.rs what_kube_proxy_refuses_is_refused"),
    by!("CFG-12", "tests/it/config.rs what_kube_proxy_refuses_is_refused"),
    by!(
        "CFG-13",
        "proxy-agent/src/config/launch_tests.rs what_is_of_another_family_than_the_node_is_named",
        "a warning here: each family is served by itself, so that a range of one does not keep the other from being served"
    ),
    by!("CFG-14", "proxy-agent/src/cli/run_tests.rs every_flag_goes_to_its_field_and_nowhere_else", "what becomes of it is area HC"),
    by!("CFG-15", "tests/it/config.rs feature_gates_are_those_of_kube_proxy"),
    by!("CFG-16", "tests/it/config.rs both_write_the_same_configuration"),
    by!("CLI-01", "tests/it/config.rs every_flag_of_kube_proxy_is_one_of_ours"),
    by!("CLI-02", "tests/it/config.rs both_write_the_same_configuration", "but --iptables-masquerade-bit counts in the mode nftables too"),
    by!("CLI-03", "proxy-agent/src/cli/run_tests.rs flags_have_the_forms_of_kube_proxys", "the metrics server in the same way"),
    by!("CLI-04", "proxy-agent/src/config/launch_tests.rs what_is_written_reads_back_the_same"),
    by!("CLI-05", "tests/it/kubeadm.rs what_needs_more_rights_is_done_beforehand"),
    by!("CLI-06", "proxy-agent/src/cli/run_tests.rs what_is_called_as_kube_proxy_is_run"),
];
