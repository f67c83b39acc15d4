//! Real sockets on loopback.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

/// Says what it was asked.
struct Echo;

impl Site for Echo {
    async fn answer(&self, asked: Asked) -> Answer {
        let Asked { method, path, body, .. } = &asked;
        let name = asked.parameter("name").unwrap_or_default();
        Answer::plain(200, format!("{method} {path} {name} {body}")).with("x-more", 7)
    }
}

/// Sends a request as it is written here, and returns all of the answer.
async fn ask(to: SocketAddr, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn a_request_is_answered_with_headers_and_body() -> Result<()> {
    let listener = listen("127.0.0.1:0".parse()?)?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(serve(vec![listener], Arc::new(Echo)));
    let answer =
        ask(address, "PUT /a/b?x=1&name=ns%2Fweb+1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n42").await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    assert_eq!(body, "PUT /a/b ns/web 1 42");
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    for header in ["Content-Type: text/plain; charset=utf-8", "X-Content-Type-Options: nosniff", "X-More: 7", "Content-Length: 20"] {
        assert!(head.contains(header), "{header} is missing in {head}");
    }
    server.abort();
    Ok(())
}

#[tokio::test]
async fn what_is_too_long_or_no_http_is_refused_and_the_next_one_is_served() -> Result<()> {
    let listener = listen("127.0.0.1:0".parse()?)?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(serve(vec![listener], Arc::new(Echo)));
    let long =
        format!("PUT / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{}", LONGEST + 1, "x".repeat(LONGEST + 1));
    let answer = ask(address, &long).await?;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert!(!ask(address, "what?\r\n\r\n").await?.contains("200 OK"));
    assert!(ask(address, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?.contains("200 OK"));
    server.abort();
    Ok(())
}

#[tokio::test]
async fn an_unspecified_address_is_every_address_of_both_families() -> Result<()> {
    let listener = listen("0.0.0.0:0".parse()?)?;
    let port = listener.local_addr()?.port();
    let server = tokio::spawn(serve(vec![listener], Arc::new(Echo)));
    for ip in [Ipv4Addr::LOCALHOST.into(), std::net::IpAddr::from(Ipv6Addr::LOCALHOST)] {
        let answer = ask(SocketAddr::new(ip, port), "GET /here HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await?;
        assert!(answer.ends_with("GET /here  "), "{ip}: {answer}");
    }
    server.abort();
    Ok(())
}

#[tokio::test]
async fn the_families_of_one_port_are_independent() -> Result<()> {
    let v4 = listen_on("0.0.0.0:0".parse()?)?;
    let port = v4.local_addr()?.port();
    let v6 = listen_on(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port))?;
    assert_eq!(v6.local_addr()?.port(), port);
    assert!(listen_on(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).is_err(), "the port is taken");
    Ok(())
}

#[tokio::test]
async fn who_cannot_listen_fails_at_once_or_tries_again() -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?;
    let told = std::sync::Mutex::new(Vec::new());
    let tell = |text: &str| told.lock().expect("no test panics while it holds the lock").push(text.to_owned());
    let error = keep(Keeping { what: "it", address, hard_fail: true, failed: &tell }, Arc::new(Echo)).await.expect_err("taken");
    assert!(error.to_string().contains("end what listens there"), "{error}");
    tokio::time::pause();
    let kept = keep(Keeping { what: "it", address, hard_fail: false, failed: &tell }, Arc::new(Echo));
    // Virtual time: several tries, of which one is told.
    assert!(tokio::time::timeout(Duration::from_secs(17), kept).await.is_err());
    assert_eq!(told.lock().expect("no test panics while it holds the lock").len(), 2);
    Ok(())
}
