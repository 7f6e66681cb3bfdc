//! A message as its receiver has it: in the sender's memory, or in a private copy of it.

use super::places::{listed, places};
use super::schema::Schema;
use super::sealed::Sealed;
use super::trust::Trust;
use crate::shm::blob::ReceivedBlob;
use crate::shm::inside::Inside;
use crate::shm::sealed::{SealedAt, SealedProblem};
use crate::shm::view::{Borrowed, Place};
use crate::sys::fork::{self, NoForkFd};
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::passed::{DescriptorsLost, Fds, Passed};
use capnp::message::{Reader, ReaderOptions, ReaderSegments};
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::marker::PhantomData;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// A message from a peer.
///
/// Read in place, the bytes are on loan: dropping this, in any thread, sends them home with whatever goes that way
/// next. Until then they stay, even if the channel or the session is closed meanwhile, or the sender is killed.
///
/// A copy ([`Trust::snapshot`]) may be walked 16 times in all, and 64 MiB at least; reading beyond that fails, because
/// a message whose pointers repeat themselves could keep its reader busy for ever.
///
/// ```no_run
/// # capnp::generated_code!(mod hello_capnp);
/// # use hello_capnp::hello;
/// use strait::Received;
///
/// fn read(message: &Received<hello::Owned>) -> Result<usize, Box<dyn std::error::Error>> {
///     Ok(match message.get()?.which()? {
///         hello::Greet(name) => name?.len(),
///         hello::Answer(text) => text?.len(),
///     })
/// }
/// # fn main() {}
/// ```
pub struct Received<T: Schema> {
    reader: Reader<Segments>,
    /// Rare, so elsewhere.
    attached: Option<Box<Attached>>,
    fork: u32,
    marks: Marks,
    root: PhantomData<fn() -> T>,
}

/// What there is to open.
pub(crate) struct Opening {
    pub(crate) borrowed: Borrowed,
    pub(crate) segments: u16,
    pub(crate) marks: Marks,
}

/// What a slot says about a message, and what its channel knows. Small, because it is moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) id: u64,
    /// 0 if it answers nothing.
    pub(crate) in_reply_to: u64,
    /// This process's own number for the channel.
    pub(crate) channel: u32,
    /// In the application's own numbering.
    pub(crate) kind: u16,
    /// Its sender waits for an answer.
    pub(crate) asks: bool,
    /// More answers follow.
    pub(crate) more: bool,
}

/// Why a message cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OpenProblem {
    Peer(PeerMisbehaved),
    /// No private memory for a copy of so many bytes, or no room to map them.
    NoMemory(usize),
    /// The memory it lies in did not arrive.
    Lost(DescriptorsLost),
}

impl From<SealedProblem> for OpenProblem {
    fn from(problem: SealedProblem) -> Self {
        match problem {
            SealedProblem::Bad(broken) => Self::Peer(broken),
            SealedProblem::NoMemory(bytes) => Self::NoMemory(bytes),
        }
    }
}

impl From<PeerMisbehaved> for OpenProblem {
    fn from(broken: PeerMisbehaved) -> Self {
        Self::Peer(broken)
    }
}

/// Where the buffer for a channel's copies waits between messages: memory in use is warm.
#[derive(Debug, Default)]
pub(crate) struct Shelf(Mutex<Vec<u64>>);

impl Shelf {
    fn take(&self, words: usize) -> Result<Vec<u64>, OpenProblem> {
        let mut buffer = std::mem::take(&mut *self.0.lock());
        buffer.clear();
        match buffer.try_reserve_exact(words) {
            Ok(()) => Ok(buffer),
            Err(_) => Err(OpenProblem::NoMemory(words.saturating_mul(8))),
        }
    }

    fn keep(&self, buffer: Vec<u64>) {
        let mut kept = self.0.lock();
        if buffer.capacity() > kept.capacity() {
            *kept = buffer;
        }
    }
}

impl<T: Schema> Received<T> {
    /// Checks where a message's segments lie, and copies them if the lender is not believed.
    #[inline(always)]
    pub(crate) fn open(opening: Opening, trust: Trust, shelf: &Arc<Shelf>) -> Result<Self, OpenProblem> {
        let Opening { borrowed, segments, marks } = opening;
        let (segments, options) = match (segments, trust.copy_limit()) {
            (1, None) => (Segments::InPlace(borrowed), BELIEVED),
            (count, None) => (Segments::several(borrowed, count)?, BELIEVED),
            (count, Some(limit)) => Segments::copied(borrowed, count, limit, shelf)?,
        };
        let reader = Reader::new(segments, options);
        Ok(Self { reader, attached: None, fork: fork::generation(), marks, root: PhantomData })
    }

