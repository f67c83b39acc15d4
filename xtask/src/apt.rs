//! Debian packages that are fetched and unpacked, not installed: from the machine's own package sources, or from the same places
//! in another suite or for another architecture. The machine's configuration stays as it is, and every file is verified as apt always does.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::packages::system;
use crate::run::{capture, output};

/// Where apt's own sources are.
const SOURCES: &str = "/etc/apt";

/// A set of package sources.
pub(crate) struct Apt {
    options: Vec<OsString>,
}

/// A package that can be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Offer {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Apt {
    /// What the machine is configured for, as far as its lists are up to date.
    pub(crate) fn configured() -> Self {
        Self { options: Vec::new() }
    }

    /// The machine's Debian sources with another suite in place of its own. Lists and sources are kept in `folder`.
    pub(crate) fn of_suite(suite: &str, folder: &Path) -> Result<Self> {
        Self::derived(Some(suite), None, folder)
    }

    /// The machine's Debian sources for an architecture, by Debian's name. Lists and sources are kept in `folder`.
    pub(crate) fn of_architecture(architecture: &str, folder: &Path) -> Result<Self> {
        Self::derived(None, Some(architecture), folder)
    }

    fn derived(suite: Option<&str>, architecture: Option<&str>, folder: &Path) -> Result<Self> {
        let own = codename(&fs::read_to_string("/etc/os-release").context("/etc/os-release")?);
        let own = own.with_context(|| format!("this is {}, whose package sources have no packages of Debian's", system()))?;
        let suite = suite.unwrap_or(&own);
        let sources = folder.join("sources");
        for name in ["sources", "lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(name)).with_context(|| folder.display().to_string())?;
        }
        let mut found = false;
        for path in source_files()? {
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let exchanged =
                if path.extension().is_some_and(|e| e == "sources") { stanzas(&text, &own, suite) } else { lines(&text, &own, suite) };
            let name = path.file_name().with_context(|| path.display().to_string())?;
            fs::write(sources.join(name), &exchanged).with_context(|| sources.display().to_string())?;
            found |= !exchanged.is_empty();
        }
        ensure!(found, "no package source of {own} is configured in {SOURCES}, so there is none to derive {suite}'s from");
        let option = |name: &str, value: &Path| ["-o".into(), format!("{name}={}", value.display()).into()];
        let nothing = Path::new("/dev/null");
        let mut options = vec![
            option("Dir::Etc::SourceList", nothing),
            option("Dir::Etc::SourceParts", &sources),
            // The machine's preferences may keep a foreign suite out; nothing of it is installed here.
            option("Dir::Etc::Preferences", nothing),
            option("Dir::Etc::PreferencesParts", nothing),
            option("Dir::State::Lists", &folder.join("lists")),
            option("Dir::Cache", &folder.join("cache")),
        ];
        if let Some(architecture) = architecture {
            let architecture = Path::new(architecture);
            options.extend([option("APT::Architecture", architecture), option("APT::Architectures", architecture)]);
            // What is installed here is of another architecture, and says nothing about what can be had.
            options.push(option("Dir::State::Status", nothing));
        }
        let apt = Self { options: options.concat() };
        output(apt.command("apt-get").args(["-qq", "update"])).with_context(|| format!("the package lists of {suite}"))?;
        Ok(apt)
    }

    /// The newest version of each of these packages.
    pub(crate) fn offers(&self, names: &[&str]) -> Result<Vec<Offer>> {
        let shown = output(self.command("apt-cache").args(["show", "--no-all-versions"]).args(names))?;
        let found = offers(&shown);
        let offer = |name: &&str| found.iter().find(|offer| offer.name == **name).cloned();
        names.iter().map(|name| offer(name).with_context(|| format!("the package sources offer no {name}"))).collect()
    }

    /// The newest package whose name fits a pattern.
    pub(crate) fn newest(&self, pattern: &str) -> Result<Option<Offer>> {
        let found = output(self.command("apt-cache").args(["search", "--names-only", pattern]))?;
        let names: Vec<&str> = found.lines().filter_map(|line| line.split(' ').next()).collect();
        if names.is_empty() {
            return Ok(None);
        }
        let shown = output(self.command("apt-cache").args(["show", "--no-all-versions"]).args(names))?;
        let mut newest: Option<Offer> = None;
        for offer in offers(&shown) {
            let newer = match &newest {
                Some(best) => is_newer(&offer.version, &best.version)?,
                None => true,
            };
            if newer {
                newest = Some(offer);
            }
        }
        Ok(newest)
    }

    /// Fetches a package and unpacks it into a folder.
    pub(crate) fn unpack(&self, offer: &Offer, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let wanted = format!("{}={}", offer.name, offer.version);
        // As the user that runs this: the folder is nobody else's to write.
        let mut download = self.command("apt-get");
        output(download.current_dir(folder).args(["-qq", "-o", "APT::Sandbox::User=root", "download", &wanted]))?;
        let files = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
        let Some(package) = files.iter().map(fs::DirEntry::path).find(|path| path.extension().is_some_and(|e| e == "deb")) else {
            bail!("apt-get reported success, but there is no package file of {wanted} in {}", folder.display());
        };
        output(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(folder))?;
        fs::remove_file(&package).with_context(|| package.display().to_string())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }
}

fn is_newer(version: &str, than: &str) -> Result<bool> {
    Ok(capture(Command::new("dpkg").args(["--compare-versions", version, "gt", than]))?.status.success())
}

