//! What a loop costs beside idle clients, measured: `event_scale [CLIENTS]` (4,000 unless told otherwise).
//!
//! One loop in one process serves the clients, 1,000 timers and a listening TCP socket; a second process has all the
//! clients, one of which asks. Prints a round trip's median with that client alone and beside all the others, in turns, and
//! the CPU time that the server then uses in ten idle seconds.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use strait::event::{Event, EventLoop, Readiness};
use strait::{Channel, ClientApp, ServerApp, Session, Trust, Wait};

capnp::generated_code!(mod hello_capnp);
use hello_capnp::hello;

type Outcome = Result<(), Box<dyn std::error::Error>>;

const PATIENCE: Duration = Duration::from_secs(20);
const ROUNDS: usize = 20_000;

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("serve") => serve(args.get(1).ok_or("where?")?),
        count => measure(count.map_or(Ok(4_000), str::parse)?),
    }
}

fn serve(dir: &str) -> Outcome {
    let mut events = EventLoop::new()?;
    let server = ServerApp::new("scale").run_dir(dir).arena_bytes(1 << 30).slots(16);
    let server = server.allow(&ClientApp::new("many"), Trust::snapshot()).channel::<hello::Owned>("main").bind()?;
    events.add_server(&Arc::new(server))?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    events.add_fd(&listener, Readiness::READABLE)?;
    for index in 0..1_000 {
        events.add_timer(Instant::now() + Duration::from_secs(3_600 + index));
    }
    println!("ready");
    let (mut sessions, mut channels) = (HashMap::new(), HashMap::new());
    while let Some(event) = events.wait(None) {
        match event {
            Event::Connection { token, session, .. } => {
                let channel: Channel<hello::Owned> = session.accept_channel_timeout(Duration::ZERO)?;
                channels.insert(events.add_channel(&channel)?, channel);
                sessions.insert(token, session);
            }
            Event::Message { channel, .. } => {
                let Some(channel) = channels.get_mut(&channel) else { continue };
                if let Some(request) = channel.try_recv()? {
                    let mut reply = channel.create_msg();
                    reply.init_root().set_answer("here");
                    channel.try_reply(&request, &reply.freeze()?)?;
                }
            }
            Event::Closed { channel, .. } => drop(channels.remove(&channel)),
            Event::Disconnection { session, .. } => {
                sessions.remove(&session);
                if sessions.is_empty() {
                    return Ok(());
                }
            }
            other => eprintln!("{other:?}"),
        }
    }
    Ok(())
}

fn measure(count: usize) -> Outcome {
    let dir = std::env::temp_dir().join(format!("strait-scale-{}", std::process::id()));
    let dir = dir.to_str().ok_or("a plain path")?;
    let mut server = Command::new(std::env::current_exe()?).args(["serve", dir]).stdout(Stdio::piped()).spawn()?;
    BufReader::new(server.stdout.take().ok_or("no pipe")?).read_line(&mut String::new())?;
    let app = ClientApp::new("many").channel::<hello::Owned>("main").wait(Wait::Park).slots(16).timeout(PATIENCE);
    let to = ServerApp::new("scale").run_dir(dir);
    let connect = || -> Result<(Session, Channel<hello::Owned>), Box<dyn std::error::Error>> {
        let session = app.connect(&to)?;
        let channel = session.open_channel("main", PATIENCE)?;
        Ok((session, channel))
    };
    let (session, mut asking) = connect()?;
    for turn in 0..3 {
        let alone = median(&mut asking)?;
        let begin = Instant::now();
        let mut idle = Vec::with_capacity(count);
        while idle.len() + 1 < count {
            idle.push(connect()?);
        }
        let connected = begin.elapsed();
        // Each has asked once, so that each is one that the loop has served.
        for (_, channel) in &mut idle {
            ask(channel)?;
        }
        let beside = median(&mut asking)?;
        let ratio = beside.as_secs_f64() / alone.as_secs_f64();
        println!(
            "turn {turn}: alone {alone:?}, beside {} idle {beside:?}: {ratio:.2} x; connected in {connected:?}",
            idle.len()
        );
        if turn == 2 {
            // Until everything is home and cool.
            std::thread::sleep(Duration::from_secs(17));
            let before = cpu_ticks(server.id())?;
            std::thread::sleep(Duration::from_secs(10));
            println!("idle for 10 s: {} ticks of CPU time", cpu_ticks(server.id())? - before);
        }
    }
    std::io::stdout().flush()?;
    drop((asking, session));
    server.wait()?;
    Ok(std::fs::remove_dir(dir)?)
}

fn ask(channel: &mut Channel<hello::Owned>) -> Outcome {
    let mut request = channel.create_msg();
    request.init_root().set_greet("there?");
    channel.request(&request.freeze()?, PATIENCE)?;
    Ok(())
}

fn median(channel: &mut Channel<hello::Owned>) -> Result<Duration, Box<dyn std::error::Error>> {
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS + 1_000 {
        let begin = Instant::now();
        ask(channel)?;
        if round >= 1_000 {
            times.push(begin.elapsed());
        }
    }
    times.sort_unstable();
    Ok(times[ROUNDS / 2])
}

/// User and system time, in hundredths of a second.
fn cpu_ticks(pid: u32) -> Result<u64, Box<dyn std::error::Error>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    Ok(fields.get(11).ok_or("no time")?.parse::<u64>()? + fields.get(12).ok_or("no time")?.parse::<u64>()?)
}
