//! The frames that cross the session's socket once both sides have logged in: 128 bytes each, little-endian, whatever
//! they carry. Pure: bytes in, a checked value out.

use crate::shm::handle::Handle;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::passed::PASSED_MAX;
use crate::transport::ended::Farewell;

/// Bytes of every frame.
pub(crate) const FRAME: usize = 128;

/// Handles that fit a frame.
pub(crate) const RETURNS_PER_FRAME: usize = 7;

/// The longest name, in bytes of UTF-8.
pub(crate) const NAME_MAX: usize = 64;

/// The longest reason for a rejection, in bytes of UTF-8.
pub(crate) const REASON_MAX: usize = 108;

/// Where a side's half of a channel lies in its own arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AreaAt {
    /// In words.
    pub(crate) offset: u64,
    pub(crate) slots: u32,
}

/// Where a ring lies that many read, and the position at which a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StageAt {
    pub(crate) ring: AreaAt,
    pub(crate) start: u64,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    OpenChannel(Wish),
    ChannelOpened {
        number: u32,
        area: AreaAt,
    },
    ChannelRefused {
        number: u32,
        refusal: Refusal,
    },
    /// The sender fills no more slots of this channel.
    ChannelClosed {
        number: u32,
    },
    /// Nor does it empty any: the receiver, which has closed the channel before, may do with its half what it likes.
    ChannelLeft {
        number: u32,
    },
    /// Handles that found no slot to go home in; and, unless 0, the number of a channel in whose ring others lie, which
    /// its owner may not be looking at.
    Returns {
        look_at: u32,
        handles: Vec<Handle>,
    },
    /// Nothing but returns follows.
    Goodbye(Farewell),
    /// The sender has dropped so many answers that came over this channel unexpectedly, so far.
    UnexpectedReplies {
        number: u32,
        count: u64,
    },
    /// The sender wants no more answers to its message of this id.
    Cancel {
        number: u32,
        id: u64,
    },
    /// The sender fills no more slots of this channel with messages; it still empties them.
    Finished {
        number: u32,
    },
    /// This side publishes to many, the receiver among them, from here on.
    Staged {
        number: u32,
        stage: StageAt,
    },
    /// Something happened in a channel whose receiver, or sender, waits at the door.
    Doorbell {
        number: u32,
        knock: Knock,
    },
    /// File descriptors, which are with the frame, of a message whose slot is not filled yet.
    Descriptors(Parcel),
    /// How many descriptors the sender has taken so far.
    DescriptorsTaken {
        total: u64,
    },
}

/// What happened in a channel, as a set: to be looked for, not believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Knock(u32);

impl Knock {
    pub(crate) const NONE: Self = Self(0);
    /// Slots were filled for the receiver.
    pub(crate) const FILLED: Self = Self(1);
    /// Slots were emptied for the sender.
    pub(crate) const EMPTIED: Self = Self(2);
    pub(crate) const ALL: Self = Self(3);

    /// Bits without a meaning here are left to later versions.
    pub(crate) fn from_bits(bits: u32) -> Self {
        Self(bits & Self::ALL.0)
    }

    pub(crate) fn bits(self) -> u32 {
        self.0
    }

    pub(crate) fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Which message descriptors belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parcel {
    /// The channel's, so never 0.
    pub(crate) number: u32,
    pub(crate) message: u64,
    pub(crate) count: u32,
    /// The kernel did not take them: none are with the frame.
    pub(crate) lost: bool,
}

/// What one side asks for when it opens a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) number: u32,
    pub(crate) schema: u64,
    pub(crate) area: AreaAt,
    pub(crate) name: String,
    pub(crate) metadata: Option<MetadataAt>,
}

/// A message that goes with a wish, on loan like any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MetadataAt {
    pub(crate) handle: Handle,
    pub(crate) segments: u16,
    pub(crate) schema: u64,
}

/// Why a channel is not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    UnknownName,
    /// With the schema the refuser has under that name.
    OtherSchema(u64),
    TooMany,
    NoMemory,
    /// Nobody is left to accept it.
    Closed,
    /// The application's own words, of at most [`REASON_MAX`] bytes.
    Rejected(String),
}

