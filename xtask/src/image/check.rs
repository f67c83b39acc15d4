//! Runs what is in an image, unpacked from its layers: its version, with nothing of this machine's file system, for every
//! architecture; and the demo, natively.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;

use super::arch::Arch;
use super::layout::Image;
use crate::packages::{self, Package};
use crate::{lab, run};

const EMULATOR: [Package; 1] = [Package { name: "qemu-user-static", why: "runs the program for arm64" }];

/// Fails unless the image runs. `layout` is where it has been written to.
pub(super) fn image(image: &Image, layout: &Path, out: &Path) -> Result<()> {
    let root = unpack(image, layout, &out.join(format!("root-{}", image.arch)))?;
    for name in ["proxy-agent", "kube-proxy"] {
        let program = Path::new("/usr/local/bin").join(name);
        let version = run::output(in_root(image.arch, &root)?.arg(&program).arg("--version"))?;
        ensure!(version.starts_with("proxy-agent "), "{} --version in the image for {} says {version:?}", program.display(), image.arch);
        eprintln!("{} --version in the image for {}: {}", program.display(), image.arch, version.trim());
    }
    if image.arch == Arch::Amd64 {
        demo(&root, out)?;
    }
    Ok(())
}

/// Unpacks the layers, read back from the layout, as a container engine does.
fn unpack(image: &Image, layout: &Path, root: &Path) -> Result<PathBuf> {
    if root.exists() {
        fs::remove_dir_all(root).with_context(|| root.display().to_string())?;
    }
    for layer in &image.layers {
        let blob = layout.join("blobs").join(layer.digest.replace(':', "/"));
        let file = fs::File::open(&blob).with_context(|| blob.display().to_string())?;
        let mut archive = tar::Archive::new(GzDecoder::new(file));
        archive.set_preserve_permissions(true);
        archive.unpack(root).with_context(|| format!("{} does not unpack", blob.display()))?;
    }
    Ok(root.to_path_buf())
}

/// A command that runs in the image's files and sees no others.
fn in_root(arch: Arch, root: &Path) -> Result<Command> {
    let mut command = Command::new("chroot");
    command.arg(root);
    if arch == Arch::Arm64 {
        packages::ensure(&EMULATOR)?;
        let emulator = "qemu-aarch64-static";
        fs::copy(Path::new("/usr/bin").join(emulator), root.join(emulator)).context(emulator)?;
        command.arg(Path::new("/").join(emulator));
    }
    Ok(command)
}

/// The demo, with agents made of the image's program, libraries and loader.
fn demo(root: &Path, out: &Path) -> Result<()> {
    lab::build(lab::DEBUG)?;
    let script = out.join("agent-from-image");
    // The lab's files are not in the image's root, and the agent may have too few rights there to enter it.
    let text = format!(
        "#!/bin/sh\nroot='{}'\nexec \"$root/lib64/ld-linux-x86-64.so.2\" --inhibit-cache --library-path \"$root/lib/{}\" \
         \"$root/usr/local/bin/proxy-agent\" \"$@\"\n",
        root.display(),
        Arch::Amd64.multiarch()
    );
    fs::write(&script, text).and_then(|()| fs::set_permissions(&script, fs::Permissions::from_mode(0o755))).context("a script")?;
    for mode in ["ebpf", "nftables"] {
        let mut demo = Command::new(lab::built(lab::DEBUG, "proxy-lab"));
        let said = run::output(demo.args(["demo", "--mode", mode, "--agent"]).arg(&script))?;
        let summary = said.lines().rfind(|line| line.starts_with("summary: ")).context("the demo said no summary")?;
        eprintln!("the image's agent, {mode}: {summary}");
    }
    Ok(())
}
