//! The OCI image layout: blobs by digest, an index of all architectures, and where to begin.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tar::{Builder, EntryType};

use super::Source;
use super::arch::Arch;
use super::layer::{self, Layer, digest};
use crate::run::output;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image for one architecture.
pub(super) struct Image {
    pub(super) arch: Arch,
    pub(super) layers: Vec<Layer>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Image {
    pub(super) fn new(arch: Arch, layers: Vec<Layer>, source: &Source) -> Result<Self> {
        let created = time(source.time)?;
        let history: Vec<Value> = ["the libraries that the program needs", "proxy-agent"]
            .map(|what| json!({"created": created, "created_by": "cargo xtask image", "comment": what}))
            .into();
        let config = json!({
            "architecture": arch.name(),
            "os": "linux",
            "created": created,
            "config": {
                // Rules, maps and the pins' folder belong to root; what root may do is for the container's capabilities to say.
                "User": "0:0",
                "Env": ["PATH=/usr/local/bin"],
                "Entrypoint": ["/usr/local/bin/proxy-agent"],
                "Cmd": ["run"],
                "WorkingDir": "/",
                "Labels": labels(source, &created),
            },
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff).collect::<Vec<_>>()},
            "history": history,
        });
        let config = config.to_string().into_bytes();
        let layer = |layer: &Layer| json!({"mediaType": LAYER, "digest": layer.digest, "size": layer.bytes.len()});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest(&config), "size": config.len()},
            "layers": layers.iter().map(layer).collect::<Vec<_>>(),
            "annotations": labels(source, &created),
        });
        Ok(Self { arch, layers, config, manifest: manifest.to_string().into_bytes() })
    }

    /// What the image is pulled by.
    pub(super) fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// Bytes that a node fetches.
    pub(super) fn size(&self) -> usize {
        self.layers.iter().map(|layer| layer.bytes.len()).sum()
    }

    fn descriptor(&self) -> Value {
        let platform = json!({"architecture": self.arch.name(), "os": "linux"});
        json!({"mediaType": MANIFEST, "digest": self.digest(), "size": self.manifest.len(), "platform": platform})
    }
}

fn labels(source: &Source, created: &str) -> Value {
    json!({
        "org.opencontainers.image.title": "proxy-agent",
        "org.opencontainers.image.description": "A Kubernetes Service proxy that takes the place of kube-proxy",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.version": source.version,
        "org.opencontainers.image.revision": source.revision,
        "org.opencontainers.image.created": created,
    })
}

/// As RFC 3339 wants it.
fn time(seconds: u64) -> Result<String> {
    let text = output(Command::new("date").args(["--utc", "+%Y-%m-%dT%H:%M:%SZ", "--date"]).arg(format!("@{seconds}")))?;
    Ok(text.trim().to_owned())
}

/// Every file of a layout, by path.
pub(super) struct Layout(BTreeMap<String, Vec<u8>>);

impl Layout {
    pub(super) fn of(images: &[Image], source: &Source) -> Self {
        let mut files = BTreeMap::new();
        let mut blob = |bytes: &[u8]| {
            let digest = digest(bytes);
            files.insert(format!("blobs/{}", digest.replace(':', "/")), bytes.to_vec());
            digest
        };
        for image in images {
            blob(&image.config);
            blob(&image.manifest);
            image.layers.iter().for_each(|layer| drop(blob(&layer.bytes)));
        }
        let manifests: Vec<Value> = images.iter().map(Image::descriptor).collect();
        let all = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string().into_bytes();
        // One entry, whatever the architectures: tools then need not be told which one is meant.
        let entry = json!({
            "mediaType": INDEX, "digest": blob(&all), "size": all.len(),
            "annotations": {"org.opencontainers.image.ref.name": source.version},
        });
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]});
        files.insert("index.json".to_owned(), index.to_string().into_bytes());
        files.insert("oci-layout".to_owned(), json!({"imageLayoutVersion": "1.0.0"}).to_string().into_bytes());
        Self(files)
    }

    /// Writes it into a folder, in place of what was there.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        if folder.exists() {
            fs::remove_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        for (name, bytes) in &self.0 {
            let path = folder.join(name);
            let write = || fs::create_dir_all(path.parent().unwrap_or(folder)).and_then(|()| fs::write(&path, bytes));
            write().with_context(|| path.display().to_string())?;
        }
        Ok(())
    }

    /// Writes it as one file.
    pub(super) fn pack(&self, file: &Path) -> Result<()> {
        let pack = || {
            let mut builder = Builder::new(File::create(file)?);
            for (name, bytes) in &self.0 {
                let mut header = layer::header(EntryType::Regular, 0o644, bytes.len(), 0);
                builder.append_data(&mut header, name, &**bytes)?;
            }
            builder.into_inner()?.sync_all()
        };
        pack().with_context(|| file.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_blob_that_is_named_is_there_with_its_size() -> Result<()> {
        let source = Source { version: "1.2.3".into(), revision: "abc".into(), time: 1_000_000_000 };
        let mut images = Vec::new();
        for arch in Arch::ALL {
            images.push(Image::new(arch, vec![layer::pack(&layer::Files::new(), 0)?], &source)?);
        }
        let Layout(files) = Layout::of(&images, &source);
        // From the index down, as a client goes.
        let mut names = vec!["index.json".to_owned()];
        let mut seen = 0;
        while let Some(name) = names.pop() {
            seen += 1;
            let Ok(object) = serde_json::from_slice::<Value>(&files[&name]) else { continue };
            let lists = [&object["manifests"], &object["layers"]].into_iter().filter_map(Value::as_array).flatten();
            for descriptor in lists.chain([&object["config"]].into_iter().filter(|config| config["mediaType"].is_string())) {
                let digest = descriptor["digest"].as_str().context("a digest")?;
                let blob = format!("blobs/{}", digest.replace(':', "/"));
                assert_eq!(descriptor["size"], files[&blob].len(), "{descriptor}");
                names.push(blob);
            }
        }
        // The index, what it names, two manifests, and of each the configuration and the layer, which is the same one here.
        assert_eq!((seen, files.len()), (8, 8), "{:?}", files.keys());
        assert_eq!(time(1_000_000_000)?, "2001-09-09T01:46:40Z");
        Ok(())
    }
}
