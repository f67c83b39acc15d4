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
        (format!("{head}--- expect\na1 -> 10.96.0.10:80/icmp => refused\n"), "x.txt:4: \"icmp\": want tcp"),
        (format!("{head}--- expect\na1 -> 10.96.0.10:80/tcp => 10.9.9.9:80\n"), "x.txt:4: 10.9.9.9:80: no host has this address"),
        (format!("{head}--- expect\na1 -> 10.96.0.10:80/tcp => 10.1.1.2:80, fast\n"), "x.txt:4: \"fast\""),
        (format!("{head}kube-proxy: not run\n"), "x.txt:3: want ... because REASON"),
        (format!("{head}kube-proxy: run because it can\n"), "x.txt:3: \"run\": want \"objects past the API server\" or \"not run\""),
        (format!("{head}--- expect\n  kube-proxy => refused because X\n"), "x.txt:4: kube-proxy differs from an expectation"),
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

#[test]
fn one_text_serves_both_families() {
    for (v4, v6) in [
        ("a1 -> 10.96.0.10:80/tcp => 10.1.1.2:8080", "a1 -> [fd00:10:96::0:10]:80/tcp => [fd00:10:1::1:2]:8080"),
        ("clusterIPs: [10.96.0.10, 10.96.0.11]", "clusterIPs: [fd00:10:96::0:10, fd00:10:96::0:11]"),
        ("- addresses: [\"010.001.1.2\"]", "- addresses: [\"fd00:010:001::1:2\"]"),
        ("addressType: IPv4", "addressType: IPv6"),
        ("a sentence about 10.96.0.10.", "a sentence about fd00:10:96::0:10."),
        ("version-1.2.3.4 1.2.3.4.5 1.2.3 IPv4s discovery.k8s.io/v1", "version-1.2.3.4 1.2.3.4.5 1.2.3 IPv4s discovery.k8s.io/v1"),
    ] {
        assert_eq!(family::to_v6(v4), v6);
    }
    for host in Host::ALL {
        assert_eq!(family::to_v6(&host.v4.to_string()).parse::<IpAddr>().ok(), Some(host.address(Family::V6)), "{}", host.name);
    }
}

#[test]
fn a_failure_lists_expected_and_actual() {
    let text = "# Says something.\nids: SVC-01\n--- expect\na1, node1 -> 10.96.0.10:80/tcp => 10.1.1.2:8080, source kept\na1 -> 10.96.0.11:80/udp => untouched\n";
    let scenario = &parse::scenarios("x", text).expect("a scenario")[0];
    let error = run(scenario, &mut simulated::Model::default()).expect_err("nothing is served");
    let expected = "\
x IPv4: x.txt:3: not as expected
line  flow                        expected                    actual
✗  4  a1 -> 10.96.0.10:80/tcp     10.1.1.2:8080, source kept  untouched
✗  4  node1 -> 10.96.0.10:80/tcp  10.1.1.2:8080, source kept  untouched
   5  a1 -> 10.96.0.11:80/udp     untouched                   as expected
served:
";
    assert_eq!(format!("{error:#}"), expected);
}

/// kube-proxy that does the same with every packet.
struct Always(KubeProxyMode, Observed);

impl Executor for Always {
    fn apply(&mut self, _: &[Manifest]) -> Result<()> {
        Ok(())
    }

    fn delete(&mut self, _: &[(Kind, ObjectName)]) -> Result<()> {
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

    fn kube_proxy(&self) -> Option<KubeProxyMode> {
        Some(self.0)
    }
}

#[test]
fn a_difference_binds_kube_proxy_alone() {
    let text = "\
# Says something.
ids: SVC-01
kube-proxy: objects past the API server because they are old
--- expect
a1 -> 10.96.0.10:80/tcp => untouched
  kube-proxy nftables => refused because it is so, because it was
";
    let scenario = &parse::scenarios("x", text).expect("a scenario")[0];
    assert_eq!(scenario.kube_proxy, KubeProxy::PastApiServer("they are old".into()));
    let Action::Expect(expectations) = &scenario.steps[0].action else { panic!("{:?}", scenario.steps) };
    assert_eq!(expectations[0].differences[0].reason, "it is so, because it was");

    run(scenario, &mut simulated::Model::default()).expect("nothing is served");
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
    let seen = |source_kept| Observed::Backends { backends: ["10.1.1.2:8080".parse().expect("one")].into(), source_kept, evenly: true };
    run(scenario, &mut Always(KubeProxyMode::Iptables, seen(false))).expect("the difference");
    run(scenario, &mut Always(KubeProxyMode::Iptables, seen(true))).expect_err("no difference");
}
