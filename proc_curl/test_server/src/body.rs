//! Bodies that are streams: sized, endless, slow, broken off, with trailers, compressed as they go.

use crate::pattern;
use bytes::Bytes;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use flate2::{Compress, Compression, Crc, FlushCompress};
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

/// `zeros` zeros in gzip, some thousand times smaller, and made without compressing more than a piece of them: pieces that
/// end with a full flush can be repeated.
pub(crate) fn bomb(zeros: u64) -> Body {
    const STEP: usize = 1 << 20;
    let compressed = |size: usize, flush| {
        let mut out = Vec::with_capacity(STEP);
        let mut compress = Compress::new(Compression::fast(), false);
        compress.compress_vec(&vec![0; size], &mut out, flush).expect("memory");
        Bytes::from(out)
    };
    let (steps, rest) = (zeros / STEP as u64, (zeros % STEP as u64) as usize);
    let mut sum = Crc::new();
    let mut step = Crc::new();
    step.update(&vec![0; STEP]);
    (0..steps).for_each(|_| sum.combine(&step));
    sum.update(&vec![0; rest]);
    let end = [sum.sum().to_le_bytes(), (zeros as u32).to_le_bytes()].concat();
    let head = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
    let piece = compressed(STEP, FlushCompress::Full);
    let pieces = std::iter::once(Bytes::copy_from_slice(&head))
        .chain((0..steps).map(move |_| piece.clone()))
        .chain([compressed(rest, FlushCompress::Finish), Bytes::from(end)]);
    streamed(stream::iter(pieces.map(|piece| Ok(Frame::data(piece)))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    #[test]
    fn a_bomb_is_gzip() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
        let bytes = runtime.block_on(bomb(3_000_000).collect()).expect("a body").to_bytes();
        assert!(bytes.len() < 30_000, "{}", bytes.len());
        let mut zeros = Vec::new();
        GzDecoder::new(&bytes[..]).read_to_end(&mut zeros).expect("gzip");
        assert_eq!(zeros, vec![0; 3_000_000]);
    }
}
