use std::collections::BTreeSet;

use serde_json::json;

use super::*;

fn wrong(text: &str) -> String {
    format!("{:#}", parse::scenarios("x", text).expect_err("an error"))
}

#[test]
fn errors_name_file_and_line() {
    let head = "# Says something.\nids: SVC-01\n";
    let one = format!("{head}--- expect\na1 -> 10.96.0.10:80/tcp => refused\n");
    for (text, error) in [
        ("ids: SVC-01\n".into(), "x.txt:1: missing: a comment that says what this shows"),
        ("# Says something.\n".into(), "x.txt:1: missing: ids: of the behaviours that this shows"),
        ("# Says something.\nids: SVC-99\n".into(), "x.txt:2: SVC-99 is no behaviour"),
        (format!("{head}families: v7\n"), "x.txt:3: families: \"v7\""),
        (head.into(), "x.txt:1: nothing is expected"),
        (format!("{head}--- do\n"), "x.txt:3: \"do\": want apply"),
        (format!("{head}--- restart\nnow\n"), "x.txt:4: \"now\": restart has no content"),
        (format!("{head}--- delete\nservice web\n"), "x.txt:4: want KIND NAMESPACE/NAME"),
        (format!("{head}--- expect\n\na1 -> 10.96.0.10:80/tcp\n"), "x.txt:5: want SOURCE -> "),
        (format!("{head}--- expect\nz9 -> 10.96.0.10:80/tcp => refused\n"), "x.txt:4: \"z9\": want one of node1"),
        (format!("{head}--- expect\na1 -> 10.96.0.10/tcp => refused\n"), "x.txt:4: \"10.96.0.10\": want ADDRESS:PORT"),
        (format!("{head}--- expect\na1 -> 10.96.0.10:80/icmp => refused\n"), "x.txt:4: \"10.96.0.10:80\": want ADDRESS/icmp"),
        (format!("{head}--- expect\na1 -> 10.96.0.10:80/ip => refused\n"), "x.txt:4: \"ip\": want tcp, udp, sctp or icmp"),
        (format!("{head}--- expect\na1 -> 10.96.0.10/icmp => 10.1.1.2:80\n"), "x.txt:4: 10.1.1.2:80: no Service passes on ICMP"),
        (format!("{head}--- expect\na1 -> 10.96.0.10:80/tcp => dropped, evenly\n"), "x.txt:4: \"dropped, evenly\": there is no"),
        (
            format!("{head}--- expect\na1 -> 10.96.0.10:80/tcp => 10.1.1.2:80, masqueraded, source kept\n"),
            "x.txt:4: \"10.1.1.2:80, masqueraded, source kept\": the source is said twice",
        ),
        (format!("{head}--- expect\na1 -> 10.96.0.10:80/tcp => one of 10.1.1.2:80\n"), "x.txt:4: want one of A | B as NAME"),
        (
            format!("{head}--- expect\na1 -> 10.96.0.10:80/tcp => one of 10.1.1.2:80 as x\nb1 -> 10.96.0.10:80/tcp => pinned x\n"),
            "x.txt:5: pinned x: nothing before says \"one of ... as x\" of b1",
        ),
        (format!("{head}config: {{nodePortAddress: [all]}}\n"), "x.txt:3: config"),
        (format!("{head}--- address\nadd\n"), "x.txt:4: want add ADDRESS"),
        (format!("{head}--- address\nmove 10.0.0.7\n"), "x.txt:4: \"move\": want add or remove"),
        (format!("{head}--- wait 4\n"), "x.txt:3: \"wait 4\": want wait and whole seconds"),
        (format!("{head}--- wait 4s\nlong\n"), "x.txt:4: \"long\": wait 4s has no content"),
        (format!("{head}--- delete\npod x\n"), "x.txt:4: \"pod\": want service, endpointslice, node or servicecidr"),
        (format!("{head}--- delete\nnode default/node1\n"), "x.txt:4: \"default/node1\": a node is in no namespace"),
        (
            format!("{head}config: {{clusterCIDR: 10.1.0.0/20}}\n--- expect\na1 -> 10.96.0.10:80/tcp => refused\n"),
            "x.txt:3: 10.1.0.0/20: only /8, /16, /24 and /32 have a form in IPv6",
        ),
        (format!("{head}--- expect\na1 -> 10.96.0.10:80/tcp => 10.9.9.9:80\n"), "x.txt:4: 10.9.9.9:80: no host has this address"),
        (format!("{head}--- expect\na1 -> 10.96.0.10:80/tcp => 10.1.1.2:80, fast\n"), "x.txt:4: \"fast\""),
        (format!("{head}kube-proxy: not run\n"), "x.txt:3: want ... because REASON"),
        (format!("{head}kube-proxy: run because it can\n"), "x.txt:3: \"run\": want \"objects past the API server\" or \"not run\""),
        (format!("{head}--- expect\n  kube-proxy => refused because X\n"), "x.txt:4: a difference from an expectation"),
        (format!("{one}  kube-proxy => untouched\n"), "x.txt:5: want ... because REASON"),
        (format!("{one}  kube-proxy => untouched because \n"), "x.txt:5: want ... because REASON"),
        (format!("{one}  kube-proxy => refused because X\n"), "x.txt:5: refused: that is no difference"),
        (format!("{one}  kube-proxy ipvs => untouched because X\n"), "x.txt:5: \"ipvs\": want iptables, nftables or"),
        (format!("{one}  kube-proxy => untouched because X\n  kube-proxy nftables => untouched because X\n"), "x.txt:6: two differences"),
        (format!("{one}  kube-proxy => [fd00:10:1::1:2]:80 because X\n"), "x.txt:5: "),
        (format!("{head}--- apply\napiVersion: v1\nkind: Pod\n"), "x.txt:4: v1 Pod: want v1 Service"),
        (format!("{head}--- apply\n---\napiVersion: v1\nkind: Service\nspec:\n  ports: 1\n"), "x.txt:8: "),
    ] {
        let said = wrong(&text);
        assert!(said.starts_with(error), "{said}\n  instead of\n{error}");
    }
}