    /// A message of one segment, with nothing else, of a lender that is believed.
    #[inline(always)]
    pub(crate) fn in_place(borrowed: Borrowed, marks: Marks) -> Self {
        let reader = Reader::new(Segments::InPlace(borrowed), BELIEVED);
        Self { reader, attached: None, fork: fork::generation(), marks, root: PhantomData }
    }

    /// What it was made of, if that was one segment in place and nothing else.
    #[inline]
    pub(crate) fn into_borrowed(self) -> Option<Borrowed> {
        match self.reader.into_segments() {
            Segments::InPlace(borrowed) => Some(borrowed),
            _ => None,
        }
    }

    /// A message that came inside its slots, and so is a copy already.
    #[inline]
    pub(crate) fn inside(inside: Inside, marks: Marks, trust: Trust) -> Self {
        let options = if trust.copy_limit().is_some() { doubted(inside.words().len()) } else { BELIEVED };
        let reader = Reader::new(Segments::Inside(inside), options);
        Self { reader, attached: None, fork: fork::generation(), marks, root: PhantomData }
    }

    /// As [`open`](Self::open), for a message that something travels with.
    #[cold]
    pub(crate) fn open_with(
        opening: Opening,
        blobs: u8,
        passed: Option<Passed>,
        trust: Trust,
        shelf: &Arc<Shelf>,
    ) -> Result<Self, OpenProblem> {
        if blobs == 0 {
            let attached = Some(Box::new(Attached { passed, ..Attached::default() }));
            return Ok(Self { attached, ..Self::open(opening, trust, shelf)? });
        }
        let Opening { borrowed, segments, marks } = opening;
        let (segments, options, blobs) = Segments::with_blobs(borrowed, segments, blobs, trust, shelf)?;
        let attached = Some(Box::new(Attached { blobs, passed, memory: None }));
        let reader = Reader::new(segments, options);
        Ok(Self { reader, attached, fork: fork::generation(), marks, root: PhantomData })
    }

    /// A message in memory of its own, the first of its descriptors. Nobody can change it any more, so it is read where
    /// it lies, whoever sent it. `limit`: the most bytes that are mapped.
    #[cold]
    pub(crate) fn open_sealed(
        at: SealedAt,
        limit: u64,
        passed: Passed,
        marks: Marks,
        trust: Trust,
    ) -> Result<Self, OpenProblem> {
        let mut memory = match passed {
            Passed::Here(fds) => fds,
            Passed::Lost(sent) => return Err(OpenProblem::Lost(DescriptorsLost { sent })),
        };
        let rest = memory.split_off(memory.len().min(1));
        let [fd] = &memory[..] else { return Err(PeerMisbehaved::NoHandle.into()) };
        let sealed = Arc::new(Sealed::open(fd.as_fd(), at, limit)?);
        let passed = (!rest.is_empty()).then_some(Passed::Here(rest));
        let attached = Attached { blobs: sealed.blobs().to_vec(), passed, memory: Some(Arc::new(memory)) };
        let words = usize::try_from(at.words).unwrap_or(usize::MAX);
        let options = if trust.copy_limit().is_some() { doubted(words) } else { BELIEVED };
        let reader = Reader::new(Segments::Sealed(sealed), options);
        Ok(Self { reader, attached: Some(Box::new(attached)), fork: fork::generation(), marks, root: PhantomData })
    }

