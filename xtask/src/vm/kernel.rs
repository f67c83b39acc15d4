//! Debian's kernels, each with its modules, in a cache.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use anyhow::{Context, Result, bail, ensure};

use crate::apt::{Apt, Offer};
use crate::run::output;

/// A series of kernels, and the Debian release that has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Series {
    pub(super) name: &'static str,
    suite: &'static str,
}

/// Those of Debian 12 and 13. The first is the oldest on which everything works.
pub(super) const SERIES: [Series; 2] = [Series { name: "6.1", suite: "bookworm" }, Series { name: "6.12", suite: "trixie" }];

/// A kernel that can be booted.
pub(super) struct Kernel {
    pub(super) series: Series,
    /// The package's version.
    pub(super) version: String,
    folder: PathBuf,
}

impl Kernel {
    /// The newest kernel of a series that can be had, from the cache if it is there.
    pub(super) fn get(series: Series, cache: &Path) -> Result<Self> {
        let configured = Self::get_from(&Apt::configured(), series, cache);
        if let Ok(Some(kernel)) = configured {
            return Ok(kernel);
        }
        eprintln!("Looking for Linux {} in Debian's {}", series.name, series.suite);
        let kernel = Apt::of_suite(series.suite, &cache.join("apt").join(series.suite))
            .and_then(|apt| Self::get_from(&apt, series, cache))
            .with_context(|| match configured {
                Err(error) => format!("the configured package sources failed ({error:#}), and so did those of {}", series.suite),
                Ok(_) => format!("the configured package sources offer no Linux {}", series.name),
            })?;
        kernel.with_context(|| format!("neither the configured package sources nor those of {} offer Linux {}", series.suite, series.name))
    }

    /// None if there is none of the series.
    fn get_from(apt: &Apt, series: Series, cache: &Path) -> Result<Option<Self>> {
        let Some(offer) = apt.newest(&pattern(series))? else { return Ok(None) };
        let folder = cache.join(&offer.version);
        if !folder.exists() {
            eprintln!("Fetching Linux {} into {}", offer.version, folder.display());
            fetch(apt, &offer, &folder)
                .with_context(|| format!("{} {} cannot be put into {}", offer.name, offer.version, folder.display()))?;
        }
        Ok(Some(Self { series, version: offer.version, folder }))
    }

    /// The file that boots.
    pub(super) fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    /// What belongs at /lib/modules.
    pub(super) fn modules(&self) -> PathBuf {
        self.folder.join("lib/modules")
    }
}

/// Names of the packages with kernels of a series: the small ones for clouds have all that is needed.
fn pattern(series: Series) -> String {
    format!(r"^linux-image-{}\.[^ ]*-cloud-amd64(-unsigned)?$", series.name.replace('.', r"\."))
}

/// Puts a package's kernel and modules into `folder`, which is there completely or not at all.
fn fetch(apt: &Apt, offer: &Offer, folder: &Path) -> Result<()> {
    let new = folder.with_file_name(format!(".new-{}-{}", offer.version, process::id()));
    let done = assemble(apt, offer, &new).and_then(|()| Ok(fs::rename(&new, folder)?));
    if done.is_err() {
        // Nothing is there if nothing could be fetched.
        let _ = fs::remove_dir_all(&new);
    }
    // Another process may have been faster.
    if folder.exists() { Ok(()) } else { done }
}

fn assemble(apt: &Apt, offer: &Offer, folder: &Path) -> Result<()> {
    let package = folder.join("package");
    apt.unpack(offer, &package)?;
    fs::rename(only_one(&package.join("boot"), "vmlinuz-")?, folder.join("vmlinuz"))?;
    // Newer packages name the folder by its path in a system whose /lib is a link.
    let places = ["lib/modules", "usr/lib/modules"].map(|place| package.join(place));
    let Some(modules) = places.iter().find(|place| place.is_dir()) else { bail!("the package has no modules") };
    fs::create_dir(folder.join("lib"))?;
    fs::rename(modules, folder.join("lib/modules"))?;
    fs::remove_dir_all(&package)?;
    index(folder)
}

/// Makes the indexes by which modules are found and loaded with those that they need.
fn index(folder: &Path) -> Result<()> {
    let release = only_one(&folder.join("lib/modules"), "")?;
    // Some builds of depmod look below usr/.
    symlink(".", folder.join("usr"))?;
    output(Command::new("depmod").arg("--basedir").arg(folder).args(release.file_name())).map(drop)
}

/// The one entry of a folder whose name begins so.
fn only_one(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?.collect::<Result<Vec<_>, _>>()?;
    let mut found: Vec<PathBuf> =
        entries.iter().filter(|e| e.file_name().to_string_lossy().starts_with(prefix)).map(fs::DirEntry::path).collect();
    ensure!(found.len() == 1, "{}: one {prefix}* is expected, found {found:?}", folder.display());
    Ok(found.remove(0))
}
