//! What a request can be told: each option shows in what the server sees, or in what comes back.

mod common;

use common::{Asked, Server, client, reply};
use proc_curl::{
    AddressPolicy, Auth, Form, HeadKind, HttpVersion, Part, Proxy, Redirects, RequestBuilder, Schemes, Source, Why,
};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// All headers that came, and the body.
fn mirror(asked: Asked, out: &mut TcpStream) -> bool {
    let mut text = format!("{} {}\n", asked.method, asked.path);
    for (name, value) in &asked.headers {
        text.push_str(&format!("{}: {value}\n", name.to_lowercase()));
    }
    text.push_str(&String::from_utf8_lossy(&asked.body));
    reply(out, "200 OK", "", text.as_bytes())
}

fn text(request: RequestBuilder) -> String {
    request.send().expect("an answer").text().expect("text")
}

#[test]
fn the_server_sees_what_was_asked_for() {
    let (server, client) = (Server::start(mirror), client());
    let get = || client.get(&server.url("/a/../b"));
    let plain = text(get());
    assert!(
        plain.starts_with("GET /b\n") && plain.contains("user-agent: procCurl/1.") && plain.contains("accept: */*")
    );
    assert!(!plain.contains("accept-encoding") && !plain.contains("cookie"));
    assert!(text(get().path_as_is()).starts_with("GET /a/../b\n"));
    assert!(!text(get().without_header("Accept").without_header("User-Agent")).contains("accept"));
    assert!(text(get().range("5-9")).contains("range: bytes=5-9"));
    assert!(text(get().cookie("a=1; b=2")).contains("cookie: a=1; b=2"));
    assert!(text(get().decompress()).contains("accept-encoding: deflate, gzip"));
    assert!(text(get().decompress_only("gzip")).contains("accept-encoding: gzip"));
    assert!(text(get().auth(Auth::Bearer("token".into()))).contains("authorization: Bearer token"));
    let password = |schemes| Auth::Password { user: "u".into(), password: "p".into(), schemes };
    assert!(text(get().auth(password(Schemes::BASIC))).contains("authorization: Basic dTpw"));
    assert!(text(get().request_target("*")).starts_with("GET *\n"));
    let since = std::time::UNIX_EPOCH + Duration::from_secs(784_111_777);
    assert!(text(get().if_modified_since(since)).contains("if-modified-since: Sun, 06 Nov 1994 08:49:37 GMT"));
    let form =
        Form::new().part(Part::new("a", "1")).part(Part::new("f", Source::reader(&b"xyz"[..], Some(3))).file_name("n"));
    let formed = text(client.request("POST", &server.url("/")).form(form));
    assert!(formed.contains("content-type: multipart/form-data; boundary=") && formed.contains("filename=\"n\""));
    assert!(formed.contains("\r\n\r\nxyz\r\n"), "{formed}");
    let json = text(client.request("PUT", &server.url("/")).json("{}"));
    assert!(json.contains("content-type: application/json") && json.ends_with("{}"));
    let port = server.address.port();
    assert!(
        text(client.get(&format!("http://else.invalid:{port}/")).resolve(format!("else.invalid:{port}:127.0.0.1")))
            .contains(&format!("host: else.invalid:{port}"))
    );
    let elsewhere = format!("else.invalid:80:127.0.0.1:{port}");
    assert!(text(client.get("http://else.invalid/").connect_to(elsewhere)).contains("host: else.invalid\n"));
    let proxied = text(client.get("http://else.invalid/x").proxy(Some(Proxy::new(server.url("")))));
    assert!(proxied.starts_with("GET http://else.invalid/x\n"));
}

