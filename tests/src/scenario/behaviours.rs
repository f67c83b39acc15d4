//! The behaviours that scenarios name: an area and a number, one testable behaviour of kube-proxy each.

mod cluster;
mod config;
mod serving;

use std::collections::BTreeMap;
use std::fmt::Write;

use super::Scenario;

/// An area whose every behaviour has to be shown, with what it is about and its behaviours from number 1.
struct Area {
    name: &'static str,
    about: &'static str,
    behaviours: &'static [&'static str],
}

/// The areas of what becomes of packets.
const SHOWN: [Area; 11] = [
    Area {
        name: "SVC",
        about: "which Services are served, and where",
        behaviours: &[
            "Services of another proxy (by label) and headless ones are not served",
            "that label, and turning headless, take effect on a live Service, both ways",
            "nothing without a ClusterIP and no ExternalName; a change of type takes effect live",
            "a port is named by namespace, Service, port name and protocol; protocols are independent",
            "each family is served by itself, at the ClusterIP of that family",
            "external IPs, load-balancer IPs and source ranges count in their own family; what cannot be read is left out",
            "addresses with leading zeros are decimal",
            "load-balancer IPs come from the status alone; hostnames, ports and spec.loadBalancerIP do not count",
            "ipMode Proxy: nothing is done for that IP",
            "externalTrafficPolicy Local counts only where something external reaches the Service",
            "healthCheckNodePort counts only for a load balancer with policy Local",
            "without a node port there is none; the load-balancer IP is served all the same",
            "external IPs can be turned off by a feature gate",
            "changes between two syncs count by their result",
            "changes that do not matter to packets change nothing",
            "ports that come, go or get another name",
            "two Services that claim one address and port",
            "ICMP to a ClusterIP",
        ],
    },
    Area {
        name: "EP",
        about: "which endpoints are used",
        behaviours: &[
            "slices with the label of headless Services do not count",
            "a slice belongs to the Service that its label names",
            "a slice feeds the family of its address type",
            "a slice's ports are matched by name and protocol; those without a name or number are left out",
            "slices of one Service may have different port numbers",
            "only the first address of an endpoint counts",
            "conditions that are not said: ready, serving, not terminating",
            "an endpoint is local if its nodeName is this node's",
            "copies of an endpoint are one; the one that does not terminate wins",
            "endpoints that move between slices; slices before their Service",
            "publishNotReadyAddresses needs nothing here",
            "the set of the cluster: ready ones, or, without any, those that terminate and still serve",
            "the set of the node, in the same way",
            "who terminates and does not serve is never used",
            "ready ones anywhere keep terminating ones out of the cluster's set, not of the node's",
            "whether there are endpoints at all is a question about the cluster",
            "the cluster's set is kept under policy Local too, for who is served as under Cluster",
            "each endpoint of the set is equally likely",
            "endpoints with a node's address",
            "an endpoint that is gone gets no new connections and keeps those it has",
        ],
    },
    Area {
        name: "TOP",
        about: "topology",
        behaviours: &[
            "hints of endpoints alone decide",
            "hints that name this node",
            "hints that name this node's zone",
            "one ready endpoint without hints turns them off",
            "hints for other nodes only: the zone decides",
            "several names in a hint",
            "hints count for every destination under policy Cluster",
            "a change of the node's zone",
        ],
    },
    Area {
        name: "TP",
        about: "traffic policies",
        behaviours: &[
            "the internal policy is for ClusterIPs, the external one for everything else",
            "internal Local binds pods and the node alike",
            "external Local: the node's endpoints, the source kept",
            "external Local, from a local pod: as Cluster, not masqueraded",
            "external Local, from the node itself: as Cluster, masqueraded",
            "the same at NodePorts",
            "load-balancer and external IPs are served on the way out, from pods and nodes",
            "external IPs, whether or not a node has them; never under source ranges",
            "ClusterIPs are served to who is routed here from outside",
            "an exact address comes before a NodePort",
            "a change of a policy is for new connections",
        ],
    },
    Area {
        name: "ERR",
        about: "refusals",
        behaviours: &[
            "no endpoints anywhere: refused",
            "endpoints, but none that the policy allows: dropped",
            "not in the source ranges: dropped",
            "only new connections are refused or dropped",
            "an unused port of a ClusterIP",
            "the same, any protocol, on nftables",
            "an address of the service ranges that no Service has",
            "an unused port of a load-balancer or external IP: nothing",
            "NodePorts refuse at their addresses only",
            "where refusals are made: on the way in, through and out",
            "no endpoints, and not in the source ranges",
            "the first endpoint ends the refusal",
            "pods that have failed are no endpoints",
        ],
    },
    Area {
        name: "NAT",
        about: "masquerading",
        behaviours: &[
            "pod to ClusterIP: the source kept",
            "ClusterIP from who is no local pod: masqueraded",
            "masqueradeAll: all that goes to ClusterIPs",
            "external destinations under policy Cluster: masqueraded, whoever sends",
            "external destinations under policy Local: the source kept, but for the node's own",
            "a pod that reaches itself",
            "random source ports; the address of the interface that the packet leaves by",
            "one bit of the mark carries the decision; others keep theirs",
            "what the forward chain accepts",
            "at which hooks and priorities",
            "internal Local from outside: masqueraded, to the node's endpoints",
            "INVALID packets",
            "SCTP as TCP and UDP; its module is not loaded",
        ],
    },
    Area {
        name: "AFF",
        about: "session affinity",
        behaviours: &[
            "by source address and Service port, over all its frontends",
            "for the timeout, which each new connection renews",
            "a client that is not known gets a random endpoint and stays",
            "only while the endpoint is in the set in use",
            "endpoints that terminate",
            "endpoints that go are forgotten",
            "affinity turned on and off on a live Service",
            "pins outlive syncs and restarts",
            "TCP and UDP",
            "a change of the timeout keeps the pins",
        ],
    },
    Area {
        name: "NP",
        about: "NodePort addresses",
        behaviours: &[
            "CIDRs and the words primary, localhost, all; what is the default",
            "primary is the node's address of each family",
            "a family without any entry",
            "a CIDR of everything",
            "everything: whatever address the node has when a packet comes",
            "CIDRs: the node's addresses within them",
            "NodePorts on 127.0.0.0/8",
            "who else reaches 127.0.0.0/8 then",
            "NodePorts on ::1",
            "NodePorts on loopback by a proxy in user space",
            "how that proxy chooses, waits and ends",
            "what of loopback it refuses",
            "no socket keeps a NodePort; translation comes before a process of the host",
            "source ranges are not for NodePorts",
            "a change of the port",
        ],
    },
    Area {
        name: "LBR",
        about: "load-balancer source ranges",
        behaviours: &[
            "for load-balancer IPs alone; blanks around an entry do not count",
            "everything of a family: no restriction in it",
            "no range of a family",
            "pods and nodes by their own addresses",
            "who may reach the node may come from the load balancer's own address",
            "ipMode Proxy: no restriction",
        ],
    },
    Area {
        name: "LOC",
        about: "what tells local pods",
        behaviours: &[
            "ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
            "ClusterCIDR: the source, by the family's first CIDR",
            "NodeCIDR: the source, by the Node's own",
            "interfaces: where the packet came in",
            "what depends on it",
        ],
    },
    Area {
        name: "CT",
        about: "what connection tracking remembers",
        behaviours: &[
            "stale UDP flows are ended, others not (here: SCTP too)",
            "when endpoints of a Service with a UDP port have changed and are in place",
            "those to its addresses that no serving endpoint answers",
            "those that were never translated",
            "an endpoint that serves keeps its flows, ready or not, terminating or not",
            "without endpoints too (here: NodePorts as well)",
            "at NodePorts by the port (here: at the addresses that serve them)",
            "a changed target port ends flows",
            "a dump that is interrupted is begun again up to five times; other errors hold up nothing",
            "each by all that identifies it; how many and how long is counted",
            "sysctls are set at the start, and what cannot be set ends it",
            "nf_conntrack_max by the processors of the host, only ever raised",
            "the size of the hash table follows it",
            "timeouts of established and half-closed TCP connections",
            "timeouts of UDP, and leniency about TCP windows, where asked for",
        ],
    },
];

