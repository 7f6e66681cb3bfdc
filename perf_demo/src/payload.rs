//! What the files hold, and what a client must find: sizes, bytes, chunks, hashes. Knows no process.

use crate::cache_capnp::{cache, get_cache_rsp};
use crate::cli::Usage;
use anyhow::Context;
use parse_size::parse_size;
use perf_demo::figures::show;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::xxh3_64;

/// The most bytes in one `FilePart`.
pub(crate) const CHUNK: usize = 1 << 20;

/// A payload's size in bytes, at least 1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Size(pub(crate) usize);

impl Size {
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let bytes = parse_size(text).map_err(|error| format!("{error} (such as 64B, 100KiB or 1GiB)"))?;
        match usize::try_from(bytes) {
            Ok(0) => Err("an empty file has no first byte".into()),
            Ok(bytes) if bytes <= MOST => Ok(Self(bytes)),
            _ => Err(format!("more than {}", show(MOST))),
        }
    }
}

/// What the server's arena has address space for, twice.
const MOST: usize = 24 << 30;

/// Where a file's bytes come from. Each stands for two files: itself and its complement.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    /// Made up from their positions.
    Generated { bytes: usize },
    /// A real file.
    File { path: PathBuf, bytes: usize },
}

impl Source {
    /// A real file, if it can be measured.
    pub(crate) fn file(path: &Path) -> anyhow::Result<Self> {
        let usage = |why: String| Usage(format!("cannot read {}: {why}", path.display()));
        let path = path.canonicalize().map_err(|error| usage(error.to_string()))?;
        let found = File::open(&path).and_then(|file| file.metadata()).map_err(|error| usage(error.to_string()))?;
        let bytes = usize::try_from(found.len()).unwrap_or(usize::MAX);
        if !found.is_file() {
            return Err(usage("not a regular file".into()).into());
        }
        if bytes == 0 || bytes > MOST {
            return Err(usage(format!("{}; 1 B to {} can be measured", show(bytes), show(MOST))).into());
        }
        Ok(Self::File { path, bytes })
    }

    pub(crate) fn bytes(&self) -> usize {
        match *self {
            Self::Generated { bytes } | Self::File { bytes, .. } => bytes,
        }
    }

    /// What the client asks for.
    pub(crate) fn name(&self, twin: Twin) -> String {
        let own = match self {
            Self::Generated { bytes } => format!("generated-{bytes}"),
            Self::File { path, .. } => path.display().to_string(),
        };
        match twin {
            Twin::Itself => own,
            Twin::Complement => format!("{own}.complement"),
        }
    }

    /// Opens it for reading its bytes.
    pub(crate) fn open(&self) -> anyhow::Result<Bytes> {
        Ok(match self {
            Self::Generated { bytes } => Bytes { len: *bytes, file: None },
            Self::File { path, bytes } => {
                let file = File::open(path).map_err(|error| Usage(format!("cannot read {}: {error}", path.display())));
                Bytes { len: *bytes, file: Some(file?) }
            }
        })
    }
}

/// Which of the two files of a [`Source`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Twin {
    Itself,
    Complement,
}

impl Twin {
    pub(crate) const BOTH: [Self; 2] = [Self::Itself, Self::Complement];

    pub(crate) fn apply(self, bytes: &mut [u8]) {
        if self == Self::Complement {
            bytes.iter_mut().for_each(|byte| *byte = !*byte);
        }
    }
}

/// A source's bytes, readable in pieces.
#[derive(Debug)]
pub(crate) struct Bytes {
    len: usize,
    file: Option<File>,
}

impl Bytes {
    /// Fills `out` with what lies at `offset`, a multiple of 8.
    pub(crate) fn fill(&self, twin: Twin, offset: usize, out: &mut [u8]) -> anyhow::Result<()> {
        match &self.file {
            Some(file) => file.read_exact_at(out, offset as u64).context("a file changed while it was read")?,
            None => generate(self.len as u64, offset as u64 / 8, out),
        }
        twin.apply(out);
        Ok(())
    }

    /// Where its chunks begin and how long they are.
    pub(crate) fn chunks(&self) -> impl ExactSizeIterator<Item = (usize, usize)> + use<> {
        let len = self.len;
        (0..len.div_ceil(CHUNK)).map(move |index| (index * CHUNK, CHUNK.min(len - index * CHUNK)))
    }
}

