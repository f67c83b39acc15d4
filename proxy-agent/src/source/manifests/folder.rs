//! The state of a folder: what each file last said, and which file speaks for each object.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proxy_core::cluster::Kind;
use proxy_core::input::Converted;
use proxy_core::model::ObjectName;

use super::parse::{self, Broken, Parsed};
use crate::source::{node_name, noun, removal, report, subject};

/// A file this large is not a manifest, and is not read.
const LARGEST: u64 = 256 << 20;
/// A file that was altered so recently may be altered again without its times telling.
const FRESH: Duration = Duration::from_secs(2);

type Key = (Kind, ObjectName);

/// A folder of manifests.
pub(super) struct Folder {
    dir: PathBuf,
    /// The agent's own Node.
    node: ObjectName,
    files: BTreeMap<OsString, File>,
    /// What has been said of each object.
    served: HashMap<Key, Arc<Converted>>,
    /// Objects of files that do not count, since another file has them too.
    shadowed: BTreeSet<(OsString, String)>,
    /// The folder cannot be read, and that was said.
    lost: bool,
}

/// One file.
#[derive(Default)]
struct File {
    /// Tells a file that is as it was without reading it; `None` if it must be read.
    stamp: Option<Stamp>,
    /// Hash of what was read, or of why it could not be.
    content: u64,
    /// What the last good content said, with the lines.
    objects: Vec<(usize, Arc<Converted>)>,
    /// The content is not good.
    broken: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Long enough ago that a later change shows in the times.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(self.changed.0.try_into().unwrap_or(0));
        changed + FRESH < now
    }
}

impl Folder {
    pub(super) fn new(dir: PathBuf, node: &str) -> Self {
        Self { dir, node: node_name(node), files: BTreeMap::new(), served: HashMap::new(), shadowed: BTreeSet::new(), lost: false }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Names of all objects of one kind.
    pub(super) fn names(&self, kind: Kind) -> HashSet<ObjectName> {
        self.served.keys().filter(|(k, _)| *k == kind).map(|(_, name)| name.clone()).collect()
    }

    /// Reads what has changed and says what that changes, with what is to be reported.
    pub(super) fn scan(&mut self) -> Vec<Converted> {
        match self.entries() {
            Ok(entries) => {
                if std::mem::take(&mut self.lost) {
                    tracing::info!("{}: can be read again", self.dir.display());
                }
                self.update(entries)
            }
            Err(error) => {
                if !std::mem::replace(&mut self.lost, true) {
                    tracing::warn!("{}: {error}; what is known of its manifests stays in force until it can be read", self.dir.display());
                }
                Vec::new()
            }
        }
    }

    /// The manifests with what tells whether they have changed.
    fn entries(&self) -> io::Result<BTreeMap<OsString, io::Result<Stamp>>> {
        let mut entries = BTreeMap::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if format_of(&name).is_none() {
                continue;
            }
            // Follows symbolic links: ConfigMap volumes are made of them.
            match fs::metadata(entry.path()) {
                Ok(metadata) if metadata.is_file() => drop(entries.insert(name, Ok(Stamp::of(&metadata)))),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => drop(entries.insert(name, Err(error))),
            }
        }
        Ok(entries)
    }

    fn update(&mut self, entries: BTreeMap<OsString, io::Result<Stamp>>) -> Vec<Converted> {
        let mut said = Vec::new();
        let before = self.files.len();
        self.files.retain(|name, _| entries.contains_key(name));
        let mut changed = self.files.len() != before;
        for (name, stamp) in entries {
            let path = self.dir.join(&name);
            changed |= !self.files.contains_key(&name);
            let file = self.files.entry(name).or_default();
            match stamp {
                Ok(stamp) if file.stamp == Some(stamp) => {}
                Ok(stamp) => changed |= file.read(&path, stamp, &self.node.name, &mut said),
                Err(error) => file.cannot_be_read(&path, &error, &mut said),
            }
        }
        if changed {
            self.settle(&mut said);
        }
        said
    }

