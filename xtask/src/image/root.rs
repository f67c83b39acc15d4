//! What is in the image: the program, the libraries that it needs, and their licences. No shell, no package manager.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::arch::Arch;
use super::layer::{Entry, Files};
use crate::apt::{Apt, Offer};
use crate::run::output;

/// The Debian packages that have the libraries, for every architecture.
const PACKAGES: [&str; 4] = ["libc6", "libgcc-s1", "libmnl0", "libnftnl11"];

/// Whoever is started by this name takes kube-proxy's command line.
const OTHER_NAME: &str = "kube-proxy";

/// The files of the two layers: libraries, and the program. Packages are unpacked into `folder`, once.
pub(super) fn files(arch: Arch, program: &Path, folder: &Path) -> Result<(Files, Files)> {
    let root = unpacked(arch, folder)?;
    let mut libraries = Files::new();
    for path in needed(arch, program, &root)? {
        libraries.insert(path.clone(), Entry::File { content: read(&inside(&root, &path)?)?, executable: true });
    }
    for package in PACKAGES {
        let doc = Path::new("usr/share/doc").join(package);
        let content = read(&inside(&root, &doc)?.join("copyright"))?;
        libraries.insert(doc.join("copyright"), Entry::File { content, executable: false });
    }
    let own = crate::workspace().join("LICENSE");
    let agent = [
        ("usr/local/bin/proxy-agent", Entry::File { content: read(program)?, executable: true }),
        ("usr/share/doc/proxy-agent/LICENSE", Entry::File { content: read(&own)?, executable: false }),
    ];
    let mut agent: Files = agent.into_iter().map(|(path, entry)| (path.into(), entry)).collect();
    agent.insert(Path::new("usr/local/bin").join(OTHER_NAME), Entry::Link("proxy-agent".into()));
    Ok((libraries, agent))
}

/// The packages with the libraries, unpacked, and those that these share their licence with.
fn unpacked(arch: Arch, folder: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    if root.is_dir() {
        return Ok(root);
    }
    let apt = Apt::of_architecture(arch.name(), &folder.join("apt"))?;
    let new = folder.join("root.new");
    let unpack = |names: &[&str]| -> Result<()> {
        let unpack = |offer: &Offer| apt.unpack(offer, &new).with_context(|| offer.name.clone());
        apt.offers(names)?.iter().try_for_each(unpack)
    };
    unpack(&PACKAGES)?;
    // Packages of one source may have their documents as a link to another's, whose name says its version.
    let link = |package: &str| fs::read_link(new.join("usr/share/doc").join(package)).ok();
    for target in PACKAGES.into_iter().filter_map(link) {
        unpack(&[target.to_str().context("a package's name")?])?;
    }
    fs::rename(&new, &root).with_context(|| root.display().to_string())?;
    Ok(root)
}

/// Where a path leads in `root`, by links that mean other paths in it.
fn inside(root: &Path, path: &Path) -> Result<PathBuf> {
    // Packages for systems in which /lib is a link have what is there below /usr.
    let places = [root.join(path), root.join("usr").join(path)];
    let mut place = places.into_iter().find(|place| place.is_symlink() || place.exists()).with_context(|| path.display().to_string())?;
    for _ in 0..8 {
        let Ok(target) = fs::read_link(&place) else { return Ok(place) };
        place = match target.strip_prefix("/") {
            Ok(absolute) => root.join(absolute),
            Err(_) => place.parent().unwrap_or(root).join(target),
        };
    }
    bail!("{}: links without an end", path.display())
}

/// The paths of all libraries that a program is linked with, those of the libraries included, and of what loads them.
fn needed(arch: Arch, program: &Path, root: &Path) -> Result<BTreeSet<PathBuf>> {
    let loader = interpreter(program)?;
    let loader = loader.strip_prefix("/").context("the loader's path is not absolute")?.to_path_buf();
    let mut paths = BTreeSet::from([loader.clone()]);
    let mut files = vec![program.to_path_buf()];
    while let Some(file) = files.pop() {
        for name in linked(&file)? {
            if loader.file_name().is_some_and(|loader| loader == &*name) {
                continue;
            }
            let path = find(arch, &name, root).with_context(|| format!("{} needs it", file.display()))?;
            if paths.insert(path.clone()) {
                files.push(inside(root, &path)?);
            }
        }
    }
    Ok(paths)
}

/// Where a library is that the loader finds without being told.
fn find(arch: Arch, name: &str, root: &Path) -> Result<PathBuf> {
    let places = ["lib", "usr/lib"].map(|folder| Path::new(folder).join(arch.multiarch()).join(name));
    let found = places.into_iter().find(|path| inside(root, path).is_ok_and(|place| place.is_file()));
    found.with_context(|| format!("library {name} is in none of the packages {PACKAGES:?}"))
}

/// The names of the libraries that a file is linked with.
fn linked(file: &Path) -> Result<Vec<String>> {
    let dynamic = output(Command::new("readelf").args(["--wide", "--dynamic"]).arg(file))?;
    let name = |line: &str| line.split_once("(NEEDED)")?.1.split_once('[')?.1.split_once(']').map(|(name, _)| name.to_owned());
    Ok(dynamic.lines().filter_map(name).collect())
}

/// The program that loads the libraries of another.
fn interpreter(program: &Path) -> Result<PathBuf> {
    let headers = output(Command::new("readelf").args(["--wide", "--program-headers"]).arg(program))?;
    let path = headers.split_once("program interpreter: ").and_then(|(_, rest)| rest.split_once(']')).map(|(path, _)| path);
    let path = PathBuf::from(path.with_context(|| format!("{} names no loader", program.display()))?);
    ensure!(path.is_absolute(), "{}: loader {}", program.display(), path.display());
    Ok(path)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_nowhere_but_into_the_root() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let root = dir.path();
        fs::create_dir_all(root.join("usr/lib/x"))?;
        fs::write(root.join("usr/lib/x/real"), "")?;
        symlink("/usr/lib/x/real", root.join("usr/lib/absolute"))?;
        symlink("x/real", root.join("usr/lib/relative"))?;
        symlink("endless", root.join("usr/endless"))?;
        let real = root.join("usr/lib/x/real");
        for path in ["usr/lib/absolute", "usr/lib/relative", "lib/absolute", "lib/x/real"] {
            assert_eq!(inside(root, Path::new(path))?, real, "{path}");
        }
        assert!(inside(root, Path::new("endless")).is_err() && inside(root, Path::new("nowhere")).is_err());
        Ok(())
    }
}
