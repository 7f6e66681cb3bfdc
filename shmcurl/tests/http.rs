//! `shmcurl` against servers that keep the rules: what curl's users type, and what must come of it.

mod common;

use common::Scene;
use curl_test_server::pattern;

#[test]
fn methods_and_bodies() {
    let scene = Scene::new();
    let echo = scene.server.url("/echo");
    scene.write("body", b"x\r\ny\n");
    let first_line = |args: &[&str]| {
        let text = scene.run(&[args, &[echo.as_str()]].concat()).ok();
        text.lines().next().unwrap_or_default().to_owned()
    };
    for (args, line) in [
        (&[][..], "GET /echo HTTP/1.1"),
        (&["-XPURGE"], "PURGE /echo HTTP/1.1"),
        (&["-d", "a"], "POST /echo HTTP/1.1"),
        (&["-Gda=b", "--data-urlencode", "c=d e"], "GET /echo?a=b&c=d+e HTTP/1.1"),
        (&["-T", "body"], "PUT /echo HTTP/1.1"),
        (&["-XDELETE"], "DELETE /echo HTTP/1.1"),
        (&["-XOPTIONS"], "OPTIONS /echo HTTP/1.1"),
        (&["--url-query", "q=1&2"], "GET /echo?q=1%262 HTTP/1.1"),
    ] {
        assert_eq!(first_line(args), line, "{args:?}");
    }
    let body_of = |text: String| text.split_once("\n\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    let text = scene.run(&["-d", "a=1", "-d", "@body", "--data-binary", "@body", &echo]).ok();
    assert!(text.contains("content-type: application/x-www-form-urlencoded\n"), "{text}");
    assert_eq!(body_of(text), "a=1&xy&x\r\ny\n");
    let text = scene.run(&["--json", "{\"a\":1}", &echo]).ok();
    assert!(text.contains("content-type: application/json\n") && text.contains("accept: application/json\n"), "{text}");
    assert_eq!(body_of(text), "{\"a\":1}");
    let text = scene.run_with(&["-T", "-", &echo], b"from standard input").ok();
    assert!(text.contains("transfer-encoding: chunked\n"), "{text}");
    assert_eq!(body_of(text), "from standard input");
    let text = scene.run(&["-F", "name=me", "-F", "file=@body;type=text/x", "--form-string", "s=@no", &echo]).ok();
    assert!(text.contains("content-type: multipart/form-data; boundary="), "{text}");
    for part in [
        "name=\"name\"\r\n\r\nme\r\n",
        "filename=\"body\"\r\nContent-Type: text/x\r\n\r\nx\r\ny\n\r\n",
        "\r\n\r\n@no\r\n",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn headers_go_as_they_are_given() {
    let scene = Scene::new();
    let url = scene.server.raw("/verbatim");
    let args =
        ["-H", "X-Two: 1", "-H", "X-Two: 2", "-H", "Accept:", "-H", "X-Empty;", "-A", "me", "-e", "http://from/", &url];
    let text = scene.run(&args).ok();
    let lines: Vec<&str> = text.lines().collect();
    for line in ["X-Two: 1", "X-Two: 2", "X-Empty:", "User-Agent: me", "Referer: http://from/"] {
        assert!(lines.iter().any(|found| found.trim_end() == line), "{line} in {text}");
    }
    assert!(!text.to_lowercase().contains("accept:"), "{text}");
    let first = text.find("X-Two: 1").expect("there");
    assert!(first < text.find("X-Two: 2").expect("there"));
    scene.write("lines", b"X-File: a\nX-More: b\n");
    let text = scene.run(&["-H", "@lines", "-A", "", &url]).ok();
    assert!(text.contains("X-File: a\r\n") && text.contains("X-More: b\r\n") && !text.contains("User-Agent"), "{text}");
}

#[test]
fn heads_are_shown_where_they_are_wanted() {
    let scene = Scene::new();
    let url = scene.server.url("/bytes/5?ranges=no");
    let text = scene.run(&["-I", &url]).ok();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with("\r\n\r\n"), "{text}");
    assert!(text.to_lowercase().contains("content-length: 5\r\n"), "{text}");
    let ran = scene.run(&["-i", &url]);
    let end = ran.stdout.len() - 5;
    assert!(ran.stdout[..end].ends_with(b"\r\n\r\n") && ran.stdout[end..] == pattern::bytes(0, 5));
    let body = scene.run(&["-D", "heads", "-L", &scene.server.url("/redirect/2")]).ok();
    assert!(!body.contains("elsewhere"), "{body}");
    let heads = String::from_utf8(scene.read("heads")).expect("text");
    assert_eq!(heads.matches("HTTP/1.1 302").count(), 2, "{heads}");
    assert_eq!(heads.matches("HTTP/1.1 200").count(), 1, "{heads}");
    let text = scene.run(&["-i", &scene.server.raw("/informational")]).ok();
    assert_eq!(text.matches("HTTP/1.1 103 Early Hints\r\n").count(), 2, "{text}");
    assert!(text.ends_with("\r\n\r\nfinal\n"), "{text}");
    let text = scene.run(&["-i", "-H", "TE: trailers", &scene.server.url("/trailers")]).ok();
    assert!(
        text.contains("rows\n") && text.contains("x-checksum: c0ffee\r\n") && text.contains("x-rows: 7\r\n"),
        "{text}"
    );
    let ran = scene.run(&["-v", &scene.server.url("/status/200")]);
    assert!(
        ran.stderr.contains("> GET /status/200 HTTP/1.1\n") && ran.stderr.contains("< HTTP/1.1 200 OK\n"),
        "{}",
        ran.stderr
    );
}

#[test]
fn redirects_are_followed_as_far_as_allowed() {
    let scene = Scene::new();
    let url = |path: &str| scene.server.url(path);
    let text =
        scene.run(&["-o", "out", "-w", "%{http_code} %{num_redirects} %{redirect_url}", &url("/redirect/1")]).ok();
    assert_eq!(text, format!("302 0 {}", url("/redirect/0?status=302")));
    let args = ["-Lo", "out", "-w", "%{http_code} %{num_redirects} %{url_effective}", &url("/redirect/3")];
    assert_eq!(scene.run(&args).ok(), format!("200 3 {}", url("/redirect/0?status=302")));
    scene.run(&["-L", "--max-redirs", "2", &url("/redirect/3")]).failed(47, "redirects");
    scene.run(&["-L", &url("/loop")]).failed(47, "redirects");
    let method = |args: &[&str], status: u16| {
        let to = url(&format!("/redirect/1?status={status}"));
        let text = scene.run(&[args, &["-L", "-d", "x", to.as_str()]].concat()).ok();
        text.split(' ').next().unwrap_or_default().to_owned()
    };
    for (status, option) in [(301, "--post301"), (302, "--post302"), (303, "--post303")] {
        assert_eq!(method(&[], status), "GET", "{status}");
        assert_eq!(method(&[option], status), "POST", "{option}");
    }
    assert_eq!((method(&[], 307), method(&[], 308)), ("POST".into(), "POST".into()));
    // To another host: the password stays at home.
    let there = format!("http://localhost:{}/echo", scene.server.at.http.port());
    let to = url(&format!("/redirect-to?url={there}"));
    assert!(!scene.run(&["-Lu", "user:secret", &to]).ok().contains("authorization:"));
    assert!(scene.run(&["--location-trusted", "-u", "user:secret", &to]).ok().contains("authorization:"));
}

#[test]
fn compression_is_undone() {
    let scene = Scene::new();
    for path in ["/gzip/100000", "/deflate/100000", "/raw-deflate/100000"] {
        let ran = scene.run(&["--compressed", &scene.server.url(path)]);
        assert_eq!((ran.code, ran.stdout.len()), (0, 100_000), "{path}: {}", ran.stderr);
        assert!(pattern::matches(0, &ran.stdout), "{path}");
        let ran = scene.run(&[&scene.server.url(path)]);
        assert!(ran.code == 0 && !pattern::matches(0, &ran.stdout), "{path} as it is");
    }
}

#[test]
fn cookies_are_kept_and_written() {
    let scene = Scene::new();
    let url = scene.server.url("/cookies/set?a=1&b=2");
    assert_eq!(scene.run(&["-b", "x=y", &scene.server.url("/cookies")]).ok(), "x=y\n");
    assert_eq!(scene.run(&["-L", &url]).ok(), "\n", "no jar, no cookies");
    let sent = scene.run(&["-L", "-c", "jar", &url]).ok();
    assert!(sent.contains("a=1") && sent.contains("b=2"), "{sent}");
    let jar = String::from_utf8(scene.read("jar")).expect("text");
    assert!(jar.starts_with("# Netscape HTTP Cookie File\n") && jar.contains("\ta\t1\n"), "{jar}");
    let sent = scene.run(&["-b", "jar", &scene.server.url("/cookies")]).ok();
    assert!(sent.contains("a=1") && sent.contains("b=2"), "{sent}");
    assert_eq!(scene.run(&["-jb", "jar", &scene.server.url("/cookies")]).ok(), "\n", "of a session");
    // Several URLs share the jar.
    let text = scene.run(&["-b", "", &scene.server.url("/cookies/give?c=3"), &scene.server.url("/cookies")]).ok();
    assert_eq!(text, "given\nc=3\n");
}

#[test]
fn who_asks_is_proven() {
    let scene = Scene::new();
    let url = |path: &str| scene.server.url(path);
    for (args, path) in [
        (&["-u", "user:secret"][..], "/basic/user/secret"),
        (&["--digest", "-u", "user:secret"], "/digest/user/secret"),
        (&["--anyauth", "-u", "user:secret"], "/digest/user/secret"),
        (&["--anyauth", "-u", "user:secret"], "/basic/user/secret"),
        (&["--oauth2-bearer", "token"], "/bearer/token"),
    ] {
        let right = scene.run(&[args, &["-f", &url(path)]].concat());
        assert_eq!(right.ok(), "welcome\n", "{args:?}");
        let wrong = url(path).replace("secret", "other").replace("token", "other");
        scene.run(&[args, &["-f", wrong.as_str()]].concat()).failed(22, "401");
    }
    let with = url("/basic/user/secret").replace("http://", "http://user:secret@");
    assert_eq!(scene.run(&[&with]).ok(), "welcome\n");
    // The body of what was asked again with credentials arrives.
    let text = scene.run(&["--digest", "-u", "user:secret", "-T", "ca.pem", &url("/digest/user/secret")]).ok();
    assert_eq!(text, "welcome\n");
}

#[test]
fn ranges_and_downloads_that_go_on() {
    let scene = Scene::new();
    let url = scene.server.url("/bytes/1000");
    let ran = scene.run(&["-r", "5-9", "-w", "%{stderr}%{http_code}", &url]);
    assert_eq!((ran.stdout.as_slice(), ran.stderr.as_str()), (&pattern::bytes(5, 5)[..], "206"));
    scene.write("1000", &pattern::bytes(0, 600));
    assert_eq!(scene.run(&["-C", "-", "-O", "-w", "%{size_download}", &url]).ok(), "400");
    assert_eq!(scene.read("1000"), pattern::bytes(0, 1_000));
    // There is nothing left of it.
    assert_eq!(scene.run(&["-C", "-", "-O", &url]).code, 0);
    assert_eq!(scene.read("1000"), pattern::bytes(0, 1_000));
    scene.write("half", &pattern::bytes(0, 600));
    scene.run(&["-C", "-", "-o", "half", &format!("{url}?ranges=no")]).failed(33, "range");
    assert_eq!(scene.read("half"), pattern::bytes(0, 600), "a resume that failed changes nothing");
}

#[test]
fn files_are_named_and_placed() {
    let scene = Scene::new();
    let url = |path: &str| scene.server.url(path);
    scene.run(&["-O", &url("/bytes/7?ranges=no")]).ok();
    assert_eq!(scene.read("7"), pattern::bytes(0, 7));
    scene
        .run(&["-o", "#2-#1", "--create-dirs", "--output-dir", "a/b", &format!("{}[3-4]", url("/{bytes,chunked}/"))])
        .ok();
    for name in ["3-bytes", "4-bytes", "3-chunked", "4-chunked"] {
        assert_eq!(scene.read(&format!("a/b/{name}")).len(), usize::from(name.as_bytes()[0] - b'0'), "{name}");
    }
    scene.run(&["--no-clobber", "-o", "7", &url("/bytes/9")]).ok();
    assert_eq!((scene.read("7").len(), scene.read("7.1").len()), (7, 9));
    scene.run(&["-R", "-o", "old", &url("/bytes/1")]).ok();
    let modified = std::fs::metadata(scene.path("old")).and_then(|metadata| metadata.modified()).expect("a time");
    let since = modified.duration_since(std::time::UNIX_EPOCH).expect("later");
    assert_eq!(since.as_secs(), 1_735_689_600);
    scene.run(&["-O", &url("/")]).failed(23, "file name");
    scene.run(&["-o", "no/such/dir", &url("/bytes/1")]).failed(23, "no/such/dir");
    scene.run(&["--remove-on-error", "-o", "cut", &scene.server.raw("/truncated")]).failed(18, "");
    assert!(!scene.path("cut").exists());
    scene.run(&["-o", "cut", &scene.server.raw("/truncated")]).failed(18, "");
    assert_eq!(scene.read("cut"), pattern::bytes(0, 100), "what came is kept");
}

#[test]
fn tls_is_believed_or_not() {
    let scene = Scene::new();
    let at = &scene.server.at;
    let https = |address: std::net::SocketAddr| format!("https://localhost:{}/status/200", address.port());
    assert_eq!(scene.run(&["--cacert", "ca.pem", &https(at.https)]).ok(), "status\n");
    for (what, address) in [("expired", at.expired), ("other host", at.wrong_host), ("self-signed", at.self_signed)] {
        scene.run(&["--cacert", "ca.pem", &https(address)]).failed(60, "SSL");
        assert_eq!(scene.run(&["-k", &https(address)]).ok(), "status\n", "{what}");
    }
    scene.run(&[&https(at.https)]).failed(60, "SSL");
    let mutual = https(at.mutual);
    let ran = scene.run(&["--cacert", "ca.pem", &mutual]);
    // In TLS 1.3 the server says so after the handshake: whoever writes or reads then learns it.
    assert!([35, 55, 56].contains(&ran.code), "{}: {}", ran.code, ran.stderr);
    let with = ["--cacert", "ca.pem", "--cert", "client.pem", "--key", "client.key", &mutual];
    assert_eq!(scene.run(&with).ok(), "status\n");
    scene.run(&["--cacert", "none.pem", &mutual]).failed(77, "none.pem");
    scene.run(&["--cert", "none.pem", &mutual]).failed(58, "none.pem");
    // A server that speaks TLS has no answer to anything else.
    assert_ne!(scene.run(&[&scene.server.tls("/").replace("https:", "http:")]).code, 0);
}

#[test]
fn http2_is_spoken_and_one_connection_carries_many() {
    let scene = Scene::new();
    let version = |args: &[&str]| {
        let all = [&["--cacert", "ca.pem", "-o", "out", "-w", "%{http_version}"], args].concat();
        scene.run(&all).ok()
    };
    assert_eq!(version(&[&scene.server.tls("/echo")]), "2");
    assert_eq!(version(&["--http1.1", &scene.server.tls("/echo")]), "1.1");
    assert_eq!(version(&["--http2-prior-knowledge", &scene.server.url("/echo")]), "2");
    assert_eq!(version(&[&format!("https://localhost:{}/echo", scene.server.at.https1.port())]), "1.1");
    // Twenty requests that are answered only when all have come. What begins while nothing is known of the server yet waits
    // for the first connection.
    let before = scene.server.connections();
    let urls = format!("{}&n=[1-20]", scene.server.tls("/gate/20?key=one"));
    let text = scene.run(&["--cacert", "ca.pem", "-Z", &urls]).ok();
    assert_eq!(text, "all here\n".repeat(20));
    assert_eq!(scene.server.connections() - before, 1);
}

#[test]
fn proxies_are_gone_through() {
    let scene = Scene::new();
    let at = &scene.server.at;
    let (url, tls) = (scene.server.url("/status/200"), scene.server.tls("/status/200"));
    let http = format!("http://{}", at.proxy);
    let closed = format!("http://user:secret@{}", at.proxy_auth);
    let socks = format!("socks5h://{}", at.socks);
    let socks_closed = format!("socks5h://user:secret@{}", at.socks_auth);
    for proxy in [&http, &closed, &socks, &socks_closed] {
        for target in [&url, &tls] {
            assert_eq!(scene.run(&["-x", proxy, "--cacert", "ca.pem", target]).ok(), "status\n", "{proxy} {target}");
        }
    }
    assert_eq!(scene.run(&["--socks5", &at.socks.to_string(), &url]).ok(), "status\n");
    let over_tls = format!("https://localhost:{}", at.proxy_tls.port());
    assert_eq!(scene.run(&["-x", &over_tls, "--proxy-cacert", "ca.pem", &url]).ok(), "status\n");
    let asked = scene.server.asked_of_proxies();
    assert!(asked.contains(&format!("http GET {url}")), "{asked:?}");
    assert!(asked.contains(&format!("http CONNECT localhost:{}", at.https.port())), "{asked:?}");
    assert!(asked.contains(&format!("socks localhost:{}", at.https.port())), "{asked:?}");
    assert_eq!(scene.run(&["-x", &http, "-p", &url]).ok(), "status\n");
    assert!(scene.server.asked_of_proxies().contains(&format!("http CONNECT {}", at.http)));
    // Without leave: its answer is the answer, or there is no tunnel.
    let refused = format!("http://{}", at.proxy_auth);
    scene.run(&["-fx", &refused, &url]).failed(22, "407");
    // Which of the two depends on libcurl's version.
    let ran = scene.run(&["-x", &refused, &tls]);
    assert!([7, 56].contains(&ran.code) && ran.stderr.contains("407"), "{}", ran.stderr);
    scene.run(&["-x", &format!("socks5://{}", at.socks_auth), &url]).failed(97, "");
    scene.run(&["-x", &format!("http://{}", at.closed), &url]).failed(7, "");
    scene.run(&["-x", "http://nowhere.invalid:1", &url]).failed(5, "nowhere.invalid");
    // The worker's environment counts for nothing, shmcurl's own as for curl.
    let count = scene.server.asked_of_proxies().len();
    let mut command = scene.command(&[&url]);
    command.env("http_proxy", &http);
    assert_eq!(common::finish(command, b"").ok(), "status\n");
    assert_eq!(scene.server.asked_of_proxies().len(), count + 1);
    for args in [["--noproxy", "*"], ["-x", ""]] {
        let mut command = scene.command(&[args[0], args[1], &url]);
        command.env("http_proxy", &http);
        assert_eq!(common::finish(command, b"").ok(), "status\n");
    }
    assert_eq!(scene.server.asked_of_proxies().len(), count + 1);
}

#[test]
fn hosts_are_where_one_says() {
    let scene = Scene::new();
    let (port, tls) = (scene.server.at.http.port(), scene.server.at.https.port());
    let resolved = format!("test.example:{tls}:127.0.0.1");
    let url = format!("https://test.example:{tls}/status/200");
    assert_eq!(scene.run(&["--resolve", &resolved, "--cacert", "ca.pem", &url]).ok(), "status\n");
    let text = scene.run(&["--connect-to", &format!("a.example:80:127.0.0.1:{port}"), "http://a.example/echo"]).ok();
    assert!(text.contains("host: a.example\n"), "{text}");
    let unix = scene.server.unix().to_str().expect("text").to_owned();
    assert!(scene.run(&["--unix-socket", &unix, "http://b.example/echo"]).ok().contains("host: b.example\n"));
    assert_eq!(scene.run(&[&scene.server.url("/status/200").replace("http://", "")]).ok(), "status\n");
}

#[test]
fn what_may_pass_is_tried_again() {
    let scene = Scene::new();
    let url = |path: &str| scene.server.url(path);
    let args = ["--retry", "2", "-w", "%{num_retries}", &url("/flaky/2?key=a")];
    assert_eq!(scene.run(&args).ok(), "attempt 3\n2");
    scene.run(&["--retry", "1", "-f", &url("/flaky/2?key=b")]).failed(22, "503");
    assert_eq!(scene.run(&["--retry", "1", &url("/drop/1?key=c")]).ok(), "attempt 2\n");
    // A POST is not idempotent.
    scene.run(&["--retry", "1", "-d", "x", &url("/drop/1?key=d")]).failed(52, "");
}

#[test]
fn many_at_a_time_and_their_files() {
    let scene = Scene::new();
    let url = scene.server.url("/gate/30?key=all");
    let text = scene.run(&["-Z", &format!("{url}&n=[1-30]")]).ok();
    assert_eq!(text, "all here\n".repeat(30));
    scene.run(&["-Z", "--parallel-max", "3", "-o", "f#1", &scene.server.url("/bytes/[1000-1019]")]).ok();
    for size in 1_000..1_020 {
        assert_eq!(scene.read(&format!("f{size}")), pattern::bytes(0, size));
    }
    // One that fails is the exit code, and the others are done.
    let ran = scene.run(&["-Z", "-f", "-w", "%{http_code} ", &scene.server.url("/status/{200,404,201}")]);
    assert_eq!(ran.code, 22, "{}", ran.stderr);
    assert!(["200 ", "404 ", "201 "].iter().all(|code| ran.text().contains(code)), "{}", ran.text());
    // In turn the last counts, unless the first failure ends it.
    let urls = [scene.server.url("/status/404"), scene.server.url("/status/200")];
    assert_eq!(scene.run(&["-f", &urls[0], &urls[1]]).code, 0);
    assert_eq!(scene.run(&["-f", "--fail-early", &urls[0], &urls[1]]).code, 22);
}

#[test]
fn write_out_says_what_happened() {
    let scene = Scene::new();
    let url = scene.server.url("/bytes/5000");
    let json = scene.run(&["-o", "out", "-w", "%{json}", &url]).ok();
    for part in [
        "\"http_code\":200",
        "\"size_download\":5000",
        "\"num_connects\":1",
        "\"remote_ip\":\"127.0.0.1\"",
        "\"exitcode\":0",
    ] {
        assert!(json.contains(part), "{part} in {json}");
    }
    let text = scene.run(&["-o", "out", "-w", "%header{etag} %{content_type} %{filename_effective}\\n", &url]).ok();
    assert_eq!(text, "\"5000\" application/octet-stream out\n");
    let ran = scene.run(&["-w", "%{onerror}%{exitcode} %{errormsg}", &format!("http://{}/", scene.server.at.closed)]);
    assert!(ran.text().starts_with("7 "), "{}", ran.text());
}

#[test]
fn the_meter_and_the_limit() {
    let scene = Scene::new();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_shmcurl"));
    command.args(["-o", "out", &scene.server.url("/bytes/100000")]).current_dir(scene.dir.path());
    common::plain(&mut command);
    command.env("PROC_CURL_WORKER", curl_test_server::worker());
    let ran = common::finish(command, b"");
    assert!(ran.stderr.contains("% Total") && ran.stderr.contains("100 "), "{}", ran.stderr);
    // libcurl lets through a second's worth or two at once; after that the limit holds.
    let text = scene
        .run(&["--limit-rate", "400k", "-o", "out", "-w", "%{speed_download}", &scene.server.url("/bytes/1200000")])
        .ok();
    let speed: u64 = text.parse().expect("a number");
    assert!(speed < 1_500_000, "{speed}");
}

#[test]
fn help_and_bad_lines() {
    let scene = Scene::new();
    assert!(scene.run(&["--help"]).ok().contains("Exit codes"));
    assert!(scene.run(&["-V"]).ok().contains("shmcurl"));
    scene.run(&["--no-such-option"]).failed(2, "unknown");
    scene.run(&[]).failed(2, "no URL");
    scene.run(&["http://h/[9-1]"]).failed(3, "range");
}
