//! `shmcurl` and its worker as processes: what they link, what memory they take, what is left when one of them is killed.

mod common;

use common::{PATIENCE, Scene, end_of, eventually, program};
use curl_test_server::{Upload, children, lives, nightly, pattern, resident_at_most};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::process::{Child, Command, Stdio};

/// Of a body that must not be held in memory: 5 GiB at night, else as much as a test can afford.
fn huge() -> u64 {
    if nightly() { 5 << 30 } else { 192 << 20 }
}

/// The most that either process may have in memory meanwhile: its program, its arenas, no body.
const MEMORY: u64 = 64 << 20;

#[test]
fn neither_libcurl_nor_tls_is_linked() {
    let Some(ldd) = program("ldd") else {
        println!("note: skipped, there is no ldd here");
        return;
    };
    let linked = |path: &str| {
        let output = Command::new(&ldd).arg(path).output().expect("ldd");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let list = linked(env!("CARGO_BIN_EXE_shmcurl"));
    assert!(list.contains("libc.so"), "{list}");
    for library in ["libcurl", "libssl", "libcrypto", "libnghttp2", "libgnutls"] {
        assert!(!list.contains(library), "{list}");
    }
    // Nor are they inside: what libcurl says of a name that nobody has. The worker has it, one way or the other.
    let inside = |path: &str| {
        let words = b"Could not resolve hostname";
        std::fs::read(path).expect("a program").windows(words.len()).any(|window| window == words)
    };
    assert!(!inside(env!("CARGO_BIN_EXE_shmcurl")));
    let worker = curl_test_server::worker();
    let worker = worker.to_str().expect("text");
    assert!(inside(worker) || linked(worker).contains("libcurl"));
}

/// The worker of a `shmcurl` that runs and whose request the server has: that another was asked for its `--protocols` is past
/// then.
fn worker_of(scene: &Scene, path: &str, hits: u64, child: &Child) -> u32 {
    assert!(scene.server.wait_for_hits(path, hits, PATIENCE), "no request");
    let mut found = None;
    eventually("a worker", || {
        found = children(child.id()).into_iter().find(|pid| lives(*pid));
        found.is_some()
    });
    found.unwrap_or_default()
}

#[test]
fn a_huge_download_takes_little_memory() {
    let scene = Scene::new();
    let url = scene.server.url(&format!("/bytes/{}", huge()));
    let mut child = scene
        .command(&["-o", "/dev/null", "-w", "%{size_download}", &url])
        .stdout(Stdio::piped())
        .spawn()
        .expect("shmcurl");
    let worker = worker_of(&scene, &format!("/bytes/{}", huge()), 1, &child);
    let (mut ours, mut theirs) = (0, 0);
    while child.try_wait().expect("wait").is_none() {
        ours = ours.max(resident_at_most(child.id()));
        theirs = theirs.max(resident_at_most(worker));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let output = child.wait_with_output().expect("shmcurl");
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), huge().to_string());
    assert!(ours > 0 && ours < MEMORY, "shmcurl had {ours} bytes");
    assert!(theirs > 0 && theirs < MEMORY, "its worker had {theirs} bytes");
    println!("note: {} bytes down: shmcurl {} KiB, worker {} KiB", huge(), ours >> 10, theirs >> 10);
}

#[test]
fn a_huge_upload_takes_little_memory() {
    let scene = Scene::new();
    // A file of the pattern would take as much disk; holes read as zeros, which the server counts as something else.
    let file = std::fs::File::create(scene.path("holes")).expect("a file");
    file.set_len(huge()).expect("holes");
    let mut child =
        scene.command(&["-T", "holes", &scene.server.url("/upload")]).stdout(Stdio::piped()).spawn().expect("shmcurl");
    let worker = worker_of(&scene, "/upload", 1, &child);
    let (mut ours, mut theirs) = (0, 0);
    while child.try_wait().expect("wait").is_none() {
        ours = ours.max(resident_at_most(child.id()));
        theirs = theirs.max(resident_at_most(worker));
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let output = child.wait_with_output().expect("shmcurl");
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{} bytes, other\n", huge()));
    assert_eq!(scene.server.uploads(), [Upload { size: huge(), is_pattern: false, complete: true }]);
    assert!(ours > 0 && ours < MEMORY, "shmcurl had {ours} bytes");
    assert!(theirs > 0 && theirs < MEMORY, "its worker had {theirs} bytes");
    println!("note: {} bytes up: shmcurl {} KiB, worker {} KiB", huge(), ours >> 10, theirs >> 10);
}

#[test]
fn uploads_arrive_whole_and_in_order() {
    let scene = Scene::new();
    // Larger than what is read into memory, and than any window.
    let size = 12_345_678;
    scene.write("pattern", &pattern::bytes(0, size));
    assert_eq!(scene.run(&["-T", "pattern", &scene.server.url("/upload")]).ok(), format!("{size} bytes, pattern\n"));
    let text = scene.run_with(&["-T", "-", &scene.server.url("/upload")], &pattern::bytes(0, size)).ok();
    assert_eq!(text, format!("{size} bytes, pattern\n"));
    let args = ["--cacert", "ca.pem", "-T", "pattern", &scene.server.tls("/upload")];
    assert_eq!(scene.run(&args).ok(), format!("{size} bytes, pattern\n"));
    let args = ["--data-binary", "@pattern", &scene.server.url("/upload")];
    assert_eq!(scene.run(&args).ok(), format!("{size} bytes, pattern\n"));
}

/// `shmcurl` in the middle of a body, and its worker.
fn midway(scene: &Scene, args: &[&str]) -> (Child, u32) {
    let url = scene.server.url("/stall/100000");
    let mut command = scene.command(&[args, &[url.as_str()]].concat());
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("shmcurl");
    let worker = worker_of(scene, "/stall/100000", 1, &child);
    (child, worker)
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().expect("a pid")), signal).expect("a process");
}

