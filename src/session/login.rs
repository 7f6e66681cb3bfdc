//! The log-in: one frame each way, and the judgement between them. Pure: no sockets, no clocks.
//!
//! The first 32 bytes of every frame stay as they are for all versions, so that two builds that do not understand each
//! other can say so.

use super::app::{Allowed, ChannelSpec, is_name};
use super::error::{LoginError, Version};
use super::terms::{Terms, backing_number, backing_of, backing_out, backing_suits, terms_in, terms_out};
use crate::message::Trust;
use crate::sys::memory::Backing;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::transport::control::{AreaAt, Reader, Writer};
use std::path::PathBuf;

/// Bytes of a log-in frame.
pub(super) const FRAME: usize = 1024;

/// Channels that fit a log-in.
pub(super) const CHANNELS_MAX: usize = 8;

/// What this build speaks.
pub(super) const VERSION: Version = Version { oldest: OLDEST, newest: NEWEST, layout: layout() };

/// The protocols spoken, as `tests/versions` builds them: this one, the next one that still knows this, and a later one
/// that does not.
const OLDEST: u32 = if cfg!(strait_build = "later") { 2 } else { 1 };
const NEWEST: u32 = if cfg!(any(strait_build = "next", strait_build = "later")) { 2 } else { 1 };

/// A client's first words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) version: Version,
    pub(super) client: String,
    pub(super) server: String,
    pub(super) terms: Terms,
    pub(super) channels: Vec<(ChannelSpec, AreaAt)>,
}

/// A server's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// With the server's halves of the client's channels, in the client's order, and those that the server opens.
    Welcome {
        terms: Terms,
        areas: Vec<AreaAt>,
        opens: Vec<(ChannelSpec, AreaAt)>,
    },
    Refused(Refused),
}

/// Why not, in the refuser's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Incompatible(Version),
    NotAllowed,
    WrongUser,
    WrongGroup,
    /// By index in the client's list.
    UnknownChannel(u32),
    /// By index, with the server's schema.
    WrongSchema(u32, u64),
    TooManyChannels,
    Memory,
    Busy,
    WrongProgram,
    TooManySessions,
    /// With the refuser's own.
    OtherBacking(Backing),
    /// Memory with a name, to somebody who is not believed in place.
    NamedNeedsTrust,
}

/// Who a client may be and what it may ask for.
pub(super) struct Policy<'a> {
    pub(super) server: &'a str,
    pub(super) allow: &'a [Allowed],
    pub(super) serves: &'a [ChannelSpec],
    pub(super) channels_max: usize,
    pub(super) backing: Backing,
}

impl Policy<'_> {
    /// Judges a client by what it says and by what the kernel says of it. Its program is asked for only if that matters.
    pub(super) fn judge(
        &self,
        hello: &Hello,
        uid: u32,
        gid: u32,
        program: impl FnOnce() -> Option<PathBuf>,
    ) -> Result<&Allowed, Refused> {
        let named = || self.allow.iter().filter(|allowed| allowed.name == hello.client);
        if hello.server != self.server || named().next().is_none() {
            return Err(Refused::NotAllowed);
        }
        let same_user = || named().filter(|allowed| allowed.uid == uid);
        same_user().next().ok_or(Refused::WrongUser)?;
        let same_group = || same_user().filter(|allowed| allowed.gid.is_none_or(|expected| expected == gid));
        let allowed = match same_group().find(|allowed| allowed.program.is_none()) {
            Some(allowed) => allowed,
            None => {
                same_group().next().ok_or(Refused::WrongGroup)?;
                let program = program();
                same_group().find(|allowed| allowed.program == program).ok_or(Refused::WrongProgram)?
            }
        };
        self.judge_wishes(hello, allowed.trust)?;
        Ok(allowed)
    }

    /// Judges what a client asks for and what it is made of, whoever it is.
    pub(super) fn judge_wishes(&self, hello: &Hello, trust: Trust) -> Result<(), Refused> {
        if hello.server != self.server {
            return Err(Refused::NotAllowed);
        }
        backing_suits(self.backing, hello.terms.backing, trust)?;
        if hello.channels.len() > self.channels_max {
            return Err(Refused::TooManyChannels);
        }
        for (index, (wanted, _)) in (0..).zip(&hello.channels) {
            let served = self.serves.iter().find(|served| served.name == wanted.name);
            let served = served.ok_or(Refused::UnknownChannel(index))?;
            if served.schema != wanted.schema {
                return Err(Refused::WrongSchema(index, served.schema));
            }
        }
        Ok(())
    }
}