fn mapped(text: &str) -> String {
    family::to_v6(text).unwrap_or_else(|(line, error)| panic!("{line}: {error:#}"))
}

#[test]
fn one_text_serves_both_families() {
    for (v4, v6) in [
        ("a1 -> 10.96.0.10:80/tcp => 10.1.1.2:8080", "a1 -> [fd00:10:96::10]:80/tcp => [fd00:10:1::1:2]:8080"),
        ("clusterIPs: [10.96.0.10, 10.96.0.11]", "clusterIPs: [fd00:10:96::10, fd00:10:96::11]"),
        ("- addresses: [\"010.001.1.2\"]", "- addresses: [\"fd00:010:001::1:2\"]"),
        ("addressType: IPv4", "addressType: IPv6"),
        ("a sentence about 10.96.0.10.", "a sentence about fd00:10:96::10."),
        ("version-1.2.3.4 1.2.3.4.5 1.2.3 IPv4s discovery.k8s.io/v1", "version-1.2.3.4 1.2.3.4.5 1.2.3 IPv4s discovery.k8s.io/v1"),
        ("[10.96.0.0/16, 10.1.1.0/24]", "[fd00:10:96::/48, fd00:10:1::1:0/112]"),
        ("10.0.0.0/8 10.0.0.1/32 10.0.0.300/24", "fd00:10::/32 fd00:10::1/128 fd00:10:0::0:300/112"),
        ("0.0.0.0/0 127.0.0.0/8 127.0.0.1:80 127.0.0.1", "::/0 ::1/128 [::1]:80 ::1"),
        ("10.96.0.10/icmp", "fd00:10:96::10/icmp"),
    ] {
        assert_eq!(mapped(v4), v6);
    }
    for host in Host::ALL {
        assert_eq!(mapped(&host.v4.to_string()).parse::<IpAddr>().ok(), Some(host.address(Family::V6)), "{}", host.name);
    }
}

#[test]
fn a_failure_lists_expected_and_actual() {
    let text = "# Says something.\nids: SVC-01\n--- expect\na1, node1 -> 10.97.0.10:80/tcp => 10.1.1.2:8080, source kept\na1 -> 10.97.0.11:80/udp => untouched\n";
    let scenario = &parse::scenarios("x", text).expect("a scenario")[0];
    let error = run(scenario, &mut simulated::Model::new(&scenario.config).expect("a model")).expect_err("nothing is served");
    let expected = "\
x IPv4: x.txt:3: not as expected
line  flow                        expected                    actual
✗  4  a1 -> 10.97.0.10:80/tcp     10.1.1.2:8080, source kept  untouched
✗  4  node1 -> 10.97.0.10:80/tcp  10.1.1.2:8080, source kept  untouched
   5  a1 -> 10.97.0.11:80/udp     untouched                   as expected
IPv4 served:
IPv6 served:
";
    assert_eq!(format!("{error:#}"), expected);
}

/// kube-proxy that does the same with every packet.
struct Always(KubeProxyMode, Observed);

impl Executor for Always {
    fn apply(&mut self, _: &[Manifest]) -> Result<()> {
        Ok(())
    }

    fn delete(&mut self, _: &[(ObjectKind, ObjectName)]) -> Result<()> {
        Ok(())
    }

