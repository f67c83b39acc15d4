//! The modes as dataplanes: the list that all commands share.

use std::time::Duration;

use anyhow::Context;
use proxy_core::lower::Lowering;
use proxy_core::lower::bpf::Bpf;
use proxy_core::lower::nft::Nft;
use proxy_core::model::{Family, Frontend};
use proxy_core::settings::Settings;
use proxy_core::view::{AroundView, ServiceView};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::bpf::{BpfMaps, BpfOptions};
use crate::cli::Mode;
use crate::dataplane::{Alarm, Dataplane, Meter};
use crate::nft::{self, Monitor, NftMeter, NftTable};
use crate::programmer::{Programmed, Programmer};
use crate::recorder::{Recorder, Severity};

/// How long sockets that eBPF has translated get their replies translated after it is out of use. A UDP socket that was silent for
/// as long has lost its flow anyway; of others only getpeername() shows the backend then.
const DRAIN: Duration = Duration::from_secs(600);

/// The best mode that this host can run: eBPF if it can load the programs, else nftables, and says so.
pub fn choose(bpf: &BpfOptions, recorder: &Recorder) -> Mode {
    let Err(reason) = BpfMaps::try_out(bpf) else { return Mode::Ebpf };
    let text = format!("mode auto: nftables, since eBPF cannot be used here: {reason:#}");
    warn!("{text}");
    recorder.node(Severity::Warning, "ModeFallback", text);
    Mode::Nftables
}

/// What works on the kernel.
pub struct Kernel {
    /// The dataplanes, ready to be programmed.
    pub programmers: Vec<Box<dyn Programmer>>,
    /// What counts connections, if they are counted.
    pub meters: Vec<Box<dyn Meter>>,
}

/// The kernel in a mode. To be called in a runtime: dataplanes ring the alarm.
///
/// # Errors
///
/// This host cannot run the mode.
pub fn kernel(mode: Mode, bpf: BpfOptions, settings: &Settings, alarm: &Alarm) -> anyhow::Result<Kernel> {
    let monitor = Monitor::start(alarm)?;
    let mut programmers: Vec<Box<dyn Programmer>> = Vec::new();
    let mut meters: Vec<Box<dyn Meter>> = Vec::new();
    let counts = settings.counts_connections;
    if mode == Mode::Ebpf {
        let lowering = Bpf::new(settings);
        let maps = BpfMaps::start(bpf, lowering)?;
        if counts {
            meters.push(Box::new(maps.meter()?));
        }
        programmers.push(Box::new(Programmed::new("ebpf", maps, lowering)));
    }
    // Beside eBPF's sockets too: they leave to packets what depends on packets, and who sends past them.
    for family in Family::ALL {
        let table = NftTable::open(Nft::new(family, settings))?.watched(&monitor)?;
        let lowering = table.lowering();
        programmers.push(Box::new(Programmed::new(format!("nftables {family}"), table, lowering)));
        if counts {
            meters.push(Box::new(NftMeter::open(family, &monitor)?));
        }
    }
    Ok(Kernel { programmers, meters })
}

/// Takes out of use what an agent in another mode has left, once everything of this mode is in place. What eBPF has decided at sockets
/// stays decided, and goes on being translated back for some minutes.
pub async fn retire_others(mode: Mode, bpf: &BpfOptions) {
    if mode == Mode::Ebpf {
        // The tables are part of that mode.
        return;
    }
    match BpfMaps::retire(bpf) {
        Ok(false) => return,
        Ok(true) => info!("the eBPF programs of the former mode choose no more backends; they translate replies for {DRAIN:?} more"),
        Err(error) => {
            return warn!("the eBPF programs of the former mode cannot be taken out of use: {error:#}; `proxy-agent cleanup` tries again");
        }
    }
    sleep(DRAIN).await;
    match BpfMaps::remove_pinned(bpf) {
        Ok(()) => info!("the eBPF programs and maps of the former mode are removed"),
        Err(error) => warn!("the eBPF maps of the former mode cannot be removed: {error:#}; `proxy-agent cleanup` tries again"),
    }
}

/// What one dataplane holds.
pub struct Found {
    /// Named after the mode that has it first.
    pub dataplane: Mode,
    /// Ports of Services.
    pub services: Vec<ServiceView>,
    /// What is there whatever the Services.
    pub around: Option<AroundView>,
}

/// What the kernel holds, by dataplane: of those of the mode that was asked for, else of each that it holds anything of.
///
/// # Errors
///
/// What is there cannot be read.
pub fn observe(asked: Option<Mode>, bpf: BpfOptions) -> anyhow::Result<Vec<Found>> {
    let mut found = Vec::new();
    if asked != Some(Mode::Nftables) {
        let objects = BpfMaps::open_pinned(bpf).and_then(|maps| maps.map(|mut maps| maps.observe()).transpose()).context("ebpf")?;
        found.extend(objects.map(|objects| Found { dataplane: Mode::Ebpf, services: Bpf::view(&objects), around: None }));
    }
    let tables = Family::ALL.map(|family| nft::read(family).with_context(|| format!("nftables {family}")));
    let (mut services, mut around) = (Vec::new(), AroundView::default());
    let mut there = false;
    for objects in tables {
        let objects = objects?;
        there |= !objects.is_empty();
        services.extend(Nft::view(&objects));
        around.extend(proxy_core::lower::nft::around(&objects));
    }
    services.sort();
    if there {
        found.push(Found { dataplane: Mode::Nftables, services, around: Some(around) });
    }
    Ok(found)
}

/// The frontends that packets are translated at now: what an agent before this one has left.
///
/// # Errors
///
/// What is there cannot be read.
pub fn frontends() -> anyhow::Result<Vec<Frontend>> {
    Ok(Family::ALL.into_iter().map(nft::frontends).collect::<anyhow::Result<Vec<_>>>()?.concat())
}

/// Removes the tables of both families.
///
/// # Errors
///
/// The kernel refuses.
pub fn remove_nftables() -> anyhow::Result<()> {
    Family::ALL.into_iter().try_for_each(nft::remove)
}