impl Refused {
    /// In words, from either side's point of view: `theirs` is what the reader of the error calls its own.
    pub(super) fn explain(self, hello: &Hello, uid: u32, gid: u32, by_this_side: bool) -> LoginError {
        let client = hello.client.clone();
        let channel = |index: u32| hello.channels.get(index as usize).map(|(spec, _)| spec.clone());
        let name = |index| channel(index).map_or_else(|| format!("#{index}"), |spec| spec.name);
        match self {
            Self::Incompatible(refuser) if by_this_side => {
                LoginError::Incompatible { ours: refuser, theirs: hello.version }
            }
            Self::Incompatible(refuser) => LoginError::Incompatible { ours: hello.version, theirs: refuser },
            Self::NotAllowed => LoginError::NotAllowed { client },
            Self::WrongUser => LoginError::WrongUser { client, uid },
            Self::WrongGroup => LoginError::WrongGroup { client, gid },
            Self::UnknownChannel(index) => LoginError::UnknownChannel { channel: name(index) },
            Self::WrongSchema(index, server) => {
                let wanted = channel(index).map_or(0, |spec| spec.schema);
                let (ours, theirs) = if by_this_side { (server, wanted) } else { (wanted, server) };
                LoginError::WrongSchema { channel: name(index), ours, theirs }
            }
            Self::TooManyChannels => LoginError::TooManyChannels,
            Self::Memory => LoginError::MemoryRefused,
            Self::Busy => LoginError::Busy,
            Self::WrongProgram => LoginError::WrongProgram { client },
            Self::TooManySessions => LoginError::TooManySessions { uid },
            Self::OtherBacking(refuser) if by_this_side => {
                LoginError::OtherBacking { ours: refuser, theirs: hello.terms.backing }
            }
            Self::OtherBacking(refuser) => LoginError::OtherBacking { ours: hello.terms.backing, theirs: refuser },
            Self::NamedNeedsTrust => LoginError::NamedNeedsTrust,
        }
    }
}

/// "strait" and what kind of frame follows.
const MAGIC: u64 = u64::from_le_bytes(*b"strait\0\x01");
const HELLO: u32 = 1;
const WELCOME: u32 = 2;
const REFUSED: u32 = 3;

impl Hello {
    /// All that is known of a build that speaks otherwise.
    pub(super) fn of_version(version: Version) -> Self {
        let terms = Terms { features: 0, arena: 0, arena_bytes: 0, backing: Backing::Memfd, token: 0 };
        Self { version, client: String::new(), server: String::new(), terms, channels: Vec::new() }
    }

    pub(super) fn to_bytes(&self) -> [u8; FRAME] {
        let mut out = head(HELLO, self.version);
        terms_out(&mut out, self.terms);
        out.name(&self.client).name(&self.server);
        channels_out(&mut out, &self.channels);
        backing_out(&mut out, self.terms);
        out.bytes
    }

    /// Reads a client's first words; of a build that speaks otherwise only its version.
    pub(super) fn from_bytes(frame: &[u8]) -> Result<Result<Self, Version>, PeerMisbehaved> {
        let mut from = Reader { bytes: frame };
        let (kind, version) = head_in(&mut from)?;
        if !understands(version) {
            return Ok(Err(version));
        }
        if kind != HELLO || frame.len() != FRAME {
            return Err(PeerMisbehaved::Frame("no hello"));
        }
        let terms = terms_in(&mut from, frame)?;
        let (client, server) = (from.name()?, from.name()?);
        let channels = channels_in(&mut from)?;
        Ok(Ok(Self { version, client, server, terms, channels }))
    }
}

