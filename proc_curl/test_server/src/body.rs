//! Bodies that are streams: sized, endless, slow, broken off, with trailers, compressed as they go.

use crate::pattern;
use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use futures_util::stream::{self, Stream, StreamExt};
use http::HeaderMap;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use std::io::{self, Write};
use std::time::Duration;

pub(crate) type Body = UnsyncBoxBody<Bytes, io::Error>;

type Item = io::Result<Frame<Bytes>>;

/// What is there at once, with a length.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn streamed(frames: impl Stream<Item = Item> + Send + 'static) -> Body {
    StreamBody::new(frames).boxed_unsync()
}

/// The pattern from `start` up to before `end`, without a length of its own.
pub(crate) fn sized(start: u64, end: u64) -> Body {
    streamed(pieces(start, end))
}

fn pieces(start: u64, end: u64) -> impl Stream<Item = Item> + Send {
    stream::unfold(start, move |at| async move {
        (at < end).then(|| {
            let piece = pattern::piece(at, end - at);
            let next = at + piece.len() as u64;
            (Ok(Frame::data(piece)), next)
        })
    })
}

/// `pieces` times `size` bytes, `pause` after each.
pub(crate) fn drip(pieces: u64, size: u64, pause: Duration) -> Body {
    streamed(stream::unfold(0, move |done| async move {
        if done == pieces {
            return None;
        }
        if done > 0 {
            tokio::time::sleep(pause).await;
        }
        let piece = pattern::bytes(done * size, size as usize);
        Some((Ok(Frame::data(piece.into())), done + 1))
    }))
}

/// `bytes` of the pattern, then nothing, for ever.
pub(crate) fn stalled(bytes: u64) -> Body {
    streamed(pieces(0, bytes).chain(stream::pending()))
}

/// `bytes` of the pattern, then an error where more was promised.
pub(crate) fn broken(bytes: u64) -> Body {
    let end = async {
        // Sent is what was there when nothing more was.
        tokio::task::yield_now().await;
        Err(io::Error::other("broken off"))
    };
    streamed(pieces(0, bytes).chain(stream::once(end)))
}

/// `bytes` and then `trailers`.
pub(crate) fn with_trailers(bytes: &'static str, trailers: HeaderMap) -> Body {
    let data = stream::once(async { Ok(Frame::data(Bytes::from_static(bytes.as_bytes()))) });
    streamed(data.chain(stream::once(async { Ok(Frame::trailers(trailers)) })))
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut into = GzEncoder::new(Vec::new(), Compression::fast());
    into.write_all(bytes).expect("memory");
    into.finish().expect("memory")
}

/// What `Content-Encoding: deflate` means: zlib.
pub(crate) fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut into = ZlibEncoder::new(Vec::new(), Compression::fast());
    into.write_all(bytes).expect("memory");
    into.finish().expect("memory")
}

/// What some servers send for it.
pub(crate) fn raw_deflate(bytes: &[u8]) -> Vec<u8> {
    let mut into = DeflateEncoder::new(Vec::new(), Compression::fast());
    into.write_all(bytes).expect("memory");
    into.finish().expect("memory")
}

/// `zeros` zeros in gzip, made as they are sent: some thousand times smaller.
pub(crate) fn bomb(zeros: u64) -> Body {
    const STEP: u64 = 4 << 20;
    let start = (Some(GzEncoder::new(Vec::new(), Compression::best())), 0);
    streamed(stream::unfold(start, move |(encoder, done)| async move {
        let mut encoder = encoder?;
        let step = STEP.min(zeros - done);
        encoder.write_all(&vec![0; step as usize]).expect("memory");
        if done + step < zeros {
            let ready = std::mem::take(encoder.get_mut());
            return Some((Ok(Frame::data(ready.into())), (Some(encoder), done + step)));
        }
        let last = encoder.finish().expect("memory");
        Some((Ok(Frame::data(last.into())), (None, zeros)))
    }))
}