#[test]
fn digest_is_answered_and_credentials_stay_with_their_host() {
    let other = Server::start(mirror);
    let away = format!("http://localhost:{}/away", other.address.port());
    let server = Server::start(move |asked, out| match (asked.path.as_str(), asked.header("authorization")) {
        ("/digest", None) => {
            let challenge = "WWW-Authenticate: Digest realm=\"r\", nonce=\"n\", qop=\"auth\"\r\n";
            reply(out, "401 Who", challenge, b"who?")
        }
        ("/away", _) => reply(out, "302 Found", &format!("Location: {away}\r\n"), b""),
        _ => mirror(asked, out),
    });
    let client = client();
    let auth = |schemes| Auth::Password { user: "u".into(), password: "p".into(), schemes };
    let response = client.get(&server.url("/digest")).auth(auth(Schemes::DIGEST)).send().expect("an answer");
    let kinds: Vec<_> = response.heads().iter().map(|head| (head.status, head.kind)).collect();
    assert_eq!(kinds, [(401, HeadKind::Passing), (200, HeadKind::Final)]);
    assert!(response.text().expect("text").contains("authorization: Digest username=\"u\""));
    let moved = |redirects| text(client.get(&server.url("/away")).auth(auth(Schemes::BASIC)).redirects(redirects));
    assert!(!moved(Redirects::up_to(1)).contains("authorization"));
    assert!(moved(Redirects { auth_elsewhere: true, ..Redirects::up_to(1) }).contains("authorization"));
}

#[test]
fn jars_keep_cookies_for_those_who_name_them() {
    let server = Server::start(|asked, out| match asked.path.as_str() {
        "/set" => reply(out, "200 OK", "Set-Cookie: a=1\r\nSet-Cookie: b=2; Path=/only\r\n", b""),
        "/drop" => reply(out, "200 OK", "Set-Cookie: a=; Max-Age=0\r\n", b""),
        _ => mirror(asked, out),
    });
    let client = client();
    text(client.get(&server.url("/set")).cookie_jar(1));
    assert!(text(client.get(&server.url("/")).cookie_jar(1)).contains("cookie: a=1\n"));
    assert!(text(client.get(&server.url("/only")).cookie_jar(1)).contains("b=2"));
    assert!(!text(client.get(&server.url("/")).cookie_jar(2)).contains("cookie"));
    assert!(!text(client.get(&server.url("/"))).contains("cookie"));
    let lines = client.cookies(1).expect("cookies");
    assert_eq!(lines.len(), 2);
    client.add_cookies(2, &lines).expect("added");
    client.add_cookies(2, &["Set-Cookie: c=3; domain=127.0.0.1".to_owned()]).expect("added");
    let both = text(client.get(&server.url("/")).cookie_jar(2));
    assert!(both.contains("a=1") && both.contains("c=3"), "{both}");
    text(client.get(&server.url("/drop")).cookie_jar(2));
    assert!(!text(client.get(&server.url("/")).cookie_jar(2)).contains("a=1"));
    client.clear_cookies(2).expect("cleared");
    assert_eq!(client.cookies(2).expect("cookies"), Vec::<String>::new());
}

/// `hello`, and a hundred thousand zeroes.
const HELLO: &[u8] = &[31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 203, 72, 205, 201, 201, 7, 0, 134, 166, 16, 54, 5, 0, 0, 0];
const ZEROES: [u8; 14] = [31, 139, 8, 0, 0, 0, 0, 0, 2, 3, 237, 193, 49, 1];
const ZEROES_END: [u8; 11] = [128, 87, 3, 125, 149, 17, 212, 160, 134, 1, 0];

#[test]
fn compressed_bodies_are_undone_and_their_limit_is_of_what_comes_out() {
    let server = Server::start(|asked, out| {
        let mut zeroes = ZEROES.to_vec();
        zeroes.extend([0, 0, 0, 194, 160, 245, 79, 109, 13, 15, 160]);
        zeroes.resize(132 - ZEROES_END.len(), 0);
        zeroes.extend(ZEROES_END);
        let body = if asked.path == "/bomb" { &zeroes } else { HELLO };
        reply(out, "200 OK", "Content-Encoding: gzip\r\n", body)
    });
    let client = client();
    assert_eq!(text(client.get(&server.url("/")).decompress()), "hello");
    assert_eq!(client.get(&server.url("/")).send().expect("an answer").bytes().expect("bytes"), HELLO);
    let bomb = |limit| client.get(&server.url("/bomb")).decompress().body_max(limit).send().and_then(|r| r.bytes());
    assert_eq!(bomb(100_000).expect("bytes").len(), 100_000);
    let error = bomb(99_999).expect_err("too large");
    let failure = error.failure().expect("libcurl's");
    assert_eq!((failure.code, failure.why), (63, Why::BodyTooLarge));
}