    fn address(&mut self, _: &[AddressChange]) -> Result<()> {
        Ok(())
    }

    fn wait(&mut self, _: Duration) -> Result<()> {
        Ok(())
    }

    fn stop(&mut self, _: bool) -> Result<()> {
        Ok(())
    }

    fn start(&mut self) -> Result<()> {
        Ok(())
    }

    fn observe(&mut self, probes: &[Probe]) -> Result<Vec<Observed>> {
        Ok(vec![self.1.clone(); probes.len()])
    }

    fn state(&mut self) -> String {
        String::new()
    }

    fn tested(&self) -> Option<Tested> {
        Some(Tested::KubeProxy(self.0))
    }
}

#[test]
fn a_difference_binds_kube_proxy_alone() {
    let text = "\
# Says something.
ids: SVC-01
kube-proxy: objects past the API server because they are old
--- expect
a1 -> 10.97.0.10:80/tcp => untouched
  kube-proxy nftables => refused because it is so, because it was
";
    let scenario = &parse::scenarios("x", text).expect("a scenario")[0];
    assert_eq!(scenario.kube_proxy, KubeProxy::PastApiServer("they are old".into()));
    let Action::Expect(expectations) = &scenario.steps[0].action else { panic!("{:?}", scenario.steps) };
    assert_eq!(expectations[0].differences[0].reason, "it is so, because it was");

    run(scenario, &mut simulated::Model::new(&scenario.config).expect("a model")).expect("nothing is served");
    let kube_proxy = |mode, observed| run(scenario, &mut Always(mode, observed)).map_err(|error| format!("{error:#}"));
    kube_proxy(KubeProxyMode::Nftables, Observed::Refused).expect("the difference");
    kube_proxy(KubeProxyMode::Iptables, Observed::Untouched).expect("the same as everybody");
    let gone = kube_proxy(KubeProxyMode::Nftables, Observed::Untouched).expect_err("no difference");
    assert!(gone.contains("refused (a difference)  untouched"), "{gone}");
    kube_proxy(KubeProxyMode::Iptables, Observed::Refused).expect_err("a difference of the other mode");
}

/// What is less than expected includes what is expected: the difference must be seen.
#[test]
fn a_weaker_outcome_is_a_difference_only_where_it_shows() {
    let text = "\
# Says something.
ids: SVC-01
--- expect
a1 -> 10.96.0.10:80/tcp => 10.1.1.2:8080, source kept
  kube-proxy => 10.1.1.2:8080 because it masquerades
";
    let scenario = &parse::scenarios("x", text).expect("a scenario")[0];
    let seen = |seen| answered(&["10.1.1.2:8080"], false, seen);
    run(scenario, &mut Always(KubeProxyMode::Iptables, seen(Seen::Node))).expect("the difference");
    run(scenario, &mut Always(KubeProxyMode::Iptables, seen(Seen::Own))).expect_err("no difference");
}

fn socket(text: &str) -> SocketAddr {
    text.parse().expect("an address with a port")
}

fn answered(backends: &[&str], sticky: bool, seen: Seen) -> Observed {
    Observed::Backends { backends: backends.iter().map(|text| socket(text)).collect(), evenly: true, sticky, seen }
}

/// What is expected by the last line of a scenario.
fn wanted(lines: &str) -> Outcome {
    let scenarios = parse::scenarios("x", &format!("# Says something.\nids: AFF-01\n--- expect\n{lines}")).expect("a scenario");
    let Some(Action::Expect(expectations)) = scenarios[0].steps.last().map(|step| &step.action) else { panic!("no expectation") };
    expectations.last().expect("an expectation").outcome.clone()
}

#[test]
fn the_source_that_backends_saw_counts_where_it_is_asked_for() {
    let (a1, pins) = (Host::ALL[3], Pins::default());
    for (outcome, own, node, own_node, other) in [
        ("10.1.1.2:80", true, true, true, true),
        ("10.1.1.2:80, source kept", true, false, true, false),
        ("10.1.1.2:80, masqueraded", false, true, true, false),
    ] {
        let wanted = wanted(&format!("a1 -> 10.96.0.10:80/tcp => {outcome}\n"));
        for (seen, good) in [(Seen::Own, own), (Seen::Node, node), (Seen::OwnNode, own_node), (Seen::Other, other)] {
            assert_eq!(answered(&["10.1.1.2:80"], false, seen).satisfies(&wanted, a1, &pins), good, "{outcome} {seen:?}");
        }
    }
}

