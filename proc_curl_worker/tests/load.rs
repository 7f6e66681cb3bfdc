//! Many requests at a time: all answered, and what nobody reads costs little.

mod common;

use common::{Server, client, reply};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::fs;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// Connections are descriptors, here on the server's side.
fn take_descriptors() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// So many that a libcurl that waits with `select` fails, each held until all are there.
#[test]
fn two_thousand_requests_are_under_way_at_once() {
    const ALL: usize = 2000;
    take_descriptors();
    let gate = Arc::new((Mutex::new(0), Condvar::new()));
    let server = Server::start(move |asked, out| {
        let (count, all_here) = &*gate;
        let mut here = count.lock().expect("a lock");
        *here += 1;
        all_here.notify_all();
        let (here, timeout) =
            all_here.wait_timeout_while(here, Duration::from_secs(100), |here| *here < ALL).expect("a lock");
        drop(here);
        !timeout.timed_out() && reply(out, "200 OK", "", asked.path.as_bytes())
    });
    let client = client();
    let started: Vec<_> = (0..ALL).map(|n| client.get(&server.url(&format!("/{n}"))).start().expect("sent")).collect();
    for (n, pending) in started.into_iter().enumerate() {
        let response = pending.wait().unwrap_or_else(|error| panic!("request {n}: {error}"));
        assert_eq!(response.text().expect("text"), format!("/{n}"));
    }
    let statistics = client.statistics().expect("statistics");
    assert_eq!((statistics.done, statistics.failed, statistics.active), (ALL as u64, 0, 0));
}

/// Of a process, in pages.
fn resident(pid: u32) -> usize {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).expect("the worker");
    statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number")
}

#[test]
fn bodies_that_nobody_reads_stay_with_their_servers() {
    const LEN: usize = 100 << 20;
    take_descriptors();
    let server = Server::start(|_, out| {
        let _ = write!(out, "HTTP/1.1 200 OK\r\nContent-Length: {LEN}\r\n\r\n");
        let piece = [7; 64 << 10];
        (0..LEN / piece.len()).all(|_| out.write_all(&piece).is_ok())
    });
    let client = client();
    let mut held: Vec<_> = (0..100).map(|_| client.get(&server.url("/")).send().expect("an answer")).collect();
    while client.statistics().expect("statistics").paused < 100 {
        std::thread::yield_now();
    }
    let megabytes = resident(client.worker_pid().expect("a worker")) * 4096 / (1 << 20);
    eprintln!("100 paused bodies of 100 MiB: {megabytes} MiB resident");
    assert!(megabytes < 64, "{megabytes} MiB");
    // They go on as if nothing had been.
    let last = held.pop().expect("one");
    drop(held);
    assert_eq!(last.bytes().expect("bytes").len(), LEN);
}
