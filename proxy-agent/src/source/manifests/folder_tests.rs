use std::os::unix::fs::symlink;

use proxy_core::model::Change;
use tempfile::TempDir;

use super::*;

struct Test {
    dir: TempDir,
    folder: Folder,
}

impl Test {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let folder = Folder::new(dir.path().to_owned(), "node1");
        Self { dir, folder }
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.dir.path().join(file), text).expect("written");
    }

    /// What a scan says: changes as `+name ip` or `-name`, problems as they are, without the folder.
    fn scan(&mut self) -> Vec<String> {
        let dir = format!("{}/", self.dir.path().display());
        let mut said: Vec<String> = self.folder.scan().iter().flat_map(shown).map(|text| text.replace(&dir, "")).collect();
        said.sort();
        said
    }
}

fn shown(converted: &Converted) -> Vec<String> {
    let change = converted.change.as_ref().map(|change| match change {
        Change::Service(name, Some(service)) => format!("+{name} {}", service.cluster_ips[0]),
        Change::Slice(name, Some(slice)) => format!("+{name} {}", slice.endpoints[0].ip),
        Change::Node(Some(node)) => format!("+node {}", node.zone.as_deref().unwrap_or_default()),
        Change::ServiceCidr(name, Some(cidrs)) => format!("+{name} {cidrs:?}"),
        Change::Service(name, None) | Change::Slice(name, None) | Change::ServiceCidr(name, None) => format!("-{name}"),
        Change::Node(None) => "-node".to_owned(),
        Change::HostAddresses(_) => panic!("{change:?}"),
    });
    change.into_iter().chain(converted.problems.iter().map(|problem| problem.to_string())).collect()
}

fn service(name: &str, last: u8) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  clusterIP: 10.96.0.{last}\n  ports:\n  - port: 80\n---\n")
}

#[test]
fn only_what_has_changed_is_said() {
    let mut test = Test::new();
    assert_eq!(test.scan(), [""; 0]);
    test.write("a.yaml", &(service("a", 1) + &service("b", 2)));
    assert_eq!(test.scan(), ["+default/a 10.96.0.1", "+default/b 10.96.0.2"]);
    assert_eq!(test.scan(), [""; 0]);
    test.write("a.yaml", &(service("a", 1) + &service("b", 3)));
    assert_eq!(test.scan(), ["+default/b 10.96.0.3"]);
    test.write("a.yaml", &service("b", 3));
    assert_eq!(test.scan(), ["-default/a"]);
    fs::rename(test.dir.path().join("a.yaml"), test.dir.path().join("z.yml")).expect("renamed");
    assert_eq!(test.scan(), [""; 0], "a new name of the file changes nothing");
    fs::remove_file(test.dir.path().join("z.yml")).expect("removed");
    assert_eq!(test.scan(), ["-default/b"]);
    assert!(test.folder.names(Kind::Service).is_empty());
}

#[test]
fn other_files_are_no_manifests() {
    let mut test = Test::new();
    for file in [".a.yaml", "a.yaml~", "#a.yaml#", ".a.yaml.swp", "a.yaml.bak", "a.txt", "a", "..data", "4913", ".yaml", ".#a.yaml"] {
        test.write(file, &service("a", 1));
    }
    fs::create_dir(test.dir.path().join("b.yaml")).expect("made");
    assert_eq!(test.scan(), [""; 0]);
    test.write("a.YAML", &service("a", 1));
    test.write("b.json", r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "b"}, "spec": {"clusterIP": "10.96.0.2"}}"#);
    assert_eq!(test.scan(), ["+default/a 10.96.0.1", "+default/b 10.96.0.2"]);
}

#[test]
fn a_broken_file_keeps_what_it_said_and_the_others_go_on() {
    let mut test = Test::new();
    test.write("a.yaml", &service("a", 1));
    test.write("b.yaml", &service("b", 2));
    test.scan();
    test.write("a.yaml", &(service("a", 9) + &service("c", 3).replace("80", "http")));
    test.write("b.yaml", &service("b", 4));
    let said = test.scan();
    assert_eq!(said.len(), 2, "{said:?}");
    assert_eq!(said[0], "+default/b 10.96.0.4");
    assert!(said[1].starts_with("a.yaml:15:11: ") && said[1].ends_with("; what the file said before stays in force"), "{said:?}");
    assert_eq!(test.scan(), [""; 0], "said once");
    // The same content, saved again.
    test.write("a.yaml", &(service("a", 9) + &service("c", 3).replace("80", "http")));
    assert_eq!(test.scan(), [""; 0]);
    test.write("a.yaml", "{");
    assert_eq!(test.scan().len(), 1, "another content");
    test.write("a.yaml", &(service("a", 9) + &service("c", 3)));
    assert_eq!(test.scan(), ["+default/a 10.96.0.9", "+default/c 10.96.0.3"]);
    test.write("a.yaml", "");
    assert_eq!(test.scan(), ["-default/a", "-default/c"]);
}

#[test]
fn a_file_that_was_never_good_serves_nothing() {
    let mut test = Test::new();
    test.write("a.yaml", "kind: [");
    fs::write(test.dir.path().join("b.yaml"), b"kind: a\nb: \xff").expect("written");
    let said = test.scan();
    assert_eq!(said.len(), 2);
    assert!(said[0].starts_with("a.yaml:") && said[0].ends_with("nothing of this file is served"), "{said:?}");
    assert_eq!(said[1], "b.yaml:2:4: not UTF-8; nothing of this file is served");
    fs::remove_file(test.dir.path().join("a.yaml")).expect("removed");
    assert_eq!(test.scan(), [""; 0]);
}

