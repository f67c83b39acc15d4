//! Layers: archives whose bytes depend on nothing but the files in them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// What is at a path.
pub(super) enum Entry {
    /// A file, and whether it is a program.
    File { content: Vec<u8>, executable: bool },
    /// A link to a path.
    Link(PathBuf),
}

/// Files by path, relative to the root.
pub(super) type Files = BTreeMap<PathBuf, Entry>;

/// A layer, compressed.
pub(super) struct Layer {
    pub(super) bytes: Vec<u8>,
    /// Of the compressed bytes.
    pub(super) digest: String,
    /// Of the archive.
    pub(super) diff: String,
}

/// `sha256:` and the digits.
pub(super) fn digest(bytes: &[u8]) -> String {
    let digits: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// Packs files of user 0 with this time, and the folders that they are in.
pub(super) fn pack(files: &Files, time: u64) -> Result<Layer> {
    let mut builder = Builder::new(Vec::new());
    let folders: BTreeSet<&Path> = files.keys().flat_map(|path| path.ancestors().skip(1)).filter(|path| *path != Path::new("")).collect();
    for folder in folders {
        let mut header = header(EntryType::Directory, 0o755, 0, time);
        builder.append_data(&mut header, format!("{}/", folder.display()), &[][..]).with_context(|| folder.display().to_string())?;
    }
    for (path, entry) in files {
        let appended = match entry {
            Entry::File { content, executable } => {
                let mut header = header(EntryType::Regular, if *executable { 0o755 } else { 0o644 }, content.len(), time);
                builder.append_data(&mut header, path, &**content)
            }
            Entry::Link(to) => builder.append_link(&mut header(EntryType::Symlink, 0o777, 0, time), path, to),
        };
        appended.with_context(|| path.display().to_string())?;
    }
    let archive = builder.into_inner().context("a layer")?;
    // Without a name and a time of its own.
    let mut compressed = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    compressed.write_all(&archive).context("a layer")?;
    let bytes = compressed.finish().context("a layer")?;
    Ok(Layer { digest: digest(&bytes), diff: digest(&archive), bytes })
}

pub(super) fn header(kind: EntryType, mode: u32, size: usize, time: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_mtime(time);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files() -> Files {
        let file = Entry::File { content: b"text".to_vec(), executable: true };
        [("usr/bin/a".into(), file), ("usr/bin/b".into(), Entry::Link("a".into()))].into()
    }

    #[test]
    fn digests_are_those_of_the_standard() {
        assert_eq!(digest(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }

    #[test]
    fn the_same_files_give_the_same_layer_and_another_time_another() -> Result<()> {
        let [one, same, later] = [7, 7, 8].map(|time| pack(&files(), time).map(|layer| layer.digest));
        let one = one?;
        assert_eq!(one, same?);
        assert_ne!(one, later?);
        Ok(())
    }

    #[test]
    fn a_layer_has_folders_before_what_is_in_them() -> Result<()> {
        let layer = pack(&files(), 7)?;
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&*layer.bytes));
        let mut names = Vec::new();
        for entry in archive.entries()? {
            let entry = entry?;
            names.push(format!("{} {:o}", entry.path()?.display(), entry.header().mode()?));
        }
        assert_eq!(names, ["usr/ 755", "usr/bin/ 755", "usr/bin/a 755", "usr/bin/b 777"]);
        Ok(())
    }
}