impl Answer {
    pub(super) fn to_bytes(&self) -> [u8; FRAME] {
        match self {
            Self::Welcome { terms, areas, opens } => {
                let mut out = head(WELCOME, VERSION);
                terms_out(&mut out, *terms);
                out.u32(areas.len() as u32);
                for area in areas.iter().take(CHANNELS_MAX) {
                    out.area(*area);
                }
                channels_out(&mut out, opens);
                backing_out(&mut out, *terms);
                out.bytes
            }
            Self::Refused(refused) => {
                let (code, index, detail) = match *refused {
                    // The version is in the head.
                    Refused::Incompatible(_) => (1, 0, 0),
                    Refused::NotAllowed => (2, 0, 0),
                    Refused::WrongUser => (3, 0, 0),
                    Refused::WrongGroup => (4, 0, 0),
                    Refused::UnknownChannel(index) => (5, index, 0),
                    Refused::WrongSchema(index, schema) => (6, index, schema),
                    Refused::TooManyChannels => (7, 0, 0),
                    Refused::Memory => (8, 0, 0),
                    Refused::Busy => (9, 0, 0),
                    Refused::WrongProgram => (10, 0, 0),
                    Refused::TooManySessions => (11, 0, 0),
                    Refused::OtherBacking(backing) => (14, backing_number(backing), 0),
                    Refused::NamedNeedsTrust => (15, 0, 0),
                };
                let mut out = head(REFUSED, VERSION);
                out.u32(code).u32(index).u64(detail);
                out.bytes
            }
        }
    }

    pub(super) fn from_bytes(frame: &[u8], channels: usize) -> Result<Self, PeerMisbehaved> {
        let mut from = Reader { bytes: frame };
        let (kind, version) = head_in(&mut from)?;
        match kind {
            _ if !understands(version) => Ok(Self::Refused(Refused::Incompatible(version))),
            WELCOME if frame.len() == FRAME => {
                let terms = terms_in(&mut from, frame)?;
                if from.u32() as usize != channels {
                    return Err(PeerMisbehaved::Frame("welcome with other channels"));
                }
                let areas = (0..channels).map(|_| from.area()).collect();
                Ok(Self::Welcome { terms, areas, opens: channels_in(&mut from)? })
            }
            REFUSED => {
                let (code, index, detail) = (from.u32(), from.u32(), from.u64());
                Ok(Self::Refused(match code {
                    1 => Refused::Incompatible(version),
                    2 => Refused::NotAllowed,
                    3 => Refused::WrongUser,
                    4 => Refused::WrongGroup,
                    5 => Refused::UnknownChannel(index),
                    6 => Refused::WrongSchema(index, detail),
                    7 => Refused::TooManyChannels,
                    8 => Refused::Memory,
                    9 => Refused::Busy,
                    10 => Refused::WrongProgram,
                    11 => Refused::TooManySessions,
                    14 => Refused::OtherBacking(backing_of(index)?),
                    15 => Refused::NamedNeedsTrust,
                    _ => return Err(PeerMisbehaved::Frame("unknown refusal")),
                }))
            }
            _ => Err(PeerMisbehaved::Frame("no answer")),
        }
    }
}

/// Whether this build and one of that version have a protocol and the layout in common.
fn understands(theirs: Version) -> bool {
    theirs.layout == VERSION.layout && theirs.oldest <= VERSION.newest && theirs.newest >= VERSION.oldest
}

fn head(kind: u32, version: Version) -> Writer<FRAME> {
    let mut out = Writer { bytes: [0; FRAME], at: 0 };
    out.u64(MAGIC).u32(kind).u32(version.oldest).u32(version.newest).u32(0).u64(version.layout);
    out
}

fn head_in(from: &mut Reader<'_>) -> Result<(u32, Version), PeerMisbehaved> {
    if from.bytes.len() < 32 || from.u64() != MAGIC {
        return Err(PeerMisbehaved::Frame("not strait"));
    }
    let (kind, oldest, newest, _) = (from.u32(), from.u32(), from.u32(), from.u32());
    Ok((kind, Version { oldest, newest, layout: from.u64() }))
}

/// What a side opens, at most [`CHANNELS_MAX`].
fn channels_out(out: &mut Writer<FRAME>, channels: &[(ChannelSpec, AreaAt)]) {
    out.u32(channels.len().min(CHANNELS_MAX) as u32);
    for (spec, area) in channels.iter().take(CHANNELS_MAX) {
        out.name(&spec.name).u64(spec.schema).area(*area);
    }
}

