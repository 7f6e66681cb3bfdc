//! Requests through a worker, against a server of this test's own.

mod common;

use common::{Asked, Server, client, pattern, reply};
use proc_curl::{Error, HeadKind, Redirects, Retry, Source, Stage, Timeouts, Why};
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Says what it was asked.
fn echo(asked: Asked, out: &mut TcpStream) -> bool {
    let text = format!("{} {} {:?} {}", asked.method, asked.path, asked.header("x-a"), asked.body.len());
    reply(out, "200 OK", "X-One: 1\r\nx-one: 2\r\n", text.as_bytes())
}

#[test]
fn methods_headers_and_bodies_arrive() {
    let (server, client) = (Server::start(echo), client());
    let response = client.get(&server.url("/a?b")).header("X-A", "é").send().expect("an answer");
    assert_eq!((response.status(), response.content_length()), (200, Some(21)));
    assert_eq!(response.headers().all("X-ONE").collect::<Vec<_>>(), [b"1", b"2"]);
    assert_eq!(response.text().expect("text"), "GET /a?b Some(\"é\") 0");
    let text = |request: proc_curl::RequestBuilder| request.send().expect("an answer").text().expect("text");
    assert_eq!(text(client.post(&server.url("/"), "abc")), "POST / None 3");
    assert_eq!(text(client.request("PUT", &server.url("/")).body(vec![0; 100_000])), "PUT / None 100000");
    assert_eq!(text(client.request("DELETE", &server.url("/"))), "DELETE / None 0");
    assert_eq!(text(client.request("PATCH", &server.url("/")).body("x")), "PATCH / None 1");
    assert_eq!(text(client.request("HEAD", &server.url("/"))), "");
    assert_eq!(text(client.get(&server.url("/")).header("X-A", "")), "GET / Some(\"\") 0");
    let stream = |len| Source::reader(std::io::repeat(7).take_bytes(3_000_000), len);
    assert_eq!(text(client.post(&server.url("/"), stream(Some(3_000_000)))), "POST / None 3000000");
    assert_eq!(text(client.request("PUT", &server.url("/")).body(stream(None))), "PUT / None 3000000");
    assert_eq!(server.connections.load(Ordering::Relaxed), 1, "the connection is kept");
}

/// `take`, under a name of its own.
trait TakeBytes: std::io::Read + Sized {
    fn take_bytes(self, len: u64) -> std::io::Take<Self> {
        self.take(len)
    }
}

impl<R: std::io::Read> TakeBytes for R {}

#[test]
fn large_bodies_come_whole_and_in_order() {
    const LEN: usize = 20 << 20;
    let server = Server::start(|_, out| reply(out, "200 OK", "", &pattern(LEN)));
    let client = client();
    let bytes = client.get(&server.url("/")).send().expect("an answer").bytes().expect("bytes");
    assert!(bytes == pattern(LEN));
    let mut response = client.get(&server.url("/")).send().expect("an answer");
    let body = response.body().expect("a body");
    assert!(body.len() == LEN as u64 && body.to_vec().expect("bytes") == pattern(LEN));
    let info = response.info().expect("an end");
    assert_eq!((info.status, info.delivered, info.connections), (200, LEN as u64, 0));
    drop(body);
    // One that is not read to its end leaves nothing behind.
    let mut response = client.get(&server.url("/")).send().expect("an answer");
    assert!(response.chunk().expect("a piece").is_some());
    drop(response);
    while client.statistics().expect("statistics").active > 0 {
        std::thread::yield_now();
    }
    assert_eq!(client.statistics().expect("statistics").cancelled, 1);
}

#[test]
fn redirects_are_followed_as_far_as_allowed() {
    let server = Server::start(|asked, out| match asked.path.strip_prefix("/hop/") {
        Some("0") => echo(asked, out),
        Some(more) => {
            let next = more.parse::<u32>().unwrap_or(1) - 1;
            reply(out, "302 Found", &format!("Location: /hop/{next}\r\n"), b"ignored")
        }
        None if asked.path == "/file" => reply(out, "302 Found", "Location: file:///etc/passwd\r\n", b""),
        None => reply(out, "302 Found", "Location: /loop\r\n", b""),
    });
    let client = client();
    let response = client.get(&server.url("/hop/3")).redirects(Redirects::up_to(3)).send().expect("an answer");
    let kinds: Vec<_> = response.heads().iter().map(|head| head.kind).collect();
    assert_eq!(kinds, [HeadKind::Passing, HeadKind::Passing, HeadKind::Passing, HeadKind::Final]);
    assert_eq!(response.text().expect("text"), "GET /hop/0 None 0");
    let response = client.get(&server.url("/hop/1")).send().expect("an answer");
    assert_eq!((response.status(), response.text().expect("text").as_str()), (302, "ignored"));
    let failure = |path: &str| {
        let error = client.get(&server.url(path)).redirects(Redirects::up_to(5)).send().expect_err("a failure");
        error.failure().cloned().expect("libcurl's")
    };
    let looping = failure("/loop");
    assert_eq!((looping.code, looping.name.as_str(), looping.heads.len()), (47, "CURLE_TOO_MANY_REDIRECTS", 6));
    let file = failure("/file");
    assert_eq!((file.code, file.why), (1, Why::ProtocolDenied));
}