#[test]
fn heads_before_the_answer_and_fields_after_it_are_told_apart() {
    let server = Server::start(|_, out| {
        let text = "HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\
            Trailer: T\r\n\r\n3\r\nabc\r\n0\r\nT: late\r\n\r\n";
        out.write_all(text.as_bytes()).is_ok()
    });
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = heard.clone();
    let request =
        client().get(&server.url("/")).on_head(move |head| listener.lock().expect("a lock").push(head.status));
    let mut response = request.send().expect("an answer");
    assert_eq!(response.heads().first().map(|head| (head.status, head.kind)), Some((103, HeadKind::Informational)));
    let mut body = Vec::new();
    response.copy_to(&mut body).expect("a body");
    assert_eq!((body.as_slice(), response.trailers().and_then(|fields| fields.get("t"))), (&b"abc"[..], Some("late")));
    assert_eq!(*heard.lock().expect("a lock"), [103, 200]);
}

#[test]
fn unix_sockets_progress_and_traces_are_to_be_had() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s");
    let listener = UnixListener::bind(&path).expect("bound");
    std::os::unix::fs::chown(&path, Some(65_534), None).ok();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("open to all");
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut lines = BufReader::new(stream.try_clone().expect("a socket")).lines();
        while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nover a socket").expect("written");
    });
    let (traced, progressed) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
    let (trace, progress) = (traced.clone(), progressed.clone());
    let request = client()
        .get("http://h/")
        .unix_socket(path.to_string_lossy())
        .version(HttpVersion::Http11)
        .on_trace(move |_, line| trace.lock().expect("a lock").extend_from_slice(line))
        .on_progress(Duration::from_millis(1), move |progress_now| {
            *progress.lock().expect("a lock") = progress_now.received;
        });
    assert_eq!(text(request), "over a socket");
    assert!(String::from_utf8_lossy(&traced.lock().expect("a lock")).contains("GET / HTTP/1.1"));
    assert!(*progressed.lock().expect("a lock") <= 13);
}

#[test]
fn what_cannot_be_is_refused_before_it_is_sent() {
    let (server, client) = (Server::start(mirror), client());
    let bad = |change: fn(RequestBuilder) -> RequestBuilder| {
        let error = change(client.get(&server.url("/"))).send().expect_err("a refusal");
        error.failure().unwrap_or_else(|| panic!("{error}")).why
    };
    let policy = AddressPolicy::public_only;
    assert_eq!(bad(|request| request.header("A b", "c")), Why::BadRequest);
    assert_eq!(bad(|request| request.header("A", "b\nc")), Why::BadRequest);
    assert_eq!(bad(|request| request.cookie("a\r\nB: c")), Why::BadRequest);
    assert_eq!(bad(|request| request.protocols(proc_curl::Protocols { http: false, https: false })), Why::BadRequest);
    assert_eq!(
        bad(|request| request.protocols(proc_curl::Protocols { http: false, https: true })),
        Why::ProtocolDenied
    );
    let pinned = proc_curl::Tls { pinned_key: Some("/etc/passwd".into()), ..proc_curl::Tls::default() };
    let error = client.get(&server.url("/")).tls(pinned).send().expect_err("a refusal");
    assert_eq!(error.failure().map(|failure| failure.why), Some(Why::BadRequest));
    let proxied = client.get("http://h/").proxy(Some(Proxy::new(server.url("")))).address_policy(policy());
    assert_eq!(proxied.send().expect_err("a refusal").failure().map(|failure| failure.why), Some(Why::BadRequest));
    let method = client.request("GE T", &server.url("/")).send().expect_err("a refusal");
    assert_eq!(method.failure().map(|failure| failure.why), Some(Why::BadRequest));
}
