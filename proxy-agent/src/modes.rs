//! The modes as dataplanes: the list that all commands share.

use anyhow::Context;
use proxy_core::lower::Lowering;
use proxy_core::lower::bpf::Bpf;
use proxy_core::lower::nft::Nft;
use proxy_core::model::Family;
use proxy_core::view::ServiceView;

use crate::bpf::{BpfMaps, BpfOptions};
use crate::cli::Mode;
use crate::dataplane::{Alarm, Dataplane};
use crate::nft::{self, Monitor, NftTable};
use crate::programmer::{Programmed, Programmer};

/// The dataplanes of a mode, ready to be programmed. To be called in a runtime: they ring the alarm.
///
/// # Errors
///
/// This host cannot run the mode.
pub fn programmers(mode: Mode, bpf: BpfOptions, alarm: &Alarm) -> anyhow::Result<Vec<Box<dyn Programmer>>> {
    match mode {
        Mode::Ebpf => Ok(vec![Box::new(Programmed::new("ebpf", BpfMaps::start(bpf)?, || Bpf))]),
        Mode::Nftables => {
            let monitor = Monitor::start(alarm)?;
            let open = |family| NftTable::open(family).and_then(|table| table.watched(&monitor));
            let v4 = Programmed::new("nftables IPv4", open(Family::V4)?, || Nft { family: Family::V4 });
            let v6 = Programmed::new("nftables IPv6", open(Family::V6)?, || Nft { family: Family::V6 });
            Ok(vec![Box::new(v4), Box::new(v6)])
        }
    }
}

/// What the kernel holds, by mode: of the mode that was asked for, else of each that it holds anything of.
///
/// # Errors
///
/// What is there cannot be read.
pub fn observe(asked: Option<Mode>, bpf: BpfOptions) -> anyhow::Result<Vec<(Mode, Vec<ServiceView>)>> {
    let mut found = Vec::new();
    if asked != Some(Mode::Nftables) {
        let objects = BpfMaps::open_pinned(bpf).and_then(|maps| maps.map(|mut maps| maps.observe()).transpose()).context("ebpf")?;
        found.extend(objects.map(|objects| (Mode::Ebpf, Bpf::view(&objects))));
    }
    if asked != Some(Mode::Ebpf) {
        let mut there = false;
        let mut views = Vec::new();
        for family in Family::ALL {
            let objects = NftTable::open(family)?.observe().with_context(|| format!("nftables {family}"))?;
            there |= !objects.is_empty();
            views.extend(Nft::view(&objects));
        }
        views.sort();
        if there {
            found.push((Mode::Nftables, views));
        }
    }
    Ok(found)
}

/// Removes the tables of both families.
///
/// # Errors
///
/// The kernel refuses.
pub fn remove_nftables() -> anyhow::Result<()> {
    Family::ALL.into_iter().try_for_each(nft::remove)
}
