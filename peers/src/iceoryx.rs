//! iceoryx2: requests and responses, or a topic each way; polled, or with an event for everything that is sent. Limits are
//! what is needed, not its defaults: those reserve memory for hundreds of answers.

use crate::answers::{Answers, Request, are_right, request, write_ends};
use crate::kinds::{Peer, Wait};
use crate::round::{Asks, Serve, Serves, poll};
use anyhow::{Context, anyhow};
use iceoryx2::config::Config;
use iceoryx2::node::Node;
use iceoryx2::port::backpressure_strategy::BackpressureStrategy;
use iceoryx2::port::client::Client;
use iceoryx2::port::listener::Listener;
use iceoryx2::port::notifier::Notifier;
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::server::Server;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;
use iceoryx2::service::port_factory::publish_subscribe;
use std::fmt::Display;
use std::hint::black_box;
use std::mem::MaybeUninit;

type Ipc = ipc::Service;

/// Its errors are told, not kept.
fn plain(error: impl Display) -> anyhow::Error {
    anyhow!("iceoryx2: {error}")
}

/// A node whose files are in this peer's own directory.
fn node(options: &Serve) -> anyhow::Result<Node<Ipc>> {
    set_log_level(LogLevel::Error);
    let mut config = Config::default();
    let root = options.dir.to_str().context("a plain path")?;
    config.global.set_root_path(&iceoryx2::prelude::Path::new(root.as_bytes()).map_err(|error| anyhow!("{error:?}"))?);
    let prefix = prefix(&options.dir);
    config.global.prefix = FileName::new(prefix.as_bytes()).map_err(|error| anyhow!("{error:?}"))?;
    NodeBuilder::new().config(&config).signal_handling_mode(SignalHandlingMode::Disabled).create().map_err(plain)
}

