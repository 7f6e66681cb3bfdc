//! What ends a transfer, or the program, early: curl's number and words for it.

use std::fmt::Display;

/// A failure as the user sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// libcurl's number, which is the exit code.
    pub(crate) code: u32,
    pub(crate) text: String,
}

pub(crate) const FAILED_INIT: u32 = 2;
pub(crate) const URL_MALFORMAT: u32 = 3;
pub(crate) const HTTP_RETURNED_ERROR: u32 = 22;
pub(crate) const WRITE_ERROR: u32 = 23;
pub(crate) const READ_ERROR: u32 = 26;
pub(crate) const SSL_CERTPROBLEM: u32 = 58;
pub(crate) const SSL_CACERT_BADFILE: u32 = 77;

impl Fault {
    pub(crate) fn new(code: u32, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// Something that could not be done to a file.
    pub(crate) fn file(code: u32, name: &str, why: impl Display) -> Self {
        Self::new(code, format!("{name}: {why}"))
    }
}

impl From<&proc_curl::Error> for Fault {
    fn from(error: &proc_curl::Error) -> Self {
        let text = match error.failure() {
            // What curl says; where it failed is for -v.
            Some(failure) if !failure.text.is_empty() => failure.text.clone(),
            Some(failure) => failure.name.clone(),
            None => error.to_string(),
        };
        Self { code: error.code(), text }
    }
}
