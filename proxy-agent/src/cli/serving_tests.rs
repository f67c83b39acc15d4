use clap::Parser;

use super::*;

#[derive(Debug, Parser)]
struct Flags {
    #[command(flatten)]
    serving: Serving,
}

fn settings(flags: &[&str]) -> anyhow::Result<Settings> {
    Flags::try_parse_from(std::iter::once("agent").chain(flags.iter().copied()))?.serving.settings()
}

fn good(flags: &[&str]) -> Settings {
    settings(flags).unwrap_or_else(|error| panic!("{flags:?}: {error:#}"))
}

fn cidrs(texts: &[&str]) -> Vec<Cidr> {
    texts.iter().map(|text| text.parse().expect("a range")).collect()
}

#[test]
fn without_flags_it_is_as_kube_proxy_has_it() {
    let host = nix::unistd::gethostname().expect("the host's name").to_string_lossy().trim().to_lowercase();
    let node_ports = NodePortAddresses { primary: true, cidrs: Vec::new() };
    assert_eq!(good(&[]), Settings { node: host.into(), node_ports, ..Settings::default() });
}

#[test]
fn flags_have_the_names_and_forms_of_kube_proxys() {
    let set = good(&[
        "--hostname-override= Node1 ",
        "--cluster-cidr=10.1.0.0/16,fd00:10:1::/48",
        "--detect-local-mode=ClusterCIDR",
        "--nodeport-addresses=10.0.0.0/24,fd00::/64",
        "--nodeport-addresses",
        "primary",
        "--masquerade-all=true",
        "--iptables-masquerade-bit=0",
        "--open-unnamed-families",
    ]);
    let node_ports = NodePortAddresses { primary: true, cidrs: cidrs(&["10.0.0.0/24", "fd00::/64"]) };
    let local = LocalDetection::ClusterCidrs(cidrs(&["10.1.0.0/16", "fd00:10:1::/48"]));
    let wanted = Settings { node: "node1".into(), local, masquerade_all: true, node_ports, open_unnamed_families: true, masquerade_bit: 0 };
    assert_eq!(set, wanted);
    assert!(good(&["--masquerade-all"]).masquerade_all);
    assert!(!good(&["--masquerade-all=false"]).masquerade_all);
    assert!(good(&["--nodeport-addresses="]).node_ports.primary, "as if it were not there");
}

#[test]
fn what_tells_a_pod() {
    let local = |flags: &[&str]| good(flags).local;
    assert_eq!(local(&["--detect-local-mode=NodeCIDR"]), LocalDetection::NodeCidrs);
    let bridge = local(&["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"]);
    assert_eq!(bridge, LocalDetection::Bridge("cni0".into()));
    let prefix = local(&["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=veth"]);
    assert_eq!(prefix, LocalDetection::InterfacePrefix("veth".into()));
    assert_eq!(local(&["--cluster-cidr=fd00:10:1::/48"]), LocalDetection::ClusterCidrs(cidrs(&["fd00:10:1::/48"])));
}

#[test]
fn errors_name_the_flag_and_the_entry() {
    for (flags, wanted) in [
        (&["--hostname-override= "][..], "--hostname-override: empty"),
        (&["--hostname-override=a,b"], "--hostname-override: \"a,b\" cannot be the name of a Node"),
        (&["--cluster-cidr=10.1.0.0/16,10.2.0.0/33"], "--cluster-cidr: \"10.2.0.0/33\" is not a range"),
        (&["--cluster-cidr=10.1.0.0/16,10.2.0.0/16"], "--cluster-cidr: \"10.1.0.0/16,10.2.0.0/16\" is neither one range nor"),
        (&["--cluster-cidr=10.1.0.0/16,fd00::/64,fd01::/64"], "--cluster-cidr"),
        (&["--detect-local-mode=NodeIP"], "'NodeIP' for '--detect-local-mode"),
        (&["--detect-local-mode=BridgeInterface"], "--pod-bridge-interface: missing"),
        (&["--detect-local-mode=InterfaceNamePrefix"], "--pod-interface-name-prefix: missing"),
        (&["--pod-bridge-interface=a-name-of-16-byte"], "--pod-bridge-interface: \"a-name-of-16-byte\" is longer"),
        (&["--pod-interface-name-prefix=a/b"], "--pod-interface-name-prefix: \"a/b\" cannot be"),
        (&["--nodeport-addresses=10.0.0.0/24,node"], "--nodeport-addresses: \"node\" is not a range"),
        (&["--nodeport-addresses=primary,primary"], "--nodeport-addresses: \"primary\" is there twice"),
        (&["--iptables-masquerade-bit=32"], "'32' for '--iptables-masquerade-bit"),
        (&["--masquerade-all=maybe"], "'maybe' for '--masquerade-all"),
    ] {
        let text = match settings(flags) {
            Err(error) => format!("{error:#}"),
            Ok(settings) => panic!("{flags:?}: {settings:?}"),
        };
        assert!(text.contains(wanted), "{flags:?}: {text}, which lacks {wanted}");
    }
}
