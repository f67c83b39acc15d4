//! Where the programs hang and where they are kept: the cgroup, and the bpf file system.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use tracing::error;

use super::sys;

/// The directory where the bpf file system belongs (Documentation/bpf, systemd).
const BPFFS: &str = "/sys/fs/bpf";

/// The cgroup to attach to: the one that was asked for, else the root of the cgroup v2 hierarchy.
///
/// # Errors
///
/// There is no cgroup v2 mount, or what is mounted is not the true root: an unprivileged container sees its own cgroup as the
/// root, and programs there would miss every pod.
pub(crate) fn cgroup(asked: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = asked {
        let kind = statfs(path).with_context(|| format!("--cgroup {}: cannot be opened", path.display()))?.filesystem_type();
        ensure!(kind == CGROUP2_SUPER_MAGIC, "--cgroup {}: is not a cgroup v2 directory", path.display());
        return Ok(path.to_path_buf());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let path = cgroup2_mount(&mounts).context(
        "no cgroup v2 file system is mounted: run `mount -t cgroup2 none /sys/fs/cgroup/unified`, or name its mount with --cgroup",
    )?;
    let inode = fs::metadata(&path).with_context(|| path.display().to_string())?.ino();
    if inode != ROOT_INODE {
        bail!(
            "{}: is not the root of the host's cgroup v2 hierarchy but a container's own cgroup, where programs would miss all \
             pods: mount the host's hierarchy into the container (hostPath /sys/fs/cgroup), or name a subtree with --cgroup",
            path.display()
        );
    }
    Ok(path)
}

/// The root of a kernfs hierarchy has inode 1 (fs/kernfs/dir.c, kernfs_create_root).
const ROOT_INODE: u64 = 1;

/// The mount point of the first cgroup2 file system in a mountinfo file, whose format proc_pid_mountinfo(5) describes.
fn cgroup2_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let is_cgroup2 = right.split(' ').next() == Some("cgroup2");
        is_cgroup2.then(|| left.split(' ').nth(4)).flatten().map(|path| PathBuf::from(path.replace("\\040", " ")))
    })
}

/// The network namespace whose sockets are served on ::1: ours, which is the host's.
pub(crate) fn host() -> Option<u64> {
    match sys::netns_cookie() {
        Ok(cookie) => Some(cookie),
        Err(reason) => {
            error!(%reason, "NodePorts on ::1 are not served: the kernel does not tell network namespaces apart (5.14 and later do)");
            None
        }
    }
}

/// Whether nothing has to be mounted for `dir` to be on a bpf file system, if it may be there at all.
pub(crate) fn is_mounted(dir: &Path) -> bool {
    !dir.starts_with(BPFFS) || statfs(BPFFS).map(|s| s.filesystem_type()).ok() == Some(BPF_FS_MAGIC)
}

/// Makes sure that `dir` exists on a bpf file system, which is mounted at its usual place if it is not.
///
/// # Errors
///
/// `dir` is elsewhere, or nothing may be mounted.
pub(crate) fn pin_dir(dir: &Path) -> anyhow::Result<()> {
    if !is_mounted(dir) {
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC, Some("mode=0700"))
            .with_context(|| {
                format!("{BPFFS}: the bpf file system cannot be mounted (in a container: mount the host's, hostPath {BPFFS})")
            })?;
    }
    fs::create_dir_all(dir).with_context(|| format!("{}: cannot be made", dir.display()))?;
    let kind = statfs(dir).with_context(|| dir.display().to_string())?.filesystem_type();
    ensure!(
        kind == BPF_FS_MAGIC,
        "{}: is not on a bpf file system: run `mount -t bpf bpf DIR`, or choose a folder below {BPFFS}",
        dir.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cgroup2_mount_is_found_beside_v1() {
        let mounts = "25 20 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                      26 25 0:23 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      27 25 0:24 / /sys/fs/cgroup/my\\040unified rw,relatime shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(cgroup2_mount(mounts), Some(PathBuf::from("/sys/fs/cgroup/my unified")));
        assert_eq!(cgroup2_mount("1 1 0:1 / / rw - ext4 /dev/vda rw\n"), None);
    }

    #[test]
    fn a_folder_that_is_no_cgroup_is_refused_by_name() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let error = cgroup(Some(dir.path())).expect_err("not a cgroup").to_string();
        assert!(error.contains("is not a cgroup v2 directory"), "{error}");
        let error = format!("{:#}", cgroup(Some(Path::new("/nowhere"))).expect_err("missing"));
        assert!(error.contains("--cgroup /nowhere") && error.contains("ENOENT"), "{error}");
    }
}