/// The other areas, and how many behaviours each has.
const OTHERS: [(&str, u32); 1] = [("E2E", 9)];

/// A behaviour that no scenario shows.
pub struct Elsewhere {
    /// Its ID.
    pub id: &'static str,
    /// The test that shows it, as `FILE FUNCTION`; none where it does not apply.
    pub test: Option<&'static str>,
    /// Why no scenario does.
    pub why: &'static str,
}

/// One that a value of the kernel's shows.
const fn sysctl(id: &'static str, test: &'static str) -> Elsewhere {
    Elsewhere { id, test: Some(test), why: "a value of the kernel's, which the agent sets when it starts" }
}

const fn nowhere(id: &'static str, why: &'static str) -> Elsewhere {
    Elsewhere { id, test: None, why }
}

/// All behaviours of those areas that no scenario shows.
const ELSEWHERE: &[Elsewhere] = &[
    Elsewhere {
        id: "SVC-11",
        test: Some("tests/it/serve.rs health_checks_of_a_service_are_answered_as_kube_proxy_answers_them"),
        why: "health checks of Services are a server's answers, not what becomes of a Service's packets",
    },
    nowhere("SVC-13", "a feature gate of kube-proxy that is on by default; there is no such switch here"),
    Elsewhere {
        id: "ERR-04",
        test: Some("tests/it/load.rs what_changes_is_for_new_connections_only"),
        why: "a scenario opens new connections only",
    },
    Elsewhere {
        id: "NAT-07",
        test: Some("tests/it/others.rs masqueraded_connections_have_random_ports_and_the_address_they_leave_by"),
        why: "how a source port is chosen shows in many connections only",
    },
    Elsewhere {
        id: "NAT-08",
        test: Some("tests/it/others.rs the_decision_to_masquerade_is_one_bit_of_the_mark_and_gone_when_the_packet_leaves"),
        why: "a mark is not seen outside of the node",
    },
    nowhere("NAT-09", "rules of kube-proxy's iptables mode; in its nftables mode and here the host's firewall decides what it forwards"),
    Elsewhere {
        id: "NAT-10",
        test: Some("tests/it/others.rs rules_of_others_see_virtual_addresses_before_and_backends_after"),
        why: "where the rules are hooked in shows beside other programs' rules only",
    },
    Elsewhere {
        id: "NAT-12",
        test: Some("tests/it/others.rs invalid_packets_are_dropped_if_they_come_from_an_endpoint_and_only_then"),
        why: "no connection that is opened in good order is INVALID",
    },
    Elsewhere {
        id: "NP-08",
        test: Some("tests/it/loopback.rs what_listens_for_the_node_alone_is_not_reached_from_elsewhere"),
        why: "a neighbour has to send what no host sends by itself",
    },
    nowhere("NP-10", "an alpha feature of kube-proxy that is off by default"),
    nowhere("NP-11", "an alpha feature of kube-proxy that is off by default"),
    nowhere("NP-12", "an alpha feature of kube-proxy that is off by default"),
    Elsewhere {
        id: "CT-09",
        test: Some("proxy-agent/src/nft/tests/dumps.rs a_dump_that_is_interrupted_is_begun_again_but_not_for_ever"),
        why: "what others change while the kernel's tables are read is no step of a scenario",
    },
    Elsewhere {
        id: "CT-10",
        test: Some("tests/it/conntrack.rs ten_thousand_stale_flows_are_ended_while_endpoints_change"),
        why: "how many flows there are and what it costs does not show in what becomes of one",
    },
    sysctl("CT-11", "proxy-agent/src/sysctl/tests.rs what_cannot_be_set_is_an_error_with_the_way_out"),
    sysctl("CT-12", "proxy-agent/src/sysctl/tests.rs the_number_of_flows_follows_the_processors_up_to_a_limit"),
    sysctl("CT-13", "proxy-agent/src/sysctl/tests.rs table_and_hash_are_only_ever_raised"),
    sysctl("CT-14", "proxy-agent/src/sysctl/tests.rs the_defaults_are_kube_proxys"),
    sysctl("CT-15", "proxy-agent/src/sysctl/tests.rs what_is_asked_for_is_set"),
];

