use proxy_core::input::Problem;
use proxy_core::model::Change;

use super::*;

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  ports:
  - port: 80
";

const SLICE: &str = "\
addressType: IPv4
apiVersion: discovery.k8s.io/v1
endpoints:
- addresses: [10.1.0.1]
  conditions: {ready: yes}
kind: EndpointSlice
metadata:
  name: web-1
  labels:
    kubernetes.io/service-name: web
ports:
- port: 8080
unknown: {a: [1, 2]}
";

fn names(parsed: &Parsed) -> Vec<(usize, String)> {
    let name = |converted: &Converted| match &converted.change {
        Some(Change::Service(name, Some(_)) | Change::Slice(name, Some(_))) => name.to_string(),
        other => format!("{other:?}"),
    };
    parsed.objects.iter().map(|(line, converted)| (*line, name(converted))).collect()
}

fn good(text: &str) -> Parsed {
    yaml(text, "node1").unwrap_or_else(|broken| panic!("{broken:?} in:\n{text}"))
}

fn broken(text: &str) -> (usize, usize, String) {
    let Broken { line, column, what } = yaml(text, "node1").err().unwrap_or_else(|| panic!("is good:\n{text}"));
    (line, column, what)
}

#[test]
fn several_documents_with_their_lines() {
    let text = format!("# first\n{SERVICE}---\n{SLICE}--- # nothing\n---\n# nothing\n---\nnull\n...\n%YAML 1.2\n---\n{SERVICE}");
    let parsed = good(&text);
    let expected = [(2, "shop/web"), (10, "default/web-1"), (31, "shop/web")];
    assert_eq!(names(&parsed), expected.map(|(line, name)| (line, name.to_string())));
    assert_eq!(names(&good(&text.replace('\n', "\r\n"))).len(), 3);
}

#[test]
fn files_without_documents_are_empty() {
    for text in ["", "\n\n", "# only this", "---", "---\n---\n...\n", "%YAML 1.2\n---\n", "~"] {
        assert_eq!(good(text), Parsed::default(), "{text:?}");
    }
    assert_eq!(json(" \n", "node1"), Ok(Parsed::default()));
    assert_eq!(json("null", "node1"), Ok(Parsed::default()));
}

#[test]
fn markers_inside_of_lines_separate_nothing() {
    let text = format!("{SERVICE}  note: |\n    a\n    ---\n    b\n  more: '--- x'\n");
    assert_eq!(names(&good(&text)).len(), 1);
    assert_eq!(documents("a: ---\n----\n---a\n").len(), 1);
}

#[test]
fn wrong_values_are_found_at_their_place_in_the_file() {
    let (line, column, what) = broken(&format!("{SLICE}---\n{}", SERVICE.replace("port: 80", "port: http")));
    assert_eq!((line, column), (SLICE.lines().count() + 8, 11), "{what}");
    assert!(!what.contains("line"), "{what}");
    let (line, _, _) = broken(&SERVICE.replace("ports:", "ports: 5\n  other:"));
    assert_eq!(line, 6);
    let (line, _, what) = broken(&format!("{SERVICE}---\na: [1\n"));
    assert!(line >= 9, "{line}: {what}");
    let (line, _, what) = broken(&format!("{SERVICE}  clusterIP: 10.96.0.11\n"));
    assert_eq!(line, 8, "{what}");
    assert!(what.contains("duplicate"), "{what}");
    assert_eq!(broken("- a\n- b\n").0, 1);
    assert_eq!(broken("---\n\nkind: Service\n").2, "apiVersion: missing (kind is Service)");
    assert_eq!(broken("a: b").2, "kind: missing");
}

#[test]
fn kinds_of_no_use_are_named_and_may_look_as_they_like() {
    let other = "apiVersion: apps/v1\nkind: Deployment\nspec: {ports: 7}\nitems: {a: b}\n";
    let knative = SERVICE.replace("apiVersion: v1", "apiVersion: serving.knative.dev/v1");
    let parsed = good(&format!("{other}---\n{SERVICE}---\n{knative}"));
    assert_eq!(names(&parsed).len(), 1);
    assert_eq!(Vec::from_iter(parsed.ignored), ["apps/v1 Deployment", "serving.knative.dev/v1 Service"]);
}

