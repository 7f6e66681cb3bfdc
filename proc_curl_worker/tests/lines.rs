//! The worker for those who write lines, and what a shell can ask it.

mod common;

use common::{Server, WORKER, reply};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

fn worker(arguments: &[&str]) -> Child {
    let mut command = Command::new(WORKER);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    command.spawn().expect("a worker")
}

fn request(id: u32, params: &Value) -> String {
    format!("{}\n", json!({ "jsonrpc": "2.0", "id": id, "method": "request", "params": params }))
}

#[test]
fn a_shell_can_use_it() {
    let server = Server::start(|asked, out| {
        let text = format!("{} {}", asked.method, String::from_utf8_lossy(&asked.body));
        reply(out, "200 OK", "A: b\r\n", if asked.path == "/bytes" { &[0, 255] } else { text.as_bytes() })
    });
    let mut worker = worker(&["io://x.jsonrpc"]);
    let mut input = worker.stdin.take().expect("its input");
    let lines = [
        request(1, &json!({ "url": server.url("/"), "body": "hello" })),
        request(2, &json!({ "url": server.url("/bytes") })),
        request(3, &json!({ "url": "http://127.0.0.1:1/" })),
        request(4, &json!({ "url": server.url("/"), "deny": ["127.0.0.0/8"] })),
        request(5, &json!({ "adress": "" })),
        "nonsense\n".to_owned(),
        "{\"jsonrpc\":\"2.0\",\"id\":6,\"method\":\"fly\"}".to_owned(),
    ];
    input.write_all(lines.concat().as_bytes()).expect("written");
    drop(input);
    let output = worker.wait_with_output().expect("its output");
    assert!(output.status.success());
    let answers: Vec<Value> =
        output.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let of = |id: Value| answers.iter().find(|answer| answer["id"] == id).unwrap_or_else(|| panic!("no answer {id}"));
    assert_eq!(answers.len(), lines.len());
    assert_eq!(of(json!(1))["result"]["body"], "POST hello");
    assert_eq!(of(json!(1))["result"]["headers"][0], json!(["A", "b"]));
    assert_eq!(of(json!(2))["result"]["bodyBase64"], "AP8=");
    assert_eq!(of(json!(3))["error"]["data"]["name"], "CURLE_COULDNT_CONNECT");
    assert_eq!(of(json!(4))["error"]["data"]["why"], "policyDenied");
    assert_eq!(of(json!(5))["error"]["code"], -32602);
    assert_eq!(of(Value::Null)["error"]["code"], -32700);
    assert_eq!(of(json!(6))["error"]["code"], -32601);
}

#[test]
fn a_socket_and_a_port_are_served_likewise() {
    let server = Server::start(|_, out| reply(out, "200 OK", "", b"here"));
    let dir = tempfile::tempdir().expect("a directory");
    let place = dir.path().join("own");
    let mut serving = worker(&[&format!("unix://{}/a.jsonrpc", place.display())]);
    let socket = loop {
        match UnixStream::connect(place.join("a.sock")) {
            Ok(socket) => break socket,
            Err(_) => std::thread::yield_now(),
        }
    };
    let mut lines = BufReader::new(socket.try_clone().expect("a socket"));
    let mut say = |line: &str| {
        (&socket).write_all(line.as_bytes()).expect("written");
        let mut answer = String::new();
        lines.read_line(&mut answer).expect("an answer");
        serde_json::from_str::<Value>(&answer).expect("JSON")
    };
    assert_eq!(say(&request(1, &json!({ "url": server.url("/") })))["result"]["body"], "here");
    serving.kill().expect("killed");
    serving.wait().expect("its end");

    let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port");
    let uri = format!("tcp://{free}/secret.jsonrpc");
    assert!(!worker(&[&uri]).wait().expect("its end").success(), "TCP has to be asked for");
    let mut serving = worker(&["--tcp", &uri]);
    let socket = loop {
        match std::net::TcpStream::connect(free) {
            Ok(socket) => break socket,
            Err(_) => std::thread::yield_now(),
        }
    };
    let mut lines = BufReader::new(socket.try_clone().expect("a socket"));
    let mut say = |line: &str| {
        (&socket).write_all(line.as_bytes()).expect("written");
        let mut answer = String::new();
        lines.read_line(&mut answer).expect("an answer");
        serde_json::from_str::<Value>(&answer).expect("JSON")
    };
    assert_eq!(say(&request(1, &json!({ "url": server.url("/") })))["error"]["code"], -32600);
    let hello = json!({ "jsonrpc": "2.0", "id": 2, "method": "hello", "params": { "session": "secret" } });
    assert_eq!(say(&format!("{hello}\n"))["result"], json!({}));
    assert_eq!(say(&request(3, &json!({ "url": server.url("/") })))["result"]["body"], "here");
    serving.kill().expect("killed");
    serving.wait().expect("its end");
}

#[test]
fn what_a_worker_has_is_said_in_strict_json() {
    let output = Command::new(WORKER).arg("--protocols").output().expect("its output");
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(output.status.success() && said["transports"]["shm"]["rate"].is_u64());
    assert_eq!(said["transports"]["tcp"], Value::Null, "it is off");
    assert_eq!(said["version"], 1);
    assert!(said["curl"]["features"]["brotli"].is_boolean());
    assert_eq!(said["limits"]["bySelect"], false, "a libcurl that waits with select(): see .cargo/config.toml");
}

/// From inside: what must not be possible is not, as far as this kernel can see to it.
#[test]
fn nothing_leads_out_of_the_sandbox() {
    let output = Command::new(WORKER).args(["--check-sandbox", "--connect-port", "80"]).output().expect("its output");
    let said: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let refused = |what: &str| said["tried"][what].as_str().is_some_and(|word| word.starts_with("refused"));
    if said["seccomp"] == "full" {
        for what in ["execute", "trace the parent", "make a packet socket", "listen", "signal the parent"] {
            assert!(refused(what), "{what}: {said}");
        }
    }
    if said["landlock"] == "full" {
        let tried = ["read /etc/passwd", "create a file", "list /", "connect to a port that is not named"];
        assert!(tried.into_iter().all(refused), "{said}");
    }
    eprintln!("landlock: {}, seccomp: {}", said["landlock"], said["seccomp"]);
}
