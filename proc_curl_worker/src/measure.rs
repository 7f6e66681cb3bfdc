//! `--measure`: round trips of a small question over each transport and in each format, to workers that are started for it.
//! Where the rates in `--protocols` come from.

use anyhow::Context;
use proc_curl::Client;
use proc_curl::uri::Uri;
use serde_json::json;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Before what counts.
const WARM: u32 = 50;
/// How long each is asked.
const ASKED: Duration = Duration::from_secs(1);
/// How long a worker may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);

/// A worker, ended with its measurement.
struct Measured(Child);

impl Drop for Measured {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory of its own.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Thousands of round trips in a second, by transport and by format.
pub(crate) fn report() -> anyhow::Result<String> {
    let place = Place(std::env::temp_dir().join(format!("procCurl-measure-{}", std::process::id())));
    fs::DirBuilder::new().mode(0o700).create(&place.0)?;
    let dir = place.0.display();
    let shm = asked_by_client(&format!("shm://{dir}/a.handle"))?;
    let capnp = asked_by_client(&format!("unix://{dir}/b.capnp"))?;
    let lines = asked_by_lines(&format!("unix://{dir}/c.jsonrpc"), &place.0.join("c.sock"))?;
    let all = json!({
        "transports": { "shm": shm, "unix": capnp, "io": asked_by_pipe()?, "tcp": asked_by_port()? },
        "formats": { "handle": shm, "capnp": capnp, "jsonrpc": lines },
        "unit": "thousand round trips a second",
    });
    Ok(format!("{all:#}\n"))
}

fn worker(arguments: &[&str]) -> anyhow::Result<Measured> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
    Ok(Measured(command.spawn()?))
}

/// Until it works, or for too long.
fn wait_for<R, E: Into<anyhow::Error>>(mut there: impl FnMut() -> Result<R, E>) -> anyhow::Result<R> {
    let began = Instant::now();
    loop {
        match there() {
            Ok(found) => return Ok(found),
            Err(error) if began.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn rate(mut ask: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    (0..WARM).try_for_each(|_| ask())?;
    let (began, mut rounds) = (Instant::now(), 0.0);
    while began.elapsed() < ASKED {
        ask()?;
        rounds += 1.0;
    }
    let thousands = rounds / began.elapsed().as_secs_f64() / 1000.0;
    Ok((thousands * 10.0).round() / 10.0)
}

fn asked_by_client(uri: &str) -> anyhow::Result<f64> {
    let _worker = worker(&[uri])?;
    let uri: Uri = uri.parse()?;
    let client = wait_for(|| Client::builder().attach(uri.clone()).build())?;
    rate(|| Ok(client.statistics().map(drop)?))
}

fn asked_by_lines(uri: &str, socket: &Path) -> anyhow::Result<f64> {
    let _worker = worker(&[uri])?;
    let socket = wait_for(|| UnixStream::connect(socket))?;
    ask_lines(&mut socket.try_clone()?, socket)
}

fn asked_by_port() -> anyhow::Result<f64> {
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let _worker = worker(&["--tcp", &format!("tcp://{free}/d.jsonrpc")])?;
    let mut socket = wait_for(|| TcpStream::connect(free))?;
    socket.set_nodelay(true)?;
    let hello = json!({ "jsonrpc": "2.0", "id": 0, "method": "hello", "params": { "session": "d" } });
    let answers = socket.try_clone()?;
    socket.write_all(format!("{hello}\n").as_bytes())?;
    ask_lines(&mut socket, answers)
}

fn asked_by_pipe() -> anyhow::Result<f64> {
    let mut worker = worker(&["io://e.jsonrpc"])?;
    let mut input = worker.0.stdin.take().context("no input")?;
    let output = worker.0.stdout.take().context("no output")?;
    ask_lines(&mut input, output)
}

fn ask_lines(input: &mut impl Write, output: impl Read) -> anyhow::Result<f64> {
    let mut lines = BufReader::new(output);
    let question = "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"statistics\"}\n";
    rate(|| {
        input.write_all(question.as_bytes())?;
        input.flush()?;
        anyhow::ensure!(lines.read_line(&mut String::new())? > 0, "the worker ended");
        Ok(())
    })
}