#[test]
fn lists_are_taken_apart() {
    let item = |text: &str| text.lines().map(|line| format!("  {line}\n")).collect::<String>().replacen("  ", "- ", 1);
    let text = format!("apiVersion: v1\nitems:\n{}{}- {{apiVersion: v1, kind: Pod}}\nkind: List\n", item(SLICE), item(SERVICE));
    let parsed = good(&text);
    assert_eq!(names(&parsed), [(1, "default/web-1".to_string()), (1, "shop/web".to_string())]);
    assert_eq!(Vec::from_iter(parsed.ignored), ["v1 Pod"]);
    let (line, _, what) = broken(&text.replace("port: 80\n", "port: http\n"));
    assert_eq!(line, 2 + SLICE.lines().count() + 7, "{what}");

    let (_, _, what) = broken("kind: List\napiVersion: v1\nitems: [{kind: Pod, apiVersion: v1}, {a: b}]\n");
    assert_eq!(what, "items[1].kind: missing");
    assert_eq!(good("kind: List\napiVersion: v1\nitems: null\n"), Parsed::default());
    assert_eq!(good("kind: List\napiVersion: v1\n"), Parsed::default());
    let bare = item(&SERVICE.replace("apiVersion: v1\nkind: Service\n", ""));
    assert_eq!(names(&good(&format!("kind: ServiceList\napiVersion: v1\nitems:\n{bare}"))), [(1, "shop/web".to_string())]);
}

#[test]
fn json_with_line_and_column() {
    let text = "{\"kind\": \"Service\", \"apiVersion\": \"v1\",\n \"metadata\": {\"name\": \"web\"},\n \"spec\": {\"clusterIP\": \"10.96.0.1\",\n  \
                \"ports\": [{\"port\": 80}]}}";
    let parsed = json(text, "node1").expect("good");
    assert_eq!(names(&parsed), [(1, "default/web".to_string())]);
    let Broken { line, column, what } = json(&text.replace("80", "\"http\""), "node1").expect_err("wrong type");
    assert_eq!(line, 4, "{column} {what}");
    assert!(column > 10 && !what.contains("line"), "{column} {what}");
    assert_eq!(json("{\n\"kind\": }", "node1").expect_err("no value").line, 2);
    assert!(json("{\"kind\": \"Pod\", \"apiVersion\": \"v1\"} {}", "node1").is_err());
    let list = format!("{{\"kind\": \"List\", \"apiVersion\": \"v1\", \"items\": [{text}]}}");
    assert_eq!(names(&json(&list, "node1").expect("good")).len(), 1);
}

#[test]
fn what_the_conversion_reports_is_kept() {
    let parsed = good(&SERVICE.replace("10.96.0.10", "10.96.0"));
    let problems: Vec<Problem> = parsed.objects.into_iter().flat_map(|(_, converted)| converted.problems).collect();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].object, "service shop/web");
}

#[test]
fn aliases_work_and_do_not_explode() {
    let text = SERVICE.replace("web, namespace", "&n web, labels: {app: *n}, namespace");
    assert_eq!(names(&good(&text)).len(), 1);
    let mut bomb = "kind: Service\napiVersion: v1\na0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_string();
    for i in 1..12 {
        let items = vec![format!("*a{}", i - 1); 10].join(", ");
        bomb += &format!("a{i}: &a{i} [{items}]\n");
    }
    let start = std::time::Instant::now();
    broken(&bomb);
    let deep = format!("kind: Service\napiVersion: v1\na: {}\n", "[".repeat(100_000));
    broken(&deep);
    assert!(json(&format!("{{\"a\": {}", "[".repeat(100_000)), "node1").is_err());
    assert!(start.elapsed() < std::time::Duration::from_secs(20), "{:?}", start.elapsed());
}

#[test]
fn of_nodes_only_our_own_counts() {
    let node = |name: &str| format!("kind: Node\napiVersion: v1\nmetadata: {{name: {name}}}\nspec: {{podCIDRs: [10.1.1.0/24]}}\n");
    let parsed = good(&format!("{}---\n{}---\n{}", node("node1"), node("node2"), node("''")));
    assert_eq!(parsed.ignored, BTreeSet::new());
    let [(1, own), (11, nameless)] = &parsed.objects[..] else { panic!("{parsed:?}") };
    let Some(Change::Node(Some(own))) = &own.change else { panic!("{own:?}") };
    assert_eq!(own.pod_cidrs[0].to_string(), "10.1.1.0/24");
    assert_eq!(nameless.change, None);
    assert!(nameless.problems[0].to_string().starts_with("node ?: metadata.name: missing"), "{nameless:?}");
    let list = "kind: NodeList\napiVersion: v1\nitems: [{metadata: {name: node2}}, {metadata: {name: node1}}]\n";
    assert_eq!(good(list).objects.len(), 1);
}

#[test]
fn ranges_of_clusterips() {
    let cidr = "kind: ServiceCIDR\napiVersion: networking.k8s.io/v1\nmetadata: {name: more}\nspec: {cidrs: [10.97.0.0/16, 10.98.0.0]}\n";
    let parsed = good(cidr);
    let Some(Change::ServiceCidr(name, Some(cidrs))) = &parsed.objects[0].1.change else { panic!("{parsed:?}") };
    assert_eq!((name.to_string(), cidrs.len()), ("more".to_owned(), 1));
    assert!(parsed.objects[0].1.problems[0].to_string().starts_with("servicecidr more: spec.cidrs[1]: \"10.98.0.0\""), "{parsed:?}");
}
