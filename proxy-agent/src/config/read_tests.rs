use super::*;

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

fn good(text: &str) -> File {
    parse(text).unwrap_or_else(|error| panic!("{text}: {error:#}"))
}

fn bad(text: &str) -> String {
    format!("{:#}", parse(text).expect_err(text))
}

#[test]
fn yaml_and_json_say_the_same() {
    let yaml = good(&format!("{HEAD}mode: nftables\nconntrack: {{min: 7}}\nnodePortAddresses: [primary]\n"));
    let json = good(
        "{\n\t\"apiVersion\": \"kubeproxy.config.k8s.io/v1alpha1\", \"kind\": \"KubeProxyConfiguration\",\n\t\"mode\": \"nftables\", \
         \"conntrack\": {\"min\": 7}, \"nodePortAddresses\": [\"primary\"]}",
    );
    assert_eq!(yaml, json);
    assert_eq!((yaml.kube_proxy.conntrack.min, &*yaml.kube_proxy.mode, yaml.warnings.len()), (Some(7), "nftables", 0));
}

#[test]
fn null_is_what_is_not_said() {
    let nulls = good(&format!(
        "{HEAD}mode: null\nconntrack: {{min: null, tcpEstablishedTimeout: null}}\nipvs: {{excludeCIDRs: null}}\noomScoreAdj: null\n\
         logging: {{flushFrequency: 0, options: {{json: {{infoBufferSize: \"0\"}}}}}}\n"
    ));
    assert_eq!(nulls.kube_proxy, KubeProxyConfiguration::empty());
}

#[test]
fn the_logs_flush_frequency_is_a_duration_or_nanoseconds() {
    for (text, wanted) in [("5000000000", "5s"), ("5s", "5s"), ("\"1m\"", "1m0s")] {
        let file = good(&format!("{HEAD}logging: {{flushFrequency: {text}}}\n"));
        assert_eq!(file.kube_proxy.logging.flush_frequency.to_string(), wanted, "{text}");
    }
}

/// CFG-01
#[test]
fn unknown_and_repeated_fields_are_named_and_do_not_count() {
    let file = good(&format!(
        "{HEAD}mode: iptables\nconntrack:\n  min: 1\n  most: 2\n  min: 3\nspeed: high\nmode: nftables\nlogging: {{vmodule: [{{file: x}}]}}\n\
         iptables: {{SyncPeriod: 1s}}\n"
    ));
    assert_eq!((&*file.kube_proxy.mode, file.kube_proxy.conntrack.min), ("nftables", Some(3)), "the last one counts");
    assert_eq!(file.kube_proxy.iptables.sync_period.0, 0, "names have one spelling");
    let mut warnings = file.warnings.clone();
    warnings.sort();
    let begins = [
        "KubeProxyConfiguration: conntrack.min is there more than once",
        "KubeProxyConfiguration: conntrack.most is no field",
        "KubeProxyConfiguration: iptables.SyncPeriod is no field",
        "KubeProxyConfiguration: logging.vmodule.0.file is no field",
        "KubeProxyConfiguration: mode is there more than once",
        "KubeProxyConfiguration: speed is no field",
    ];
    assert_eq!(warnings.len(), begins.len(), "{warnings:#?}");
    for (warning, begin) in warnings.iter().zip(begins) {
        assert!(warning.starts_with(begin), "{warning}, not {begin}");
    }
}

#[test]
fn our_own_document_stands_beside() {
    let own = "apiVersion: proxy-agent.io/v1alpha1\nkind: ProxyAgentConfiguration\nmode: ebpf\ncgroup: /c\nopenUnnamedFamilies: true\n";
    for text in [format!("{HEAD}---\n{own}"), format!("---\n{own}\n---\n# nothing\n---\n{HEAD}")] {
        let file = good(&text);
        assert_eq!((&*file.own.mode, file.own.cgroup.as_deref(), file.own.open_unnamed_families), ("ebpf", Some(Path::new("/c")), true));
        assert_eq!(file.own.bpf_pin_path, Path::new(own::PIN_PATH), "what is not said has its default");
        assert_eq!(file.kube_proxy, KubeProxyConfiguration::empty());
    }
}

#[test]
fn what_cannot_be_read_names_the_document_and_the_field() {
    for (text, wanted) in [
        (String::new(), "no document of kind KubeProxyConfiguration"),
        ("apiVersion: v1\nkind: ConfigMap\n".into(), "apiVersion \"v1\", kind \"ConfigMap\""),
        (HEAD.replace("v1alpha1", "v1beta1"), "kubeproxy.config.k8s.io/v1beta1"),
        (HEAD.replace("KubeProxyConfiguration", "KubeletConfiguration"), "KubeletConfiguration"),
        ("mode: nftables\n".into(), "apiVersion \"\""),
        (format!("{HEAD}---\n{HEAD}"), "KubeProxyConfiguration: there is more than one such document"),
        (format!("{HEAD}conntrack: {{min: many}}\n"), "KubeProxyConfiguration: conntrack.min: "),
        (format!("{HEAD}iptables: {{syncPeriod: 30}}\n"), "KubeProxyConfiguration: iptables.syncPeriod: "),
        (format!("{HEAD}iptables: {{syncPeriod: 30x}}\n"), "\"30x\" is not a duration"),
        (format!("{HEAD}nodePortAddresses: 10.0.0.0/8\n"), "nodePortAddresses: "),
        (format!("{HEAD}conntrack: [\n"), "line"),
    ] {
        let error = bad(&text);
        assert!(error.contains(wanted), "{text}: {error}, which lacks {wanted}");
    }
    let error = format!("{:#}", file(Path::new("/nowhere/config.conf")).expect_err("there is none"));
    assert!(error.contains("/nowhere/config.conf"), "{error}");
}