/// What the files begin with that it keeps in /dev/shm, where there is no directory for them.
fn prefix(dir: &std::path::Path) -> String {
    let bytes = dir.as_os_str().as_encoded_bytes();
    let sum = bytes.iter().fold(0_u32, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    format!("peers_{sum}_")
}

/// Its files in /dev/shm, some of which stay after every process is gone: removed when this is dropped.
pub(crate) struct Leavings(String);

impl Leavings {
    pub(crate) fn of(options: &Serve) -> Self {
        Self(prefix(&options.dir))
    }
}

impl Drop for Leavings {
    fn drop(&mut self) {
        for entry in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(self.0.as_bytes()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

fn name(text: &str) -> anyhow::Result<ServiceName> {
    text.try_into().map_err(|error| anyhow!("{error:?}"))
}

/// How this side hears of what was sent, and lets the other side hear.
struct Bells {
    together: bool,
    /// Nothing where both poll.
    events: Option<(Notifier<Ipc>, Listener<Ipc>)>,
}

impl Bells {
    /// `rings` is the event that this side causes, `hears` the one it waits for.
    fn new(node: &Node<Ipc>, options: &Serve, rings: &str, hears: &str) -> anyhow::Result<Self> {
        let event = |text: &str| node.service_builder(&name(text)?).event().open_or_create().map_err(plain);
        let events = if options.wait == Wait::Poll {
            None
        } else {
            let notifier = event(rings)?.notifier_builder().create().map_err(plain)?;
            Some((notifier, event(hears)?.listener_builder().create().map_err(plain)?))
        };
        Ok(Self { together: options.together, events })
    }

    fn ring(&self) -> anyhow::Result<()> {
        if let Some((notifier, _)) = &self.events {
            notifier.notify().map_err(plain)?;
        }
        Ok(())
    }

    #[inline]
    fn wait<T>(&self, mut look: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
        let Some((_, listener)) = &self.events else { return poll(self.together, look) };
        loop {
            // One event, one message: so sleep first.
            listener.blocking_wait(|_| {}).map_err(plain)?;
            if let Some(found) = look()? {
                return Ok(found);
            }
        }
    }
}

/// Fills a loan, as far as this peer does.
fn fill(loan: &mut [MaybeUninit<u8>], which: u64, copied: Option<&Answers>) {
    let (len, start) = (loan.len(), loan.as_mut_ptr().cast::<u8>());
    // SAFETY: memory that this process has on loan, writable for `len` bytes; bytes of shared memory always have a value.
    let loan = unsafe { std::slice::from_raw_parts_mut(start, len) };
    match copied {
        Some(answers) => loan.copy_from_slice(answers.get(which)),
        None => write_ends(loan, which),
    }
}

// Requests and responses.

struct Requests<P> {
    port: P,
    bells: Bells,
    copied: Option<Answers>,
    bytes: usize,
    _node: Node<Ipc>,
}

type RequestPort = Client<Ipc, Request, (), [u8], ()>;
type ResponsePort = Server<Ipc, Request, (), [u8], ()>;

fn service(
    node: &Node<Ipc>,
) -> anyhow::Result<iceoryx2::service::port_factory::request_response::PortFactory<Ipc, Request, (), [u8], ()>> {
    let builder = node.service_builder(&name("answers")?).request_response::<Request, [u8]>();
    let builder = builder.max_clients(1).max_servers(1).max_nodes(4).max_active_requests_per_client(2);
    let builder =
        builder.max_loaned_requests(1).max_response_buffer_size(1).max_borrowed_responses_per_pending_response(1);
    builder.open_or_create().map_err(plain)
}

pub(crate) fn serve_requests(options: &Serve) -> anyhow::Result<(Box<dyn Serves>, String)> {
    let node = node(options)?;
    let service = service(&node)?;
    let port = service.server_builder().initial_max_slice_len(options.bytes).max_loaned_responses_per_request(1);
    let port: ResponsePort = port.create().map_err(plain)?;
    let bells = Bells::new(&node, options, "answered", "asked")?;
    let copied = (options.peer == Peer::Iceoryx2RrCopy).then(|| Answers::new(options.bytes));
    Ok((Box::new(Requests { port, bells, copied, bytes: options.bytes, _node: node }), String::new()))
}

impl Serves for Requests<ResponsePort> {
    fn serve(&mut self, rounds: u32) -> anyhow::Result<()> {
        for _ in 0..rounds {
            let request = self.bells.wait(|| self.port.receive().map_err(plain))?;
            let mut answer = request.loan_slice_uninit(self.bytes).map_err(plain)?;
            fill(answer.payload_mut(), request.payload()[0], self.copied.as_ref());
            // SAFETY: filled, as far as anybody reads it; and shared memory, whose bytes always have a value.
            unsafe { answer.assume_init() }.send().map_err(plain)?;
            self.bells.ring()?;
        }
        Ok(())
    }
}

pub(crate) fn requests(options: &Serve) -> anyhow::Result<Box<dyn Asks>> {
    let node = node(options)?;
    let port: RequestPort = service(&node)?.client_builder().create().map_err(plain)?;
    let bells = Bells::new(&node, options, "asked", "answered")?;
    Ok(Box::new(Requests { port, bells, copied: None, bytes: options.bytes, _node: node }))
}

impl Asks for Requests<RequestPort> {
    #[inline]
    fn ask(&mut self, request: &Request) -> anyhow::Result<bool> {
        let loan = self.port.loan_uninit().map_err(plain)?;
        let pending = loan.write_payload(*request).send().map_err(plain)?;
        self.bells.ring()?;
        let answer = self.bells.wait(|| pending.receive().map_err(plain))?;
        let answer = answer.payload();
        Ok(answer.len() == self.bytes && are_right(answer, answer, request[0]))
    }
}

// A topic each way.

struct Topics<O: 'static + ?Sized + std::fmt::Debug + IceoryxSend, I: 'static + ?Sized + std::fmt::Debug + IceoryxSend>
{
    out: Publisher<Ipc, O, ()>,
    into: Subscriber<Ipc, I, ()>,
    bells: Bells,
    bytes: usize,
    _node: Node<Ipc>,
}

fn questions(node: &Node<Ipc>) -> anyhow::Result<publish_subscribe::PortFactory<Ipc, Request, ()>> {
    let builder = node.service_builder(&name("questions")?).publish_subscribe::<Request>();
    // As many as a channel of strait's has room for.
    let builder = builder.max_publishers(1).max_subscribers(1).max_nodes(4).subscriber_max_buffer_size(256);
    builder.enable_safe_overflow(false).open_or_create().map_err(plain)
}

fn replies(node: &Node<Ipc>) -> anyhow::Result<publish_subscribe::PortFactory<Ipc, [u8], ()>> {
    let builder = node.service_builder(&name("replies")?).publish_subscribe::<[u8]>();
    let builder = builder.max_publishers(1).max_subscribers(1).max_nodes(4).subscriber_max_buffer_size(2);
    builder.enable_safe_overflow(false).open_or_create().map_err(plain)
}

pub(crate) fn serve_topics(options: &Serve) -> anyhow::Result<(Box<dyn Serves>, String)> {
    let node = node(options)?;
    let replies = replies(&node)?;
    let out = replies.publisher_builder().initial_max_slice_len(options.bytes).max_loaned_samples(1);
    let out = out.create().map_err(plain)?;
    let into = questions(&node)?.subscriber_builder().create().map_err(plain)?;
    let bells = Bells::new(&node, options, "answered", "asked")?;
    Ok((Box::new(Topics { out, into, bells, bytes: options.bytes, _node: node }), String::new()))
}

impl Serves for Topics<[u8], Request> {
    fn take(&mut self, count: u32) -> anyhow::Result<()> {
        for _ in 0..count {
            let request = self.bells.wait(|| self.into.receive().map_err(plain))?;
            black_box(request.payload()[0]);
        }
        Ok(())
    }

    fn serve(&mut self, rounds: u32) -> anyhow::Result<()> {
        for _ in 0..rounds {
            let request = self.bells.wait(|| self.into.receive().map_err(plain))?;
            let mut answer = self.out.loan_slice_uninit(self.bytes).map_err(plain)?;
            fill(answer.payload_mut(), request.payload()[0], None);
            // SAFETY: filled, as far as anybody reads it; and shared memory, whose bytes always have a value.
            unsafe { answer.assume_init() }.send().map_err(plain)?;
            self.bells.ring()?;
        }
        Ok(())
    }
}

pub(crate) fn topics(options: &Serve) -> anyhow::Result<Box<dyn Asks>> {
    let node = node(options)?;
    let questions = questions(&node)?;
    // Else it drops what there is no room for.
    let out = questions.publisher_builder().backpressure_strategy(BackpressureStrategy::RetryUntilDelivered);
    let out = out.create().map_err(plain)?;
    let into = replies(&node)?.subscriber_builder().create().map_err(plain)?;
    let bells = Bells::new(&node, options, "asked", "answered")?;
    Ok(Box::new(Topics { out, into, bells, bytes: options.bytes, _node: node }))
}

impl Asks for Topics<Request, [u8]> {
    fn send(&mut self, count: u32) -> anyhow::Result<()> {
        for _ in 0..count {
            // Waits for room where there is none.
            self.out.loan_uninit().map_err(plain)?.write_payload(request(0)).send().map_err(plain)?;
        }
        Ok(())
    }

    #[inline]
    fn ask(&mut self, request: &Request) -> anyhow::Result<bool> {
        self.out.loan_uninit().map_err(plain)?.write_payload(*request).send().map_err(plain)?;
        self.bells.ring()?;
        let answer = self.bells.wait(|| self.into.receive().map_err(plain))?;
        let answer = answer.payload();
        Ok(answer.len() == self.bytes && are_right(answer, answer, request[0]))
    }
}
