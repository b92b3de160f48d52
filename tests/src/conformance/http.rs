//! A host that is reached over HTTP: packets as protobuf bytes.
//!
//! `POST /_actor` takes a `Packet` and answers a `PacketReply`; `POST /_evict` takes an `Address` and ends that actor. Durable
//! Objects serve both where the variable `DOSQL_CONFORMANCE` is 1.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use dosql_proto::{Address, Error, ErrorCode, Packet, PacketReply, packet_reply};
use prost::Message;

use super::Target;

/// The host that listens at an address such as `127.0.0.1:8787`.
#[derive(Debug, Clone)]
pub struct HttpTarget {
    authority: String,
}

impl HttpTarget {
    /// A target at `authority`, HOST:PORT.
    #[must_use]
    pub fn new(authority: impl Into<String>) -> Self {
        Self { authority: authority.into() }
    }

    /// Posts a body and returns the answer's; a status other than 2xx is an error that quotes the answer.
    fn post(&self, path: &str, body: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(&self.authority)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-protobuf\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.authority,
            body.len()
        )?;
        stream.write_all(body)?;
        let answer = read_answer(&mut stream)?;
        let end =
            answer.windows(4).position(|window| window == b"\r\n\r\n").ok_or_else(|| broken("no end of headers"))?;
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let mut content = answer[end + 4..].to_vec();
        if head.contains("transfer-encoding: chunked") {
            content = dechunk(&content)?;
        }
        if head.split_whitespace().nth(1).is_some_and(|status| status.starts_with('2')) {
            Ok(content)
        } else {
            let status = head.lines().next().unwrap_or_default();
            Err(broken(&format!("{status}: {}", String::from_utf8_lossy(&content))))
        }
    }
}

/// Reads up to the end that the answer's headers announce: a server may keep the connection open although it was asked not to.
fn read_answer(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut answer = Vec::new();
    let mut piece = [0; 65536];
    loop {
        let read = stream.read(&mut piece)?;
        answer.extend_from_slice(&piece[..read]);
        if read == 0 || is_whole(&answer) {
            return Ok(answer);
        }
    }
}

fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let content = &answer[end + 4..];
    if head.contains("transfer-encoding: chunked") {
        return content.ends_with(b"0\r\n\r\n") && dechunk(content).is_ok();
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    length.is_some_and(|length: usize| content.len() >= length)
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn dechunk(mut rest: &[u8]) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let line_end = rest.windows(2).position(|window| window == b"\r\n").ok_or_else(|| broken("a cut chunk"))?;
        let line = String::from_utf8_lossy(&rest[..line_end]).into_owned();
        let size = line.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| broken("a malformed chunk"))?;
        rest = &rest[line_end + 2..];
        if size == 0 {
            return Ok(content);
        }
        if rest.len() < size + 2 {
            return Err(broken("a cut chunk"));
        }
        content.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

impl Target for HttpTarget {
    async fn send(&self, packet: Packet) -> PacketReply {
        let answer = self.post("/_actor", &packet.encode_to_vec());
        let reply = answer.and_then(|bytes| PacketReply::decode(&*bytes).map_err(|error| broken(&error.to_string())));
        reply.unwrap_or_else(|error| {
            let error = Error::new(ErrorCode::Internal, format!("HTTP: {error}"));
            PacketReply { outcome: Some(packet_reply::Outcome::Error(error)) }
        })
    }

    async fn restart(&self, address: &Address) {
        // Ending the object may end the request that asked for it; what the next message finds is what is tested.
        let _ = self.post("/_evict", &address.encode_to_vec());
    }

    async fn pause(&self, duration: Duration) {
        thread::sleep(duration);
    }
}