/// Words from their positions and the file's size: none repeats within a file, and two files share none.
fn generate(seed: u64, first: u64, out: &mut [u8]) {
    let word = |at: u64| {
        let mixed = (at ^ seed.rotate_left(32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed ^ (mixed >> 29)).to_le_bytes()
    };
    let (words, rest) = out.as_chunks_mut::<8>();
    let mut at = first;
    for slot in words {
        *slot = word(at);
        at += 1;
    }
    rest.copy_from_slice(&word(at)[..rest.len()]);
}

/// What a client must find in a file, learnt from the source, not from the server.
#[derive(Debug)]
pub(crate) struct Expected {
    pub(crate) name: String,
    first: u8,
    last: u8,
    /// Size and hash of each chunk.
    chunks: Vec<(usize, u64)>,
}

impl Expected {
    pub(crate) fn of(source: &Source, twin: Twin) -> anyhow::Result<Self> {
        let bytes = source.open()?;
        let mut buffer = vec![0; CHUNK.min(source.bytes())];
        let mut expected = Self { name: source.name(twin), first: 0, last: 0, chunks: Vec::new() };
        for (offset, len) in bytes.chunks() {
            let chunk = &mut buffer[..len];
            bytes.fill(twin, offset, chunk)?;
            if offset == 0 {
                expected.first = chunk[0];
            }
            expected.last = chunk[len - 1];
            expected.chunks.push((len, xxh3_64(chunk)));
        }
        Ok(expected)
    }

    /// Reads the first and the last byte and compares them: the end of every timed span.
    #[inline]
    pub(crate) fn ends_match(&self, answer: cache::Reader<'_>) -> anyhow::Result<bool> {
        let parts = parts(answer)?;
        let Some(last) = parts.len().checked_sub(1) else { return Ok(false) };
        let first = parts.get(0).get_data()?;
        // Read once where it is one chunk: a snapshot bounds how often its bytes are gone through.
        let last = if last == 0 { first } else { parts.get(last).get_data()? };
        Ok(self.are_ends(first.first(), last.last()))
    }

    #[inline]
    pub(crate) fn are_ends(&self, first: Option<&u8>, last: Option<&u8>) -> bool {
        first == Some(&self.first) && last == Some(&self.last)
    }

    /// Reads every byte and compares sizes and hashes, both as announced and as found. Never timed.
    pub(crate) fn all_matches(&self, answer: cache::Reader<'_>) -> anyhow::Result<bool> {
        let parts = parts(answer)?;
        if parts.len() as usize != self.chunks.len() {
            return Ok(false);
        }
        for (part, &(size, hash)) in parts.iter().zip(&self.chunks) {
            let data = part.get_data()?;
            let announced = part.get_size() == size as u64 && part.get_hash() == hash;
            if !announced || data.len() != size || xxh3_64(data) != hash {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

type Parts<'a> = capnp::struct_list::Reader<'a, crate::cache_capnp::file_part::Owned>;

#[inline]
pub(crate) fn parts(answer: cache::Reader<'_>) -> anyhow::Result<Parts<'_>> {
    match answer.which()? {
        cache::GetCacheRsp(found) => {
            let found: get_cache_rsp::Reader<'_> = found?;
            Ok(found.get_file_parts()?)
        }
        cache::NotFound(name) => anyhow::bail!("the server has no file {}", name?.to_str()?),
        cache::GetCacheReq(_) => anyhow::bail!("the server answered with a request"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_or_say_why() {
        assert_eq!(Size::parse("64B"), Ok(Size(64)));
        assert_eq!(Size::parse("100KiB"), Ok(Size(102_400)));
        assert_eq!(Size::parse("1GiB"), Ok(Size(1 << 30)));
        for bad in ["", "0", "-1", "1XiB", "lots", "99999999TiB", "25GiB"] {
            assert!(Size::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn twins_differ_at_both_ends_whatever_the_size() -> anyhow::Result<()> {
        for bytes in [1, 7, 8, 64, CHUNK - 1, CHUNK, CHUNK + 1] {
            let [one, other] = Twin::BOTH.map(|twin| Expected::of(&Source::Generated { bytes }, twin));
            let (one, other) = (one?, other?);
            assert_ne!((one.first, one.last), (other.first, other.last));
            assert!(one.first != other.first && one.last != other.last);
            assert_ne!(one.name, other.name);
        }
        Ok(())
    }
}
