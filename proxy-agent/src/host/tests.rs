//! Against the running kernel, each test in a network namespace of its own.

use std::fs;

use nix::sched::{CloneFlags, unshare};
use rtnetlink::{LinkUnspec, LinkVeth};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::timeout;

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);

/// Runs a test on a thread with a network namespace of its own, over a connection of its own. Without the right to make one it is
/// skipped, which is a failure where PROXY_TEST_REQUIRED is set.
fn in_namespace(test: impl AsyncFnOnce(Handle) + Send + 'static) {
    let thread = std::thread::spawn(|| match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => run(test),
        Err(errno) => {
            assert!(std::env::var_os("PROXY_TEST_REQUIRED").is_none(), "no network namespace: {errno}");
            eprintln!("skipped: no network namespace: {errno}");
        }
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs in the network namespace of this thread.
fn run(test: impl AsyncFnOnce(Handle)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (connection, handle, _) = new_connection().expect("a netlink socket");
        tokio::spawn(connection);
        test(handle).await;
    });
}

/// What is said, and the watch that says it.
async fn start() -> Receiver<Event> {
    let (sender, events) = channel(4);
    let addresses = Addresses::start(sender).await.expect("the addresses");
    tokio::spawn(addresses.watch());
    events
}

/// The next that are said.
async fn next(events: &mut Receiver<Event>) -> Vec<String> {
    match events.recv().await.expect("the watch goes on") {
        Event::Object(Converted { change: Some(Change::HostAddresses(ips)), .. }) => ips.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

/// Waits until these are said: what happens between two looks may be said at once or one after the other.
async fn wait_for(events: &mut Receiver<Event>, wanted: &[&str]) {
    let mut said = Vec::new();
    let found = timeout(DEADLINE, async {
        loop {
            said = next(events).await;
            if said == wanted {
                break;
            }
        }
    });
    assert!(found.await.is_ok(), "wanted {wanted:?}, said {said:?}");
}

async fn add(handle: &Handle, index: u32, ip: &str) {
    let ip: IpAddr = ip.parse().expect("an address");
    let len = if ip.is_ipv4() { 32 } else { 128 };
    handle.address().add(index, ip, len).execute().await.unwrap_or_else(|error| panic!("{ip}: {error}"));
}

async fn remove(handle: &Handle, ip: &str) {
    let ip: IpAddr = ip.parse().expect("an address");
    let found = handle.address().get().set_address_filter(ip).execute().try_next().await.expect("a list");
    handle.address().del(found.expect("the address is there")).execute().await.unwrap_or_else(|error| panic!("{ip}: {error}"));
}

async fn set_up(handle: &Handle, index: u32) {
    handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.expect("up");
}

#[test]
fn addresses_are_said_at_the_start_and_at_every_change() {
    in_namespace(async |handle| {
        set_up(&handle, 1).await;
        add(&handle, 1, "10.0.0.7").await;
        let mut events = start().await;
        wait_for(&mut events, &["127.0.0.1", "10.0.0.7", "::1"]).await;
        add(&handle, 1, "fd00::7").await;
        // The kernel has IPv6 addresses in the order of their scope.
        wait_for(&mut events, &["127.0.0.1", "10.0.0.7", "fd00::7", "::1"]).await;
        add(&handle, 1, "10.0.0.3").await;
        wait_for(&mut events, &["127.0.0.1", "10.0.0.7", "10.0.0.3", "fd00::7", "::1"]).await;
        remove(&handle, "10.0.0.7").await;
        remove(&handle, "fd00::7").await;
        wait_for(&mut events, &["127.0.0.1", "10.0.0.3", "::1"]).await;
    });
}

#[test]
fn addresses_come_in_the_order_of_interfaces_and_go_with_them() {
    in_namespace(async |handle| {
        let mut events = start().await;
        // Loopback is down.
        wait_for(&mut events, &[]).await;
        handle.link().add(LinkVeth::new("a", "b").build()).execute().await.expect("a pair of interfaces");
        let index = async |name: &str| {
            let found = handle.link().get().match_name(name.to_owned()).execute().try_next().await.expect("a list");
            found.expect("the interface is there").header.index
        };
        let mut indexes = [index("a").await, index("b").await];
        indexes.sort_unstable();
        add(&handle, indexes[1], "10.0.0.1").await;
        add(&handle, indexes[0], "10.0.0.2").await;
        add(&handle, indexes[1], "10.0.0.3").await;
        set_up(&handle, 1).await;
        wait_for(&mut events, &["127.0.0.1", "::1", "10.0.0.2", "10.0.0.1", "10.0.0.3"]).await;
        handle.link().del(indexes[0]).execute().await.expect("deleted");
        wait_for(&mut events, &["127.0.0.1", "::1"]).await;
    });
}

/// While nobody reads, the kernel drops notices: what they said must be found all the same.
#[test]
fn changes_are_found_even_if_their_notices_are_lost() {
    in_namespace(async |handle| {
        let mut events = start().await;
        wait_for(&mut events, &[]).await;
        set_up(&handle, 1).await;
        wait_for(&mut events, &["127.0.0.1", "::1"]).await;
        // The other thread is in the same namespace, and this one waits for it with the whole of its runtime.
        let flood = std::thread::spawn(|| {
            run(async |handle| {
                for i in 0..1500u32 {
                    add(&handle, 1, &format!("10.1.{}.{}", i / 256, i % 256)).await;
                }
                for i in 0..1500u32 {
                    remove(&handle, &format!("10.1.{}.{}", i / 256, i % 256)).await;
                }
                add(&handle, 1, "10.0.0.9").await;
            });
        });
        flood.join().expect("the flood");
        assert!(lost_notices() > 0, "no notice was lost: the test shows nothing");
        wait_for(&mut events, &["127.0.0.1", "10.0.0.9", "::1"]).await;
        add(&handle, 1, "10.0.0.10").await;
        wait_for(&mut events, &["127.0.0.1", "10.0.0.9", "10.0.0.10", "::1"]).await;
    });
}

/// Messages that were dropped at netlink sockets of this namespace.
fn lost_notices() -> u64 {
    let table = fs::read_to_string("/proc/thread-self/net/netlink").expect("the netlink sockets");
    table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(8)?.parse::<u64>().ok()).sum()
}

#[test]
fn the_watch_ends_when_nobody_listens() {
    in_namespace(async |_| {
        let (sender, events) = channel(4);
        let addresses = Addresses::start(sender).await.expect("the addresses");
        drop(events);
        timeout(DEADLINE, addresses.watch()).await.expect("it ends");
    });
}
