//! What a request's body is made of: bytes here, bytes in shared memory, or a reader; and forms, which are made of these.

use std::io::{self, Cursor, Read};
use strait::Blob;

/// The body of a request.
///
/// Bytes and [`Blob`]s can be sent again when a redirect, a question for credentials or a retry wants that; a reader
/// cannot.
#[derive(Default)]
#[non_exhaustive]
pub enum Source {
    /// None.
    #[default]
    None,
    /// Bytes in private memory, copied once into shared memory.
    Bytes(Vec<u8>),
    /// Bytes in the client's arena ([`Client::arena`](crate::Client::arena)), read there by libcurl itself, one after the
    /// other.
    Blobs(Vec<Blob>),
    /// A stream, read by whoever waits for the answer.
    Reader {
        /// Where it comes from.
        reader: Box<dyn Read + Send>,
        /// How many bytes there will be; chunked if not known.
        len: Option<u64>,
    },
}

impl Source {
    /// A stream of known or unknown length.
    #[must_use]
    pub fn reader(reader: impl Read + Send + 'static, len: Option<u64>) -> Self {
        Self::Reader { reader: Box::new(reader), len }
    }

    /// How many bytes it has, if that is known.
    #[must_use]
    pub fn len(&self) -> Option<u64> {
        match self {
            Self::None => Some(0),
            Self::Bytes(bytes) => Some(bytes.len() as u64),
            Self::Blobs(blobs) => Some(blobs.iter().map(|blob| blob.len() as u64).sum()),
            Self::Reader { len, .. } => *len,
        }
    }

    /// Whether it is known to have none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// As a reader, whatever it is made of.
    fn into_reader(self) -> Box<dyn Read + Send> {
        match self {
            Self::None => Box::new(io::empty()),
            Self::Bytes(bytes) => Box::new(Cursor::new(bytes)),
            Self::Blobs(blobs) => {
                Box::new(blobs.into_iter().fold(Box::new(io::empty()) as Box<dyn Read + Send>, |before, blob| {
                    Box::new(before.chain(Cursor::new(BlobBytes(blob))))
                }))
            }
            Self::Reader { reader, .. } => reader,
        }
    }
}

/// A blob as `Cursor` takes it.
struct BlobBytes(Blob);

impl AsRef<[u8]> for BlobBytes {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Source").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl From<Vec<u8>> for Source {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes)
    }
}

impl From<&[u8]> for Source {
    fn from(bytes: &[u8]) -> Self {
        Self::Bytes(bytes.to_vec())
    }
}

impl From<&str> for Source {
    fn from(text: &str) -> Self {
        Self::Bytes(text.into())
    }
}

impl From<String> for Source {
    fn from(text: String) -> Self {
        Self::Bytes(text.into())
    }
}

impl From<Blob> for Source {
    fn from(blob: Blob) -> Self {
        Self::Blobs(vec![blob])
    }
}

impl From<Vec<Blob>> for Source {
    fn from(blobs: Vec<Blob>) -> Self {
        Self::Blobs(blobs)
    }
}

/// A `multipart/form-data` body, as a browser's form sends it.
///
/// ```
/// use proc_curl::{Form, Part};
///
/// let form = Form::new()
///     .part(Part::new("user", "me"))
///     .part(Part::new("picture", vec![1, 2, 3]).file_name("me.png").content_type("image/png"));
/// ```
#[derive(Debug, Default)]
pub struct Form {
    parts: Vec<Part>,
}

/// A part of a [`Form`].
#[derive(Debug)]
pub struct Part {
    name: String,
    content: Source,
    file_name: Option<String>,
    content_type: Option<String>,
    headers: Vec<String>,
}

impl Part {
    /// A part of this name.
    #[must_use]
    pub fn new(name: impl Into<String>, content: impl Into<Source>) -> Self {
        let (name, content) = (name.into(), content.into());
        Self { name, content, file_name: None, content_type: None, headers: Vec::new() }
    }