#[test]
fn failures_say_what_happened_and_where() {
    let server = Server::start(|asked, out| {
        match asked.path.as_str() {
            "/short" => drop(out.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")),
            "/nothing" => {}
            "/garbage" => drop(out.write_all(b"\x00\x01garbage\r\n\r\n")),
            "/hang" => std::thread::sleep(Duration::from_secs(3)),
            _ => drop(reply(out, "200 OK", "", &[0; 5000])),
        }
        false
    });
    let client = client();
    let failure = |request: proc_curl::RequestBuilder| {
        let error = match request.send() {
            Ok(response) => response.bytes().expect_err("a failure"),
            Err(error) => error,
        };
        let failure = error.failure().cloned().unwrap_or_else(|| panic!("{error}"));
        (failure.code, failure.stage, failure.why, failure.bytes)
    };
    let get = |path: &str| client.get(&server.url(path));
    assert_eq!(failure(get("/short")), (18, Stage::Body, Why::Code, 3));
    assert_eq!(failure(get("/nothing")), (52, Stage::Answer, Why::Code, 0));
    assert_eq!(failure(get("/garbage")).0, 1);
    assert_eq!(failure(get("/hang").timeout(Duration::from_millis(200))).0, 28);
    let first_byte = Timeouts { first_byte: Some(Duration::from_millis(100)), ..Timeouts::default() };
    assert_eq!(failure(get("/hang").timeouts(first_byte)), (28, Stage::Answer, Why::FirstByteTimeout, 0));
    let idle = Timeouts { idle: Some(Duration::from_millis(100)), ..Timeouts::default() };
    assert_eq!(failure(get("/hang").timeouts(idle)), (28, Stage::Answer, Why::IdleTimeout, 0));
    assert_eq!(failure(get("/").body_max(4999)).2, Why::BodyTooLarge);
    assert_eq!(failure(client.get("http://127.0.0.1:1/")), (7, Stage::Connect, Why::Code, 0));
    assert_eq!(failure(client.get("http://nowhere.invalid/")), (6, Stage::Resolve, Why::Code, 0));
    assert_eq!(failure(client.get("ftp://127.0.0.1/")).0, 1);
    assert_eq!(failure(client.get("http://a b/")).0, 3);
    assert_eq!(failure(get("/").header("X", "a\r\nY: b")).2, Why::BadRequest);
    let policy = proc_curl::AddressPolicy::public_only();
    assert_eq!(failure(get("/").address_policy(policy.clone())), (7, Stage::Connect, Why::PolicyDenied, 0));
    // A connection that is there already is no way round it.
    let open = client.get(&server.url("/")).send().expect("an answer");
    open.bytes().expect("bytes");
    assert_eq!(failure(get("/").address_policy(policy)).2, Why::PolicyDenied);
}

#[test]
fn what_may_pass_is_tried_again() {
    let tries = AtomicUsize::new(0);
    let server = Server::start(move |_, out| match tries.fetch_add(1, Ordering::Relaxed) {
        0 => false,
        1 => reply(out, "503 Busy", "Retry-After: 0\r\n", b"later"),
        _ => reply(out, "200 OK", "", b"now"),
    });
    let client = client();
    let retry = Retry { backoff: Duration::from_millis(10), ..Retry::times(3) };
    let mut response = client.get(&server.url("/")).retry(retry).send().expect("an answer");
    assert_eq!((response.status(), response.heads().len()), (200, 2));
    let mut text = Vec::new();
    response.copy_to(&mut text).expect("text");
    assert_eq!((text.as_slice(), response.info().map(|info| info.retries)), (&b"now"[..], Some(2)));
}

#[test]
fn many_requests_run_side_by_side() {
    let server = Server::start(echo);
    let client = client();
    let started: Vec<_> = (0..600).map(|n| client.get(&server.url(&format!("/{n}"))).start().expect("sent")).collect();
    for (n, pending) in started.into_iter().enumerate() {
        let text = pending.wait().expect("an answer").text().expect("text");
        assert_eq!(text, format!("GET /{n} None 0"));
    }
}

#[test]
fn workers_that_die_are_replaced() {
    let server = Server::start(|asked, out| match asked.path.as_str() {
        "/endless" => {
            let _ = out.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while out.write_all(&[0; 4096]).is_ok() {}
            false
        }
        _ => echo(asked, out),
    });
    let client = client();
    let kill = || {
        let pid = client.worker_pid().expect("a worker");
        assert!(std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill").success());
    };
    let mut response = client.get(&server.url("/endless")).send().expect("an answer");
    response.chunk().expect("a piece");
    kill();
    let error = loop {
        if let Err(error) = response.chunk() {
            break error;
        }
    };
    let Error::WorkerDied { exit: Some(exit), bytes, .. } = error else { panic!("{error}") };
    assert!(!exit.success() && bytes > 0);
    assert_eq!(client.get(&server.url("/again")).send().expect("an answer").status(), 200);
}
