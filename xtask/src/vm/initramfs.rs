//! What a virtual machine boots into: the agent, the lab, and the few programs of this machine that they need.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Archive;
use crate::run::output;

/// The first process.
const INIT: &str = include_str!("init.sh");

/// The folder of scenarios.
pub(super) const SCENARIOS: &str = "scenarios";

/// Where file systems are mounted.
const MOUNT_POINTS: [&str; 5] = ["proc", "sys", "dev", "run", "tmp"];

/// Where this machine's programs may be.
const PATH: [&str; 4] = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Packs everything for one kernel, to run `commands` in a shell.
pub(super) fn pack(programs: &Programs, modules: &Path, commands: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    MOUNT_POINTS.iter().for_each(|folder| archive.folder(folder));
    archive.file("init", true, INIT.as_bytes());
    archive.file("commands", false, commands.as_bytes());
    for (path, content) in &programs.files {
        archive.file(path, true, content);
    }
    // Some builds of modprobe look there.
    archive.link("usr/lib/modules", "/lib/modules");
    add_folder(&mut archive, modules, "lib/modules")?;
    add_folder(&mut archive, &crate::workspace().join("tests/scenarios"), SCENARIOS)?;
    Ok(archive.finish())
}

/// Programs with the libraries that they need, by path in the machine.
pub(super) struct Programs {
    files: Vec<(String, Vec<u8>)>,
}

impl Programs {
    /// Those just built, without their debugging information, which `scratch` is for, and those of this machine.
    pub(super) fn collect(built: &[PathBuf], installed: &[&str], scratch: &Path) -> Result<Self> {
        let mut files = Vec::new();
        let mut libraries = BTreeSet::new();
        for program in built {
            let name = program.file_name().with_context(|| program.display().to_string())?;
            let small = scratch.join(name);
            output(Command::new("strip").arg("--strip-debug").arg("-o").arg(&small).arg(program))?;
            files.push((format!("usr/bin/{}", name.display()), read(&small)?));
            libraries.extend(libraries_of(&small)?);
        }
        for name in installed {
            let path = find(name)?;
            // The kernel looks for modprobe in /sbin, scripts for busybox in /bin.
            let folder = if *name == "busybox" { "bin" } else { "sbin" };
            files.push((format!("{folder}/{name}"), read(&path)?));
            libraries.extend(libraries_of(&path)?);
        }
        for library in libraries {
            files.push((library.display().to_string(), read(&library)?));
        }
        Ok(Self { files })
    }
}

fn find(program: &str) -> Result<PathBuf> {
    let mut places = PATH.iter().map(|folder| Path::new(folder).join(program));
    places.find(|path| path.is_file()).with_context(|| format!("there is no {program} in {}", PATH.join(", ")))
}

/// All libraries that a program is linked to, directly or not, with what loads them.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    match output(Command::new("ldd").env("LC_ALL", "C").arg(program)) {
        Ok(text) => Ok(libraries(&text)),
        // It says so with an exit status of 1.
        Err(error) if format!("{error:#}").contains("not a dynamic executable") => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The files in what ldd prints: `libc.so.6 => /lib/libc.so.6 (0x7f…)`, `/lib64/ld-linux-x86-64.so.2 (0x7f…)`.
fn libraries(ldd: &str) -> Vec<PathBuf> {
    ldd.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// Adds a folder with all that is in it.
fn add_folder(archive: &mut Archive, folder: &Path, inside: &str) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry.with_context(|| folder.display().to_string())?;
        let path = format!("{inside}/{}", entry.file_name().display());
        if entry.file_type()?.is_dir() {
            add_folder(archive, &entry.path(), &path)?;
        } else {
            archive.file(&path, false, &read(&entry.path())?);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_libraries_and_their_loader_are_read() {
        let ldd = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x00007f)\n\t/lib64/ld.so.2 (0x00007f)\n";
        assert_eq!(libraries(ldd), ["/lib/x/libc.so.6", "/lib64/ld.so.2"].map(PathBuf::from));
    }
}
