//! Which addresses a request may reach, and what was refused or happened on the way there. Asked by libcurl's callbacks.

use proc_curl::AddressPolicy;
use std::cell::Cell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Instant;

/// One request's guard. In cells, because libcurl asks in the midst of anything.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    policy: AddressPolicy,
    refused: Cell<Option<IpAddr>>,
    /// A connection that was there already leads where this request may not go.
    stale: Cell<bool>,
    os_error: Cell<i32>,
    /// Sockets opened.
    sockets: Cell<u32>,
    /// How many of them it had when it was last given a connection.
    known: Cell<u32>,
    /// Set when a new connection is there.
    news: Rc<Cell<bool>>,
    /// Since when the request may be sent.
    ready: Cell<Option<Instant>>,
}

impl Guard {
    pub(crate) fn new(policy: AddressPolicy, news: Rc<Cell<bool>>) -> Self {
        Self { policy, news, ..Self::default() }
    }

    /// Whether a socket of this family to this address may be opened. What is no IP address is refused where there is
    /// a policy: it could not be judged.
    pub(crate) fn allows(&self, _family: i32, address: Option<IpAddr>) -> bool {
        let refused = match address {
            Some(address) => self.policy.refuses(address),
            None => !self.policy.is_empty(),
        };
        if refused {
            self.refused.set(Some(address.unwrap_or(IpAddr::from([0; 4]))));
        }
        !refused
    }

    /// Whether a connection that is there may carry the request: others may have made it, under no policy or another.
    pub(crate) fn allows_connection(&self, address: Option<IpAddr>) -> bool {
        let allowed = self.policy.is_empty() || address.is_some_and(|address| !self.policy.refuses(address));
        if allowed {
            self.ready.set(Some(Instant::now()));
            if self.known.replace(self.sockets.get()) != self.sockets.get() {
                self.news.set(true);
            }
        } else {
            self.stale.set(true);
            self.refused.set(Some(address.unwrap_or(IpAddr::from([0; 4]))));
        }
        allowed
    }

    pub(crate) fn opened(&self) {
        self.sockets.set(self.sockets.get() + 1);
    }

    pub(crate) fn no_socket(&self, errno: i32) {
        self.os_error.set(errno);
    }

    /// The last address that was refused.
    pub(crate) fn refused(&self) -> Option<IpAddr> {
        self.refused.get()
    }

    /// Whether what was refused is a connection of others', so that one of its own may do.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale.get()
    }

    /// Why the last socket could not be made; 0 if it could.
    pub(crate) fn os_error(&self) -> i32 {
        self.os_error.get()
    }

    pub(crate) fn sockets(&self) -> u32 {
        self.sockets.get()
    }

    /// Since when the request may be sent, over the last connection it was given.
    pub(crate) fn ready(&self) -> Option<Instant> {
        self.ready.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_remembered() {
        let guard = Guard::new(AddressPolicy::public_only(), Rc::default());
        let (private, public) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([1, 1, 1, 1]));
        assert!(guard.allows(2, Some(public)) && guard.refused().is_none());
        assert!(!guard.allows(2, Some(private)));
        assert_eq!((guard.refused(), guard.is_stale()), (Some(private), false));
        assert!(!guard.allows_connection(Some(private)) && guard.is_stale() && guard.ready().is_none());
        assert!(!guard.allows_connection(None), "an address that is not seen cannot be judged");
        assert!(Guard::default().allows_connection(None));
    }

    #[test]
    fn only_new_connections_are_news() {
        let news = Rc::new(Cell::new(false));
        let guard = Guard::new(AddressPolicy::default(), news.clone());
        assert!(guard.allows_connection(None) && !news.get(), "one that was there");
        guard.opened();
        assert!(!news.get(), "not connected yet");
        assert!(guard.allows_connection(None) && news.take());
        assert!(guard.allows_connection(None) && !news.get(), "the same again");
    }
}