impl Control {
    pub(crate) fn to_bytes(&self) -> [u8; FRAME] {
        let mut out = Writer { bytes: [0; FRAME], at: 0 };
        match self {
            Self::OpenChannel(Wish { number, schema, area, name, metadata }) => {
                out.u32(1).u32(*number).u64(*schema).area(*area).text::<NAME_MAX>(name);
                if let Some(MetadataAt { handle, segments, schema }) = metadata {
                    let [low, high] = handle.to_words();
                    out.u64(low).u64(high).u64(*schema).u32(u32::from(*segments));
                }
            }
            Self::ChannelOpened { number, area } => {
                out.u32(2).u32(*number).area(*area);
            }
            Self::ChannelRefused { number, refusal } => {
                let (code, detail) = match refusal {
                    Refusal::UnknownName => (1, 0),
                    Refusal::OtherSchema(ours) => (2, *ours),
                    Refusal::TooMany => (3, 0),
                    Refusal::NoMemory => (4, 0),
                    Refusal::Closed => (5, 0),
                    Refusal::Rejected(_) => (6, 0),
                };
                out.u32(3).u32(*number).u32(code).u64(detail);
                if let Refusal::Rejected(reason) = refusal {
                    out.text::<REASON_MAX>(reason);
                }
            }
            Self::ChannelClosed { number } => {
                out.u32(4).u32(*number);
            }
            Self::Returns { look_at, handles } => {
                debug_assert!(handles.len() <= RETURNS_PER_FRAME);
                out.u32(5).u32(*look_at);
                for [low, high] in handles.iter().map(|handle| handle.to_words()) {
                    out.u64(low).u64(high);
                }
            }
            Self::Goodbye(farewell) => {
                out.u32(6).u32(match farewell {
                    Farewell::Closed => 0,
                    Farewell::PeerMisbehaved => 1,
                });
            }
            Self::Doorbell { number, knock } => {
                out.u32(10).u32(*number).u32(knock.bits());
            }
            Self::UnexpectedReplies { number, count } => {
                out.u32(11).u32(*number).u64(*count);
            }
            Self::Cancel { number, id } => {
                out.u32(12).u32(*number).u64(*id);
            }
            Self::Finished { number } => {
                out.u32(13).u32(*number);
            }
            Self::ChannelLeft { number } => {
                out.u32(17).u32(*number);
            }
            Self::Staged { number, stage } => {
                out.u32(24).u32(*number).area(stage.ring).u64(stage.start);
            }
            Self::Descriptors(Parcel { number, message, count, lost }) => {
                out.u32(7).u32(*number).u64(*message).u32(*count).u32(u32::from(*lost));
            }
            Self::DescriptorsTaken { total } => {
                out.u32(7).u32(0).u64(*total);
            }
        }
        out.bytes
    }

