//! strait: the answers are messages built beforehand, sent again and again, read in place.

use crate::answers::{Answers, PIECE, Request, are_right};
use crate::cache_capnp::cache;
use crate::kinds::{Peer, Wait};
use crate::round::{Asks, Serve, Serves};
use anyhow::{Context, anyhow, bail};
use std::hint::black_box;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;
use strait::{Builder, Channel, ClientApp, Message, ServerApp, Session, SessionServer, Trust};

const PATIENCE: Duration = Duration::from_secs(10);
const CHANNEL: &str = "cache";

fn server_app(dir: &Path) -> ServerApp {
    ServerApp::new("peer").run_dir(dir).channel::<cache::Owned>(CHANNEL)
}

fn client_app() -> ClientApp {
    ClientApp::new("asker").trust(believed())
}

fn believed() -> Trust {
    // SAFETY: the other half is this very program, which writes to no message after sending it.
    unsafe { Trust::in_place() }
}

fn wait(options: &Serve) -> strait::Wait {
    match options.wait {
        Wait::Poll => strait::Wait::Spin,
        Wait::Adaptive => strait::Wait::Adaptive,
        Wait::Block => strait::Wait::Park,
    }
}

/// Names of 64 bytes, as long as everybody's request.
const NAMES: [&str; 2] = [
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    "1123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
];

struct Server {
    /// The client, who comes while the other half is being made.
    coming: Option<JoinHandle<anyhow::Result<Met>>>,
    met: Option<Met>,
    answers: [Message<cache::Owned>; 2],
    /// Where answers are built anew, what they are built from.
    fresh: Option<Answers>,
}

type Met = (Channel<cache::Owned>, Session, SessionServer);

pub(crate) fn serve(options: &Serve) -> anyhow::Result<(Box<dyn Serves>, String)> {
    let sessions = server_app(&options.dir).allow(&client_app(), believed()).bind()?;
    let held = Answers::new(options.bytes);
    let build = |which| build(sessions.create_msg_with_capacity(room(options.bytes)), held.get(which));
    let answers = [build(0)?, build(1)?];
    let fresh = (options.peer == Peer::StraitFresh).then_some(held);
    let wait = wait(options);
    let coming = std::thread::spawn(move || -> anyhow::Result<Met> {
        let session = sessions.accept_timeout(PATIENCE)?;
        let mut channel = session.accept_channel_timeout(PATIENCE)?;
        channel.set_wait(wait);
        Ok((channel, session, sessions))
    });
    Ok((Box::new(Server { coming: Some(coming), met: None, answers, fresh }), String::new()))
}

/// What an answer takes.
fn room(bytes: usize) -> usize {
    bytes + 256
}

fn build(mut answer: Builder<cache::Owned>, bytes: &[u8]) -> anyhow::Result<Message<cache::Owned>> {
    let pieces = bytes.chunks(PIECE);
    let mut parts = answer.init_root().init_get_cache_rsp().init_file_parts(u32::try_from(pieces.len())?);
    for (piece, index) in pieces.zip(0..) {
        let mut part = parts.reborrow().get(index);
        part.set_size(piece.len() as u64);
        part.init_data(strait::data_len(piece.len())?).copy_from_slice(piece);
    }
    Ok(answer.freeze()?)
}

impl Server {
    fn meet(&mut self) -> anyhow::Result<()> {
        if let Some(coming) = self.coming.take() {
            self.met = Some(coming.join().map_err(|_| anyhow!("accepting panicked"))??);
        }
        Ok(())
    }
}

impl Serves for Server {
    fn take(&mut self, count: u32) -> anyhow::Result<()> {
        self.meet()?;
        let (channel, ..) = self.met.as_mut().context("nobody came")?;
        for _ in 0..count {
            let request = channel.recv()?;
            if self.fresh.is_some() {
                let cache::GetCacheReq(asked) = request.get()?.which()? else { bail!("no request") };
                black_box(asked?.get_file_name()?);
            }
        }
        Ok(())
    }

    fn serve(&mut self, rounds: u32) -> anyhow::Result<()> {
        self.meet()?;
        let (channel, ..) = self.met.as_mut().context("nobody came")?;
        for _ in 0..rounds {
            let request = channel.recv()?;
            let cache::GetCacheReq(asked) = request.get()?.which()? else { bail!("no request") };
            let which = asked?.get_file_name()?.as_bytes() == NAMES[1].as_bytes();
            match &self.fresh {
                None => channel.reply(&request, &self.answers[usize::from(which)])?,
                Some(held) => {
                    let bytes = held.get(which.into());
                    let answer = build(channel.create_msg_with_capacity(room(bytes.len())), bytes)?;
                    channel.reply(&request, &answer)?
                }
            };
        }
        Ok(())
    }
}

struct Client {
    channel: Channel<cache::Owned>,
    /// Whether what nobody answers is built anew each time.
    fresh: bool,
    _session: Session,
}

pub(crate) fn ask(options: &Serve) -> anyhow::Result<Box<dyn Asks>> {
    let session = client_app().connect(&server_app(&options.dir))?;
    let mut channel = session.open_channel(CHANNEL, PATIENCE)?;
    channel.set_wait(wait(options));
    Ok(Box::new(Client { channel, fresh: options.peer == Peer::StraitFresh, _session: session }))
}

impl Client {
    #[inline]
    fn question(&self, which: u64) -> anyhow::Result<Message<cache::Owned>> {
        let mut message = self.channel.create_msg_with_capacity(128);
        message.init_root().init_get_cache_req().set_file_name(NAMES[(which & 1) as usize]);
        Ok(message.freeze()?)
    }
}

impl Asks for Client {
    fn send(&mut self, count: u32) -> anyhow::Result<()> {
        if self.fresh {
            return (0..count).try_for_each(|_| {
                let message = self.question(0)?;
                self.channel.send(&message)?;
                Ok(())
            });
        }
        let message = self.question(0)?;
        for _ in 0..count {
            self.channel.send(&message)?;
        }
        Ok(())
    }

    #[inline]
    fn ask(&mut self, request: &Request) -> anyhow::Result<bool> {
        let question = self.question(request[0])?;
        let answer = self.channel.request(&question, PATIENCE)?;
        let cache::GetCacheRsp(found) = answer.get()?.which()? else { bail!("no answer") };
        let parts = found?.get_file_parts()?;
        let last = parts.len().checked_sub(1).context("an empty answer")?;
        Ok(are_right(parts.get(0).get_data()?, parts.get(last).get_data()?, request[0]))
    }
}
