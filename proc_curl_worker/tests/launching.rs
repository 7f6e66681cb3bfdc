//! How a client comes to a worker, and what it makes of odd ones.

mod common;

use common::{Server, WORKER, builder, reply};
use proc_curl::proc_curl_capnp::curl;
use proc_curl::uri::Uri;
use proc_curl::{Client, Error, LaunchError, Timeouts};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;
use strait::{Channel, ClientApp, Received, ServerApp, Trust};

/// A worker that anybody of this user may attach to, and when it is there.
#[expect(clippy::zombie_processes, reason = "whoever asks for it ends it")]
fn shared(uri: &Uri) -> (Child, Client) {
    let worker = Command::new(WORKER).arg(uri.to_string()).spawn().expect("a worker");
    loop {
        if let Ok(client) = Client::builder().attach(uri.clone()).build() {
            return (worker, client);
        }
        std::thread::yield_now();
    }
}

fn end(mut worker: Child) {
    worker.kill().expect("killed");
    worker.wait().expect("its end");
}

#[test]
fn clients_share_a_worker_that_runs_already() {
    let server = Server::start(|_, out| reply(out, "200 OK", "", b"shared"));
    let dir = tempfile::tempdir().expect("a directory");
    for uri in ["shm", "unix"] {
        let format = if uri == "shm" { "handle" } else { "capnp" };
        let uri: Uri = format!("{uri}://{}/w.{format}", dir.path().join(uri).display()).parse().expect("a URI");
        let (worker, first) = shared(&uri);
        let second = Client::builder().attach(uri).build().expect("a client");
        for client in [&first, &second] {
            let body = client.post(&server.url("/"), vec![1; 300_000]).send().expect("an answer").text();
            assert_eq!(body.expect("text"), "shared");
        }
        let statistics = second.statistics().expect("statistics");
        assert!(statistics.done == 2 && statistics.sessions >= 2, "{statistics:?}");
        assert_eq!(statistics.connections, 1, "the second found the first's connection");
        end(worker);
        let error = loop {
            match first.get(&server.url("/")).send() {
                Err(error) => break error,
                Ok(_) => std::thread::yield_now(),
            }
        };
        assert!(matches!(error, Error::WorkerDied { .. } | Error::Launch(_)), "{error}");
    }
}

/// An executable that says this when asked for its protocols, and this otherwise.
fn script(dir: &Path, protocols: &str, otherwise: &str) -> PathBuf {
    let path = dir.join("procCurlI");
    let text = format!("#!/bin/sh\nif [ \"$1\" = --protocols ]; then\n{protocols}\nelse\n{otherwise}\nfi\n");
    fs::write(&path, text).expect("a script");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    path
}

#[test]
fn workers_that_will_not_do_say_why() {
    let say = |what: &str| format!("echo '{what}'");
    let good = r#"{"transports": {"shm": {"rate": 1}}, "formats": {"handle": {"rate": 1}}, "version": 2}"#;
    let odd = r#"{"transports": {"pigeon": {"rate": 9}}, "formats": {"handle": {"rate": 1}}, "version": 2}"#;
    let textual = r#"{"transports": {"shm": {"rate": 1}}, "formats": {"jsonrpc": {"rate": 1}}, "version": 2}"#;
    let launch = |protocols: &str, otherwise: &str, minor: u32| {
        let dir = tempfile::tempdir().expect("a directory");
        let program = script(dir.path(), protocols, otherwise);
        let builder = Client::builder().program(program).min_version(minor).launch_timeout(Duration::from_millis(700));
        builder.build().expect_err("no worker")
    };
    let old = launch(&say(good), "true", 3);
    assert_eq!(old.to_string(), "procCurlI 1.2 is older than required 1.3");
    assert!(matches!(launch(&say(odd), "true", 0), LaunchError::NoTransport { theirs } if theirs == "pigeon"));
    assert!(matches!(launch(&say(textual), "true", 0), LaunchError::NoFormat { theirs } if theirs == "jsonrpc"));
    assert!(matches!(launch("echo nonsense", "true", 0), LaunchError::Protocols { .. }));
    assert!(matches!(launch("exit 3", "true", 0), LaunchError::Protocols { why, .. } if why.contains('3')));
    assert!(
        matches!(launch("exec sleep 60", "true", 0), LaunchError::Protocols { why, .. } if why.contains("no answer"))
    );
    let died = launch(&say(good), "echo out of luck >&2; exit 9", 0);
    let LaunchError::Exited { exit, stderr } = died else { panic!("{died}") };
    assert_eq!((exit.code(), stderr.as_str()), (Some(9), "out of luck"));
    assert!(matches!(launch(&say(good), "exec sleep 60", 0), LaunchError::LogIn { .. }));
    let nowhere = Client::builder().program("/nowhere/procCurlI").build().expect_err("no worker");
    assert!(matches!(nowhere, LaunchError::NotFound(_)));
    assert!(
        builder().min_version(99).build().is_err_and(|error| error.to_string().contains("older than required 1.99"))
    );
}

/// A worker that answers each request by `answer`.
fn impostor(dir: &Path, answer: impl Fn(&mut Channel<curl::Owned>, Received<curl::Owned>) + Send + 'static) -> Client {
    let server = ServerApp::new("w")
        .run_dir(dir)
        .channel::<curl::Owned>("curl")
        .allow(&ClientApp::new("procCurl"), Trust::snapshot())
        .bind()
        .expect("bound");
    std::thread::spawn(move || {
        let session = server.accept().expect("a session");
        let mut channel = session.accept_channel::<curl::Owned>().expect("a channel");
        while let Ok(request) = channel.recv() {
            answer(&mut channel, request);
        }
    });
    let uri = format!("shm://{}/w.handle", dir.display()).parse().expect("a URI");
    Client::builder().attach(uri).build().expect("a client")
}

/// What an impostor says.
#[derive(Clone, Copy, Debug)]
enum Garbage {
    EndBeforeItsEnd,
    Gap,
    NoAnswer,
    NoEnd,
}

#[test]
fn garbage_from_a_worker_is_an_error_of_its_own() {
    for garbage in [Garbage::EndBeforeItsEnd, Garbage::Gap, Garbage::NoAnswer, Garbage::NoEnd] {
        let dir = tempfile::tempdir().expect("a directory");
        let client = impostor(dir.path(), move |channel, request| {
            let mut message = channel.create_msg();
            match garbage {
                Garbage::EndBeforeItsEnd => drop(message.init_root().init_done()),
                Garbage::Gap => message.init_root().init_body().set_offset(7),
                Garbage::NoAnswer => message.init_root().set_ask(()),
                Garbage::NoEnd => drop(message.init_root().init_head()),
            }
            let message = message.freeze().expect("a message");
            let more = matches!(garbage, Garbage::EndBeforeItsEnd | Garbage::Gap);
            let _ = if more { channel.reply_more(&request, &message) } else { channel.reply(&request, &message) };
        });
        let error = client.get("http://h/").send().expect_err("garbage");
        assert!(matches!(error, Error::WorkerMisbehaved { .. }), "{garbage:?}: {error}");
    }
}

#[test]
fn a_worker_that_says_nothing_holds_nobody_for_ever() {
    let dir = tempfile::tempdir().expect("a directory");
    let client = impostor(dir.path(), |_, _| ());
    let soon = Timeouts { total: Some(Duration::from_millis(1)), ..Timeouts::default() };
    let error = client.get("http://h/").timeouts(soon).send().expect_err("silence");
    assert!(matches!(error, Error::WorkerSilent) && error.is_timeout());
}