    /// Lets one file speak for each object, and says what that changes.
    fn settle(&mut self, said: &mut Vec<Converted>) {
        let mut former = std::mem::take(&mut self.served);
        let mut owners: HashMap<Key, (&OsStr, usize)> = HashMap::new();
        let mut shadowed = BTreeSet::new();
        for (name, file) in &self.files {
            for (line, object) in &file.objects {
                let Some((kind, object_name)) = subject(object, Some(&self.node)) else { continue };
                let key = (kind, object_name.clone());
                if let Some((owner, at)) = owners.get(&key) {
                    let shadow = (name.clone(), format!("{} {object_name}", noun(kind)));
                    if !self.shadowed.contains(&shadow) && !shadowed.contains(&shadow) {
                        let place = format!("{}:{line}:1", self.dir.join(name).display());
                        let owner = self.dir.join(owner);
                        said.push(report(place, format!("{} is also in {}:{at}, which counts", shadow.1, owner.display())));
                    }
                    shadowed.insert(shadow);
                    continue;
                }
                if former.remove(&key).is_none_or(|known| known != *object) {
                    said.push(Converted::clone(object));
                }
                owners.insert(key.clone(), (name, *line));
                self.served.insert(key, object.clone());
            }
        }
        said.extend(former.into_keys().map(|(kind, name)| removal(kind, name)));
        self.shadowed = shadowed;
    }
}

impl File {
    /// `true` if its objects have changed.
    fn read(&mut self, path: &Path, stamp: Stamp, node: &str, said: &mut Vec<Converted>) -> bool {
        let settled = stamp.is_settled();
        let bytes = match read_file(path, stamp.len) {
            Ok(bytes) => bytes,
            // Gone since it was listed: the next look will see that.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.stamp = None;
                return false;
            }
            Err(error) => {
                self.cannot_be_read(path, &error, said);
                return false;
            }
        };
        self.stamp = settled.then_some(stamp);
        let content = hash(&bytes);
        if self.content == content {
            return false;
        }
        self.content = content;
        match parse(path, &bytes, node) {
            Ok(parsed) => {
                if std::mem::take(&mut self.broken) {
                    tracing::info!("{}: in order again", path.display());
                }
                self.take(path, parsed, said);
                true
            }
            Err(Broken { line, column, what }) => {
                self.broken = true;
                said.push(report(format!("{}:{line}:{column}", path.display()), self.kept(&what)));
                false
            }
        }
    }

    fn take(&mut self, path: &Path, parsed: Parsed, said: &mut Vec<Converted>) {
        if !parsed.ignored.is_empty() {
            let kinds = parsed.ignored.into_iter().collect::<Vec<_>>().join(", ");
            tracing::info!(
                "{}: only v1 Service and Node, discovery.k8s.io/v1 EndpointSlice and networking.k8s.io/v1 ServiceCIDR are of use here; \
                 ignored: {kinds}",
                path.display()
            );
        }
        self.objects.clear();
        for (line, mut object) in parsed.objects {
            // The file is where the operator mends it.
            for problem in &mut object.problems {
                problem.object = format!("{}:{line}:1: {}", path.display(), problem.object);
            }
            match object.change {
                Some(_) => self.objects.push((line, Arc::new(object))),
                None => said.push(object),
            }
        }
    }

    fn cannot_be_read(&mut self, path: &Path, error: &io::Error, said: &mut Vec<Converted>) {
        self.stamp = None;
        let content = hash(error.to_string().as_bytes());
        if self.content != content {
            self.content = content;
            self.broken = true;
            said.push(report(format!("{}:1:1", path.display()), self.kept(&format!("cannot be read: {error}"))));
        }
    }

    fn kept(&self, what: &str) -> String {
        let kept = if self.objects.is_empty() { "nothing of this file is served" } else { "what the file said before stays in force" };
        format!("{what}; {kept}")
    }
}

fn read_file(path: &Path, len: u64) -> io::Result<Vec<u8>> {
    if len > LARGEST {
        return Err(io::Error::other(format!("it has {len} bytes, more than the {LARGEST} that are allowed")));
    }
    fs::read(path)
}

fn parse(path: &Path, bytes: &[u8], node: &str) -> Result<Parsed, Broken> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let good = &bytes[..error.valid_up_to()];
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = good.rsplit(|byte| *byte == b'\n').next().map_or(1, |rest| String::from_utf8_lossy(rest).chars().count() + 1);
        Broken { line, column, what: "not UTF-8".to_owned() }
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    match path.file_name().and_then(format_of) {
        Some(Format::Json) => parse::json(text, node),
        _ => parse::yaml(text, node),
    }
}

/// In the same process only: it need not be the same everywhere.
fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    // 0 is a file that was not read yet.
    hasher.finish().max(1)
}

enum Format {
    Yaml,
    Json,
}

/// What a file's name says it is; hidden files and those that editors leave behind are no manifests.
fn format_of(name: &OsStr) -> Option<Format> {
    let name = name.to_str()?;
    let (stem, extension) = name.rsplit_once('.')?;
    if stem.is_empty() || stem.starts_with(['.', '#']) {
        return None;
    }
    match extension.to_ascii_lowercase().as_str() {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}

#[cfg(test)]
#[path = "folder_tests.rs"]
mod tests;
