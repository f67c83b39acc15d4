use std::os::unix::fs::symlink;

use tempfile::TempDir;

use super::*;

const MAX: &str = "proc/sys/net/netfilter/nf_conntrack_max";
const ESTABLISHED: &str = "proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established";

/// A host with four processors, and files that have these values.
fn host(values: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().expect("a folder");
    let all = [
        ("proc/sys/net/netfilter/nf_conntrack_count", "1"),
        (MAX, "65536"),
        (ESTABLISHED, "432000"),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", "60"),
        ("proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", "0"),
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout", "30"),
        ("proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", "120"),
        (HASHSIZE, "16384"),
        (PROCESSORS, "0-2,5\n"),
    ];
    for (path, value) in all.iter().chain(values) {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, value).expect("written");
    }
    root
}

fn value(root: &TempDir, path: &str) -> String {
    fs::read_to_string(root.path().join(path)).expect(path).trim().to_owned()
}

fn values(root: &TempDir) -> [String; 7] {
    let of = |name: &str| value(root, &format!("{FOLDER}/nf_conntrack_{name}"));
    let [a, b, c, d, e, f] =
        ["max", "tcp_timeout_established", "tcp_timeout_close_wait", "tcp_be_liberal", "udp_timeout", "udp_timeout_stream"].map(of);
    [a, b, c, d, e, f, value(root, HASHSIZE)]
}

#[test]
fn the_defaults_are_kube_proxys() {
    let root = host(&[]);
    assert_eq!(set_below(root.path(), &ConntrackSettings::default()).expect("set"), []);
    assert_eq!(values(&root), ["131072", "86400", "3600", "0", "30", "120", "32768"]);
}

#[test]
fn what_is_asked_for_is_set() {
    let root = host(&[]);
    let settings = ConntrackSettings {
        max_per_core: 50_000,
        tcp_be_liberal: true,
        udp_timeout: Duration::from_secs(10),
        udp_stream_timeout: Duration::from_secs(20),
        ..ConntrackSettings::default()
    };
    assert_eq!(set_below(root.path(), &settings).expect("set"), []);
    assert_eq!(values(&root), ["200000", "86400", "3600", "1", "10", "20", "50000"]);
}

#[test]
fn zero_leaves_everything_alone() {
    let root = host(&[]);
    let before = values(&root);
    let settings = ConntrackSettings {
        max_per_core: 0,
        tcp_established_timeout: Duration::ZERO,
        tcp_close_wait_timeout: Duration::ZERO,
        ..ConntrackSettings::default()
    };
    assert_eq!(set_below(root.path(), &settings).expect("nothing to set"), []);
    assert_eq!(values(&root), before);
}

#[test]
fn table_and_hash_are_only_ever_raised() {
    let root = host(&[(MAX, "1000000"), (HASHSIZE, "40000")]);
    set_below(root.path(), &ConntrackSettings::default()).expect("set");
    assert_eq!((value(&root, MAX), value(&root, HASHSIZE)), ("1000000".to_owned(), "40000".to_owned()));
}

#[test]
fn the_number_of_flows_follows_the_processors_up_to_a_limit() {
    let most =
        |max_per_core, min, processors| super::most(&ConntrackSettings { max_per_core, min, ..ConntrackSettings::default() }, processors);
    assert_eq!(most(32_768, 131_072, 2), 131_072);
    assert_eq!(most(32_768, 131_072, 8), 262_144);
    assert_eq!(most(32_768, 131_072, 32), 1 << 20);
    assert_eq!(most(32_768, 131_072, 33), 1 << 20);
    assert_eq!(most(32_768, 2_000_000, 2), 2_000_000, "the least counts below the limit");
    assert_eq!(most(32_768, 2_000_000, 64), 1 << 20, "and not above");
    assert_eq!(most(u32::MAX, 1, u32::MAX), 1 << 20);
}

#[test]
fn processors_are_counted_in_ranges() {
    for (list, wanted) in [("0\n", Some(1)), ("0-7", Some(8)), ("0-2,5,8-9", Some(6)), ("", None), ("3-1", None), ("x", None)] {
        assert_eq!(count(list), wanted, "{list:?}");
    }
}

#[test]
fn what_cannot_be_set_is_an_error_with_the_way_out() {
    let root = host(&[]);
    // Writing to it fails, whoever does.
    let path = root.path().join(ESTABLISHED);
    fs::remove_file(&path).expect("removed");
    fs::create_dir(&path).expect("made");
    let error = set_below(root.path(), &ConntrackSettings::default()).expect_err("a folder");
    assert!(format!("{error:#}").contains("--conntrack-tcp-timeout-established=0s"), "{error:#}");
}

#[test]
fn what_is_not_there_is_an_error_where_there_is_no_connection_tracking_at_all() {
    let root = host(&[]);
    fs::remove_file(root.path().join(MAX)).expect("removed");
    let left = set_below(root.path(), &ConntrackSettings::default()).expect("set, but for one");
    assert!(matches!(&left[..], [Left { is_wrong: false, note }] if note.contains("nf_conntrack_max")), "{left:?}");
    assert_eq!(value(&root, ESTABLISHED), "86400");
    fs::remove_dir_all(root.path().join(FOLDER)).expect("removed");
    let error = set_below(root.path(), &ConntrackSettings::default()).expect_err("none");
    assert!(format!("{error:#}").contains("load the kernel module nf_conntrack"), "{error:#}");
}

/// Files of the kernel that nobody may write or that refuse: as the machine has them.
#[test]
fn what_the_kernel_does_not_let_be_set_is_left() {
    let root = host(&[]);
    let max = root.path().join(MAX);
    fs::remove_file(&max).expect("removed");
    // Read by everybody, written by nobody: a number that is far too small.
    symlink("/proc/sys/kernel/random/entropy_avail", &max).expect("linked");
    let left = set_below(root.path(), &ConntrackSettings::default()).expect("set, but for one");
    assert!(matches!(&left[..], [Left { note, .. }] if note.contains("stays")), "{left:?}");
}
