//! capnp-rpc over a Unix stream socket, on tokio's single thread, buffered as its examples are.

use crate::answers::{Answers, PIECE, Request, are_right, to_bytes};
use crate::fetch_capnp::fetch;
use crate::round::{Asks, Serve, Serves};
use anyhow::Context;
use capnp::message::ReaderOptions;
use capnp_rpc::{RpcSystem, rpc_twoparty_capnp, twoparty};
use futures::io::{AsyncReadExt, BufReader, BufWriter};
use std::path::PathBuf;
use std::rc::Rc;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use tokio_util::compat::TokioAsyncReadCompatExt;

fn at(options: &Serve) -> PathBuf {
    options.dir.join("rpc")
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_io().build()
}

fn network(stream: UnixStream, side: rpc_twoparty_capnp::Side) -> Box<twoparty::VatNetwork<impl futures::AsyncRead>> {
    let (reader, writer) = stream.compat().split();
    let mut limits = ReaderOptions::new();
    limits.traversal_limit_in_words(None);
    Box::new(twoparty::VatNetwork::new(BufReader::new(reader), BufWriter::new(writer), side, limits))
}

struct Held(Answers);

impl fetch::Server for Held {
    async fn get(self: Rc<Self>, params: fetch::GetParams, mut results: fetch::GetResults) -> capnp::Result<()> {
        let answer = self.0.get(params.get()?.get_which());
        let pieces = answer.chunks(PIECE);
        let mut parts = results.get().init_parts(pieces.len() as u32);
        for (piece, index) in pieces.zip(0..) {
            parts.set(index, piece);
        }
        Ok(())
    }
}

struct Server {
    listener: std::os::unix::net::UnixListener,
    answers: Option<Answers>,
}

pub(crate) fn serve(options: &Serve) -> anyhow::Result<(Box<dyn Serves>, String)> {
    let listener = std::os::unix::net::UnixListener::bind(at(options))?;
    listener.set_nonblocking(true)?;
    Ok((Box::new(Server { listener, answers: Some(Answers::new(options.bytes)) }), String::new()))
}

impl Serves for Server {
    /// All there ever are: who is asked is not this side's to say.
    fn serve(&mut self, _: u32) -> anyhow::Result<()> {
        let Some(answers) = self.answers.take() else { return Ok(()) };
        let (runtime, local) = (runtime()?, LocalSet::new());
        local.block_on(&runtime, async {
            let (stream, _) = UnixListener::from_std(self.listener.try_clone()?)?.accept().await?;
            let held: fetch::Client = capnp_rpc::new_client(Held(answers));
            RpcSystem::new(network(stream, rpc_twoparty_capnp::Side::Server), Some(held.client)).await?;
            Ok(())
        })
    }
}

struct Client {
    /// Before what it runs on.
    fetch: fetch::Client,
    local: LocalSet,
    runtime: Runtime,
}

pub(crate) fn ask(options: &Serve) -> anyhow::Result<Box<dyn Asks>> {
    let (runtime, local) = (runtime()?, LocalSet::new());
    let fetch = local.block_on(&runtime, async {
        let stream = UnixStream::connect(at(options)).await?;
        let mut system = RpcSystem::new(network(stream, rpc_twoparty_capnp::Side::Client), None);
        let fetch = system.bootstrap(rpc_twoparty_capnp::Side::Server);
        tokio::task::spawn_local(system);
        anyhow::Ok(fetch)
    })?;
    Ok(Box::new(Client { fetch, local, runtime }))
}

impl Asks for Client {
    fn ask(&mut self, request: &Request) -> anyhow::Result<bool> {
        let fetch = &self.fetch;
        self.local.block_on(&self.runtime, async {
            let mut call = fetch.get_request();
            call.get().set_which(request[0]);
            call.get().set_filling(&to_bytes(request)[8..]);
            let answer = call.send().promise.await?;
            let parts = answer.get()?.get_parts()?;
            let last = parts.len().checked_sub(1).context("an empty answer")?;
            Ok(are_right(parts.get(0)?, parts.get(last)?, request[0]))
        })
    }
}
