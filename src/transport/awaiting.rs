//! A message's descriptors between the receipt of its slot and its opening. Knows whose they are, not where they are kept.

use super::descriptor::Envelope;
use super::port::Port;
use crate::sys::passed::Passed;
use std::sync::Arc;

/// Descriptors that wait for their message to be opened, and are closed if it never is. They count as under way.
pub(crate) struct Awaiting {
    port: Arc<Port>,
    envelope: Envelope,
}

impl Awaiting {
    #[cold]
    pub(crate) fn new(port: Arc<Port>, envelope: Envelope) -> Self {
        Self { port, envelope }
    }

    /// The message is opened.
    pub(crate) fn take(&self) -> Passed {
        self.port.take_passed(self.envelope)
    }
}

impl Drop for Awaiting {
    fn drop(&mut self) {
        // None any more if the message was opened.
        drop(self.port.take_passed(self.envelope));
    }
}
