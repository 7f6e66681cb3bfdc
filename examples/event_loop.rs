//! A server in one thread, whatever it serves: `event_loop serve` in one terminal, `event_loop` in another.
//!
//! It greets strait clients, tells the time it has been up to whoever connects to its TCP port, says so every ten seconds,
//! and leaves in good order when it is interrupted.

use std::collections::HashMap;
use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};
use strait::event::{Event, EventLoop, Readiness, Token};
use strait::{Channel, ClientApp, SendError, ServerApp, Session, Trust};

capnp::generated_code!(mod hello_capnp);
use hello_capnp::hello;

type Outcome = Result<(), Box<dyn std::error::Error>>;

/// Interrupt and terminate.
const STOP: [i32; 2] = [2, 15];

fn main() -> Outcome {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(),
        None => greet(),
        Some(_) => Err("usage: event_loop [serve]".into()),
    }
}

fn serve() -> Outcome {
    let mut events = EventLoop::new()?;
    let server = ServerApp::new("event_loop")
        .allow(&ClientApp::new("greeter"), Trust::snapshot())
        .channel::<hello::Owned>("main")
        .bind()?;
    events.add_server(&Arc::new(server))?;
    events.add_signals(&STOP)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    events.add_fd(&listener, Readiness::READABLE)?;
    println!("listening at {} as well", listener.local_addr()?);
    let begin = Instant::now();
    events.add_timer(begin + EVERY);
    let mut clients = Clients::default();
    while let Some(event) = events.wait(None) {
        match event {
            Event::Connection { token, session, .. } => clients.welcome(&mut events, token, session)?,
            Event::Message { channel, .. } => clients.answer(channel)?,
            Event::Closed { channel, .. } => drop(clients.channels.remove(&channel)),
            Event::Disconnection { session, .. } => drop(clients.sessions.remove(&session)),
            Event::External { .. } => {
                while let Ok((mut visitor, _)) = listener.accept() {
                    writeln!(visitor, "up for {:?}", begin.elapsed()).unwrap_or_else(|gone| eprintln!("{gone}"));
                }
            }
            Event::Timer { .. } => {
                println!("{} clients", clients.sessions.len());
                events.add_timer(Instant::now() + EVERY);
            }
            Event::Signal { .. } => break,
            other => eprintln!("{other:?}"),
        }
    }
    Ok(())
}

const EVERY: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Clients {
    sessions: HashMap<Token, Session>,
    channels: HashMap<Token, Channel<hello::Owned>>,
}

impl Clients {
    fn welcome(&mut self, events: &mut EventLoop, token: Token, session: Session) -> Outcome {
        // Opened in the log-in, so it is there.
        if let Ok(channel) = session.accept_channel_timeout::<hello::Owned>(Duration::ZERO) {
            self.channels.insert(events.add_channel(&channel)?, channel);
            self.sessions.insert(token, session);
        }
        Ok(())
    }

    fn answer(&mut self, token: Token) -> Outcome {
        let Some(channel) = self.channels.get_mut(&token) else { return Ok(()) };
        let Ok(Some(request)) = channel.try_recv() else { return Ok(()) };
        if let hello::Greet(name) = request.get()?.which()? {
            let mut reply = channel.create_msg();
            reply.init_root().set_answer(format!("Hello, {}!", name?.to_str()?));
            match channel.try_reply(&request, &reply.freeze()?) {
                Ok(_) | Err(SendError::Ended(_)) => {}
                // Asks and does not listen.
                Err(_) => drop(self.channels.remove(&token)),
            }
        }
        Ok(())
    }
}

fn greet() -> Outcome {
    let session = ClientApp::new("greeter").channel::<hello::Owned>("main").connect(&ServerApp::new("event_loop"))?;
    let mut channel = session.open_channel::<hello::Owned>("main", Duration::from_secs(1))?;
    let mut request = channel.create_msg();
    request.init_root().set_greet("world");
    let reply = channel.request(&request.freeze()?, Duration::from_secs(1))?;
    if let hello::Answer(text) = reply.get()?.which()? {
        println!("{}", text?.to_str()?);
    }
    Ok(())
}
