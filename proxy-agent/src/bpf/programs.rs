//! Loads the kernel programs and hangs them onto the cgroup, or behind the links that are there.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, anyhow};
use aya::programs::CgroupSockAddr;
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use tracing::info;

use super::sys;

/// What `cargo xtask ebpf` builds from proxy-ebpf/.
static OBJECT: &[u8] = include_bytes_aligned!("../../../proxy-ebpf/proxy-ebpf.o");

/// Name prefix of the pins of links.
pub(super) const LINK_PREFIX: &str = "link-";

/// The programs with their `enum bpf_attach_type` (include/uapi/linux/bpf.h), those that translate replies first: no connection
/// is translated before its answer can be.
const PROGRAMS: [(&str, u32); 8] = [
    ("getpeername4", 29),
    ("getpeername6", 30),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("connect4", 10),
    ("connect6", 11),
];

/// The programs that choose a backend.
pub(super) const CHOOSING: [&str; 4] = ["connect4", "connect6", "sendmsg4", "sendmsg6"];

/// What the programs are told.
#[derive(Clone, Copy)]
pub(super) struct Globals {
    /// The network namespace whose sockets are served on ::1.
    pub(super) host: Option<u64>,
    /// Whether connections are counted.
    pub(super) counts: bool,
}

/// Loads all programs over the maps pinned in `dir`, making those that are missing, and attaches them to `cgroup`. Programs that
/// run already are replaced one by one, each between two calls.
pub(super) fn start(dir: &Path, cgroup: &Path, globals: Globals) -> anyhow::Result<()> {
    let cgroup_file = File::open(cgroup).with_context(|| cgroup.display().to_string())?;
    let cgroup_id = cgroup_file.metadata().with_context(|| cgroup.display().to_string())?.ino();
    // All are loaded before the first is attached: either the kernel takes all or nothing changes.
    let mut ebpf = load(dir, true, globals).or_else(|error| {
        let ebpf = load(dir, false, globals).map_err(|_| error)?;
        info!("this kernel is older than 6.1: connections to Services without endpoints are refused by nftables rules, not at the socket");
        anyhow::Ok(ebpf)
    })?;
    for (name, attach_type) in PROGRAMS {
        let program = program(&mut ebpf, name)?;
        let fd = program.fd().with_context(|| format!("program {name}"))?.as_fd();
        let pin = dir.join(format!("{LINK_PREFIX}{name}"));
        attach(&pin, fd, cgroup_file.as_fd(), cgroup_id, attach_type)
            .with_context(|| format!("program {name}: cannot be attached to {}", cgroup.display()))?;
    }
    info!(cgroup = %cgroup.display(), pins = %dir.display(), "eBPF programs attached");
    Ok(())
}

/// Loads all programs over new maps that are pinned in `dir`, and attaches none.
pub(super) fn try_load(dir: &Path) -> anyhow::Result<()> {
    let globals = Globals { host: None, counts: true };
    load(dir, true, globals).or_else(|error| load(dir, false, globals).map_err(|_| error)).map(drop)
}

/// `with_errno`: whether the programs may use the helper that sets a call's errno, which cgroup programs have since 6.1.
fn load(dir: &Path, with_errno: bool, globals: Globals) -> anyhow::Result<Ebpf> {
    // 0 is no network namespace's cookie.
    let host = globals.host.unwrap_or(0);
    let (refuse_with_errno, counts) = (u8::from(with_errno), u8::from(globals.counts));
    let mut loader = EbpfLoader::new();
    loader.default_map_pin_directory(dir).override_global("REFUSE_WITH_ERRNO", &refuse_with_errno, true);
    loader.override_global("HOST_NETNS", &host, true).override_global("COUNT_CONNECTIONS", &counts, true);
    let mut ebpf = loader.load(OBJECT).with_context(|| {
        format!("the eBPF object cannot be loaded over the maps in {} (is CAP_BPF missing, or the kernel older than 5.10?)", dir.display())
    })?;
    for (name, _) in PROGRAMS {
        program(&mut ebpf, name)?.load().with_context(|| format!("program {name}: the kernel's verifier refuses it"))?;
    }
    Ok(ebpf)
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut CgroupSockAddr> {
    let program = ebpf.program_mut(name).ok_or_else(|| anyhow!("program {name}: is not in the eBPF object; run `cargo xtask ebpf`"))?;
    program.try_into().with_context(|| format!("program {name}"))
}

/// Puts the program behind the pinned link, or behind a new link that is pinned.
fn attach(pin: &Path, program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, cgroup_id: u64, attach_type: u32) -> io::Result<()> {
    let former = match sys::obj_get(pin) {
        Ok(link) if sys::link_cgroup(link.as_fd())? == cgroup_id => return sys::link_update(link.as_fd(), program),
        Ok(link) => Some(link),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let link = sys::link_create(program, cgroup, attach_type)?;
    let new = pin.with_file_name(format!("new-{}", pin.file_name().unwrap_or_default().display()));
    if let Err(e) = fs::remove_file(&new)
        && e.kind() != io::ErrorKind::NotFound
    {
        return Err(e);
    }
    sys::obj_pin(link.as_fd(), &new)?;
    fs::rename(&new, pin)?;
    // The cgroup is another one than before, or was made anew: the former link goes only now that the new one is in place.
    drop(former);
    Ok(())
}
