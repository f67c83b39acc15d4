//! The architectures, and how the program is built for each: natively, or with Debian's cross compiler and a standard library
//! that is built from source.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::packages::{self, Package};
use crate::{ebpf, lab, run};

/// What the cross compiler comes from: the compiler of the kernel programs has the source of the standard library with it.
const CROSS: [Package; 4] = [
    Package { name: "rustc-web", why: "the compiler for arm64" },
    Package { name: "rust-web-src", why: "the source of the standard library, built for arm64" },
    Package { name: "gcc-aarch64-linux-gnu", why: "compiles C and links for arm64" },
    Package { name: "libc6-dev-arm64-cross", why: "the C library to link with" },
];

/// What the program is linked with for arm64. It is unpacked beside the build and not installed.
const LINKED: [&str; 4] = ["libnftnl-dev", "libnftnl11", "libmnl-dev", "libmnl0"];

const PROGRAM: &str = "proxy-agent";

/// An architecture, by its name in images and in Debian.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Arch {
    Amd64,
    Arm64,
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Arch {
    pub(super) const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The name of the folder of libraries (multiarch).
    pub(super) fn multiarch(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-linux-gnu",
            Self::Arm64 => "aarch64-linux-gnu",
        }
    }

    fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// Builds the program below `folder`; returns where it is.
    pub(super) fn build(self, folder: &Path) -> Result<PathBuf> {
        lab::packages()?;
        let mut command = lab::cargo();
        run::run(lab::cargo().args(["fetch", "--quiet", "--locked"])).context("the dependencies cannot be fetched")?;
        command.args(["rustc", "--locked", "--package", PROGRAM, "--bin", PROGRAM, "--release", "--target", self.target(), "--target-dir"]);
        command.arg(folder);
        // Names of functions stay, for backtraces; the rest of the debug information is larger than the program.
        command.env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo");
        for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "CARGO_BUILD_TARGET", "CARGO_TARGET_DIR"] {
            command.env_remove(name);
        }
        let rustc = match self {
            Self::Amd64 => "rustc",
            Self::Arm64 => cross(&mut command, folder)?,
        };
        command.env("CARGO_ENCODED_RUSTFLAGS", ebpf::without_paths(&crate::workspace(), rustc)?.join("\x1f"));
        if self == Self::Arm64 {
            // What libnftnl needs itself is looked for there too, and for this program alone.
            let libraries = sysroot(folder).join("usr/lib/aarch64-linux-gnu");
            command.args(["--", "-C"]).arg(format!("link-arg=-Wl,-rpath-link={}", libraries.display()));
        }
        run::run(&mut command).with_context(|| format!("the program does not build for {self}"))?;
        Ok(folder.join(self.target()).join("release").join(PROGRAM))
    }
}

/// Where the libraries of arm64 are.
fn sysroot(folder: &Path) -> PathBuf {
    folder.join("arm64-sysroot")
}

/// Sets cargo up to build for arm64; returns the compiler.
fn cross(command: &mut Command, folder: &Path) -> Result<&'static str> {
    packages::ensure(&CROSS)?;
    let sysroot = sysroot(folder);
    if !sysroot.is_dir() {
        let apt = Apt::of_architecture("arm64", &folder.join("apt-arm64"))?;
        let new = folder.join("arm64-sysroot.new");
        for offer in apt.offers(&LINKED)? {
            apt.unpack(&offer, &new).with_context(|| offer.name.clone())?;
        }
        fs::rename(&new, &sysroot).with_context(|| sysroot.display().to_string())?;
    }
    let tool = |name: &str| format!("aarch64-linux-gnu-{name}");
    command
        .arg("-Zbuild-std=std,panic_abort")
        .env("RUSTC", ebpf::RUSTC)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", tool("gcc"))
        .env("CC_aarch64_unknown_linux_gnu", tool("gcc"))
        .env("AR_aarch64_unknown_linux_gnu", tool("ar"))
        .env("PKG_CONFIG_ALLOW_CROSS", "1")
        .env("PKG_CONFIG_SYSROOT_DIR", &sysroot)
        .env("PKG_CONFIG_LIBDIR", sysroot.join("usr/lib/aarch64-linux-gnu/pkgconfig"));
    Ok(ebpf::RUSTC)
}
