//! Two processes in one file: `hello serve` in one terminal, `hello` in another.

use std::time::Duration;
use strait::{ClientApp, RecvError, ServerApp, Session, Trust};

capnp::generated_code!(mod hello_capnp);
use hello_capnp::hello;

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    match std::env::args().nth(1).as_deref() {
        Some("serve") => serve(),
        None => greet(),
        Some(_) => Err("usage: hello [serve]".into()),
    }
}

fn serve() -> Outcome {
    let server = ServerApp::new("hello")
        .allow(&ClientApp::new("greeter"), Trust::snapshot())
        .channel::<hello::Owned>("main")
        .bind()?;
    loop {
        match server.accept() {
            // Waiting for its channel is that client's own affair.
            Ok(session) => drop(std::thread::spawn(move || answer(&session).unwrap_or_else(|end| eprintln!("{end}")))),
            Err(refused) => eprintln!("{refused}"),
        }
    }
}

fn answer(session: &Session) -> Outcome {
    let mut channel = session.accept_channel::<hello::Owned>()?;
    loop {
        let request = match channel.recv() {
            Err(RecvError::Ended(_)) => return Ok(()),
            other => other?,
        };
        if let hello::Greet(name) = request.get()?.which()? {
            let mut reply = channel.create_msg();
            reply.init_root().set_answer(format!("Hello, {}!", name?.to_str()?));
            channel.reply(&request, &reply.freeze()?)?;
        }
    }
}

fn greet() -> Outcome {
    let session = ClientApp::new("greeter").channel::<hello::Owned>("main").connect(&ServerApp::new("hello"))?;
    let mut channel = session.open_channel::<hello::Owned>("main", Duration::from_secs(1))?;
    let mut request = channel.create_msg();
    request.init_root().set_greet("world");
    let reply = channel.request(&request.freeze()?, Duration::from_secs(1))?;
    if let hello::Answer(text) = reply.get()?.which()? {
        println!("{}", text?.to_str()?);
    }
    Ok(())
}