#[test]
fn the_first_of_two_files_speaks_for_an_object() {
    let mut test = Test::new();
    test.write("b.yaml", &service("web", 2));
    assert_eq!(test.scan(), ["+default/web 10.96.0.2"]);
    test.write("a.yaml", &(service("other", 3) + &service("web", 1)));
    let said = test.scan();
    assert_eq!(said[..2], ["+default/other 10.96.0.3", "+default/web 10.96.0.1"]);
    assert_eq!(said[2], "b.yaml:1:1: service default/web is also in a.yaml:9, which counts");
    assert_eq!(said.len(), 3);
    test.write("a.yaml", &(service("other", 4) + &service("web", 1)));
    assert_eq!(test.scan(), ["+default/other 10.96.0.4"], "the other one is named once");
    test.write("b.yaml", &service("web", 5));
    assert_eq!(test.scan(), [""; 0]);
    fs::remove_file(test.dir.path().join("a.yaml")).expect("removed");
    assert_eq!(test.scan(), ["+default/web 10.96.0.5", "-default/other"]);
    test.write("b.yaml", &(service("web", 6) + &service("web", 7)));
    let said = test.scan();
    assert_eq!(said, ["+default/web 10.96.0.6", "b.yaml:9:1: service default/web is also in b.yaml:1, which counts"]);
}

#[test]
fn a_slice_and_a_service_may_share_a_name() {
    let mut test = Test::new();
    let slice = "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: web, labels: {kubernetes.io/service-name: web}}\n\
                 addressType: IPv4\nendpoints: [{addresses: [10.1.0.1]}]\n";
    test.write("a.yaml", &(service("web", 1) + slice));
    assert_eq!(test.scan(), ["+default/web 10.1.0.1", "+default/web 10.96.0.1"]);
    assert_eq!((test.folder.names(Kind::Service).len(), test.folder.names(Kind::Slice).len()), (1, 1));
}

#[test]
fn what_is_around_the_services_goes_with_its_file() {
    let mut test = Test::new();
    let node = |name: &str, zone: &str| {
        format!("kind: Node\napiVersion: v1\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}\n---\n")
    };
    let cidr = "kind: ServiceCIDR\napiVersion: networking.k8s.io/v1\nmetadata: {name: kubernetes}\nspec: {cidrs: [10.96.0.0/16]}\n";
    test.write("a.yaml", &(node("node2", "z") + &node("node1", "a") + cidr));
    assert_eq!(test.scan(), ["+kubernetes [10.96.0.0/16]", "+node a"]);
    test.write("b.yaml", &node("node1", "b"));
    assert_eq!(test.scan(), ["b.yaml:1:1: node node1 is also in a.yaml:5, which counts"]);
    test.write("a.yaml", &node("node2", "y"));
    assert_eq!(test.scan(), ["+node b", "-kubernetes"]);
    assert_eq!(test.folder.names(Kind::Node), HashSet::from([ObjectName::new("", "node1")]));
    fs::remove_file(test.dir.path().join("b.yaml")).expect("removed");
    assert_eq!(test.scan(), ["-node"]);
    assert!(test.folder.names(Kind::Node).is_empty());
}

#[test]
fn problems_name_the_file() {
    let mut test = Test::new();
    let nameless = service("x", 1).replace("{name: x}", "{}");
    test.write("a.yaml", &(nameless + &service("web", 1).replace("80", "0")));
    let said = test.scan();
    assert_eq!(said[0], "+default/web 10.96.0.1");
    assert!(said[1].starts_with("a.yaml:1:1: service default/?: metadata.name: missing"), "{said:?}");
    assert!(said[2].starts_with("a.yaml:9:1: service default/web: spec.ports[0].port"), "{said:?}");
    assert_eq!(test.scan(), [""; 0]);
}

#[test]
fn a_configmap_volume_is_swapped_by_a_symbolic_link() {
    let mut test = Test::new();
    let root = test.dir.path().to_owned();
    for (version, last) in [("..1", 1), ("..2", 2)] {
        fs::create_dir(root.join(version)).expect("made");
        fs::write(root.join(version).join("a.yaml"), service("a", last)).expect("written");
    }
    symlink("..1", root.join("..data")).expect("linked");
    symlink("..data/a.yaml", root.join("a.yaml")).expect("linked");
    assert_eq!(test.scan(), ["+default/a 10.96.0.1"]);
    symlink("..2", root.join("..data_tmp")).expect("linked");
    fs::rename(root.join("..data_tmp"), root.join("..data")).expect("swapped");
    assert_eq!(test.scan(), ["+default/a 10.96.0.2"]);
    fs::remove_dir_all(root.join("..2")).expect("removed");
    assert_eq!(test.scan(), ["-default/a"], "a link to nothing is no file");
}

#[test]
fn a_folder_that_is_gone_changes_nothing() {
    let mut test = Test::new();
    test.write("a.yaml", &service("a", 1));
    test.scan();
    let (here, away) = (test.dir.path().to_owned(), test.dir.path().with_extension("away"));
    fs::rename(&here, &away).expect("moved");
    assert_eq!(test.scan(), [""; 0]);
    assert_eq!(test.folder.names(Kind::Service).len(), 1);
    fs::rename(&away, &here).expect("moved");
    test.write("a.yaml", &service("a", 2));
    assert_eq!(test.scan(), ["+default/a 10.96.0.2"]);
}