    /// Whether it answers something of the peer's, or follows from it.
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            Self::ChannelOpened { .. }
            | Self::ChannelRefused { .. }
            | Self::DescriptorsTaken { .. }
            | Self::Returns { .. }
            | Self::UnexpectedReplies { .. } => true,
            // Of these it takes an application here to make many.
            Self::Cancel { .. }
            | Self::ChannelClosed { .. }
            | Self::ChannelLeft { .. }
            | Self::Descriptors(_)
            | Self::Doorbell { .. }
            | Self::Finished { .. }
            | Self::Goodbye(_)
            | Self::OpenChannel(_)
            | Self::Staged { .. } => false,
        }
    }

    /// Makes a frame of descriptors one that says they are lost.
    pub(crate) fn give_up_descriptors(frame: &mut [u8; FRAME]) {
        if let Ok(Self::Descriptors(parcel)) = Self::from_bytes(frame) {
            *frame = Self::Descriptors(Parcel { lost: true, ..parcel }).to_bytes();
        }
    }

    pub(crate) fn from_bytes(frame: &[u8; FRAME]) -> Result<Self, PeerMisbehaved> {
        let mut from = Reader { bytes: frame };
        let (kind, number) = (from.u32(), from.u32());
        Ok(match kind {
            1 => {
                let (schema, area, name) = (from.u64(), from.area(), from.name()?);
                let handle = Handle::from_words([from.u64(), from.u64()]);
                let metadata = handle.map(|handle| {
                    let (schema, segments) = (from.u64(), from.u32());
                    // No message has so many.
                    MetadataAt { handle, segments: u16::try_from(segments).unwrap_or(u16::MAX), schema }
                });
                Self::OpenChannel(Wish { number, schema, area, name, metadata })
            }
            2 => Self::ChannelOpened { number, area: from.area() },
            3 => {
                let (code, detail) = (from.u32(), from.u64());
                let refusal = match code {
                    1 => Refusal::UnknownName,
                    2 => Refusal::OtherSchema(detail),
                    3 => Refusal::TooMany,
                    4 => Refusal::NoMemory,
                    5 => Refusal::Closed,
                    6 => Refusal::Rejected(from.text::<REASON_MAX>("reason is not UTF-8")?),
                    _ => return Err(PeerMisbehaved::Frame("unknown refusal")),
                };
                Self::ChannelRefused { number, refusal }
            }
            4 => Self::ChannelClosed { number },
            5 => {
                let handles = (0..RETURNS_PER_FRAME).map_while(|_| Handle::from_words([from.u64(), from.u64()]));
                Self::Returns { look_at: number, handles: handles.collect() }
            }
            6 => Self::Goodbye(match number {
                0 => Farewell::Closed,
                1 => Farewell::PeerMisbehaved,
                _ => return Err(PeerMisbehaved::Frame("unknown farewell")),
            }),
            10 => Self::Doorbell { number, knock: Knock::from_bits(from.u32()) },
            11 => Self::UnexpectedReplies { number, count: from.u64() },
            12 => Self::Cancel { number, id: from.u64() },
            13 => Self::Finished { number },
            17 => Self::ChannelLeft { number },
            24 => Self::Staged { number, stage: StageAt { ring: from.area(), start: from.u64() } },
            7 if number == 0 => Self::DescriptorsTaken { total: from.u64() },
            7 => {
                let (message, count, lost) = (from.u64(), from.u32(), from.u32() != 0);
                if !(1..=PASSED_MAX as u32).contains(&count) {
                    return Err(PeerMisbehaved::Frame("no such number of descriptors"));
                }
                Self::Descriptors(Parcel { number, message, count, lost })
            }
            _ => return Err(PeerMisbehaved::Frame("unknown kind")),
        })
    }
}

/// Writes little-endian fields in order into a frame that is long enough for them.
pub(crate) struct Writer<const N: usize> {
    pub(crate) bytes: [u8; N],
    pub(crate) at: usize,
}

#[expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "what is written is this side's own, and of sizes that fit: the tests fill each frame"
)]
impl<const N: usize> Writer<N> {
    pub(crate) fn raw(&mut self, field: &[u8]) -> &mut Self {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
        self
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    pub(crate) fn area(&mut self, area: AreaAt) -> &mut Self {
        self.u64(area.offset).u32(area.slots)
    }

    /// A text padded with zeros, cut to `LEN` bytes between two characters.
    pub(crate) fn text<const LEN: usize>(&mut self, text: &str) -> &mut Self {
        let mut field = [0; LEN];
        let len = (0..=text.len().min(LEN)).rev().find(|&len| text.is_char_boundary(len)).unwrap_or(0);
        field[..len].copy_from_slice(&text.as_bytes()[..len]);
        self.raw(&field)
    }

    pub(crate) fn name(&mut self, name: &str) -> &mut Self {
        self.text::<NAME_MAX>(name)
    }
}

/// Reads little-endian fields in order; past the end there are zeros.
pub(crate) struct Reader<'a> {
    pub(crate) bytes: &'a [u8],
}