fn channels_in(from: &mut Reader<'_>) -> Result<Vec<(ChannelSpec, AreaAt)>, PeerMisbehaved> {
    let count = from.u32() as usize;
    if count > CHANNELS_MAX {
        return Err(PeerMisbehaved::Frame("too many channels"));
    }
    let mut channels = Vec::with_capacity(count);
    for _ in 0..count {
        let spec = ChannelSpec { name: from.name()?, schema: from.u64() };
        if !is_name(&spec.name) {
            return Err(PeerMisbehaved::Frame("channel without a name"));
        }
        channels.push((spec, from.area()));
    }
    Ok(channels)
}

/// A digest (FNV-1a) of everything two builds must lay out alike in shared words. Change the text with the layout.
const fn layout() -> u64 {
    let text =
        b"slot: 7 words + sequence; inside: 4, then 7; area: cursor 0, receiver 16, sender 32, slots 48; end: sleeps (1 futex, 2 door), \
        cpu, leaves fence; \
        handle: offset 36, arena 24, len 36, ticket 32; returns: 3 handles, times 16; table: offset, len; \
        blob: offset, bytes; control: 128; login: 1024; capnp; endian: ";
    let text: &[u8] = if cfg!(strait_build = "other-layout") { b"another" } else { text };
    let endian: &[u8] = if cfg!(target_endian = "little") { b"little" } else { b"big" };
    fnv(fnv(0xcbf2_9ce4_8422_2325, text), endian)
}

