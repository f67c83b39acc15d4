//! Builds the kernel programs. The object is committed, so that the agent builds without any of this; it is the same, byte for
//! byte, wherever it is built with the same compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::packages::{self, Package};
use crate::run::{self, output};

/// The object that the agent embeds, and the list of tools that made it.
const OBJECT: &str = "proxy-ebpf/proxy-ebpf.o";
const TOOLCHAIN: &str = "proxy-ebpf/proxy-ebpf.o.toolchain";

const TARGET: &str = "bpfel-unknown-none";
const PROFILE: &str = "ebpf";
const LINKER_VERSION: &str = "0.13.0";

/// The distribution's compiler: it comes with the source of `core`, which must be built for the kernel's target, and with the
/// LLVM that it was made with, which the linker needs.
pub(crate) const RUSTC: &str = "/usr/bin/rustc";
const LLVM: &str = "/usr/lib/llvm-22";
const PACKAGES: [Package; 5] = [
    Package { name: "rustc-web", why: "the compiler of the kernel programs" },
    Package { name: "rust-web-src", why: "the source of core, built for the kernel's target" },
    Package { name: "llvm-22", why: "llvm-objcopy, which strips the object" },
    Package { name: "llvm-22-dev", why: "to build bpf-linker" },
    Package { name: "libpolly-22-dev", why: "to build bpf-linker" },
];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write nothing; fail unless the committed object is what the sources give
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let root = crate::workspace();
    packages::ensure(&PACKAGES).with_context(|| {
        format!(
            "the tools for building the kernel programs are not complete. They are packaged for Debian 12 with its security \
             updates; {} may lack them. They are needed only when {OBJECT} must change: everything else builds without them",
            packages::system()
        )
    })?;
    let linker = linker()?;
    let toolchain = toolchain(&linker)?;
    eprint!("Toolchain:\n{}", indent(&toolchain));

    let built = fs::read(build(&root, &linker)?).context("cannot read the object just built")?;
    let (object, record) = (root.join(OBJECT), root.join(TOOLCHAIN));
    if args.check {
        let committed = fs::read(&object).with_context(|| format!("{OBJECT} is missing: run `cargo xtask ebpf`"))?;
        return check(&built, &committed, &toolchain, &fs::read_to_string(record).unwrap_or_default());
    }
    let changed = fs::read(&object).ok().as_ref() != Some(&built);
    fs::write(&object, &built).with_context(|| format!("cannot write {OBJECT}"))?;
    fs::write(&record, &toolchain).with_context(|| format!("cannot write {TOOLCHAIN}"))?;
    eprintln!("{OBJECT}: {} bytes, {}", built.len(), if changed { "changed: commit it" } else { "unchanged" });
    Ok(())
}

/// Fails unless what was built is what is committed, and says which of sources and tools is the cause.
fn check(built: &[u8], committed: &[u8], here: &str, recorded: &str) -> Result<()> {
    let same_tools = here == recorded;
    if built == committed {
        eprintln!("{OBJECT} is what the sources give ({} bytes)", built.len());
        if !same_tools {
            eprintln!("(other versions of the tools made it, to the same effect; it was made with:\n{})", indent(recorded));
        }
        return Ok(());
    }
    if same_tools {
        bail!("{OBJECT} is not what the sources give. Run `cargo xtask ebpf` and commit {OBJECT}");
    }
    bail!(
        "the toolchain differs from the one that made {OBJECT}, so that the object built here is another one says nothing about \
         the sources. The object was made with\n{}and here is\n{}Either install the versions of the first list, or run `cargo \
         xtask ebpf` with the second and commit {OBJECT} and {TOOLCHAIN}",
        indent(recorded),
        indent(here)
    )
}