#[test]
fn a_worker_killed_midway_is_told() {
    let scene = Scene::new();
    let (mut child, worker) = midway(&scene, &["-o", "part"]);
    eventually("the body's beginning", || scene.path("part").exists() && scene.read("part").len() == 100_000);
    signal(worker, Signal::SIGKILL);
    assert_eq!(end_of(&mut child, "the worker is dead"), 56);
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().expect("a pipe"), &mut said).expect("text");
    assert!(said.contains("(56)") && said.contains("worker died") && said.contains("100000 bytes"), "{said}");
    assert_eq!(scene.read("part"), pattern::bytes(0, 100_000), "what came is right");
    eventually("no connection is left", || scene.server.open() == 0);
}

#[test]
fn a_worker_killed_before_the_body_is_replaced() {
    let scene = Scene::new();
    // The answer needs two requests: the one that dies with its worker, and the one that is made again.
    let url = scene.server.url("/gate/2?key=again");
    let child = scene.command(&[&url]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("shmcurl");
    let worker = worker_of(&scene, "/gate/2", 1, &child);
    signal(worker, Signal::SIGKILL);
    // That of the dead one still counts at the gate.
    let output = child.wait_with_output().expect("shmcurl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "all here\n");
    assert_eq!(scene.server.hits("/gate/2"), 2);
}

#[test]
fn a_client_killed_midway_leaves_nothing() {
    let scene = Scene::new();
    let run_dir = tempfile::tempdir().expect("a directory");
    for how in [Signal::SIGKILL, Signal::SIGINT, Signal::SIGTERM] {
        let url = scene.server.url("/stall/100000");
        let seen = scene.server.hits("/stall/100000");
        let mut command = scene.command(&["-o", "part", "--remove-on-error", &url]);
        command
            .env("STRAIT_RUN_DIR", run_dir.path())
            .env("XDG_RUNTIME_DIR", run_dir.path())
            .env("TMPDIR", run_dir.path());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("shmcurl");
        let worker = worker_of(&scene, "/stall/100000", seen + 1, &child);
        eventually("the body's beginning", || scene.path("part").exists() && scene.read("part").len() == 100_000);
        signal(child.id(), how);
        assert_eq!(end_of(&mut child, "killed"), -1, "a signal ends it, not an exit");
        eventually("the worker goes as well", || !lives(worker));
        eventually("no connection is left", || scene.server.open() == 0);
        // A handler has the chance to keep its promise; SIGKILL leaves none.
        assert_eq!(scene.path("part").exists(), how == Signal::SIGKILL, "{how}");
        let _ = std::fs::remove_file(scene.path("part"));
        let left: Vec<_> =
            std::fs::read_dir(run_dir.path()).expect("a directory").flatten().map(|entry| entry.path()).collect();
        let sockets = left.iter().filter(|path| how != Signal::SIGKILL || !path.is_dir()).count();
        assert_eq!(sockets, 0, "{how}: {left:?}");
    }
}

#[test]
fn a_worker_has_few_privileges() {
    let scene = Scene::new();
    let (mut child, worker) = midway(&scene, &[]);
    let status = std::fs::read_to_string(format!("/proc/{worker}/status")).expect("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Seccomp:"), "2", "a filter");
    assert_eq!(field("CapEff:").trim_start_matches('0'), "");
    // Its environment has nothing of ours: who may not read it is not shown it either.
    let environment = std::fs::read(format!("/proc/{worker}/environ")).unwrap_or_default();
    assert!(!String::from_utf8_lossy(&environment).contains("PROC_CURL_WORKER"));
    child.kill().expect("shmcurl");
    child.wait().expect("shmcurl");
    eventually("the worker goes as well", || !lives(worker));
}
