//! System packages (Debian and Ubuntu) that a command needs: installed when they are missing, never removed.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{capture, output, run};

/// A system package, and what it is needed for.
pub(crate) struct Package {
    pub(crate) name: &'static str,
    pub(crate) why: &'static str,
}

/// Installs those of `packages` that are missing.
pub(crate) fn ensure(packages: &[Package]) -> Result<()> {
    let missing: Vec<&Package> = packages.iter().filter(|package| version(package.name).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let list: String = missing.iter().map(|package| format!("  {} ({})\n", package.name, package.why)).collect();

    if !on_path("apt-get") {
        bail!(
            "these packages are missing:\n{list}They can be installed only where there is apt-get (Debian, Ubuntu); this is {}. \
             Install what corresponds to them, or use a Debian container",
            system()
        );
    }
    let install = format!("apt-get install {}", names.join(" "));
    if !is_root()? {
        bail!("these packages are missing:\n{list}Only root can install them: run `sudo {install}`, then this command again");
    }

    eprint!("Installing packages:\n{list}");
    if unavailable(&names)?.is_some() {
        run(apt_get().args(["-qq", "update"])).context("the list of packages could not be refreshed")?;
    }
    if let Some(name) = unavailable(&names)? {
        bail!("{} offers no package {name}, even after `apt-get update`", system());
    }
    // --no-remove: a conflict with something that is installed is the user's to resolve.
    let options = ["-qq", "--yes", "--no-install-recommends", "--no-remove"];
    output(apt_get().arg("install").args(options).args(&names)).with_context(|| {
        format!("packages could not be installed; `{install}` shows whether something that is installed conflicts with them")
    })?;
    match names.into_iter().find(|name| version(name).is_none()) {
        Some(name) => bail!("apt-get reported success, but {name} is not installed"),
        None => Ok(()),
    }
}

/// The version of a package that is installed.
pub(crate) fn version(name: &str) -> Option<String> {
    let format = "-f=${db:Status-Status} ${Version}";
    let found = output(Command::new("dpkg-query").args(["-W", format, name])).ok()?;
    found.strip_prefix("installed ").map(str::to_owned)
}

/// The name of this system, for messages.
pub(crate) fn system() -> String {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| std::env::consts::OS.to_owned(), |name| name.trim_matches('"').to_owned())
}

/// The first of `names` that the package sources, as far as they are known here, do not offer.
fn unavailable<'a>(names: &[&'a str]) -> Result<Option<&'a str>> {
    for name in names {
        let found = capture(Command::new("apt-cache").args(["--quiet=2", "show", "--no-all-versions", name]))?;
        if !found.status.success() || found.stdout.is_empty() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    // Another apt-get, such as unattended upgrades, is waited for.
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300"]);
    command
}

fn is_root() -> Result<bool> {
    Ok(output(Command::new("id").arg("-u"))?.trim() == "0")
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file())
}
