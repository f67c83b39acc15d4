use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{ControlPlane, Options, User, bind_address, first_of, url};
use crate::golang::parse_version;

const READY: Duration = Duration::from_secs(60);

#[test]
fn the_first_address_of_a_range_is_the_api_servers_own() -> Result<()> {
    ensure!(first_of("10.96.0.0/16")?.to_string() == "10.96.0.1");
    ensure!(first_of(" fd00:10:96::/112")?.to_string() == "fd00:10:96::1");
    ensure!(first_of("10.96.0.0").is_err());
    Ok(())
}

#[test]
fn the_api_server_listens_no_wider_than_asked() -> Result<()> {
    ensure!(bind_address(&[]) == "127.0.0.1");
    ensure!(bind_address(&["10.0.0.1".parse()?]) == "0.0.0.0");
    ensure!(bind_address(&["10.0.0.1".parse()?, "fd00::1".parse()?]) == "::");
    ensure!(url("fd00::1".parse()?, 6443) == "https://[fd00::1]:6443");
    Ok(())
}

#[test]
fn go_versions_are_compared_as_numbers() {
    assert_eq!(parse_version("1.26.0"), Some((1, 26, 0)));
    assert_eq!(parse_version("1.26"), Some((1, 26, 0)));
    assert_eq!(parse_version("1.27.3-X:jsonv2"), Some((1, 27, 3)));
    assert_eq!(parse_version("devel +abc"), None);
    assert!(parse_version("1.9.7") < parse_version("1.26.0"));
}

/// The whole life of a control plane; the proxy's own tests rely on each of these.
#[test]
fn serves_limits_rights_and_survives_a_restart() -> Result<()> {
    let start = Instant::now();
    let mut plane = ControlPlane::start(Options::default())?;
    plane.wait_ready(READY)?;
    eprintln!("{} ready after {:?}", plane.url(), start.elapsed());

    let version = plane.kubectl(&["version", "-o", "json"], None)?;
    ensure!(version.contains("serverVersion") && version.contains("\"v1.37.2\""), "{version}");

    // A dual-stack Service by way of stdin.
    plane.kubectl(
        &["apply", "-f", "-"],
        Some(
            "{apiVersion: v1, kind: Service, metadata: {name: both}, \
              spec: {ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}}",
        ),
    )?;
    let addresses = plane.kubectl(&["get", "service", "both", "-o", "jsonpath={.spec.clusterIPs}"], None)?;
    ensure!(addresses.contains("10.96.") && addresses.contains("fd00:10:96:"), "{addresses}");

    let made = plane.fill(200, 10, &["-endpoint-ip", "10.1.1.1"])?;
    eprintln!("{}", made.trim());
    let slices = plane.kubectl(&["get", "endpointslices", "-o", "name"], None)?;
    ensure!(slices.lines().count() == 200, "{slices}");
    // What was written past the API server is as good as what it writes: it can be changed, and its address is taken.
    let address = plane.kubectl(&["get", "service", "svc-00199", "-o", "jsonpath={.spec.clusterIP}"], None)?;
    plane.kubectl(&["annotate", "service", "svc-00199", "changed=yes"], None)?;
    let thief = plane.kubectl(&["create", "service", "clusterip", "thief", "--tcp=80", "--clusterip", &address], None);
    ensure!(thief.is_err_and(|error| format!("{error:#}").contains("already allocated")));
    plane.kubectl(&["delete", "service", "svc-00198"], None)?;

    let updated = plane.update_slice("svc-00007-0", &["10.1.1.2".parse()?, "10.1.1.3".parse()?])?;
    eprintln!("{} {}", updated.trim(), plane.update_slice("svc-00008-0", &[])?.trim());
    let endpoints = plane.kubectl(&["get", "endpointslice", "svc-00007-0", "-o", "jsonpath={.endpoints[*].addresses}"], None)?;
    ensure!(endpoints == r#"["10.1.1.2"] ["10.1.1.3"]"#, "{endpoints}");

    plane.add_node("one", &["10.1.0.1".parse()?, "fd00::1".parse()?])?;
    let node = plane.kubectl(&["get", "node", "one", "-o", "jsonpath={.status.addresses[*].address}"], None)?;
    ensure!(node == "10.1.0.1 fd00::1", "{node}");

    // What it would not take now, its storage may have from an older release: it serves that.
    let api = plane.api()?;
    let (services, old) = ("/api/v1/namespaces/default/services", "10.096.000.010");
    let object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "old", "namespace": "default"},
        "spec": {"clusterIP": old, "clusterIPs": [old], "ports": [{"port": 80}]},
    });
    let refused = api.request("POST", services, Some(&object))?;
    ensure!(refused.status == 422 && refused.clone().accepted("old").is_err(), "{refused:?}");
    api.store("/registry/services/specs/default/old", &object)?;
    let stored = api.request("GET", &format!("{services}/old"), None)?.accepted("old")?;
    ensure!(stored["spec"]["clusterIP"] == old && stored["spec"]["type"] == "ClusterIP", "{stored}");
    api.request("DELETE", &format!("{services}/old"), None)?.accepted("old")?;

    let may = |verb: &str, kind: &str| -> Result<bool> {
        let kubeconfig = plane.kubeconfig(User::KubeProxy);
        // `list` for real, the rest by asking: a denied watch would not end.
        let words: &[&str] = if verb == "list" { &["get"] } else { &["auth", "can-i", verb] };
        let mut command = Command::new(&plane.binaries().kubectl);
        command.arg("--kubeconfig").arg(kubeconfig).args(words).arg(kind);
        let output = command.output().context("kubectl")?;
        eprintln!("kube-proxy, {verb} {kind}: {} {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
        Ok(output.status.success())
    };
    ensure!(may("list", "services")? && may("list", "endpointslices")? && may("list", "nodes")?);
    ensure!(!may("list", "secrets")? && !may("list", "pods")?);
    ensure!(may("watch", "services")? && !may("create", "services")? && !may("patch", "endpointslices")?);
    ensure!(may("create", "events.events.k8s.io")?);

    // What a chart's own ServiceAccount may do: nothing, as long as nothing is bound to it.
    plane.kubectl(&["create", "serviceaccount", "agent"], None)?;
    let kubeconfig = plane.service_account_kubeconfig("default", "agent")?;
    let whoami = Command::new(&plane.binaries().kubectl).arg("--kubeconfig").arg(kubeconfig).args(["auth", "whoami"]).output()?;
    ensure!(String::from_utf8_lossy(&whoami.stdout).contains("system:serviceaccount:default:agent"), "{whoami:?}");

    let port = plane.port();
    for crash in [false, true] {
        let start = Instant::now();
        if crash {
            plane.kill_apiserver();
        } else {
            plane.stop_apiserver()?;
        }
        eprintln!("stopped after {:?}", start.elapsed());
        ensure!(plane.kubectl(&["get", "services"], None).is_err());
        plane.start_apiserver()?;
        plane.wait_ready(READY)?;
        eprintln!("back after {:?}", start.elapsed());
        ensure!(plane.port() == port);
        let services = plane.kubectl(&["get", "services", "-o", "name"], None)?;
        ensure!(services.lines().count() == 201, "{services}");
    }
    Ok(())
}
