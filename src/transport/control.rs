//! The frames that cross the session's socket once both sides have logged in: 128 bytes each, little-endian, whatever
//! they carry. Pure: bytes in, a checked value out.

use crate::shm::handle::Handle;
use crate::sys::misbehaved::PeerMisbehaved;
use crate::transport::ended::Farewell;

/// Bytes of every frame.
pub(crate) const FRAME: usize = 128;

/// Handles that fit a frame.
pub(crate) const RETURNS_PER_FRAME: usize = 7;

/// The longest name, in bytes of UTF-8.
pub(crate) const NAME_MAX: usize = 64;

/// Where a side's half of a channel lies in its own arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AreaAt {
    /// In words.
    pub(crate) offset: u64,
    pub(crate) slots: u32,
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Control {
    OpenChannel {
        number: u32,
        schema: u64,
        area: AreaAt,
        name: String,
    },
    ChannelOpened {
        number: u32,
        area: AreaAt,
    },
    ChannelRefused {
        number: u32,
        refusal: Refusal,
    },
    /// The sender fills and empties no more slots of this channel.
    ChannelClosed {
        number: u32,
    },
    /// Handles that found no slot to go home in.
    Returns(Vec<Handle>),
    /// Nothing but returns follows.
    Goodbye(Farewell),
}

/// Why a channel is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    UnknownName,
    /// With the schema the refuser has under that name.
    OtherSchema(u64),
    TooMany,
    NoMemory,
    /// Nobody is left to accept it.
    Closed,
}

impl Control {
    pub(crate) fn to_bytes(&self) -> [u8; FRAME] {
        let mut out = Writer { bytes: [0; FRAME], at: 0 };
        match self {
            Self::OpenChannel { number, schema, area, name } => {
                out.u32(1).u32(*number).u64(*schema).area(*area).name(name);
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
                };
                out.u32(3).u32(*number).u32(code).u64(detail);
            }
            Self::ChannelClosed { number } => {
                out.u32(4).u32(*number);
            }
            Self::Returns(handles) => {
                debug_assert!(handles.len() <= RETURNS_PER_FRAME);
                out.u32(5).u32(0);
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
        }
        out.bytes
    }

    pub(crate) fn from_bytes(frame: &[u8; FRAME]) -> Result<Self, PeerMisbehaved> {
        let mut from = Reader { bytes: frame };
        let (kind, number) = (from.u32(), from.u32());
        Ok(match kind {
            1 => {
                let (schema, area) = (from.u64(), from.area());
                Self::OpenChannel { number, schema, area, name: from.name()? }
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
                    _ => return Err(PeerMisbehaved::Frame("unknown refusal")),
                };
                Self::ChannelRefused { number, refusal }
            }
            4 => Self::ChannelClosed { number },
            5 => {
                let handles = (0..RETURNS_PER_FRAME).map_while(|_| Handle::from_words([from.u64(), from.u64()]));
                Self::Returns(handles.collect())
            }
            6 => Self::Goodbye(match number {
                0 => Farewell::Closed,
                1 => Farewell::PeerMisbehaved,
                _ => return Err(PeerMisbehaved::Frame("unknown farewell")),
            }),
            _ => return Err(PeerMisbehaved::Frame("unknown kind")),
        })
    }
}

/// Writes little-endian fields in order into a frame that is long enough for them.
pub(crate) struct Writer<const N: usize> {
    pub(crate) bytes: [u8; N],
    pub(crate) at: usize,
}

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

    /// A name padded with zeros. Names are checked before they get here.
    pub(crate) fn name(&mut self, name: &str) -> &mut Self {
        let mut field = [0; NAME_MAX];
        let bytes = name.as_bytes();
        let len = bytes.len().min(NAME_MAX);
        field[..len].copy_from_slice(&bytes[..len]);
        self.raw(&field)
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
        let field: [u8; NAME_MAX] = self.raw();
        let len = field.iter().position(|&byte| byte == 0).unwrap_or(NAME_MAX);
        let name = field.get(..len).unwrap_or_default();
        let name = std::str::from_utf8(name).map_err(|_| PeerMisbehaved::Frame("name is not UTF-8"))?;
        Ok(name.to_owned())
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
        ];
        let mut frames = vec![
            Control::OpenChannel { number: 7, schema: 0xABCD, area, name: "x".repeat(NAME_MAX) },
            Control::ChannelOpened { number: u32::MAX, area },
            Control::ChannelClosed { number: 9 },
            Control::Returns(vec![handle; RETURNS_PER_FRAME]),
            Control::Returns(vec![]),
            Control::Goodbye(Farewell::Closed),
            Control::Goodbye(Farewell::PeerMisbehaved),
        ];
        frames.extend(refusals.map(|refusal| Control::ChannelRefused { number: 1, refusal }));
        for frame in frames {
            assert_eq!(Control::from_bytes(&frame.to_bytes()), Ok(frame));
        }
    }

    #[test]
    fn no_byte_of_a_frame_can_panic_the_reader() {
        let area = AreaAt { offset: 1, slots: 2 };
        let frame = Control::OpenChannel { number: 1, schema: 2, area, name: "name".into() }.to_bytes();
        for at in 0..FRAME {
            for value in 0..=255 {
                let mut bytes = frame;
                bytes[at] = value;
                let _ = Control::from_bytes(&bytes);
            }
        }
    }
}