#[expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, reason = "the index stays below the length")]
const fn fnv(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut index = 0;
    while index < bytes.len() {
        hash = (hash ^ bytes[index] as u64).wrapping_mul(0x100_0000_01b3);
        index += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Trust;

    fn hello() -> Hello {
        let channel =
            |name: &str, schema| (ChannelSpec { name: name.into(), schema }, AreaAt { offset: 512, slots: 256 });
        Hello {
            version: VERSION,
            client: "viewer".into(),
            server: "cache".into(),
            terms: Terms { features: 1, arena: 7, arena_bytes: 1 << 32, backing: Backing::Memfd, token: 0 },
            channels: vec![channel("main", 1), channel("side", 2)],
        }
    }

    fn judge(hello: &Hello, uid: u32, gid: u32) -> Result<(), Refused> {
        judge_running(hello, uid, gid, None)
    }

    fn judge_running(hello: &Hello, uid: u32, gid: u32, runs: Option<&str>) -> Result<(), Refused> {
        let allowed = |name: &str, uid, gid| Allowed {
            name: name.into(),
            uid,
            gid,
            program: None,
            trust: Trust::snapshot(),
            apart: false,
        };
        let program = |path: &str| Some(PathBuf::from(path));
        let policy = Policy {
            server: "cache",
            allow: &[
                allowed("other", 1, None),
                allowed("viewer", 10, Some(20)),
                allowed("viewer", 11, None),
                Allowed { program: program("/bin/one"), ..allowed("viewer", 12, Some(30)) },
                Allowed { program: program("/bin/two"), ..allowed("viewer", 12, Some(30)) },
            ],
            serves: &[ChannelSpec { name: "side".into(), schema: 2 }, ChannelSpec { name: "main".into(), schema: 1 }],
            channels_max: 2,
            backing: Backing::Memfd,
        };
        policy.judge(hello, uid, gid, || runs.map(PathBuf::from)).map(drop)
    }

    #[test]
    fn what_is_written_is_read() {
        let hello = hello();
        assert_eq!(Hello::from_bytes(&hello.to_bytes()), Ok(Ok(hello)));
        let area = AreaAt { offset: 9, slots: 2 };
        let terms = Terms { features: 0, arena: 1, arena_bytes: 2, backing: Backing::Named, token: u64::MAX };
        let longest = ChannelSpec { name: "x".repeat(64), schema: u64::MAX };
        let opens = vec![(longest, area); CHANNELS_MAX];
        let welcome = Answer::Welcome { terms, areas: vec![area; CHANNELS_MAX], opens };
        assert_eq!(Answer::from_bytes(&welcome.to_bytes(), CHANNELS_MAX), Ok(welcome));
        for refused in [
            Refused::Incompatible(VERSION),
            Refused::NotAllowed,
            Refused::WrongUser,
            Refused::WrongGroup,
            Refused::UnknownChannel(7),
            Refused::WrongSchema(1, u64::MAX),
            Refused::TooManyChannels,
            Refused::Memory,
            Refused::Busy,
            Refused::WrongProgram,
            Refused::TooManySessions,
            Refused::OtherBacking(Backing::Heap),
            Refused::NamedNeedsTrust,
        ] {
            let answer = Answer::Refused(refused);
            assert_eq!(Answer::from_bytes(&answer.to_bytes(), 0), Ok(answer));
        }
    }

    #[test]
    fn each_refusal_has_its_own_reason() {
        assert_eq!(judge(&hello(), 10, 20), Ok(()));
        assert_eq!(judge(&hello(), 11, 99), Ok(()));
        assert_eq!(judge(&hello(), 10, 21), Err(Refused::WrongGroup));
        assert_eq!(judge(&hello(), 13, 20), Err(Refused::WrongUser));
        assert_eq!(judge(&hello(), 12, 20), Err(Refused::WrongGroup));
        assert_eq!(judge_running(&hello(), 12, 30, Some("/bin/one")), Ok(()));
        assert_eq!(judge_running(&hello(), 12, 30, Some("/bin/two")), Ok(()));
        assert_eq!(judge_running(&hello(), 12, 30, Some("/bin/three")), Err(Refused::WrongProgram));
        assert_eq!(judge_running(&hello(), 12, 30, None), Err(Refused::WrongProgram));
        assert_eq!(judge(&Hello { client: "nobody".into(), ..hello() }, 10, 20), Err(Refused::NotAllowed));
        assert_eq!(judge(&Hello { server: "another".into(), ..hello() }, 10, 20), Err(Refused::NotAllowed));
        let mut unknown = hello();
        unknown.channels[1].0.name = "none".into();
        assert_eq!(judge(&unknown, 11, 0), Err(Refused::UnknownChannel(1)));
        let mut wrong = hello();
        wrong.channels[0].0.schema = 5;
        assert_eq!(judge(&wrong, 11, 0), Err(Refused::WrongSchema(0, 1)));
        let mut many = hello();
        many.channels.push(many.channels[0].clone());
        assert_eq!(judge(&many, 11, 0), Err(Refused::TooManyChannels));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_document_has_the_text_of_the_layout() {
        let document = include_str!("../../docs/protocol.md");
        let text = document.lines().find(|line| line.starts_with("slot: ")).unwrap();
        assert_eq!(fnv(0xcbf2_9ce4_8422_2325, text.as_bytes()), VERSION.layout);
    }

    #[test]
    fn another_version_is_read_as_far_as_its_version() {
        for theirs in [
            Version { layout: 1, ..VERSION },
            Version { oldest: VERSION.newest + 1, newest: VERSION.newest + 1, ..VERSION },
            Version { oldest: 0, newest: VERSION.oldest - 1, ..VERSION },
        ] {
            let frame = Hello { version: theirs, ..hello() }.to_bytes();
            assert_eq!(Hello::from_bytes(&frame), Ok(Err(theirs)));
            // A later version's frame may have another length.
            assert_eq!(Hello::from_bytes(&frame[..40]), Ok(Err(theirs)));
        }
        let newer = Version { newest: VERSION.newest + 5, ..VERSION };
        assert!(matches!(Hello::from_bytes(&Hello { version: newer, ..hello() }.to_bytes()), Ok(Ok(_))));
    }

    #[test]
    fn no_byte_of_a_frame_can_panic_the_reader() {
        let (hello, refused) = (hello().to_bytes(), Answer::Refused(Refused::WrongSchema(1, 2)).to_bytes());
        for frame in [hello, refused] {
            for at in 0..FRAME {
                for value in 0..=255 {
                    let mut bytes = frame;
                    bytes[at] = value;
                    let _ = (Hello::from_bytes(&bytes), Answer::from_bytes(&bytes, 2));
                }
                let _ = (Hello::from_bytes(&frame[..at]), Answer::from_bytes(&frame[..at], 2));
            }
        }
    }
}
