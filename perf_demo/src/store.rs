//! The server's cache: two files at a time, as finished messages, or as bytes to build an answer from each time.

use crate::cache_capnp::cache;
use crate::payload::{CHUNK, Source, Twin};
use anyhow::{Context, bail};
use perf_demo::figures::show;
use std::borrow::Cow;
use strait::{Arena, Builder, Message};
use xxhash_rust::xxh3::xxh3_64;

/// See the module's own words.
pub(crate) struct Store {
    arena: Arena,
    /// The files it was given, with their bytes as read at the start.
    given: Vec<(Source, Vec<u8>)>,
    held: Vec<Held>,
}

struct Held {
    name: String,
    how: How,
}

enum How {
    Built(Message<cache::Owned>),
    /// With the hash of each chunk, which a cache would keep as well.
    Fresh(Vec<u8>, Vec<u64>),
}

impl Store {
    /// Reads the files it is given.
    pub(crate) fn new(arena: Arena, sources: Vec<Source>) -> anyhow::Result<Self> {
        let read = |source: Source| Ok((source.clone(), read_all(&source, Twin::Itself)?));
        let given = sources.into_iter().map(read).collect::<anyhow::Result<_>>()?;
        Ok(Self { arena, given, held: Vec::new() })
    }

    pub(crate) fn given(&self) -> Vec<Source> {
        self.given.iter().map(|(source, _)| source.clone()).collect()
    }

    /// Lets everything go.
    pub(crate) fn clear(&mut self) {
        self.held.clear();
        self.arena.purge();
    }

    /// Holds the two files of a source instead of what it held.
    pub(crate) fn hold(&mut self, source: &Source, fresh: bool) -> anyhow::Result<()> {
        self.clear();
        has_memory_for(source.bytes().saturating_mul(3))?;
        let given = self.given.iter().find(|(given, _)| given == source).map(|(_, bytes)| bytes);
        if given.is_none() && matches!(source, Source::File { .. }) {
            bail!("it was given no file {}", source.name(Twin::Itself));
        }
        for twin in Twin::BOTH {
            let name = source.name(twin);
            let how = if fresh {
                let bytes = read_all(source, twin)?;
                let hashes = bytes.chunks(CHUNK).map(xxh3_64).collect();
                How::Fresh(bytes, hashes)
            } else {
                How::Built(self.build(source, twin, given.map(Vec::as_slice))?)
            };
            self.held.push(Held { name, how });
        }
        Ok(())
    }

    /// The answer for a name.
    #[inline]
    pub(crate) fn answer(&self, name: &str) -> anyhow::Result<Cow<'_, Message<cache::Owned>>> {
        match self.held.iter().find(|held| held.name == name) {
            Some(Held { how: How::Built(message), .. }) => Ok(Cow::Borrowed(message)),
            Some(Held { how: How::Fresh(bytes, hashes), .. }) => self.build_fresh(bytes, hashes).map(Cow::Owned),
            None => {
                let mut message = self.builder(name.len());
                message.init_root().set_not_found(name);
                Ok(Cow::Owned(message.freeze()?))
            }
        }
    }

    /// The answer for a twin, without being asked by name: for `bare`.
    pub(crate) fn answer_for(&self, twin: Twin) -> anyhow::Result<Cow<'_, Message<cache::Owned>>> {
        self.answer(self.name(twin)?)
    }

    pub(crate) fn name(&self, twin: Twin) -> anyhow::Result<&str> {
        let held = self.held.get(twin as usize).context("rounds were ordered before a file")?;
        Ok(&held.name)
    }

    fn build(&self, source: &Source, twin: Twin, given: Option<&[u8]>) -> anyhow::Result<Message<cache::Owned>> {
        let bytes = source.open()?;
        let mut message = self.builder(source.bytes());
        let chunks = bytes.chunks();
        let mut parts = message.init_root().init_get_cache_rsp().init_file_parts(u32::try_from(chunks.len())?);
        for (index, (offset, len)) in (0..).zip(chunks) {
            let mut part = parts.reborrow().get(index);
            let data = part.reborrow().init_data(strait::data_len(len)?);
            match given {
                Some(given) => {
                    data.copy_from_slice(&given[offset..offset + len]);
                    twin.apply(data);
                }
                None => bytes.fill(twin, offset, data)?,
            }
            let hash = xxh3_64(data);
            part.set_size(len as u64);
            part.set_hash(hash);
        }
        Ok(message.freeze()?)
    }

    fn build_fresh(&self, bytes: &[u8], hashes: &[u64]) -> anyhow::Result<Message<cache::Owned>> {
        let mut message = self.builder(bytes.len());
        let mut parts = message.init_root().init_get_cache_rsp().init_file_parts(hashes.len() as u32);
        for (index, (chunk, &hash)) in (0..).zip(bytes.chunks(CHUNK).zip(hashes)) {
            let mut part = parts.reborrow().get(index);
            part.set_data(chunk);
            part.set_size(chunk.len() as u64);
            part.set_hash(hash);
        }
        Ok(message.freeze()?)
    }

    fn builder(&self, data: usize) -> Builder<cache::Owned> {
        Builder::with_capacity(&self.arena, first_segment(data + 128 + data.div_ceil(CHUNK) * 40))
    }
}

/// How large to make the first segment of a message of so many bytes: all of it, unless that would be rounded up to
/// more memory than a second segment wastes.
fn first_segment(all: usize) -> usize {
    let step = (all.next_power_of_two() / 8).max(8);
    let (below, above) = (all / step * step, all.next_multiple_of(step));
    if above - all <= (below + NEXT_SEGMENT).saturating_sub(all) { all } else { below }
}

/// What a builder takes next after a large segment.
const NEXT_SEGMENT: usize = 64 << 20;

fn read_all(source: &Source, twin: Twin) -> anyhow::Result<Vec<u8>> {
    let bytes = source.open()?;
    let mut all = vec![0; source.bytes()];
    bytes.fill(twin, 0, &mut all)?;
    Ok(all)
}

/// Asks before the kernel has to kill somebody.
fn has_memory_for(bytes: usize) -> anyhow::Result<()> {
    let info = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = info.lines().find_map(|line| line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB"));
    match available.and_then(|text| text.parse::<usize>().ok()).map(|kib| kib << 10) {
        Some(available) if available < bytes => {
            bail!("needs {} of memory, and {} are available", show(bytes), show(available))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gib_is_not_rounded_up_by_a_quarter() {
        assert_eq!(first_segment(200), 200);
        assert_eq!(first_segment((100 << 20) + 5000), (100 << 20) + 5000);
        assert_eq!(first_segment((1 << 30) + 50_000), 1 << 30);
    }
}