/// Compiles and strips the object; returns where it is.
fn build(root: &Path, linker: &Path) -> Result<PathBuf> {
    let target_dir = root.join("target/ebpf");
    let mut path = vec![linker.parent().context("the linker has no folder")?.to_path_buf()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));

    // The flags name the folders of what is fetched, so it has to be there before.
    run::run(cargo().current_dir(root).args(["fetch", "--quiet", "--locked"])).context("the dependencies cannot be fetched")?;
    let mut cargo = cargo();
    cargo
        .current_dir(root)
        .args(["build", "--quiet", "--locked", "--package", "proxy-ebpf", "--profile", PROFILE, "--target", TARGET])
        .args(["-Zbuild-std=core", "--target-dir"])
        .arg(&target_dir)
        .env("PATH", std::env::join_paths(path).context("PATH cannot be extended")?)
        .env("RUSTC", RUSTC)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(root)?.join("\x1f"));
    run::run(&mut cargo).context("the kernel programs do not build")?;

    let stripped = target_dir.join("proxy-ebpf.o");
    let linked = target_dir.join(TARGET).join(PROFILE).join("proxy-ebpf");
    run::run(Command::new(format!("{LLVM}/bin/llvm-objcopy")).arg("--strip-debug").arg(linked).arg(&stripped))?;
    Ok(stripped)
}

/// The compiler's flags: BTF, and no trace of this machine's folders.
fn rustflags(root: &Path) -> Result<Vec<String>> {
    let mut flags = vec![
        // Registers of traced functions differ by architecture; no program here reads them, so one object serves all.
        "--cfg=bpf_target_arch=\"x86_64\"".to_owned(),
        "-Clink-arg=--btf".to_owned(),
    ];
    flags.extend(without_paths(root, RUSTC)?);
    Ok(flags)
}

/// Flags that keep this machine's folders out of what `rustc` compiles.
pub(crate) fn without_paths(root: &Path, rustc: &str) -> Result<Vec<String>> {
    let sysroot = output(Command::new(rustc).current_dir(root).args(["--print", "sysroot"]))?;
    let library = Path::new(sysroot.trim()).join("lib/rustlib/src/rust");
    let mut flags = Vec::new();
    let mut folders = vec![(root.to_path_buf(), "proxy-agent"), (cargo_home()?, "cargo"), (library, "rust")];
    // A registry's folder is named after the registry, which may be a mirror. Of several prefixes that fit, the last counts.
    let registries = fs::read_dir(cargo_home()?.join("registry/src")).into_iter().flatten().flatten();
    folders.extend(registries.map(|registry| (registry.path(), "crates")));
    for (folder, name) in folders {
        // The compiler sees some files by the resolved path.
        for folder in [folder.canonicalize().ok(), Some(folder)].into_iter().flatten() {
            flags.push(format!("--remap-path-prefix={}=/{name}", folder.display()));
        }
    }
    Ok(flags)
}

/// The linker for the kernel's target; built once, into a cache of ours.
fn linker() -> Result<PathBuf> {
    let llvm = packages::version("llvm-22-dev").context("llvm-22-dev is not installed")?;
    let name = format!("bpf-linker-{LINKER_VERSION}-llvm-{}", llvm.replace([':', '~', '+'], "-"));
    let folder = crate::cache()?.join(name);
    let linker = folder.join("bin/bpf-linker");
    if !linker.exists() {
        eprintln!("Building bpf-linker {LINKER_VERSION} into {} (once, some minutes)", folder.display());
        run::run(
            cargo()
                .current_dir("/")
                .args(["install", "--quiet", "--locked", "bpf-linker", "--version", LINKER_VERSION])
                .args(["--no-default-features", "--features", "llvm-22", "--root"])
                .arg(&folder)
                .env("LLVM_PREFIX", LLVM)
                .env("LLVM_SYS_221_PREFIX", LLVM)
                .env("CARGO_ENCODED_RUSTFLAGS", format!("-L{LLVM}/lib")),
        )
        .context("bpf-linker does not build")?;
    }
    Ok(linker)
}

/// What decides the bytes of the object, besides the sources.
fn toolchain(linker: &Path) -> Result<String> {
    let mut lines = vec![output(Command::new(RUSTC).arg("--version"))?, output(Command::new(linker).arg("--version"))?];
    for package in ["rustc-web", "llvm-22"] {
        lines.push(format!("{package} {}", packages::version(package).unwrap_or_default()));
    }
    Ok(lines.iter().map(|line| format!("{}\n", line.trim())).collect())
}

/// The cargo that runs us, free of what a user's environment would change in the object.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for name in ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET"] {
        command.env_remove(name);
    }
    command
}

fn cargo_home() -> Result<PathBuf> {
    match std::env::var_os("CARGO_HOME") {
        Some(folder) => Ok(folder.into()),
        None => Ok(crate::home()?.join(".cargo")),
    }
}

fn indent(lines: &str) -> String {
    lines.lines().map(|line| format!("  {line}\n")).collect()
}
