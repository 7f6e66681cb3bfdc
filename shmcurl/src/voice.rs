//! What is said beside the bodies: errors, traces and the progress meter, on standard error or where --stderr says.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One stream that several threads speak on, a line at a time.
pub(crate) struct Voice {
    state: Mutex<State>,
}

struct State {
    out: Box<dyn Write + Send>,
    /// The meter has left the cursor in its line.
    in_line: bool,
}

impl Voice {
    pub(crate) fn stderr() -> Self {
        Self::on(Box::new(io::stderr()))
    }

    /// # Errors
    /// The file cannot be made.
    pub(crate) fn file(name: &str) -> io::Result<Self> {
        Ok(match name {
            "-" => Self::on(Box::new(io::stdout())),
            _ => Self::on(Box::new(File::create(name)?)),
        })
    }

    fn on(out: Box<dyn Write + Send>) -> Self {
        Self { state: Mutex::new(State { out, in_line: false }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lines as they are, below the meter's if that has one.
    pub(crate) fn say(&self, text: &[u8]) {
        let mut state = self.state();
        state.finish_line();
        state.put(text);
    }

    /// One line.
    pub(crate) fn line(&self, text: &str) {
        self.say(format!("{text}\n").as_bytes());
    }

    /// Overwrites the meter's line.
    pub(crate) fn meter(&self, text: &str) {
        let mut state = self.state();
        state.put(format!("\r{text}").as_bytes());
        state.in_line = true;
    }

    /// The meter's line stays as it is.
    pub(crate) fn finish_line(&self) {
        self.state().finish_line();
    }
}

impl State {
    fn finish_line(&mut self) {
        if std::mem::take(&mut self.in_line) {
            self.put(b"\n");
        }
    }

    fn put(&mut self, text: &[u8]) {
        // There is nowhere to say that nothing can be said.
        let _ = self.out.write_all(text).and_then(|()| self.out.flush());
    }
}
