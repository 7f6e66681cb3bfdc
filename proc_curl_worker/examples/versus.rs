//! The same downloads by libcurl in this process and by a worker: `versus [MIB] [REQUESTS]`. Prints what each did in a second,
//! and what it cost this process. The server is a process of its own, on the loopback.

use curl::easy::{Easy2, Handler, WriteError};
use curl::multi::{Easy2Handle, Multi};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use proc_curl::Client;
use std::collections::VecDeque;
use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

type Done = Result<(), Box<dyn Error>>;

/// Requests under way at a time, small ones.
const SIDE_BY_SIDE: usize = 32;

fn main() -> Done {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "serve") {
        return serve();
    }
    let number = |index: usize, usual: usize| arguments.get(index).map_or(Ok(usual), |text| text.parse());
    let (mib, requests) = (number(0, 1024)?, number(1, 20_000)?);
    let mut server = Command::new(std::env::current_exe()?).arg("serve").stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(server.stdout.take().ok_or("no output")?).read_line(&mut line)?;
    let base = line.trim().to_owned();
    let client = Client::new()?;
    let large = format!("{base}/{}", mib << 20);
    let small = format!("{base}/100");
    for round in 1..=3 {
        println!("round {round}");
        large_bodies("in this process", mib, || in_process_large(&large))?;
        large_bodies("through a worker", mib, || Ok(through_worker_large(&client, &large)?))?;
        small_requests("in this process", requests, || in_process_small(&small, requests))?;
        small_requests("through a worker", requests, || Ok(through_worker_small(&client, &small, requests)?))?;
    }
    server.kill()?;
    server.wait()?;
    Ok(())
}

fn cpu() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

fn large_bodies(name: &str, mib: usize, download: impl FnOnce() -> Result<u64, Box<dyn Error>>) -> Done {
    let (began, before) = (Instant::now(), cpu());
    let bytes = download()?;
    assert_eq!(bytes, (mib as u64) << 20);
    let (took, cost) = (began.elapsed(), cpu() - before);
    let rate = bytes as f64 / 1e6 / took.as_secs_f64();
    println!(
        "  one large body  {name:16}  {rate:6.0} MB/s, {:6.1} us of CPU here a MiB",
        cost.as_secs_f64() * 1e6 / mib as f64
    );
    Ok(())
}

fn small_requests(name: &str, requests: usize, ask: impl FnOnce() -> Done) -> Done {
    let (began, before) = (Instant::now(), cpu());
    ask()?;
    let (took, cost) = (began.elapsed(), cpu() - before);
    let rate = requests as f64 / took.as_secs_f64();
    println!(
        "  small requests  {name:16}  {rate:6.0} /s,   {:6.1} us of CPU here each",
        cost.as_secs_f64() * 1e6 / requests as f64
    );
    Ok(())
}

/// Counts what comes.
#[derive(Default)]
struct Count(u64);

impl Handler for Count {
    fn write(&mut self, data: &[u8]) -> Result<usize, WriteError> {
        self.0 += std::hint::black_box(data).len() as u64;
        Ok(data.len())
    }
}

fn in_process_large(url: &str) -> Result<u64, Box<dyn Error>> {
    let mut easy = Easy2::new(Count::default());
    easy.url(url)?;
    easy.buffer_size(512 << 10)?;
    easy.perform()?;
    Ok(easy.get_ref().0)
}

fn through_worker_large(client: &Client, url: &str) -> Result<u64, proc_curl::Error> {
    let mut response = client.get(url).send()?;
    let mut bytes = 0;
    while let Some(chunk) = response.chunk()? {
        bytes += chunk.len();
    }
    Ok(bytes)
}

fn in_process_small(url: &str, requests: usize) -> Done {
    let multi = Multi::new();
    let begin = || -> Result<Easy2Handle<Count>, Box<dyn Error>> {
        let mut easy = Easy2::new(Count::default());
        easy.url(url)?;
        Ok(multi.add2(easy)?)
    };
    let mut running: Vec<_> = (0..SIDE_BY_SIDE.min(requests)).map(|_| begin()).collect::<Result<_, _>>()?;
    let (mut begun, mut done) = (running.len(), 0);
    while done < requests {
        multi.perform()?;
        let mut over = Vec::new();
        multi.messages(|message| {
            over.extend(running.iter().position(|handle| message.is_for2(handle)));
        });
        over.sort_unstable_by(|a, b| b.cmp(a));
        for index in over {
            assert_eq!(multi.remove2(running.swap_remove(index))?.get_ref().0, 100);
            done += 1;
            if begun < requests {
                running.push(begin()?);
                begun += 1;
            }
        }
        if done < requests {
            multi.wait(&mut [], Duration::from_millis(100))?;
        }
    }
    Ok(())
}

fn through_worker_small(client: &Client, url: &str, requests: usize) -> Result<(), proc_curl::Error> {
    let mut running: VecDeque<_> =
        (0..SIDE_BY_SIDE.min(requests)).map(|_| client.get(url).start()).collect::<Result<_, _>>()?;
    let mut begun = running.len();
    while let Some(first) = running.pop_front() {
        assert_eq!(first.wait()?.body()?.len(), 100);
        if begun < requests {
            running.push_back(client.get(url).start()?);
            begun += 1;
        }
    }
    Ok(())
}

/// As many bytes as the path says, for ever.
fn serve() -> Done {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("http://{}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || answer(stream).is_ok());
    }
    Ok(())
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let bytes = vec![b'x'; 256 << 10];
    let mut lines = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        // `GET /123 HTTP/1.1`
        let len: usize = line.split(['/', ' ']).nth(2).and_then(|len| len.parse().ok()).unwrap_or(0);
        while lines.read_line(&mut line)? > 2 {}
        let mut head = format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\n\r\n").into_bytes();
        if len < 1000 {
            head.extend_from_slice(&bytes[..len]);
            stream.write_all(&head)?;
            continue;
        }
        stream.write_all(&head)?;
        let mut left = len;
        while left > 0 {
            let count = left.min(bytes.len());
            stream.write_all(&bytes[..count])?;
            left -= count;
        }
    }
}