/// All areas whose every behaviour has to be shown.
fn areas() -> impl Iterator<Item = &'static Area> {
    SHOWN.iter().chain(&cluster::AREAS).chain(&serving::AREAS).chain(&config::AREAS)
}

/// All behaviours of those areas that no scenario shows.
pub fn elsewhere() -> impl Iterator<Item = &'static Elsewhere> {
    ELSEWHERE.iter().chain(cluster::ELSEWHERE).chain(serving::ELSEWHERE).chain(config::ELSEWHERE)
}

/// Whether there is a behaviour of this ID.
pub fn exists(id: &str) -> bool {
    let shown = areas().any(|area| (1..=area.behaviours.len()).any(|number| id == format!("{}-{number:02}", area.name)));
    shown || OTHERS.iter().any(|(area, count)| (1..=*count).any(|number| id == format!("{area}-{number:02}")))
}

/// The scenarios that show each behaviour, by its ID.
pub fn shown(scenarios: &[Scenario]) -> BTreeMap<&str, Vec<&str>> {
    let mut shown: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for scenario in scenarios {
        for id in &scenario.ids {
            let names = shown.entry(id).or_default();
            if names.last() != Some(&&*scenario.name) {
                names.push(&scenario.name);
            }
        }
    }
    shown
}

/// The IDs that have to be shown, with what each is.
pub fn wanted() -> impl Iterator<Item = (&'static str, String, &'static str)> {
    areas().flat_map(|area| {
        let numbered = area.behaviours.iter().zip(1..);
        numbered.map(|(what, number)| (area.name, format!("{}-{number:02}", area.name), *what))
    })
}

