//! Listeners: what accepts connections, with or without TLS, and hands them to who speaks there.

use crate::answers;
use crate::raw as rude;
use crate::state::{Connection, State};
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use socket2::{Domain, Socket, Type};
use std::fs::Permissions;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::TlsAcceptor;

/// More than any test opens at once.
const BACKLOG: i32 = 4_096;

/// A socket that listens on loopback.
pub(crate) fn listener() -> TcpListener {
    let socket = listening(BACKLOG);
    socket.set_nonblocking(true).expect("socket");
    TcpListener::from_std(socket.into()).expect("runtime")
}

fn listening(backlog: i32) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("loopback");
    socket.listen(backlog).expect("loopback");
    socket
}

fn address(socket: &Socket) -> SocketAddr {
    socket.local_addr().expect("socket").as_socket().expect("an address")
}

/// Accepts for ever; each connection is served by a task of its own.
pub(crate) fn accepting<F>(serve: impl Fn(tokio::net::TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = listener();
    let at = listener.local_addr().expect("socket");
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    drop(tokio::spawn(serve(stream)));
                }
                // Out of descriptors for a moment.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    });
    at
}

/// A web server.
pub(crate) fn web(state: &Arc<State>, tls: Option<TlsAcceptor>) -> SocketAddr {
    let state = state.clone();
    accepting(move |stream| {
        let (state, tls) = (state.clone(), tls.clone());
        async move {
            let connection = Connection::new(&state);
            match tls {
                None => speak(stream, state).await,
                Some(tls) => {
                    // Else a client that does not like the certificate.
                    if let Ok(stream) = tls.accept(stream).await {
                        speak(stream, state).await;
                    }
                }
            }
            drop(connection);
        }
    })
}

/// The same at a Unix socket.
pub(crate) fn unix(path: &Path, state: &Arc<State>) {
    let (listener, state) = (UnixListener::bind(path).expect("socket"), state.clone());
    // For clients that have given up being this user, too.
    for path in path.ancestors().take(2) {
        std::fs::set_permissions(path, Permissions::from_mode(0o777)).expect("own file");
    }
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let state = state.clone();
            tokio::spawn(async move {
                let _connection = Connection::new(&state);
                speak(stream, state.clone()).await;
            });
        }
    });
}

/// HTTP/1.1 or HTTP/2, whichever the client begins with.
async fn speak(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, state: Arc<State>) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (parts, body) = request.into_parts();
        answers::answer(state.clone(), parts, body)
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().max_buf_size(512 << 10);
    server.http2().max_concurrent_streams(4_096).initial_stream_window_size(1 << 20);
    server.http2().initial_connection_window_size(16 << 20).max_header_list_size(512 << 10);
    // A connection ends in many ways here, by intention.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

/// A server that breaks rules.
pub(crate) fn raw(state: &Arc<State>) -> SocketAddr {
    let state = state.clone();
    accepting(move |stream| {
        let state = state.clone();
        async move {
            let _connection = Connection::new(&state);
            // What a client that leaves does to it is not its concern.
            let _ = rude::speak(stream, &state).await;
        }
    })
}

/// Holds every connection and says nothing.
pub(crate) fn silent(state: &Arc<State>) -> SocketAddr {
    let state = state.clone();
    accepting(move |mut stream| {
        let state = state.clone();
        async move {
            let _connection = Connection::new(&state);
            // Ends when the client does.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    })
}

/// Listens, accepts nothing, and has its backlog filled: who connects waits for ever. With what fills it.
pub(crate) fn full() -> (SocketAddr, Vec<TcpStream>) {
    let socket = listening(0);
    let at = address(&socket);
    let mut filling = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&at, Duration::from_millis(50)) {
        filling.push(stream);
        assert!(filling.len() < 64, "a backlog without end");
    }
    filling.push(TcpStream::from(socket));
    (at, filling)
}

/// An address where nobody listens: bound, so that nobody else gets it, for as long as the program runs.
pub(crate) fn closed() -> SocketAddr {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("socket");
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("loopback");
    let at = address(&socket);
    std::mem::forget(socket);
    at
}
