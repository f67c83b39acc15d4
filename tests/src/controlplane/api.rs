//! The API without a process for every request: JSON over plain HTTP, through a `kubectl proxy` that goes on.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::process::{Netns, Process};
use crate::lab::wait;

/// How long a request may take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A way to the API server as admin, and past it to its storage. It ends with the value.
pub struct Api {
    proxy: Process,
    socket: PathBuf,
    netns: Netns,
    etcd_port: u16,
}

/// What a server answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code of HTTP.
    pub status: u16,
    /// The object; of a refusal, the Status that says why.
    pub body: Value,
}

impl Answer {
    /// The object; an error that says what was refused and why, if it was.
    pub fn accepted(self, what: &str) -> Result<Value> {
        let message = self.body.pointer("/message").and_then(Value::as_str).unwrap_or("no message");
        ensure!(self.status < 300, "{what}: {} {message}", self.status);
        Ok(self.body)
    }
}

impl Api {
    /// Starts `kubectl`, which has the flags that name the API server, as a proxy at `socket`.
    pub(super) fn start(mut kubectl: Command, socket: PathBuf, netns: Netns, etcd_port: u16) -> Result<Self> {
        // A socket of the file system is reached from every network namespace.
        kubectl.arg("proxy").arg("--unix-socket").arg(&socket);
        let proxy = Process::spawn("kubectl proxy", kubectl, &socket.with_extension("log"))?;
        let mut api = Self { proxy, socket, netns, etcd_port };
        wait(TIMEOUT, "kubectl proxy to serve", || {
            let answer = api.request("GET", "/version", None);
            api.proxy.alive().and(answer.map(Some))
        })?;
        Ok(api)
    }

    /// One request.
    pub fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        let exchange = || {
            let stream = UnixStream::connect(&self.socket).with_context(|| self.socket.display().to_string())?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            exchange(stream, method, path, body)
        };
        exchange().with_context(|| format!("{method} {path}"))
    }

    /// Makes the storage forget all but the present: who would go on watching from the past has to list anew.
    pub fn compact(&self) -> Result<()> {
        let etcd = |path: &str, body: &Value| {
            let stream = self.netns.connect(self.etcd_port)?;
            stream.set_read_timeout(Some(TIMEOUT))?;
            exchange(stream, "POST", path, Some(body)).and_then(|answer| answer.accepted("etcd")).with_context(|| path.to_owned())
        };
        let any = etcd("/v3/kv/range", &json!({"key": BASE64.encode("/registry"), "limit": 1}))?;
        let revision = any.pointer("/header/revision").context("etcd does not say its revision")?;
        etcd("/v3/kv/compaction", &json!({"revision": revision, "physical": true})).map(drop)
    }

    /// Writes an object, which must have its `apiVersion` and `kind`, into the API server's storage, at a key such as
    /// `/registry/services/specs/default/web`. The API server looks at it no closer than it must to serve it.
    pub fn store(&self, key: &str, object: &Value) -> Result<()> {
        let put = json!({"key": BASE64.encode(key), "value": BASE64.encode(object.to_string())});
        let stream = self.netns.connect(self.etcd_port)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        exchange(stream, "POST", "/v3/kv/put", Some(&put)).and_then(|answer| answer.accepted("etcd")).context(key.to_owned())?;
        Ok(())
    }
}

fn exchange(mut stream: impl Read + Write, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
    let body = body.map(Value::to_string).unwrap_or_default();
    // HTTP 1.0: the answer is in one piece and ends with the connection.
    let head = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\nContent-Type: application/json");
    write!(stream, "{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("{text:?} is no answer"))?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).with_context(|| format!("{head:?}: no status"))?;
    Ok(Answer { status, body: serde_json::from_str(body).with_context(|| format!("{status}: {body:?}"))? })
}
