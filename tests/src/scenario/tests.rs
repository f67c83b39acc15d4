use super::*;

fn wrong(text: &str) -> String {
    format!("{:#}", parse::scenarios("x", text).expect_err("an error"))
}

#[test]
fn errors_name_file_and_line() {
    let head = "# Says something.\nids: SVC-01\n";
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
