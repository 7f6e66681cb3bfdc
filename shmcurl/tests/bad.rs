//! `shmcurl` where things go wrong: each fault has its own number and words, and nothing hangs (`Scene::run` fails if
//! something does).

mod common;

use common::{Scene, finish, plain, program};
use curl_test_server::pattern;
use std::process::{Command, Stdio};

#[test]
fn each_fault_has_its_number() {
    let scene = Scene::new();
    let (at, server) = (&scene.server.at, &scene.server);
    let url = |path: &str| server.url(path);
    let short = ["-m", "1"];
    let cases: Vec<(&str, Vec<&str>, String, i32, &str)> = vec![
        // What is asked for cannot be.
        ("another protocol", vec![], "ftp://127.0.0.1/".into(), 1, "protocol"),
        ("a file", vec![], "file:///etc/hostname".into(), 1, "protocol"),
        ("a port that is none", vec![], "http://127.0.0.1:99999/".into(), 3, ""),
        ("a host that is none", vec![], "http://".into(), 3, ""),
        ("a protocol that is not allowed", vec!["--proto", "=https"], url("/"), 1, "http"),
        // The way there.
        ("a name nobody has", vec![], "http://nowhere.invalid/".into(), 6, "nowhere.invalid"),
        ("nobody listens", vec![], format!("http://{}/", at.closed), 7, "connect"),
        ("nobody accepts", vec!["--connect-timeout", "1"], format!("http://{}/", at.full), 28, ""),
        ("nobody speaks TLS", vec!["--connect-timeout", "1"], format!("https://{}/", at.silent), 28, ""),
        ("no TLS at all", vec![], format!("https://{}/", at.http), 35, ""),
        // The answer's head.
        ("no answer", short.to_vec(), url("/hang"), 28, ""),
        ("nobody reads the request", vec!["-m", "1", "-T", "ca.pem"], url("/deaf"), 28, ""),
        ("the connection's end", vec![], server.raw("/empty"), 52, ""),
        ("no HTTP", vec![], server.raw("/garbage"), 1, "HTTP/0.9"),
        ("a version that is none", vec![], server.raw("/http9"), 1, "version"),
        ("a header without a colon", vec![], server.raw("/bad-header"), 8, ""),
        ("a header with a NUL", vec![], server.raw("/nul-header"), 8, ""),
        ("half a head", short.to_vec(), server.raw("/half-head"), 28, ""),
        ("a head byte by byte", short.to_vec(), server.raw("/slow-head"), 28, ""),
        // Its body.
        ("a body that is cut", vec![], server.raw("/truncated"), 18, ""),
        ("a chunk that is cut", vec![], server.raw("/truncated-chunk"), 18, ""),
        ("a chunk without a size", vec![], server.raw("/bad-chunk"), 56, ""),
        ("a reset", vec![], server.raw("/reset"), 56, ""),
        ("a body broken off", vec![], url("/broken/1000"), 18, ""),
        ("a body shorter than said", vec![], url("/short/1000"), 18, ""),
        ("a body that stops", short.to_vec(), url("/stall/1000"), 28, ""),
        ("a body too slow", vec!["-Y", "100000", "-y", "1"], url("/drip?pieces=600&ms=20"), 28, ""),
        ("a body without end", vec!["--max-filesize", "1M"], url("/endless"), 63, ""),
        ("a body too large, as it says", vec!["--max-filesize", "1M"], url("/bytes/2000000"), 63, ""),
        ("a bomb", vec!["--compressed", "--max-filesize", "1M"], url("/bomb/1073741824"), 63, ""),
        ("no gzip", vec!["--compressed"], url("/bad-gzip"), 61, ""),
        ("an HTTP/2 stream broken off", vec!["--http2-prior-knowledge"], url("/broken/1000"), 92, ""),
        // Redirects.
        ("a loop", vec!["-L"], url("/loop"), 47, "redirects"),
        ("to a file", vec!["-L"], url("/redirect-to?url=file:///etc/hostname"), 1, "file"),
        ("to another protocol", vec!["-L", "--proto-redir", "=https"], url("/redirect/1"), 1, "http"),
        ("to no URL", vec!["-L"], url("/redirect-to?url=http://127.0.0.1:x/"), 3, ""),
        // Addresses.
        ("this machine", vec!["--public-only"], url("/"), 7, "policy"),
        ("a network that is denied", vec!["--deny-net", "127.0.0.0/8"], url("/"), 7, "policy"),
        ("a network that is not allowed", vec!["--allow-net", "10.0.0.0/8"], url("/"), 7, "policy"),
        // What fails here.
        ("a status", vec!["-f"], url("/status/503"), 22, "503"),
        ("an upload of nothing", vec!["-T", "none"], url("/upload"), 26, "none"),
        ("data of nothing", vec!["-d", "@none"], url("/echo"), 26, "none"),
        ("a worker that is none", vec!["--worker", "./none"], url("/"), 2, "none"),
        ("a worker's URI that is none", vec!["--worker", "carrier://pigeon"], url("/"), 2, "pigeon"),
        ("a worker to come", vec!["--worker-min-version", "4000000"], url("/"), 2, "older"),
    ];
    let mut wrong = Vec::new();
    for (what, args, url, code, words) in cases {
        let ran = scene.run(&[&args[..], &["-o", "out", url.as_str()]].concat());
        let said = ran.stderr.to_lowercase();
        let named = said.contains(&format!("({code})")) && said.contains(&words.to_lowercase());
        if ran.code != code || !named {
            wrong.push(format!("{what}: {} where {code} and `{words}` were expected: {}", ran.code, ran.stderr.trim()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_forbidden_address_is_refused_wherever_it_comes_from() {
    let scene = Scene::new();
    let port = scene.server.at.http.port();
    let hits = || scene.server.hits("/secret");
    let direct = format!("http://127.0.0.1:{port}/secret");
    let resolve = format!("public.example:{port}:127.0.0.1");
    let named = format!("http://public.example:{port}/secret");
    for args in [
        vec!["--public-only", &direct],
        vec!["--public-only", "--resolve", &resolve, &named],
        vec!["--public-only", "--connect-to", &format!("::127.0.0.1:{port}"), "http://public.example/secret"],
    ] {
        scene.run(&args).failed(7, "policy");
    }
    // The first hop is allowed, the redirect's is not.
    let elsewhere = format!("http://127.0.0.2:{port}/secret");
    let redirect = scene.server.url(&format!("/redirect-to?url={elsewhere}"));
    scene.run(&["-L", "--allow-net", "127.0.0.1", &redirect]).failed(7, "policy");
    assert_eq!(hits(), 0);
    // With a proxy only the proxy would be seen.
    scene.run(&["--public-only", "-x", &format!("http://{}", scene.server.at.proxy), &direct]).failed(43, "proxy");
    assert_eq!(hits(), 0);
}

#[test]
fn a_body_that_cannot_be_written_is_a_fault() {
    let scene = Scene::new();
    let ran = scene.run(&["-o", "/dev/full", &scene.server.url("/bytes/1000000")]);
    ran.failed(23, "writing");
    // Whoever reads it has gone.
    let mut command = scene.command(&[&scene.server.url("/endless")]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("shmcurl");
    drop(child.stdout.take());
    assert_eq!(common::end_of(&mut child, "a closed pipe"), 23);
}

#[test]
fn garbage_from_a_worker_is_told() {
    let scene = Scene::new();
    for (name, script, words) in [
        ("mute", "#!/bin/sh\nexit 0\n", ""),
        ("garbage", "#!/bin/sh\necho 'no JSON at all'\n", "protocols"),
        ("dying", "#!/bin/sh\necho 'it hurts' >&2\nexit 3\n", ""),
        (
            "strange",
            "#!/bin/sh\necho '{\"transports\":{\"pigeon\":{\"rate\":1}},\"formats\":{\"handle\":{\"rate\":1}},\"version\":9}'\n",
            "transport",
        ),
        (
            "elder",
            "#!/bin/sh\necho '{\"transports\":{\"shm\":{\"rate\":1}},\"formats\":{\"feather\":{\"rate\":1}},\"version\":9}'\n",
            "format",
        ),
    ] {
        scene.write(name, script.as_bytes());
        let path = scene.path(name);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("executable");
        let worker = path.to_str().expect("text").to_owned();
        scene.run(&["--worker", &worker, &scene.server.url("/")]).failed(2, words);
    }
}

/// The same command line for curl itself, where there is one: the same exit code and the same bytes.
#[test]
fn curl_does_the_same() {
    let Some(curl) = program("curl") else {
        println!("note: skipped, there is no curl here");
        return;
    };
    let scene = Scene::new();
    scene.write("body", &pattern::bytes(0, 3_000));
    scene.write("text", b"a=b\r\n&c=d\n");
    let url = |path: &str| scene.server.url(path);
    let raw = |path: &str| scene.server.raw(path);
    let closed = format!("http://{}/", scene.server.at.closed);
    let lines: Vec<Vec<String>> = [
        vec!["-X", "PATCH", "-d", "a b", "-H", "X-A: 1", &url("/echo")],
        vec!["-d", "a", "--data-urlencode", "b=c d&", "--data-raw", "@x", &url("/echo")],
        vec!["--json", "[1]", "-H", "Accept: x/y", &url("/echo")],
        vec!["-G", "-d", "a=1", "-d", "b=2", &url("/echo?c=3")],
        vec!["-T", "body", &url("/upload")],
        vec!["-T", "body", &url("/echo/")],
        vec!["-d", "@text", &url("/echo")],
        vec!["--data-binary", "@body", &url("/upload")],
        vec!["-r", "10-19", &url("/bytes/100")],
        vec!["-r", "-7", &url("/bytes/100")],
        vec!["-r", "200-", &url("/bytes/100")],
        vec!["-L", "-d", "x", &url("/redirect/2?status=301")],
        vec!["-L", "--post302", "-d", "x", &url("/redirect/2?status=302")],
        vec!["-L", "--max-redirs", "1", &url("/redirect/2")],
        vec!["-L", "-T", "body", &url("/redirect/1?status=307")],
        vec!["-e", ";auto", "-L", &url("/redirect/1")],
        vec!["--compressed", &url("/gzip/50000")],
        vec!["-u", "user:secret", &url("/basic/user/secret")],
        vec!["--digest", "-u", "user:secret", &url("/digest/user/secret")],
        vec!["-b", "a=b", "-b", "c=d", &url("/cookies")],
        vec!["-f", &url("/status/404")],
        vec!["-f", "-w", "%{http_code} %{num_redirects}", &url("/status/500")],
        vec!["-s", &closed],
        vec!["-w", "%{http_code}|%{size_download}|%{content_type}|%{method}|%{urlnum}\\n", &url("/bytes/77")],
        vec![&raw("/truncated")],
        vec![&raw("/excess")],
        vec![&raw("/garbage")],
        vec![&raw("/reset")],
        vec!["--http0.9", &raw("/garbage")],
        vec!["-o", "one", "-o", "two", &url("/bytes/1"), &url("/bytes/2"), &url("/bytes/3")],
        vec!["-g", &url("/status/[200]")],
        vec!["--path-as-is", &url("/echo/../echo")],
        vec![&url("/echo/../echo")],
        vec!["--request-target", "/status/204", "-w", "%{http_code}", &url("/echo")],
        vec!["-z", "Wed, 01 Jan 2025 00:00:00 GMT", &url("/echo")],
        vec!["http://"],
        vec!["http://nowhere.invalid/"],
        vec!["-A", "agent", "-x", &format!("http://{}", scene.server.at.proxy), &url("/echo")],
    ]
    .into_iter()
    .map(|line| line.into_iter().map(str::to_owned).collect())
    .collect();
    let mut differ = Vec::new();
    for line in lines {
        let args: Vec<&str> = line.iter().map(String::as_str).collect();
        // One agent for both; where -A is given, that one counts.
        let agent = ["-A", "a"];
        let ours = scene.run(&[&agent[..], &args[..]].concat());
        let mut command = Command::new(&curl);
        command.args(["-q", "-sS"]).args(agent).args(&args).current_dir(scene.dir.path()).stdin(Stdio::null());
        plain(&mut command);
        let theirs = finish(command, b"");
        if ours.code != theirs.code || regular(&ours.stdout) != regular(&theirs.stdout) {
            let shown = |ran: &common::Ran| {
                format!("{}, {:?}, {}", ran.code, ran.text().chars().take(300).collect::<String>(), ran.stderr.trim())
            };
            differ.push(format!("{args:?}\n  shmcurl {}\n  curl    {}", shown(&ours), shown(&theirs)));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}

/// An echo without what libcurl's versions do not agree on: the order of headers, and for which bodies leave is asked.
fn regular(output: &[u8]) -> (Vec<Vec<u8>>, &[u8]) {
    let end = output.windows(2).position(|window| window == b"\n\n").unwrap_or(0);
    let (head, body) = output.split_at(end);
    let mut lines: Vec<Vec<u8>> = head.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    lines.retain(|line| !line.starts_with(b"expect: "));
    lines.sort();
    (lines, body)
}