#[test]
fn a_pin_is_remembered_for_each_sender() {
    let [a1, b1] = [Host::ALL[3], Host::ALL[4]];
    let one_of = wanted("a1, b1 -> 10.96.0.10:80/tcp => one of 10.1.1.2:80 | 10.1.2.2:80 as first\n");
    let pinned = wanted("a1 -> 10.96.0.10:80/tcp => one of 10.1.1.2:80 | 10.1.2.2:80 as first\na1 -> 10.96.0.10:80/tcp => pinned first\n");
    let always = |backend| Observed::One { backend: socket(backend), seen: Seen::Own };
    let mut pins = Pins::default();
    for (source, backend) in [(a1, "10.1.1.2:80"), (b1, "10.1.2.2:80")] {
        assert!(always(backend).satisfies(&one_of, source, &pins) && !always(backend).satisfies(&pinned, source, &pins));
        pins.remember(source, &one_of, &always(backend));
        assert!(always(backend).satisfies(&pinned, source, &pins));
    }
    assert!(!always("10.1.1.2:80").satisfies(&pinned, b1, &pins) && !always("10.1.1.3:80").satisfies(&one_of, a1, &pins));
    // Who sees the decision itself knows all that it may be, and whether it lasts.
    let both = ["10.1.1.2:80", "10.1.2.2:80"];
    for (backends, sticky, one, again) in
        [(&both[..], true, true, true), (&both[..], false, false, false), (&both[..1], true, false, false)]
    {
        let observed = answered(backends, sticky, Seen::Own);
        assert_eq!((observed.satisfies(&one_of, a1, &pins), observed.satisfies(&pinned, a1, &pins)), (one, again), "{observed}");
    }
    let any = wanted("a1 -> 10.96.0.10:80/tcp => 10.1.1.2:80 | 10.1.2.2:80\n");
    assert!(answered(&both, false, Seen::Own).satisfies(&any, a1, &pins) && !answered(&both, true, Seen::Own).satisfies(&any, a1, &pins));
}

#[test]
fn configuration_and_objects_are_of_the_family() {
    let text = "\
# Says something.
ids: NP-01
config: {detectLocalMode: NodeCIDR, nodePortAddresses: [10.0.0.0/24, 127.0.0.0/8], masqueradeAll: true, detectLocal: {bridgeInterface: br0}}
--- apply
apiVersion: v1
kind: Node
metadata: {name: node1, labels: {topology.kubernetes.io/zone: a}}
spec: {podCIDRs: [10.1.1.0/24]}
---
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: more}
spec: {cidrs: [10.97.0.0/24]}
--- address
add 10.0.0.7
--- wait 4s
--- delete
node node1
servicecidr more
--- expect
a1 -> 127.0.0.1:30080/tcp => dropped
";
    let [v4, v6] = &parse::scenarios("x", text).expect("scenarios")[..] else { panic!("two families") };
    assert_eq!(v4.config.cluster_cidr, Config::default().cluster_cidr);
    let flags = [
        "--detect-local-mode=NodeCIDR",
        "--cluster-cidr=10.1.0.0/16,fd00:10:1::/48",
        "--pod-bridge-interface=br0",
        "--nodeport-addresses=fd00:10::/112,::1/128",
        "--masquerade-all",
    ];
    assert_eq!(v6.config.flags(), flags);
    let mut kube_proxy = json!({"nftables": {"minSyncPeriod": "1ms"}});
    v6.config.add_to(&mut kube_proxy, KubeProxyMode::Nftables);
    assert_eq!(kube_proxy["nftables"], json!({"minSyncPeriod": "1ms", "masqueradeAll": true}));

    let Action::Apply(manifests) = &v6.steps[0].action else { panic!("{:?}", v6.steps[0]) };
    let [Object::Node(node), Object::ServiceCidr(cidr)] = [&manifests[0].object, &manifests[1].object] else { panic!("{manifests:?}") };
    assert_eq!((&node["spec"]["podCIDRs"], &cidr["spec"]["cidrs"]), (&json!(["fd00:10:1::1:0/112"]), &json!(["fd00:10:97::/112"])));
    assert_eq!(node["status"]["addresses"][0]["address"], "10.0.0.1", "what a scenario does not say is as ever");
    let Action::Address(changes) = &v6.steps[1].action else { panic!("{:?}", v6.steps[1]) };
    assert_eq!(changes, &[AddressChange { ip: address::to_v6(Ipv4Addr::new(10, 0, 0, 7)).into(), added: true }]);
    let Action::Delete(objects) = &v6.steps[3].action else { panic!("{:?}", v6.steps[3]) };
    let kinds: BTreeSet<(ObjectKind, String)> = objects.iter().map(|(kind, name)| (*kind, name.name.to_string())).collect();
    assert_eq!(kinds, [(ObjectKind::Node, "node1".into()), (ObjectKind::ServiceCidr, "more".into())].into());
}
