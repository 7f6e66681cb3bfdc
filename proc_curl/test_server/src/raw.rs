//! A server that breaks the rules of HTTP, one connection a request. The path says how:
//!
//! | path | what comes |
//! |---|---|
//! | `/verbatim` | a proper answer whose body is the request's head as it came |
//! | `/informational` | `103 Early Hints` twice, then a proper answer |
//! | `/empty` | the connection's end |
//! | `/garbage` | words that are not HTTP |
//! | `/bad-header`, `/nul-header` | a header without a colon; one with a NUL byte |
//! | `/two-lengths` | two different `Content-Length` |
//! | `/endless-header` | a header without an end |
//! | `/half-head`, `/slow-head` | half a head, then nothing; one byte of it every 50 ms |
//! | `/truncated`, `/truncated-chunk` | 100 of 1,000 promised bytes, then the end; a chunk that is cut |
//! | `/bad-chunk` | a chunk whose size is no number |
//! | `/reset` | 100 of 1,000 bytes, then the connection's reset |
//! | `/excess` | more bytes than promised |
//! | `/http9` | a version that does not exist |

use crate::pattern;
use crate::state::State;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// More than any test's request.
const LONGEST_HEAD: usize = 256 << 10;

pub(crate) async fn speak(mut stream: TcpStream, state: &State) -> io::Result<()> {
    let head = head(&mut stream).await?;
    let line = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    state.hit(&path);
    match path.as_str() {
        "/verbatim" => {
            stream.write_all(proper(head.len()).as_bytes()).await?;
            stream.write_all(&head).await?;
        }
        "/informational" => {
            let early = "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n";
            stream.write_all(early.as_bytes()).await?;
            stream.write_all(early.as_bytes()).await?;
            stream.write_all(proper(6).as_bytes()).await?;
            stream.write_all(b"final\n").await?;
        }
        "/empty" => {}
        "/garbage" => stream.write_all(b"this is not what you think it is\r\n\r\n").await?,
        "/bad-header" => stream.write_all(b"HTTP/1.1 200 OK\r\nno colon here\r\nContent-Length: 0\r\n\r\n").await?,
        "/nul-header" => stream.write_all(b"HTTP/1.1 200 OK\r\nX-Nul: a\0b\r\nContent-Length: 0\r\n\r\n").await?,
        "/two-lengths" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!").await?;
        }
        "/endless-header" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nX-Endless: ").await?;
            loop {
                stream.write_all(&[b'x'; 4_096]).await?;
            }
        }
        "/half-head" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Le").await?;
            rest(&mut stream).await?;
        }
        "/slow-head" => {
            for byte in proper(3).as_bytes() {
                stream.write_all(&[*byte]).await?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            stream.write_all(b"ok\n").await?;
        }
        "/truncated" => {
            stream.write_all(proper(1_000).as_bytes()).await?;
            stream.write_all(&pattern::piece(0, 100)).await?;
        }
        "/truncated-chunk" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf").await?;
        }
        "/bad-chunk" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nmany\r\nbytes\r\n").await?;
        }
        "/reset" => {
            stream.write_all(proper(1_000).as_bytes()).await?;
            stream.write_all(&pattern::piece(0, 100)).await?;
            // With nothing to linger for, closing sends a reset.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
            return Ok(());
        }
        "/excess" => {
            stream.write_all(proper(5).as_bytes()).await?;
            stream.write_all(b"hello, and more than that").await?;
        }
        "/http9" => stream.write_all(b"HTTP/9.9 200 OK\r\nContent-Length: 0\r\n\r\n").await?,
        _ => stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").await?,
    }
    stream.shutdown().await?;
    // A close with unread bytes would be a reset.
    rest(&mut stream).await
}

fn proper(length: usize) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n")
}

/// Up to and with the empty line.
pub(crate) async fn head(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() > LONGEST_HEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        head.push(stream.read_u8().await?);
    }
    Ok(head)
}

/// Reads until the client leaves.
async fn rest(stream: &mut TcpStream) -> io::Result<()> {
    tokio::io::copy(stream, &mut tokio::io::sink()).await.map(drop)
}
