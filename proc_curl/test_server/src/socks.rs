//! SOCKS5 as far as clients of web servers need it: `CONNECT` to an address or a name, with or without a password.

use crate::serve::accepting;
use crate::state::State;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

const VERSION: u8 = 5;
const NO_AUTH: u8 = 0;
const PASSWORD: u8 = 2;
const NONE_ACCEPTABLE: u8 = 0xff;

type User = Option<(&'static str, &'static str)>;

pub(crate) fn start(state: &Arc<State>, user: User) -> SocketAddr {
    let state = state.clone();
    accepting(move |stream| {
        let state = state.clone();
        // Whoever breaks off ends the connection and nothing else.
        async move { drop(serve(stream, &state, user).await) }
    })
}

async fn serve(mut client: TcpStream, state: &State, user: User) -> io::Result<()> {
    let wanted = if user.is_some() { PASSWORD } else { NO_AUTH };
    let (version, count) = (client.read_u8().await?, client.read_u8().await?);
    let methods = bytes(&mut client, count).await?;
    if version != VERSION || !methods.contains(&wanted) {
        return client.write_all(&[VERSION, NONE_ACCEPTABLE]).await;
    }
    client.write_all(&[VERSION, wanted]).await?;
    if let Some((name, password)) = user {
        let _version = client.read_u8().await?;
        let length = client.read_u8().await?;
        let given = bytes(&mut client, length).await?;
        let length = client.read_u8().await?;
        let known = given == name.as_bytes() && bytes(&mut client, length).await? == password.as_bytes();
        client.write_all(&[1, u8::from(!known)]).await?;
        if !known {
            return Ok(());
        }
    }
    let [_, command, _, kind] = bytes(&mut client, 4).await?[..] else { return Ok(()) };
    let host = match kind {
        1 => Ipv4Addr::from(client.read_u32().await?).to_string(),
        4 => format!("[{}]", Ipv6Addr::from(client.read_u128().await?)),
        _ => {
            let length = client.read_u8().await?;
            String::from_utf8_lossy(&bytes(&mut client, length).await?).into_owned()
        }
    };
    let target = format!("{host}:{}", client.read_u16().await?);
    state.asked(format!("socks {target}"));
    let server = if command == 1 { TcpStream::connect(&target).await } else { Err(io::ErrorKind::Unsupported.into()) };
    // 5: connection refused.
    let reply = if server.is_ok() { 0 } else { 5 };
    client.write_all(&[VERSION, reply, 0, 1, 127, 0, 0, 1, 0, 0]).await?;
    copy_bidirectional(&mut client, &mut server?).await?;
    Ok(())
}

async fn bytes(client: &mut TcpStream, count: u8) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; count.into()];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}
