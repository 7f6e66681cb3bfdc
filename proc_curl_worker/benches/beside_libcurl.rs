//! What a worker costs beside the same libcurl in one's own process: large bodies, many small requests, and the application's
//! own processor time. `cargo bench -p proc_curl_worker`; the server is a third process.
//!
//! Both ways are measured in turn, several times; medians and their ratios are what counts.

use curl::easy::{Easy, Easy2, Handler, WriteError};
use curl::multi::Multi;
use curl_test_server::TestServer;
use nix::sys::resource::{UsageWho, getrusage};
use proc_curl::{Client, Pending, Response};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
/// Bytes of a large body.
const LARGE: u64 = 512 << 20;
const SMALL: u64 = 100;
/// Small requests in a round, and how many of them are under way at a time.
const REQUESTS: usize = 5_000;
const STREAMS: usize = 32;

/// The server in a process of its own.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(std::env::current_exe().expect("own path"));
        let mut child = command.arg("--serve").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a server");
        let mut address = String::new();
        let stdout = child.stdout.take().expect("a pipe");
        BufReader::new(stdout).read_line(&mut address).expect("an address");
        Self { child, address: address.trim().to_owned() }
    }

    fn url(&self, bytes: u64) -> String {
        format!("http://{}/bytes/{bytes}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It runs until its standard input ends.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn serve() {
    let server = TestServer::start();
    println!("{}", server.at.http);
    std::io::stdout().flush().expect("a pipe");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// What one round took.
#[derive(Clone, Copy)]
struct Took {
    time: Duration,
    /// Of this process.
    cpu: Duration,
}

fn timed(run: impl FnOnce()) -> Took {
    let cpu = || {
        let usage = getrusage(UsageWho::RUSAGE_SELF).expect("usage");
        let micros = [usage.user_time(), usage.system_time()].map(|time| time.tv_sec() * 1_000_000 + time.tv_usec());
        Duration::from_micros(micros.iter().sum::<i64>().unsigned_abs())
    };
    let (before, start) = (cpu(), Instant::now());
    run();
    Took { time: start.elapsed(), cpu: cpu() - before }
}

/// Large, in this process.
fn large_inside(url: &str, read: bool) {
    let mut easy = Easy::new();
    easy.url(url).expect("url");
    easy.buffer_size(512 << 10).expect("buffer");
    let (mut total, mut kept) = (0, vec![0; 64 << 10]);
    {
        let mut transfer = easy.transfer();
        let write = |bytes: &[u8]| {
            total += bytes.len() as u64;
            if read {
                kept[..bytes.len()].copy_from_slice(bytes);
            }
            Ok(bytes.len())
        };
        transfer.write_function(write).expect("callback");
        transfer.perform().expect("an answer");
    }
    assert_eq!(total, LARGE);
}

/// Large, through a worker.
fn large_through(client: &Client, url: &str, read: bool) {
    let mut response = client.get(url).send().expect("an answer");
    let (mut total, mut kept) = (0, vec![0; 64 << 10]);
    while let Some(chunk) = response.chunk().expect("a chunk") {
        let mut at = 0;
        while read && at < chunk.len() {
            at += chunk.read_at(&mut kept, at).expect("bytes") as u64;
        }
        total += chunk.len();
    }
    assert_eq!(total, LARGE);
}

#[derive(Default)]
struct Count(u64);

impl Handler for Count {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, WriteError> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }
}

fn small_inside(url: &str) {
    let multi = Multi::new();
    let easy = || {
        let mut easy = Easy2::new(Count::default());
        easy.url(url).expect("url");
        easy.get(true).expect("get");
        easy
    };
    let mut handles: Vec<_> = (0..STREAMS).map(|_| Some(multi.add2(easy()).expect("added"))).collect();
    for (at, handle) in handles.iter_mut().enumerate() {
        handle.as_mut().expect("there").set_token(at).expect("token");
    }
    let (mut begun, mut done) = (STREAMS, 0);
    while done < REQUESTS {
        multi.perform().expect("progress");
        let mut over = Vec::new();
        multi.messages(|message| {
            message.result().expect("a message").expect("an answer");
            over.push(message.token().expect("token"));
        });
        for at in over {
            let easy = multi.remove2(handles[at].take().expect("there")).expect("removed");
            done += 1;
            assert_eq!(easy.get_ref().0, SMALL);
            if begun < REQUESTS {
                begun += 1;
                let mut easy = easy;
                easy.get_mut().0 = 0;
                let mut handle = multi.add2(easy).expect("added");
                handle.set_token(at).expect("token");
                handles[at] = Some(handle);
            }
        }
        if done < REQUESTS {
            multi.wait(&mut [], Duration::from_secs(1)).expect("news");
        }
    }
}

fn small_through(client: &Client, url: &str) {
    let begin = || client.get(url).start().expect("started");
    let mut under_way: std::collections::VecDeque<Pending> = (0..STREAMS).map(|_| begin()).collect();
    let mut begun = STREAMS;
    while let Some(pending) = under_way.pop_front() {
        let bytes = pending.wait().and_then(Response::bytes).expect("a body");
        assert_eq!(bytes.len() as u64, SMALL);
        if begun < REQUESTS {
            begun += 1;
            under_way.push_back(begin());
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Both in turn, and their medians.
fn beside(mut inside: impl FnMut(), mut through: impl FnMut(), of: impl Fn(Took) -> f64) -> (f64, f64) {
    // What is done once, such as connecting, is not of interest.
    inside();
    through();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(of(timed(&mut inside)));
        theirs.push(of(timed(&mut through)));
    }
    (median(ours), median(theirs))
}

fn main() {
    if std::env::args().any(|arg| arg == "--serve") {
        return serve();
    }
    let server = Server::start();
    let client = Client::builder().program(env!("CARGO_BIN_EXE_procCurlI")).build().expect("a worker");
    let (large, small) = (server.url(LARGE), server.url(SMALL));
    println!("libcurl {}, {ROUNDS} rounds in turn, medians", curl::Version::get().version());
    println!("{:44} {:>10} {:>10} {:>7}", "", "in-process", "worker", "ratio");
    let mib = LARGE as f64 / f64::from(1 << 20);
    let line = |what: &str, (inside, through): (f64, f64)| {
        println!("{what:44} {inside:>10.2} {through:>10.2} {:>7.3}", through / inside);
    };
    for (what, read) in [("counted", false), ("copied once", true)] {
        let speed = |took: Took| mib / took.time.as_secs_f64();
        let run = (|| large_inside(&large, read), || large_through(&client, &large, read));
        line(&format!("large body, {what}: MiB/s"), beside(run.0, run.1, speed));
        let cpu = |took: Took| took.cpu.as_secs_f64() * 1e6 / mib;
        line(&format!("large body, {what}: own CPU us/MiB"), beside(run.0, run.1, cpu));
    }
    let rate = |took: Took| REQUESTS as f64 / took.time.as_secs_f64();
    line(
        &format!("{SMALL} B, {STREAMS} at a time: requests/s"),
        beside(|| small_inside(&small), || small_through(&client, &small), rate),
    );
    let cpu = |took: Took| took.cpu.as_secs_f64() * 1e6 / REQUESTS as f64;
    line("the same: own CPU us/request", beside(|| small_inside(&small), || small_through(&client, &small), cpu));
}
