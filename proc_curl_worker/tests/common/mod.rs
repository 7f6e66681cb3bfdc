//! A small HTTP server, one thread for each connection, and a client of the worker that was built beside the test.

#![allow(dead_code)]

use proc_curl::{Client, ClientBuilder};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub const WORKER: &str = env!("CARGO_BIN_EXE_procCurlI");

/// To a worker that was built beside this test.
pub fn builder() -> ClientBuilder {
    Client::builder().program(WORKER).show_stderr()
}

pub fn client() -> Client {
    builder().build().expect("a worker")
}

/// What a request was.
#[derive(Debug)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

pub struct Server {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
}

impl Server {
    /// Answers each request by `answer`, which says whether the connection goes on.
    pub fn start(answer: impl Fn(Asked, &mut TcpStream) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let connections = Arc::<AtomicUsize>::default();
        let (counted, answer) = (connections.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                counted.fetch_add(1, Ordering::Relaxed);
                let answer = answer.clone();
                std::thread::spawn(move || serve(stream, &*answer));
            }
        });
        Self { address, connections }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

fn serve(stream: TcpStream, answer: &dyn Fn(Asked, &mut TcpStream) -> bool) {
    let mut out = stream.try_clone().expect("a socket");
    let mut lines = BufReader::new(stream);
    while let Some(asked) = read_request(&mut lines, &mut out) {
        if asked.method == "HEAD" {
            let _ = out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n");
        } else if !answer(asked, &mut out) {
            return;
        }
    }
}

fn read_request(lines: &mut BufReader<TcpStream>, out: &mut TcpStream) -> Option<Asked> {
    let mut line = String::new();
    lines.read_line(&mut line).ok().filter(|count| *count > 0)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut asked = Asked { method, path, headers: Vec::new(), body: Vec::new() };
    loop {
        let mut line = String::new();
        lines.read_line(&mut line).ok().filter(|count| *count > 0)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        asked.headers.push((name.to_owned(), value.trim().to_owned()));
    }
    if asked.header("expect").is_some() {
        out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").ok()?;
    }
    if let Some(length) = asked.header("content-length") {
        let length = length.parse::<u64>().ok()?;
        lines.by_ref().take(length).read_to_end(&mut asked.body).ok()?;
    } else if asked.header("transfer-encoding").is_some() {
        loop {
            let mut size = String::new();
            lines.read_line(&mut size).ok()?;
            let size = u64::from_str_radix(size.trim(), 16).ok()?;
            lines.by_ref().take(size).read_to_end(&mut asked.body).ok()?;
            lines.read_line(&mut String::new()).ok()?;
            if size == 0 {
                break;
            }
        }
    }
    Some(asked)
}

/// A plain answer.
pub fn reply(out: &mut TcpStream, status: &str, headers: &str, body: &[u8]) -> bool {
    let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\n\r\n", body.len());
    out.write_all(head.as_bytes()).is_ok() && out.write_all(body).is_ok()
}

/// Bytes that say where they are.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect()
}
