//! HTTP in the lab: what a server answers, down to its headers.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::lab::Lab;

/// How long a server may take to accept and to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// 200, 503, ...
    pub status: u16,
    /// By name, in lower case.
    pub headers: BTreeMap<String, String>,
    /// What is said.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.body).with_context(|| self.to_string())
    }

    fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.lines();
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines.filter_map(|line| line.split_once(": ")).map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Some(Self { status, headers: headers.collect(), body: body.to_owned() })
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}\n{}", self.status, self.headers, self.body)
    }
}

/// Asks a server from `node1`, `client` or a pod.
pub fn ask(lab: &Lab, from: &str, to: SocketAddr, method: &str, path: &str, body: &str) -> Result<Answer> {
    let text = lab.inside(from, || {
        let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        // 1.0: the end of the connection is the end of the body.
        write!(stream, "{method} {path} HTTP/1.0\r\nHost: {to}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    });
    let text = text.with_context(|| format!("{method} http://{to}{path} from {from}"))?;
    Answer::parse(&text).with_context(|| format!("{method} http://{to}{path}: no answer of HTTP: {text:?}"))
}

/// The same for a GET.
pub fn get(lab: &Lab, from: &str, to: SocketAddr, path: &str) -> Result<Answer> {
    ask(lab, from, to, "GET", path, "")
}
