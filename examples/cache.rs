//! A cache of files: `cache serve FILE...` holds them in shared memory, `cache NAME` reads one where it lies.
//!
//! Serving a file costs the same at any size: it is a message that was built once, and every client reads those bytes.

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::time::Duration;
use strait::{AcceptError, Channel, ClientApp, Message, RecvError, ServerApp, SessionServer, Trust, data_len};

capnp::generated_code!(mod cache_capnp);
use cache_capnp::cache;

type Files = HashMap<String, Message<cache::Owned>>;

/// Bytes in one part of a file.
const PART: usize = 1 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next()) {
        (Some("serve"), Some(first)) => serve(std::iter::once(first).chain(arguments)),
        (Some(name), None) if name != "serve" => fetch(name),
        _ => Err("usage: cache serve FILE... | cache NAME".into()),
    }
}

fn serve(paths: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    // SAFETY: the client below is this very program, and nothing in it writes to a message after sending it.
    let trust = unsafe { Trust::in_place() };
    let server =
        ServerApp::new("cache").allow(&ClientApp::new("reader"), trust).channel::<cache::Owned>("files").bind()?;
    let files: Files =
        paths.map(|path| Ok((path.clone(), load(&server, &path)?))).collect::<Result<_, Box<dyn Error>>>()?;
    println!("serving {} files", files.len());
    std::thread::scope(|scope| {
        loop {
            let session = match server.accept() {
                Ok(session) => session,
                Err(AcceptError::Closed) => return Ok(()),
                Err(refused) => {
                    eprintln!("{refused}");
                    continue;
                }
            };
            let files = &files;
            scope.spawn(move || match session.accept_channel() {
                Ok(channel) => answer(channel, files).unwrap_or_else(|error| eprintln!("{error}")),
                Err(error) => eprintln!("{error}"),
            });
        }
    })
}

/// Reads a file straight into the message it will be served as.
fn load(server: &SessionServer, path: &str) -> Result<Message<cache::Owned>, Box<dyn Error>> {
    let mut file = File::open(path)?;
    let size = usize::try_from(file.metadata()?.len())?;
    let mut message = server.create_msg::<cache::Owned>();
    let parts = message.init_root().init_get_cache_rsp().init_file_parts(u32::try_from(size.div_ceil(PART))?);
    for index in 0..parts.len() {
        let len = PART.min(size - index as usize * PART);
        let mut part = message_part(&mut message, index)?;
        part.set_size(len as u64);
        file.read_exact(part.init_data(data_len(len)?))?;
    }
    Ok(message.freeze()?)
}

fn message_part(
    message: &mut strait::Builder<cache::Owned>,
    index: u32,
) -> capnp::Result<cache_capnp::file_part::Builder<'_>> {
    match message.get_root()?.which()? {
        cache::GetCacheRsp(response) => Ok(response?.get_file_parts()?.get(index)),
        _ => Err(capnp::Error::failed("not a response".into())),
    }
}

fn answer(mut channel: Channel<cache::Owned>, files: &Files) -> Result<(), Box<dyn Error>> {
    loop {
        let request = match channel.recv() {
            Err(RecvError::Ended(_)) => return Ok(()),
            other => other?,
        };
        let cache::GetCacheReq(wanted) = request.get()?.which()? else { continue };
        let name = wanted?.get_file_name()?.to_str()?;
        match files.get(name) {
            Some(file) => channel.reply(&request, file)?,
            None => {
                let mut missing = channel.create_msg();
                missing.init_root().set_not_found(name);
                channel.reply(&request, &missing.freeze()?)?
            }
        };
    }
}

fn fetch(name: &str) -> Result<(), Box<dyn Error>> {
    // SAFETY: as for the server.
    let trust = unsafe { Trust::in_place() };
    let app = ClientApp::new("reader").trust(trust).channel::<cache::Owned>("files");
    let session = app.connect(&ServerApp::new("cache"))?;
    let mut channel = session.open_channel::<cache::Owned>("files", Duration::from_secs(1))?;
    let mut request = channel.create_msg();
    request.init_root().init_get_cache_req().set_file_name(name);
    let reply = channel.request(&request.freeze()?, Duration::from_secs(1))?;
    match reply.get()?.which()? {
        cache::GetCacheRsp(response) => {
            let mut out = std::io::stdout().lock();
            for part in response?.get_file_parts()? {
                out.write_all(part.get_data()?)?;
            }
            Ok(())
        }
        _ => Err(format!("{name}: not in the cache").into()),
    }
}