impl Reader<'_> {
    pub(crate) fn raw<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        let (head, rest) = self.bytes.split_at(self.bytes.len().min(N));
        field[..head.len()].copy_from_slice(head);
        self.bytes = rest;
        field
    }

    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.raw())
    }

    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.raw())
    }

    pub(crate) fn area(&mut self) -> AreaAt {
        AreaAt { offset: self.u64(), slots: self.u32() }
    }

    pub(crate) fn name(&mut self) -> Result<String, PeerMisbehaved> {
        self.text::<NAME_MAX>("name is not UTF-8")
    }

    /// A text padded with zeros; `otherwise` names the breach of one that is none.
    pub(crate) fn text<const LEN: usize>(&mut self, otherwise: &'static str) -> Result<String, PeerMisbehaved> {
        let field: [u8; LEN] = self.raw();
        let len = field.iter().position(|&byte| byte == 0).unwrap_or(LEN);
        let text = field.get(..len).unwrap_or_default();
        let text = std::str::from_utf8(text).map_err(|_| PeerMisbehaved::Frame(otherwise))?;
        Ok(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let area = AreaAt { offset: 1 << 35, slots: 256 };
        let handle = Handle::new(1, 2, 3, 4);
        let refusals = [
            Refusal::UnknownName,
            Refusal::OtherSchema(u64::MAX),
            Refusal::TooMany,
            Refusal::NoMemory,
            Refusal::Closed,
            Refusal::Rejected("y".repeat(REASON_MAX)),
            Refusal::Rejected(String::new()),
        ];
        let plain = Wish { number: 7, schema: 0xABCD, area, name: "x".repeat(NAME_MAX), metadata: None };
        let metadata = Some(MetadataAt { handle, segments: 512, schema: u64::MAX });
        let mut frames = vec![
            Control::OpenChannel(plain.clone()),
            Control::OpenChannel(Wish { metadata, ..plain }),
            Control::ChannelOpened { number: u32::MAX, area },
            Control::ChannelClosed { number: 9 },
            Control::ChannelLeft { number: 11 },
            Control::Returns { look_at: 0, handles: vec![handle; RETURNS_PER_FRAME] },
            Control::Returns { look_at: u32::MAX, handles: vec![] },
            Control::Goodbye(Farewell::Closed),
            Control::Goodbye(Farewell::PeerMisbehaved),
            Control::Doorbell { number: 3, knock: Knock::FILLED },
            Control::Doorbell { number: 5, knock: Knock::ALL },
            Control::UnexpectedReplies { number: 3, count: u64::MAX },
            Control::Cancel { number: 3, id: 9 },
            Control::Finished { number: 5 },
            Control::Descriptors(Parcel { number: 3, message: u64::MAX, count: 64, lost: false }),
            Control::Descriptors(Parcel { number: 2, message: 1, count: 1, lost: true }),
            Control::DescriptorsTaken { total: u64::MAX },
        ];
        frames.extend(refusals.map(|refusal| Control::ChannelRefused { number: 1, refusal }));
        for frame in frames {
            assert_eq!(Control::from_bytes(&frame.to_bytes()), Ok(frame));
        }
    }

    #[test]
    fn a_reason_is_cut_between_two_characters() {
        let refused = |reason: &str| Control::ChannelRefused { number: 1, refusal: Refusal::Rejected(reason.into()) };
        let found = Control::from_bytes(&refused(&"ü".repeat(REASON_MAX)).to_bytes());
        assert_eq!(found, Ok(refused(&"ü".repeat(REASON_MAX / 2))));
        let found = Control::from_bytes(&refused(&format!("x{}", "ü".repeat(REASON_MAX))).to_bytes());
        assert_eq!(found, Ok(refused(&format!("x{}", "ü".repeat(REASON_MAX / 2 - 1)))));
        let mut bytes = refused("").to_bytes();
        bytes[20] = 0xFF;
        assert_eq!(Control::from_bytes(&bytes), Err(PeerMisbehaved::Frame("reason is not UTF-8")));
    }

    #[test]
    fn no_byte_of_a_frame_can_panic_the_reader() {
        let area = AreaAt { offset: 1, slots: 2 };
        let metadata = Some(MetadataAt { handle: Handle::new(1, 2, 3, 4), segments: 1, schema: 5 });
        let wish = Wish { number: 1, schema: 2, area, name: "name".into(), metadata };
        let frame = Control::OpenChannel(wish).to_bytes();
        for at in 0..FRAME {
            for value in 0..=255 {
                let mut bytes = frame;
                bytes[at] = value;
                let _ = Control::from_bytes(&bytes);
            }
        }
    }
}
