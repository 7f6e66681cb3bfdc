//! A request's body as libcurl reads it: where the client wrote it, or as it comes.

use std::collections::VecDeque;
use std::io;
use strait::ReceivedBlob;

/// Bytes that a stream's sender may have under way without asking.
pub(crate) const ROOM: u64 = 1 << 20;

/// A request's body.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    parts: VecDeque<Part>,
    stream: Option<Stream>,
    /// Of the part at `index`, so many have been read.
    index: usize,
    offset: u64,
    /// Read so far, in all.
    taken: u64,
    len: Option<u64>,
}

#[derive(Debug)]
enum Part {
    Bytes(Vec<u8>),
    Blob(ReceivedBlob),
}

#[derive(Debug, Default)]
struct Stream {
    over: bool,
    broken: bool,
    /// libcurl waits for more.
    waiting: bool,
    /// Received so far.
    came: u64,
    /// How much the client has been told it may send.
    room: u64,
}

/// What a read finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// So many bytes; none at the end.
    Bytes(usize),
    /// Nothing yet.
    Wait,
    /// Nothing ever.
    Broken,
}

impl Upload {
    /// Bytes that came in the request.
    pub(crate) fn inline(bytes: Vec<u8>) -> Self {
        let len = Some(bytes.len() as u64);
        Self { parts: VecDeque::from([Part::Bytes(bytes)]), len, ..Self::default() }
    }

    /// Bytes beside the request, in the client's memory.
    pub(crate) fn blobs(blobs: &[ReceivedBlob]) -> Self {
        let len = blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.len()));
        let parts = blobs.iter().cloned().map(Part::Blob).collect();
        Self { parts, len: Some(len), ..Self::default() }
    }

    /// Bytes that come later.
    pub(crate) fn stream(len: Option<u64>) -> Self {
        Self { stream: Some(Stream { room: ROOM, ..Stream::default() }), len, ..Self::default() }
    }

    pub(crate) fn len(&self) -> Option<u64> {
        self.len
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken
    }

    /// Whether it can be sent once more.
    pub(crate) fn can_rewind(&self) -> bool {
        self.stream.is_none() || self.taken == 0
    }

    /// More of a stream came. False if nothing more may, or more than there is room for: then it is broken.
    pub(crate) fn add(&mut self, blobs: &[ReceivedBlob], last: bool, broken: bool) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let bytes = blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.len()));
        let came = stream.came.saturating_add(bytes);
        let honest = !stream.over && came <= stream.room && blobs.len() <= 16;
        stream.over |= last || broken;
        stream.broken |= broken || !honest;
        if honest {
            stream.came = came;
            self.parts.extend(blobs.iter().filter(|blob| !blob.is_empty()).cloned().map(Part::Blob));
        }
        honest
    }

    /// Whether libcurl waits for what has come by now. Asked once.
    pub(crate) fn wakes(&mut self) -> bool {
        self.stream.as_mut().is_some_and(|stream| std::mem::take(&mut stream.waiting))
    }

    /// How much may be sent now, if that is worth telling.
    pub(crate) fn room(&mut self) -> Option<u64> {
        let stream = self.stream.as_mut().filter(|stream| !stream.over)?;
        let room = self.taken.saturating_add(ROOM);
        if room < stream.room.saturating_add(ROOM / 2) {
            return None;
        }
        stream.room = room;
        Some(room)
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.broken)
    }

    pub(crate) fn read(&mut self, into: &mut [u8]) -> Found {
        if self.is_broken() {
            return Found::Broken;
        }
        while let Some(part) = self.parts.get(self.index) {
            let count = match part {
                Part::Bytes(bytes) => {
                    let rest = usize::try_from(self.offset).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
                    let count = rest.len().min(into.len());
                    if let (Some(into), Some(rest)) = (into.get_mut(..count), rest.get(..count)) {
                        into.copy_from_slice(rest);
                    }
                    Ok(count)
                }
                Part::Blob(blob) => blob.read_at(into, self.offset),
            };
            match count {
                Err(_) => return Found::Broken,
                Ok(0) => self.next_part(),
                Ok(count) => {
                    self.offset += count as u64;
                    self.taken += count as u64;
                    return Found::Bytes(count);
                }
            }
        }
        match &mut self.stream {
            Some(stream) if !stream.over => {
                stream.waiting = true;
                Found::Wait
            }
            _ => Found::Bytes(0),
        }
    }

    fn next_part(&mut self) {
        self.offset = 0;
        if self.stream.is_some() {
            // It goes home.
            self.parts.pop_front();
        } else {
            self.index += 1;
        }
    }

    /// Goes to so many bytes from the beginning; false if that cannot be.
    pub(crate) fn seek(&mut self, to: io::SeekFrom) -> bool {
        let io::SeekFrom::Start(mut to) = to else { return false };
        if to == self.taken {
            return true;
        }
        if self.stream.is_some() {
            return false;
        }
        (self.index, self.offset, self.taken) = (0, 0, to);
        for part in &self.parts {
            let len = match part {
                Part::Bytes(bytes) => bytes.len() as u64,
                Part::Blob(blob) => blob.len(),
            };
            if to < len {
                self.offset = to;
                return true;
            }
            to -= len;
            self.index += 1;
        }
        to == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_again_after_a_rewind() {
        let mut upload = Upload::inline(b"abcdef".to_vec());
        let mut buffer = [0; 4];
        assert_eq!(upload.read(&mut buffer), Found::Bytes(4));
        assert!(upload.seek(io::SeekFrom::Start(2)));
        assert_eq!(upload.read(&mut buffer), Found::Bytes(4));
        assert_eq!((&buffer, upload.taken()), (b"cdef", 6));
        assert_eq!(upload.read(&mut buffer), Found::Bytes(0));
        assert!(!upload.seek(io::SeekFrom::Start(7)) && upload.seek(io::SeekFrom::Start(0)));
        assert_eq!(upload.read(&mut buffer), Found::Bytes(4));
    }

    #[test]
    fn streams_wait_end_and_break() {
        let mut upload = Upload::stream(None);
        let mut buffer = [0; 4];
        assert_eq!(upload.read(&mut buffer), Found::Wait);
        assert!(upload.add(&[], true, false) && upload.wakes() && !upload.wakes());
        assert_eq!(upload.read(&mut buffer), Found::Bytes(0));
        assert!(!upload.add(&[], false, false), "it had ended");
        let mut upload = Upload::stream(None);
        assert!(upload.add(&[], false, true));
        assert_eq!(upload.read(&mut buffer), Found::Broken);
        assert!(!Upload::inline(Vec::new()).add(&[], true, false), "no stream");
    }
}
