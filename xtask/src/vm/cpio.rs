//! Archives in the form that a kernel unpacks as its first file system: cpio, "newc"
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;

/// What the kernel's unpacker ends at.
const TRAILER: &str = "TRAILER!!!";

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive. Folders above what is added are added by themselves.
#[derive(Default)]
pub(super) struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// A file at a path, with or without a slash in front.
    pub(super) fn file(&mut self, path: &str, executable: bool, content: &[u8]) {
        self.parents(path);
        self.entry(path, FILE | if executable { 0o755 } else { 0o644 }, content);
    }

    /// A symbolic link.
    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, LINK | 0o777, target.as_bytes());
    }

    /// A folder.
    pub(super) fn folder(&mut self, path: &str) {
        self.parents(path);
        if self.folders.insert(inside(path).to_owned()) {
            self.entry(path, DIRECTORY | 0o755, &[]);
        }
    }

    /// The whole archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.entry(TRAILER, 0, &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = inside(path).rsplit_once('/') {
            self.folder(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        let name = inside(path);
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, size, device (2), device of a node (2), length of the name, checksum (not used)
        let fields = [self.entries, mode, 0, 0, links, 0, size(content.len()), 0, 0, 0, 0, size(name.len() + 1), 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The path as it is in an archive.
fn inside(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// Sizes in the format have 32 bits; so has everything that is put into an initramfs here.
fn size(length: usize) -> u32 {
    u32::try_from(length).unwrap_or_else(|_| panic!("a file of {length} bytes does not fit into a cpio archive"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path, mode and content of each entry, read by the format's description.
    fn read(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        while at < archive.len() {
            assert_eq!(&archive[at..at + 6], b"070701", "the magic number at {at}");
            let field = |index: usize| {
                let start = at + 6 + index * 8;
                u32::from_str_radix(str::from_utf8(&archive[start..start + 8]).expect("text"), 16).expect("hexadecimal")
            };
            let (mode, length, name) = (field(1), field(6) as usize, field(11) as usize);
            let start = at + 110;
            let content = (start + name).next_multiple_of(4);
            assert_eq!(archive[start + name - 1], 0, "the name ends");
            let path = String::from_utf8(archive[start..start + name - 1].to_vec()).expect("text");
            entries.push((path, mode, archive[content..content + length].to_vec()));
            at = (content + length).next_multiple_of(4);
        }
        entries
    }

    #[test]
    fn an_archive_holds_what_was_added_and_the_folders_above() {
        let mut archive = Archive::default();
        archive.file("/bin/a", true, b"12345");
        archive.file("bin/b", false, b"");
        archive.link("/lib/x/y", "../a");
        archive.folder("/bin");
        let entries = read(&archive.finish());
        let expected: [(&str, u32, &[u8]); 7] = [
            ("bin", 0o040_755, b""),
            ("bin/a", 0o100_755, b"12345"),
            ("bin/b", 0o100_644, b""),
            ("lib", 0o040_755, b""),
            ("lib/x", 0o040_755, b""),
            ("lib/x/y", 0o120_777, b"../a"),
            ("TRAILER!!!", 0, b""),
        ];
        let expected = expected.map(|(path, mode, content)| (path.to_owned(), mode, content.to_vec()));
        assert_eq!(entries, expected);
    }
}