    /// Whether it lies in memory of its own that nobody can write any more ([`SealedBuilder`](crate::SealedBuilder)).
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed().is_some()
    }

    /// The memory of a sealed message.
    pub(super) fn sealed(&self) -> Option<(&Arc<Sealed>, &Fds)> {
        let memory = self.attached.as_ref().and_then(|attached| attached.memory.as_ref())?;
        match self.reader.get_segments() {
            Segments::Sealed(sealed) => Some((sealed, memory)),
            _ => None,
        }
    }

    /// The root struct.
    ///
    /// # Errors
    /// Cap'n Proto's, if the message is not well-formed; so may any accessor of the reader.
    #[inline]
    pub fn get(&self) -> capnp::Result<T::Reader<'_>> {
        if self.fork != fork::generation() {
            // The memory is not mapped here.
            return Err(capnp::Error::failed("the message belongs to the process this one was forked from".into()));
        }
        self.reader.get_root()
    }

    /// Its number among the messages of its direction, from 1.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.marks.id
    }

    /// The number of this side's message that it answers, if it is an answer.
    #[must_use]
    pub fn in_reply_to(&self) -> Option<u64> {
        (self.marks.in_reply_to != 0).then_some(self.marks.in_reply_to)
    }

    /// The blobs that came with it, in the order they were attached. They stay on loan where the message itself is
    /// copied.
    #[must_use]
    pub fn blobs(&self) -> &[ReceivedBlob] {
        self.attached.as_ref().map_or(&[], |attached| &attached.blobs)
    }

    /// What its sender calls this kind of message, or 0: see [`Builder::set_kind`](super::Builder::set_kind). A number
    /// from the peer like any other: what is in the message need not fit it.
    #[must_use]
    pub fn kind(&self) -> u16 {
        self.marks.kind
    }

    /// Whether its sender waits for an answer to it.
    #[must_use]
    pub fn is_request(&self) -> bool {
        self.marks.asks
    }

    /// Whether it is an answer and more answers to the same message follow.
    #[must_use]
    pub fn more_follow(&self) -> bool {
        self.marks.more
    }

    /// Takes the file descriptors that came with it, in the order they were attached; none if none did, or they were
    /// taken already. Close-on-exec is set. Those that are not taken are closed with the message.
    ///
    /// # Errors
    /// [`DescriptorsLost`]; the message itself is whole. Also in a forked child, which does not have them.
    pub fn take_fds(&mut self) -> Result<Vec<OwnedFd>, DescriptorsLost> {
        match self.attached.as_mut().and_then(|attached| attached.passed.take()) {
            None => Ok(Vec::new()),
            Some(Passed::Lost(sent)) => Err(DescriptorsLost { sent }),
            Some(Passed::Here(fds)) => {
                let sent = fds.len();
                fds.into_iter().map(NoForkFd::into_owned).collect::<Option<_>>().ok_or(DescriptorsLost { sent })
            }
        }
    }

    /// Those that were not taken.
    pub(super) fn fds(&self) -> Result<&[NoForkFd], DescriptorsLost> {
        match self.attached.as_ref().and_then(|attached| attached.passed.as_ref()) {
            None => Ok(&[]),
            Some(&Passed::Lost(sent)) => Err(DescriptorsLost { sent }),
            Some(Passed::Here(fds)) => Ok(fds),
        }
    }

    pub(crate) fn channel(&self) -> u32 {
        self.marks.channel
    }

    /// How many bytes it has in all, blobs not counted.
    #[must_use]
    pub fn size(&self) -> usize {
        if self.fork == fork::generation() { self.reader.size_in_words().saturating_mul(8) } else { 0 }
    }
}

impl<T: Schema> std::fmt::Debug for Received<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Received")
            .field("id", &self.marks.id)
            .field("in_reply_to", &self.in_reply_to())
            .finish_non_exhaustive()
    }
}

/// What travels with a message beside its structure.
#[derive(Default)]
struct Attached {
    blobs: Vec<ReceivedBlob>,
    passed: Option<Passed>,
    /// Of a sealed message, the one descriptor of its memory.
    memory: Option<Fds>,
}

/// A lender that is believed may nest and repeat as it likes, short of the reader's stack.
const BELIEVED: ReaderOptions = ReaderOptions { traversal_limit_in_words: None, nesting_limit: 64 };

/// Words that even the smallest message may be walked: Cap'n Proto's own default.
const WALK_MIN: usize = 8 << 20;

/// Small, because it is moved: what is rare lies elsewhere.
enum Segments {
    /// The one that the handle names.
    InPlace(Borrowed),
    Several(Box<(Borrowed, Box<[Place]>)>),
    /// With blobs on the same loan.
    Shared(Arc<Borrowed>, Box<[Place]>),
    Copied(Box<Copied>),
    /// The only one, which came inside its slots.
    Inside(Inside),
    /// In memory that nobody writes any more.
    Sealed(Arc<Sealed>),
}

/// How a copy of so many words may be walked. Several pointers to one object make a small message a large one to walk.
/// Cap'n Proto counts over all reading of a message, so the limit leaves room for reading it again.
fn doubted(words: usize) -> ReaderOptions {
    let walk = words.saturating_mul(16).saturating_add(WALK_MIN);
    ReaderOptions { traversal_limit_in_words: Some(walk), nesting_limit: 32 }
}

impl Segments {
    #[cold]
    fn several(borrowed: Borrowed, count: u16) -> Result<Self, PeerMisbehaved> {
        let places = places(&borrowed, count)?.into_boxed_slice();
        Ok(Self::Several(Box::new((borrowed, places))))
    }

    fn copied(
        borrowed: Borrowed,
        count: u16,
        limit: u64,
        shelf: &Arc<Shelf>,
    ) -> Result<(Self, ReaderOptions), OpenProblem> {
        Self::copied_from(&borrowed, &places(&borrowed, count)?, limit, shelf)
    }

