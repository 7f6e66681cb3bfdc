//! Meeting without a name: a session over a socket that both sides were given, as a worker is by whoever starts it.

use super::app::{ClientApp, ServerApp};
use super::error::{AcceptError, ConnectError, LoginError};
use super::login::{CHANNELS_MAX, FRAME};
use super::session::Session;
use super::welcome::Admission;
use crate::message::Trust;
use crate::sys::seqpacket::{SeqPacket, poll_readable};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

impl ServerApp {
    /// Waits for a client to log in over a socket that somebody has connected: one end of a `SOCK_SEQPACKET`
    /// `socketpair`, say, whose other end a process was given that does [`ClientApp::connect_over`].
    ///
    /// Needs no name in a run directory, and asks no allow-list: whoever holds the other end was given it. How far it is
    /// believed is this call's to say. [`Session::peer`] is what the kernel says of whoever sent the client's first
    /// words, not of whoever made the socket. Such sessions and those of [`bind`](Self::bind) share one arena, if both
    /// come from one app or its clones.
    ///
    /// # Errors
    /// [`AcceptError`]; the socket is closed then.
    pub fn accept_over(&self, socket: OwnedFd, trust: Trust, timeout: Duration) -> Result<Session, AcceptError> {
        self.check()?;
        let socket = SeqPacket::connected(socket).map_err(io::Error::from)?;
        self.accept_client(socket, trust, timeout)
    }

    /// What `bind` checks for those that do not need it.
    fn check(&self) -> Result<(), AcceptError> {
        if self.options.opens.len() > CHANNELS_MAX {
            return Err(LoginError::TooManyChannels.into());
        }
        self.bad_name().map_or(Ok(()), |bad| Err(AcceptError::BadName(bad)))
    }

    fn accept_client(&self, socket: SeqPacket, trust: Trust, timeout: Duration) -> Result<Session, AcceptError> {
        let deadline = Instant::now().checked_add(timeout);
        socket.want_credentials(true).map_err(io::Error::from)?;
        // One more byte than a frame, so that a longer one shows.
        let mut frame = [0; FRAME + 1];
        let packet = loop {
            if let Some(packet) = socket.recv(&mut frame).map_err(io::Error::from)? {
                break packet;
            }
            if !poll_readable(&[socket.as_fd()], deadline)?.contains(&true) {
                return Err(AcceptError::LoginTimedOut);
            }
        };
        socket.want_credentials(false).map_err(io::Error::from)?;
        self.log_in(socket, Admission::Given(trust), &frame, packet, || None)
    }

    /// Starts a worker and waits for it to log in: `command`'s standard input becomes a socket to this process, over
    /// which the worker does [`ClientApp::connect_parent`]. A worker that does not log in is killed.
    ///
    /// # Errors
    /// [`AcceptError`]; nothing is left of the worker then.
    ///
    /// ```no_run
    /// # capnp::generated_code!(mod hello_capnp);
    /// # use hello_capnp::hello;
    /// use std::process::Command;
    /// use std::time::Duration;
    /// use strait::{ServerApp, Trust};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let app = ServerApp::new("parent").channel::<hello::Owned>("jobs");
    /// let (mut worker, session) = app.spawn(&mut Command::new("worker"), Trust::snapshot(), Duration::from_secs(5))?;
    /// let jobs = session.accept_channel::<hello::Owned>()?;
    /// // ...
    /// drop((jobs, session));
    /// worker.wait()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn spawn(
        &self,
        command: &mut Command,
        trust: Trust,
        timeout: Duration,
    ) -> Result<(Child, Session), AcceptError> {
        self.check()?;
        let (ours, theirs) = SeqPacket::pair().map_err(io::Error::from)?;
        let spawned = command.stdin(Stdio::from(theirs)).spawn();
        // The command keeps its copy of the worker's end, which would hide the worker's death.
        command.stdin(Stdio::null());
        let mut child = spawned?;
        match self.accept_client(ours, trust, timeout) {
            Ok(session) => Ok((child, session)),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }
}

impl ClientApp {
    /// As [`connect`](Self::connect), over a socket that somebody has connected to a process that does
    /// [`ServerApp::accept_over`]. Of `server` the name counts, and the user that the other end must run as: the kernel
    /// says who sent the answer.
    ///
    /// # Errors
    /// [`ConnectError`]; the socket is closed then.
    pub fn connect_over(&self, socket: OwnedFd, server: &ServerApp) -> Result<Session, ConnectError> {
        let deadline = Instant::now().checked_add(self.timeout);
        self.check_names(server)?;
        let socket = SeqPacket::connected(socket).map_err(io::Error::from)?;
        self.log_in(self.get_ready(server)?, socket, server, None, deadline)
    }

    /// In a worker: logs in to the process that started it by [`ServerApp::spawn`]. Standard input is that socket, and
    /// `/dev/null` afterwards.
    ///
    /// # Errors
    /// [`ConnectError`]; of the kind `Io` if standard input is no such socket.
    pub fn connect_parent(&self, server: &ServerApp) -> Result<Session, ConnectError> {
        self.check_names(server)?;
        let socket = io::stdin().as_fd().try_clone_to_owned()?;
        let deadline = Instant::now().checked_add(self.timeout);
        let socket = SeqPacket::connected(socket).map_err(io::Error::from)?;
        // The worker's own children inherit standard input: with this socket they would hide its death.
        nix::unistd::dup2_stdin(File::open("/dev/null")?).map_err(io::Error::from)?;
        self.log_in(self.get_ready(server)?, socket, server, None, deadline)
    }
}