/// The files that list the machine's sources.
fn source_files() -> Result<Vec<PathBuf>> {
    let folder = Path::new(SOURCES).join("sources.list.d");
    let parts = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let kinds = ["list", "sources"];
    let mut files: Vec<PathBuf> = parts.filter(|path| path.extension().is_some_and(|e| kinds.iter().any(|kind| e == *kind))).collect();
    files.push(Path::new(SOURCES).join("sources.list"));
    files.retain(|path| path.is_file());
    files.sort();
    ensure!(!files.is_empty(), "there are no package sources in {SOURCES}");
    Ok(files)
}

/// The name of the Debian release that an os-release file is of.
fn codename(os_release: &str) -> Option<String> {
    let fields: BTreeMap<&str, &str> = os_release.lines().filter_map(|line| line.split_once('=')).collect();
    let field = |name| fields.get(name).map(|value| value.trim_matches('"').to_owned());
    field("VERSION_CODENAME").filter(|_| field("ID").as_deref() == Some("debian"))
}

/// Those sources of a file of stanzas (sources.list(5), "deb822") that are of the release `own`, for the release `other`.
fn stanzas(text: &str, own: &str, other: &str) -> String {
    let mut kept = String::new();
    for stanza in text.split("\n\n") {
        let mut found = false;
        let mut exchanged = String::new();
        for line in stanza.lines() {
            let (field, values) = line.split_once(':').unwrap_or(("", ""));
            if field.eq_ignore_ascii_case("Suites") {
                let suites: Vec<String> = values.split_whitespace().filter_map(|suite| exchange(suite, own, other)).collect();
                found = !suites.is_empty();
                exchanged += &format!("{field}: {}\n", suites.join(" "));
            } else if !line.starts_with('#') {
                exchanged += &format!("{line}\n");
            }
        }
        if found {
            kept += &format!("{exchanged}\n");
        }
    }
    kept
}

/// The same for a file of one line each: `deb [options] URI suite component…`.
fn lines(text: &str, own: &str, other: &str) -> String {
    let mut kept = String::new();
    for line in text.lines().filter(|line| line.starts_with("deb ")) {
        // Options may have spaces, and stand before the place; the suite follows it.
        let start = line.find(']').unwrap_or(0);
        let (options, rest) = line.split_at(start);
        let mut words: Vec<String> = rest.split_whitespace().map(str::to_owned).collect();
        // Before it there is what ends the options, or the word "deb"; and the place.
        if let Some(suite) = words.get_mut(2)
            && let Some(exchanged) = exchange(suite, own, other)
        {
            *suite = exchanged;
            kept += &format!("{options}{}\n", words.join(" "));
        }
    }
    kept
}

/// The suite of the release `other` that corresponds to one of `own`; none for what is not a suite of Debian's releases.
fn exchange(suite: &str, own: &str, other: &str) -> Option<String> {
    let kind = suite.strip_prefix(own)?;
    matches!(kind, "" | "-security" | "-updates").then(|| format!("{other}{kind}"))
}

/// Names and versions in what `apt-cache show` prints.
fn offers(shown: &str) -> Vec<Offer> {
    let field = |stanza: &str, name: &str| stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned));
    let offer = |stanza: &str| Some(Offer { name: field(stanza, "Package")?, version: field(stanza, "Version")? });
    shown.split("\n\n").filter_map(offer).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_of_the_own_release_are_kept_with_the_other_name() {
        let text = "Types: deb\n# a remark\nURIs: http://mirror/debian\nSuites: old old-updates old-proposed\nComponents: main\n\
                    Signed-By: /keys\n\nTypes: deb\nURIs: http://elsewhere\nSuites: nodistro old-pgdg\nComponents: main\n\n\
                    Types: deb\nURIs: http://mirror/debian-security\nSuites: old-security\nComponents: main\n";
        let expected = "Types: deb\nURIs: http://mirror/debian\nSuites: new new-updates\nComponents: main\nSigned-By: /keys\n\n\
                        Types: deb\nURIs: http://mirror/debian-security\nSuites: new-security\nComponents: main\n\n";
        assert_eq!(stanzas(text, "old", "new"), expected);
    }

    #[test]
    fn lines_of_the_own_release_are_kept_with_the_other_name() {
        let text = "# deb http://mirror old main\ndeb http://mirror old main contrib\ndeb-src http://mirror old main\n\
                    deb [arch=amd64 signed-by=/keys] http://mirror old-security main\ndeb http://elsewhere other-old main\n";
        let expected = "deb http://mirror new main contrib\ndeb [arch=amd64 signed-by=/keys] http://mirror new-security main\n";
        assert_eq!(lines(text, "old", "new"), expected);
    }

    #[test]
    fn only_debian_has_a_codename_here() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=old\n").as_deref(), Some("old"));
        assert_eq!(codename("ID=\"ubuntu\"\nID_LIKE=debian\nVERSION_CODENAME=old\n"), None);
    }

    #[test]
    fn names_and_versions_are_read() {
        let shown = "Package: a\nSource: b (2)\nVersion: 1.2-3~deb1\n\nPackage: c\nVersion: 4\n\n";
        let offer = |name: &str, version: &str| Offer { name: name.into(), version: version.into() };
        assert_eq!(offers(shown), [offer("a", "1.2-3~deb1"), offer("c", "4")]);
    }
}
