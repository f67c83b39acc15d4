//! The container image: an OCI image layout with one image for each architecture, made without a container engine. The same sources
//! give the same bytes.

mod arch;
mod check;
mod layer;
mod layout;
mod root;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::packages::{self, Package};
use crate::run::output;
use arch::Arch;
use layout::{Image, Layout};

const PACKAGES: [Package; 2] =
    [Package { name: "binutils", why: "tells which libraries a program needs" }, Package { name: "gcc", why: "links the program" }];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The architectures (default: all)
    #[arg(long, value_enum, value_delimiter = ',')]
    arch: Vec<Arch>,
    /// The folder that gets the layout (image/), the same as one file (image.tar), and what is checked
    #[arg(long, default_value = "target/image")]
    out: PathBuf,
    /// Make each image twice, from the program on, and fail unless both are the same
    #[arg(long)]
    twice: bool,
}

/// Builds the programs, makes the image, and runs it as far as this machine can.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(cfg!(target_arch = "x86_64"), "the image is made on x86-64 machines, which can build for all architectures; this is none");
    packages::ensure(&PACKAGES)?;
    let out = crate::workspace().join(&args.out);
    let arches = if args.arch.is_empty() { Arch::ALL.to_vec() } else { args.arch.clone() };
    let source = Source::of(&crate::workspace())?;
    let mut images = Vec::new();
    for arch in arches {
        eprintln!("Building the program for {arch} (release; some minutes)");
        let program = arch.build(&out.join("build"))?;
        let make = || image(arch, &program, &out.join("packages").join(arch.name()), &source);
        let image = make()?;
        if args.twice {
            ensure!(make()?.digest() == image.digest(), "{arch}: the same program gave two different images");
        }
        images.push(image);
    }
    let folder = out.join("image");
    let layout = Layout::of(&images, &source);
    layout.write(&folder)?;
    layout.pack(&folder.with_extension("tar"))?;
    for image in &images {
        check::image(image, &folder, &out)?;
        println!("{}: {} ({} bytes compressed)", image.arch, image.digest(), image.size());
    }
    println!("image {}: {} and {}", source.version, folder.display(), folder.with_extension("tar").display());
    Ok(())
}

/// What the image says that it was made from.
struct Source {
    version: String,
    revision: String,
    /// Seconds since 1970 of the commit: the time of the program in the image, and of the image.
    time: u64,
}

impl Source {
    fn of(workspace: &Path) -> Result<Self> {
        let git = |args: &[&str]| output(Command::new("git").current_dir(workspace).args(args)).map(|text| text.trim().to_owned());
        let manifest = fs::read_to_string(workspace.join("Cargo.toml")).context("Cargo.toml")?;
        let version = manifest.lines().find_map(|line| line.strip_prefix("version = ")).context("Cargo.toml has no version")?;
        let dirty = if git(&["status", "--porcelain", "--untracked-files=no"])?.is_empty() { "" } else { "-dirty" };
        Ok(Self {
            version: version.trim_matches('"').to_owned(),
            revision: git(&["rev-parse", "HEAD"]).context("the image names the commit that it is made from")? + dirty,
            time: git(&["log", "-1", "--format=%ct"])?.parse().context("the time of the commit")?,
        })
    }
}

fn image(arch: Arch, program: &Path, packages: &Path, source: &Source) -> Result<Image> {
    let (libraries, agent) = root::files(arch, program, packages)?;
    // What seldom changes comes first, without the time of the commit: nodes that have it keep it.
    let layers = vec![layer::pack(&libraries, 0)?, layer::pack(&agent, source.time)?];
    Image::new(arch, layers, source)
}
