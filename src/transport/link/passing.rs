//! Descriptors of messages: ahead of their messages through the socket, and kept until those are received. The rules are
//! in [`passage`](crate::transport::passage).

use super::closing::Phase;
use super::outgoing::Outbound;
use super::{Core, leaves_nothing};
use crate::shm::account::Counted;
use crate::sys::fork::NoForkFd;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::passed::{Fds, Passed};
use crate::transport::control::{Control, Parcel};
use crate::transport::passage::{Account, Window};
use crate::transport::port::Port;
use crate::wait::Deadline;
use parking_lot::{Condvar, Mutex};

/// What a session keeps of descriptors under way, apart from those themselves.
#[derive(Default)]
pub(super) struct Passing {
    window: Mutex<Window>,
    /// The window has more room, or something is over.
    moved: Condvar,
    account: Mutex<Account>,
    /// Held by whoever tells the peer how many were taken.
    telling: Mutex<()>,
}

/// A descriptor of a message that was not received yet. Closed before it counts no more.
pub(super) struct Arrived {
    fd: NoForkFd,
    /// For the peer's user, if that has a quota.
    _counted: Option<Counted>,
}

impl Core {
    // To the peer.

    /// Sends a message's descriptors, if so many more may be under way. The message has to follow.
    pub(in crate::transport) fn pass(&self, number: u32, message: u64, fds: &Fds) -> bool {
        if !self.passing.window.lock().pass(fds.len()) {
            return false;
        }
        // At most 64, or the message would not be frozen.
        let parcel = Parcel { number, message, count: fds.len() as u32, lost: false };
        let outgoing = self.outgoing.lock();
        if !outgoing.said_goodbye {
            self.send_frame(outgoing, Outbound::with(&Control::Descriptors(parcel), fds.clone()));
        }
        true
    }

    /// Waits until so many more may be under way, or the channel is over; false once the deadline has passed.
    pub(in crate::transport) fn wait_for_window(&self, port: &Port, count: usize, deadline: &mut Deadline) -> bool {
        let mut window = self.passing.window.lock();
        while !window.has_room(count) && port.is_open() {
            match deadline.at() {
                None => self.passing.moved.wait(&mut window),
                Some(at) if self.passing.moved.wait_until(&mut window, at).timed_out() => {
                    return window.has_room(count) || !port.is_open();
                }
                Some(_) => {}
            }
        }
        true
    }

    /// Whoever waits for the window looks again.
    pub(super) fn wake_passers(&self) {
        // Held for a moment, so that nobody is between looking and waiting.
        drop(self.passing.window.lock());
        self.passing.moved.notify_all();
    }

    pub(super) fn taken_there(&self, total: u64) -> Result<(), PeerMisbehaved> {
        let taken = self.passing.window.lock().taken(total);
        self.passing.moved.notify_all();
        taken
    }

    // From the peer.

    /// Keeps what came in a frame until its message is received. `truncated`: there was no room for all of them.
    pub(super) fn passed_here(
        &self,
        parcel: Parcel,
        fds: Vec<NoForkFd>,
        truncated: bool,
    ) -> Result<(), PeerMisbehaved> {
        let Parcel { number, message, count, lost } = parcel;
        let count = count as usize;
        let passed = match (lost || truncated, fds.len()) {
            (true, _) => Passed::Lost(count),
            (false, found) if found == count => self.admit(fds),
            (false, found) => return Err(PeerMisbehaved::DescriptorCount { found, announced: count }),
        };
        if let Passed::Lost(sent) = passed {
            tracing::warn!(peer = self.peer_name(), number, message, sent, "descriptors of a message lost");
        }
        let mut channels = self.channels.lock();
        let entry = channels.get_mut(&number).filter(|entry| entry.closing.there() == Phase::Open);
        let entry = entry.ok_or(PeerMisbehaved::ChannelNumber(number))?;
        if entry.closing.here() > Phase::Open || self.ended().is_some_and(leaves_nothing) {
            // Nobody will receive the message.
            drop(channels);
            self.took(count);
            return Ok(());
        }
        self.passing.account.lock().arrived(count)?;
        let unwanted = entry.arrivals.arrived(message, passed)?;
        let port = entry.port.upgrade();
        drop(channels);
        if unwanted.is_some() {
            drop(unwanted);
            self.took(count);
            return Ok(());
        }
        if let Some(port) = port {
            port.passed_here();
        }
        Ok(())
    }

    /// All descriptors of a message, or none if the peer's user would have more here than it may.
    fn admit(&self, fds: Vec<NoForkFd>) -> Passed<Arrived> {
        let sent = fds.len();
        let account = self.parts.account.as_ref().map(|(account, _)| account);
        let admitted = fds.into_iter().map(|fd| match account {
            None => Some(Arrived { fd, _counted: None }),
            Some(account) => account.descriptor().map(|counted| Arrived { fd, _counted: Some(counted) }),
        });
        // Those that are admitted already go again with the one that is not.
        admitted.collect::<Option<_>>().map_or(Passed::Lost(sent), Passed::Here)
    }

    /// Whether the descriptors of a message have come.
    #[cold]
    pub(in crate::transport) fn are_here(
        &self,
        number: u32,
        message: u64,
        count: usize,
    ) -> Result<bool, PeerMisbehaved> {
        self.channels.lock().get(&number).map_or(Ok(true), |entry| entry.arrivals.are_here(message, count))
    }

    /// The descriptors of a message are waited for no longer.
    #[cold]
    pub(in crate::transport) fn give_up_passed(&self, number: u32, message: u64) {
        tracing::warn!(peer = self.peer_name(), number, message, "descriptors of a message have not come");
        if let Some(entry) = self.channels.lock().get_mut(&number) {
            entry.arrivals.give_up(message);
        }
    }

    /// Takes the descriptors of a message that says it has `count`.
    #[cold]
    pub(in crate::transport) fn take_passed(&self, number: u32, message: u64, count: usize) -> Passed {
        let passed = self.channels.lock().get_mut(&number).and_then(|entry| entry.arrivals.take(message));
        if let Some(passed) = &passed {
            self.took(passed.sent());
        }
        match passed {
            Some(Passed::Here(arrived)) => Passed::Here(arrived.into_iter().map(|arrived| arrived.fd).collect()),
            Some(Passed::Lost(sent)) => Passed::Lost(sent),
            // The peer died before it had sent them.
            None => Passed::Lost(count),
        }
    }

    /// Nobody will receive anything any more.
    pub(super) fn discard_arrivals(&self) {
        let mut channels = self.channels.lock();
        let unwanted: Vec<_> = channels.values_mut().map(|entry| entry.arrivals.take_all()).collect();
        // Closing takes its time: not under the lock.
        drop(channels);
        drop(unwanted);
    }

    /// So many are not under way any more.
    pub(super) fn took(&self, count: usize) {
        if count == 0 {
            return;
        }
        if !self.passing.account.lock().took(count) {
            return;
        }
        let _turn = self.passing.telling.lock();
        let total = self.passing.account.lock().tell();
        if let Some(total) = total {
            self.send(&Control::DescriptorsTaken { total });
        }
    }
}