/// `docs/behaviours.md`: where each of them is shown.
pub fn page(scenarios: &[Scenario]) -> String {
    let shown = shown(scenarios);
    let mut page = String::from(
        "# What kube-proxy does with packets, and where that is shown\n\n\
         Each row is one behaviour of kube-proxy 1.37. The scenarios are in `tests/scenarios/`; the model, every dataplane and real\n\
         kube-proxy are held to them. Where we do something else on purpose, the scenario and `docs/datapath.md` say so.\n\n\
         This page is written by `UPDATE_GOLDEN=1 cargo test -p proxy-tests --test it -- behaviours`, which fails where a behaviour is\n\
         shown by nothing.\n",
    );
    for area in areas() {
        let rows = wanted().filter(|(name, _, _)| *name == area.name).map(|(_, id, what)| row(&id, what, &shown)).collect::<String>();
        table(&mut page, &format!("{}: {}", area.name, area.about), &rows);
    }
    page
}

fn table(page: &mut String, heading: &str, rows: &str) {
    // Writing to a string does not fail.
    let _ = write!(page, "\n## {heading}\n\n| ID | behaviour | scenarios |\n|---|---|---|\n{rows}");
}

fn row(id: &str, what: &str, shown: &BTreeMap<&str, Vec<&str>>) -> String {
    let scenarios = shown.get(id).into_iter().flatten().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let elsewhere = elsewhere().find(|elsewhere| elsewhere.id == id).map(|Elsewhere { test, why, .. }| match test {
        Some(test) => format!("none: {why}; `{}`", test.replace(' ', "` `")),
        None => format!("none: {why}"),
    });
    format!("| {id} | {what} | {} |\n", elsewhere.unwrap_or(scenarios))
}

/// What is wrong with scenarios, list and page: nothing if nothing is.
pub fn gaps(scenarios: &[Scenario]) -> Vec<String> {
    let shown = shown(scenarios);
    let listed = |id: &str| elsewhere().any(|elsewhere| elsewhere.id == id);
    let missing =
        wanted().filter(|(_, id, _)| !shown.contains_key(&**id) && !listed(id)).map(|(_, id, what)| format!("nothing shows {id}: {what}"));
    let twice = elsewhere().filter(|elsewhere| shown.contains_key(elsewhere.id));
    let twice = twice.map(|elsewhere| format!("{}: a scenario shows it, so it needs no entry in ELSEWHERE", elsewhere.id));
    let unknown = elsewhere().filter(|elsewhere| !exists(elsewhere.id)).map(|elsewhere| format!("{} is no behaviour", elsewhere.id));
    missing.chain(twice).chain(unknown).collect()
}
