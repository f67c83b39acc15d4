use std::collections::HashSet;
use std::time::Duration;

use proxy_core::input::Converted;
use proxy_core::model::{Change, ObjectName};
use tempfile::TempDir;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout;

use super::*;
use crate::bell::RESCAN;

fn service(name: &str, last: u8) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.{last}, ports: [{{port: 80}}]}}\n")
}

async fn next(events: &mut Receiver<Event>) -> Event {
    timeout(Duration::from_secs(20), events.recv()).await.expect("nothing was said").expect("the watch has ended")
}

async fn next_change(events: &mut Receiver<Event>) -> (String, Option<String>) {
    match next(events).await {
        Event::Object(Converted { change: Some(Change::Service(name, service)), .. }) => {
            (name.to_string(), service.map(|service| service.cluster_ips[0].to_string()))
        }
        other => panic!("{other:?}"),
    }
}

struct Test {
    dir: TempDir,
    events: Receiver<Event>,
    watch: tokio::task::JoinHandle<anyhow::Result<()>>,
}

/// Starts with one file and reads up to the end of the lists.
async fn start() -> Test {
    let dir = tempfile::tempdir().expect("a folder");
    fs::write(dir.path().join("a.yaml"), service("a", 1)).expect("written");
    let (sender, mut events) = channel(16);
    let watch = tokio::spawn(watch(dir.path().to_owned(), "node1".into(), sender));
    assert_eq!(next_change(&mut events).await, ("default/a".into(), Some("10.96.0.1".into())));
    for kind in [Kind::Node, Kind::ServiceCidr] {
        assert_eq!(next(&mut events).await, Event::Listed(kind, HashSet::new()));
    }
    assert_eq!(next(&mut events).await, Event::Listed(Kind::Service, HashSet::from([ObjectName::new("default", "a")])));
    assert_eq!(next(&mut events).await, Event::Listed(Kind::Slice, HashSet::new()));
    Test { dir, events, watch }
}

#[tokio::test]
async fn saves_take_effect_and_the_end_of_the_channel_ends_the_watch() {
    let mut test = start().await;
    let path = test.dir.path().join("a.yaml");
    let begin = std::time::Instant::now();
    fs::write(&path, service("a", 2)).expect("written");
    assert_eq!(next_change(&mut test.events).await, ("default/a".into(), Some("10.96.0.2".into())));
    assert!(begin.elapsed() < RESCAN, "took {:?}: found by chance only", begin.elapsed());
    // As editors do it.
    let new = test.dir.path().join(".a.yaml.new");
    fs::write(&new, service("a", 3)).expect("written");
    fs::rename(&new, &path).expect("renamed");
    assert_eq!(next_change(&mut test.events).await, ("default/a".into(), Some("10.96.0.3".into())));
    fs::remove_file(&path).expect("removed");
    assert_eq!(next_change(&mut test.events).await, ("default/a".into(), None));
    drop(test.events);
    let ended = timeout(Duration::from_secs(10), test.watch).await.expect("the watch goes on for nobody");
    ended.expect("no panic").expect("no error");
}

#[tokio::test]
async fn a_folder_that_comes_back_is_watched_again() {
    let mut test = start().await;
    let (here, away) = (test.dir.path().to_owned(), test.dir.path().with_extension("away"));
    fs::rename(&here, &away).expect("moved");
    tokio::time::sleep(Duration::from_millis(500)).await;
    fs::create_dir(&here).expect("made");
    fs::write(here.join("b.yaml"), service("b", 1)).expect("written");
    let mut said = vec![next_change(&mut test.events).await, next_change(&mut test.events).await];
    said.sort();
    assert_eq!(said, [("default/a".into(), None), ("default/b".into(), Some("10.96.0.1".into()))]);
    // By now the new folder is watched.
    tokio::time::sleep(Duration::from_millis(500)).await;
    fs::write(here.join("b.yaml"), service("b", 2)).expect("written");
    assert_eq!(next_change(&mut test.events).await, ("default/b".into(), Some("10.96.0.2".into())));
    fs::remove_dir_all(&away).expect("removed");
}

#[tokio::test]
async fn what_is_no_folder_is_an_error_with_a_way_out() {
    let dir = tempfile::tempdir().expect("a folder");
    let (sender, _events) = channel(1);
    let error = watch(dir.path().join("nowhere"), "node1".into(), sender.clone()).await.expect_err("not there");
    assert!(format!("{error:#}").contains("nowhere: create it"), "{error:#}");
    fs::write(dir.path().join("file"), "").expect("written");
    let error = watch(dir.path().join("file"), "node1".into(), sender).await.expect_err("not a folder");
    assert!(format!("{error:#}").contains("is not a folder"), "{error:#}");
}

#[tokio::test]
async fn an_empty_folder_is_a_complete_list() {
    let dir = tempfile::tempdir().expect("a folder");
    let (sender, mut events) = channel(16);
    tokio::spawn(watch(dir.path().to_owned(), "node1".into(), sender));
    // What is around the Services comes before them.
    for kind in [Kind::Node, Kind::ServiceCidr, Kind::Service, Kind::Slice] {
        assert_eq!(next(&mut events).await, Event::Listed(kind, HashSet::new()));
    }
}
