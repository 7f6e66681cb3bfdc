//! A proxy for plain requests (`GET http://host/ HTTP/1.1`) and tunnels (`CONNECT host:port`), one connection a request.

use crate::raw::head;
use crate::serve::accepting;
use crate::state::State;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

type User = Option<(&'static str, &'static str)>;

pub(crate) fn start(state: &Arc<State>, user: User, tls: Option<TlsAcceptor>) -> SocketAddr {
    let state = state.clone();
    accepting(move |stream| {
        let (state, tls) = (state.clone(), tls.clone());
        async move {
            // Whoever breaks off, on either side, ends the connection and nothing else.
            let _ = match tls {
                None => serve(stream, &state, user).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => serve(stream, &state, user).await,
                    Err(error) => Err(error),
                },
            };
        }
    })
}

async fn serve(mut client: impl AsyncRead + AsyncWrite + Unpin, state: &State, user: User) -> io::Result<()> {
    let head = String::from_utf8(head(&mut client).await?).map_err(io::Error::other)?;
    let (line, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
    let [method, target, version] = line.split(' ').collect::<Vec<_>>()[..] else {
        return refuse(client, "400 Bad Request").await;
    };
    state.asked(format!("http {method} {target}"));
    if !user.is_none_or(|(name, password)| allowed(headers, name, password)) {
        return refuse(client, "407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"proxy\"").await;
    }
    if method == "CONNECT" {
        let Ok(mut server) = TcpStream::connect(target).await else { return refuse(client, "502 Bad Gateway").await };
        client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").await?;
        copy_bidirectional(&mut client, &mut server).await?;
        return Ok(());
    }
    let Some(rest) = target.strip_prefix("http://") else { return refuse(client, "400 Bad Request").await };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let Ok(mut server) = TcpStream::connect(host).await else { return refuse(client, "502 Bad Gateway").await };
    let own = |line: &&str| !line.to_ascii_lowercase().starts_with("proxy-");
    let kept = headers.split("\r\n").filter(|line| !line.is_empty()).filter(own);
    let kept: String = kept.map(|line| format!("{line}\r\n")).collect();
    let forwarded = format!("{method} {path} {version}\r\n{kept}Via: 1.1 strait\r\nConnection: close\r\n\r\n");
    server.write_all(forwarded.as_bytes()).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

fn allowed(headers: &str, name: &str, password: &str) -> bool {
    let expected = format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{password}")));
    let found = headers.lines().filter_map(|line| line.split_once(": "));
    found.into_iter().any(|(key, value)| key.eq_ignore_ascii_case("proxy-authorization") && value == expected)
}

async fn refuse(mut client: impl AsyncWrite + Unpin, status: &str) -> io::Result<()> {
    let text = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    client.write_all(text.as_bytes()).await?;
    client.shutdown().await
}