    /// The name of the file it is.
    #[must_use]
    pub fn file_name(mut self, name: impl Into<String>) -> Self {
        self.file_name = Some(name.into());
        self
    }

    /// Its type.
    #[must_use]
    pub fn content_type(mut self, kind: impl Into<String>) -> Self {
        self.content_type = Some(kind.into());
        self
    }

    /// One more line of its header, as in `X-Kind: a`. Line breaks in it are dropped.
    #[must_use]
    pub fn header(mut self, line: impl Into<String>) -> Self {
        self.headers.push(line.into());
        self
    }

    fn head(&self, boundary: &str) -> String {
        let mut head = format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{}\"", escaped(&self.name));
        if let Some(name) = &self.file_name {
            head.push_str(&format!("; filename=\"{}\"", escaped(name)));
        }
        let kind = self.content_type.as_deref().or(self.file_name.as_ref().map(|_| "application/octet-stream"));
        if let Some(kind) = kind {
            head.push_str(&format!("\r\nContent-Type: {}", kind.replace(['\r', '\n'], "")));
        }
        for line in &self.headers {
            head.push_str("\r\n");
            head.push_str(&line.replace(['\r', '\n'], ""));
        }
        head.push_str("\r\n\r\n");
        head
    }
}

/// As browsers write names: what would end them is percent-encoded.
fn escaped(name: &str) -> String {
    name.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A")
}

impl Form {
    /// A form without parts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a part after those before.
    #[must_use]
    pub fn part(mut self, part: Part) -> Self {
        self.parts.push(part);
        self
    }

    /// The body, its parts divided by `boundary`. In memory if all of its parts are.
    pub(crate) fn into_source(self, boundary: &str) -> Source {
        let end = format!("--{boundary}--\r\n");
        let framed = |part: &Part| Some(part.head(boundary).len() as u64 + part.content.len()? + 2);
        let len = self.parts.iter().map(framed).sum::<Option<u64>>().map(|parts| parts + end.len() as u64);
        if self.parts.iter().all(|part| matches!(part.content, Source::Bytes(_) | Source::None)) {
            let mut bytes = Vec::new();
            for part in self.parts {
                bytes.extend_from_slice(part.head(boundary).as_bytes());
                if let Source::Bytes(content) = part.content {
                    bytes.extend_from_slice(&content);
                }
                bytes.extend_from_slice(b"\r\n");
            }
            bytes.extend_from_slice(end.as_bytes());
            return Source::Bytes(bytes);
        }
        let mut reader: Box<dyn Read + Send> = Box::new(io::empty());
        for part in self.parts {
            let head = Cursor::new(part.head(boundary));
            reader = Box::new(reader.chain(head).chain(part.content.into_reader()).chain(&b"\r\n"[..]));
        }
        Source::Reader { reader: Box::new(reader.chain(Cursor::new(end))), len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_are_framed_the_same_from_memory_and_from_readers() {
        let text = "--B\r\nContent-Disposition: form-data; name=\"a%22b\"\r\n\r\none\r\n--B\r\n\
            Content-Disposition: form-data; name=\"f\"; filename=\"x.bin\"\r\n\
            Content-Type: application/octet-stream\r\nX-Y: z\r\n\r\ntwo\r\n--B--\r\n";
        let form = |content: Source| {
            let file = Part::new("f", content).file_name("x.bin").header("X-Y: z\r\n");
            Form::new().part(Part::new("a\"b", "one")).part(file).into_source("B")
        };
        for (content, known) in [
            (Source::from("two"), true),
            (Source::reader(&b"two"[..], Some(3)), true),
            (Source::reader(&b"two"[..], None), false),
        ] {
            let source = form(content);
            assert_eq!(source.len(), known.then_some(text.len() as u64));
            let mut read = String::new();
            source.into_reader().read_to_string(&mut read).expect("text");
            assert_eq!(read, text);
        }
    }
}
