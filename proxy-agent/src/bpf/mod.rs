//! The eBPF dataplane: loads the programs, keeps them and their maps pinned, and fills the maps.
//!
//! What is pinned below `<pin dir>/v<layout>` outlives the agent: connections are translated while it is down, and the next
//! agent adopts the maps and puts its programs behind the same links.

mod maps;
mod meter;
mod place;
mod programs;
mod sys;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use proxy_core::lower::bpf::Bpf;
use proxy_core::lower::{ObjectsOf, StepOf};
use tracing::info;

use crate::dataplane::{Dataplane, Refused};
use maps::Maps;
pub use meter::BpfMeter;

/// Where the eBPF dataplane lives.
#[derive(Clone, Debug)]
pub struct BpfOptions {
    /// A folder on a bpf file system.
    pub pin_dir: PathBuf,
    /// The cgroup to serve; `None`: the root of the hierarchy.
    pub cgroup: Option<PathBuf>,
}

/// The maps of a node, both families.
#[derive(Debug)]
pub struct BpfMaps {
    options: BpfOptions,
    maps: Maps,
    /// What agents of other layouts left; it serves until our own maps are filled.
    leftovers: Vec<PathBuf>,
}

impl BpfMaps {
    /// Loads the programs over the maps that are pinned, or new ones, and attaches them or takes the place of those that run.
    ///
    /// # Errors
    ///
    /// The cgroup or the bpf file system is not what it must be, or the kernel refuses a program.
    pub fn start(options: BpfOptions, lowering: Bpf) -> anyhow::Result<Self> {
        let cgroup = place::cgroup(options.cgroup.as_deref())?;
        let dir = layout_dir(&options.pin_dir);
        place::pin_dir(&dir)?;
        let host = if lowering.loopback { place::host() } else { None };
        programs::start(&dir, &cgroup, programs::Globals { host, counts: lowering.counts })?;
        let maps = Maps::open(&dir)?;
        let leftovers = layouts(&options.pin_dir)?.into_iter().filter(|other| *other != dir).collect();
        Ok(Self { options, maps, leftovers })
    }

    /// What the programs count.
    ///
    /// # Errors
    ///
    /// The map cannot be opened.
    pub fn meter(&self) -> anyhow::Result<BpfMeter> {
        BpfMeter::open(&layout_dir(&self.options.pin_dir))
    }

    /// Whether this host can run the programs: loads them, and leaves nothing.
    ///
    /// # Errors
    ///
    /// What [`start`](Self::start) would say.
    pub fn try_out(options: &BpfOptions) -> anyhow::Result<()> {
        place::cgroup(options.cgroup.as_deref())?;
        // One that is mounted here and now goes with the container, and every restart would be without maps for a moment.
        let dir = options.pin_dir.display();
        ensure!(place::is_mounted(&options.pin_dir), "{dir}: no bpf file system is mounted there (in a container: mount the host's)");
        let mut name = options.pin_dir.clone().into_os_string();
        name.push(format!("-try-{}", std::process::id()));
        let dir = PathBuf::from(name);
        place::pin_dir(&dir)?;
        let loaded = programs::try_load(&dir);
        loaded.and(remove_layout(&dir))
    }

    /// Opens what is pinned, to read it; `None` if nothing is.
    pub fn open_pinned(options: BpfOptions) -> anyhow::Result<Option<Self>> {
        let dir = layout_dir(&options.pin_dir);
        if !dir.exists() {
            return Ok(None);
        }
        let maps = Maps::open(&dir)?;
        Ok(Some(Self { options, maps, leftovers: Vec::new() }))
    }

    /// Takes out of use what chooses backends, of every layout; what translates back stays. Returns whether there was anything.
    ///
    /// # Errors
    ///
    /// The bpf file system refuses.
    pub fn retire(options: &BpfOptions) -> anyhow::Result<bool> {
        let dirs = layouts(&options.pin_dir)?;
        for link in dirs.iter().flat_map(|dir| programs::CHOOSING.map(|name| dir.join(format!("{}{name}", programs::LINK_PREFIX)))) {
            match fs::remove_file(&link) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e).with_context(|| link.display().to_string()),
                _ => {}
            }
        }
        Ok(!dirs.is_empty())
    }

    /// Removes everything that is pinned, of every layout; programs without a pin go with the agent that holds them.
    pub fn remove_pinned(options: &BpfOptions) -> anyhow::Result<()> {
        for dir in layouts(&options.pin_dir)? {
            remove_layout(&dir)?;
        }
        match fs::remove_dir(&options.pin_dir) {
            Err(e) if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::ResourceBusy) => {
                Err(e).with_context(|| options.pin_dir.display().to_string())
            }
            _ => Ok(()),
        }
    }
}

impl Dataplane for BpfMaps {
    type L = Bpf;

    fn observe(&mut self) -> anyhow::Result<ObjectsOf<Bpf>> {
        self.maps.observe()
    }

    fn commit(&mut self, steps: &[StepOf<Bpf>]) -> anyhow::Result<Refused<Bpf>> {
        Ok(self.maps.commit(steps))
    }

    fn filled(&mut self) -> anyhow::Result<()> {
        for dir in std::mem::take(&mut self.leftovers) {
            remove_layout(&dir)?;
            info!(dir = %dir.display(), "removed the maps and programs of another layout");
        }
        Ok(())
    }

    fn capacities(&self) -> Vec<(&'static str, u32)> {
        self.maps.capacities()
    }

    fn remove(&mut self) -> anyhow::Result<()> {
        Self::remove_pinned(&self.options)
    }
}

fn layout_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join(format!("v{}", proxy_abi::LAYOUT))
}

/// The folders of all layouts that are pinned.
fn layouts(pin_dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(pin_dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| pin_dir.display().to_string()),
    };
    let mut dirs = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| pin_dir.display().to_string())?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        if name.strip_prefix('v').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())) {
            dirs.push(path);
        }
    }
    dirs.sort();
    Ok(dirs)
}

/// Removes the pins of one layout: links first, so that no program runs over maps that are going.
fn remove_layout(dir: &Path) -> anyhow::Result<()> {
    let context = || format!("{}: cannot be removed", dir.display());
    let mut pins = fs::read_dir(dir).with_context(context)?.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>().with_context(context)?;
    pins.sort_by_key(|path| !path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(programs::LINK_PREFIX)));
    for pin in pins {
        fs::remove_file(&pin).with_context(|| format!("{}: cannot be removed", pin.display()))?;
    }
    fs::remove_dir(dir).with_context(context)
}