    fn copied_from(
        borrowed: &Borrowed,
        places: &[Place],
        limit: u64,
        shelf: &Arc<Shelf>,
    ) -> Result<(Self, ReaderOptions), OpenProblem> {
        let copy = Copied::new(borrowed, places, limit, shelf.clone())?;
        let options = doubted(copy.words.len());
        Ok((Self::Copied(Box::new(copy)), options))
    }

    /// With blobs there is a table always: of the segments, then of the blobs, which share the loan.
    fn with_blobs(
        borrowed: Borrowed,
        segments: u16,
        blobs: u8,
        trust: Trust,
        shelf: &Arc<Shelf>,
    ) -> Result<(Self, ReaderOptions, Vec<ReceivedBlob>), OpenProblem> {
        let (loan, limit) = (Arc::new(borrowed), trust.copy_limit());
        let (places, blobs) = listed(&loan, segments, blobs, limit.is_none())?;
        let (segments, options) = match limit {
            None => (Self::Shared(loan, places), BELIEVED),
            Some(limit) => Self::copied_from(&loan, &places, limit, shelf)?,
        };
        Ok((segments, options, blobs))
    }
}

impl ReaderSegments for Segments {
    #[inline]
    fn get_segment(&self, index: u32) -> Option<&[u8]> {
        match self {
            // SAFETY: made only where the trust in this lender was vouched for: `Trust::in_place`.
            Self::InPlace(borrowed) if index == 0 => Some(unsafe { borrowed.bytes(borrowed.whole()) }),
            Self::Inside(inside) if index == 0 => Some(as_bytes(inside.words())),
            _ => self.get_rarer(index),
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::InPlace(_) | Self::Inside(_) => 1,
            Self::Several(several) => several.1.len(),
            Self::Shared(_, places) => places.len(),
            Self::Copied(copy) => copy.ends.len(),
            Self::Sealed(sealed) => sealed.segment_count(),
        }
    }
}

impl Segments {
    fn get_rarer(&self, index: u32) -> Option<&[u8]> {
        let (borrowed, place) = match self {
            Self::InPlace(_) | Self::Inside(_) => return None,
            Self::Several(several) => (&several.0, *several.1.get(index as usize)?),
            Self::Shared(loan, places) => (&**loan, *places.get(index as usize)?),
            Self::Copied(copy) => return copy.segment(index as usize),
            Self::Sealed(sealed) => return sealed.segment(index as usize),
        };
        // SAFETY: made only where the trust in this lender was vouched for: `Trust::in_place`.
        Some(unsafe { borrowed.bytes(place) })
    }
}

/// All segments one after the other in private memory.
struct Copied {
    words: Vec<u64>,
    ends: SmallVec<[usize; 1]>,
    shelf: Arc<Shelf>,
}

impl Copied {
    fn new(borrowed: &Borrowed, places: &[Place], limit: u64, shelf: Arc<Shelf>) -> Result<Self, OpenProblem> {
        // Segments may overlap, so their sum is not bounded by the arena.
        let total = places.iter().map(|place| place.words()).fold(0, usize::saturating_add);
        let bytes = (total as u64).saturating_mul(8);
        if bytes > limit {
            return Err(PeerMisbehaved::MessageTooLarge { bytes, limit }.into());
        }
        let mut words = shelf.take(total)?;
        let ends = places
            .iter()
            .map(|&place| {
                borrowed.copy_out(place, &mut words);
                words.len()
            })
            .collect();
        Ok(Self { words, ends, shelf })
    }

    fn segment(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(Some(0), |before| self.ends.get(before).copied())?;
        self.words.get(start..end).map(as_bytes)
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        self.shelf.keep(std::mem::take(&mut self.words));
    }
}

fn as_bytes(words: &[u64]) -> &[u8] {
    // SAFETY: initialised words are initialised bytes, and bytes need no alignment.
    unsafe { std::slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) }
}

/// Copies a message and reads all of it, whatever it is of.
#[cfg(any(fuzzing, test))]
pub(crate) fn walk(borrowed: Borrowed, segments: u16) {
    let copied = Segments::copied(borrowed, segments, u64::MAX, &Arc::default());
    let Ok((segments, options)) = copied else { return };
    let reader = Reader::new(segments, options);
    if let Ok(root) = reader.get_root::<capnp::any_pointer::Reader<'_>>() {
        let _ = root.target_size();
        let mut copy = capnp::message::Builder::new_default();
        let _ = copy.set_root(root);
    }
}
