//! The tag of a message: which member of its root's unnamed union is set. Read from the words where they lie, before
//! anyone opens the message, and so without copying it; a sender that changes it later fools only the sorting.

use super::places::places_beside;
use super::schema::Schema;
use crate::shm::view::Borrowed;
use crate::sys::misbehaved::PeerMisbehaved;
use capnp::introspect::TypeVariant;
use capnp::schema::StructSchema;
use capnp::schema_capnp::node;

/// Where the tag of a schema's unnamed union lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Union {
    /// In 16-bit units from the beginning of the root's data.
    offset: u32,
}

impl Union {
    /// `None` if the schema has no unnamed union.
    pub(crate) fn of<T: Schema>() -> Option<Self> {
        let TypeVariant::Struct(raw) = T::introspect().which() else { return None };
        match StructSchema::from(raw).get_proto().which() {
            Ok(node::Struct(root)) if root.get_discriminant_count() > 0 => {
                Some(Self { offset: root.get_discriminant_offset() })
            }
            _ => None,
        }
    }

    /// `None` if there is no root struct to be found, which whoever opens the message learns.
    pub(crate) fn tag(self, message: &Borrowed, segments: u16, blobs: u8) -> Result<Option<u16>, PeerMisbehaved> {
        let places = places_beside(message, segments, blobs)?;
        let words = |segment: usize, index: u64| message.word(*places.get(segment)?, index).map(u64::from_le);
        Ok(self.find(words))
    }

    /// The tag of a message of one segment that consists of these words.
    pub(crate) fn tag_inside(self, message: &[u64]) -> Option<u16> {
        let word = |segment: usize, index: u64| message.get(usize::try_from(index).ok()?).filter(|_| segment == 0);
        self.find(|segment, index| word(segment, index).copied().map(u64::from_le))
    }

    /// The tag of a message of these segments, which nobody writes.
    pub(super) fn tag_of<'a>(self, segment: impl Fn(usize) -> Option<&'a [u8]>) -> Option<u16> {
        self.find(|index, at| {
            let word = segment(index)?.as_chunks().0.get(usize::try_from(at).ok()?)?;
            Some(u64::from_le_bytes(*word))
        })
    }

    /// The tag of a message whose words are these, by segment and place.
    fn find(self, words: impl Fn(usize, u64) -> Option<u64>) -> Option<u16> {
        let root = words(0, 0)?;
        if root == 0 {
            // No root is an empty root.
            return Some(0);
        }
        let (segment, content, pointer) = match root & 7 {
            FAR => {
                let (segment, pad) = landing(root);
                (segment, struct_at(words(segment, pad)?, pad)?, words(segment, pad)?)
            }
            DOUBLE_FAR => {
                let (segment, pad) = landing(root);
                let far = words(segment, pad)?;
                let pointer = words(segment, pad.checked_add(1)?)?;
                if far & 7 != FAR || pointer & 3 != STRUCT {
                    return None;
                }
                let (segment, content) = landing(far);
                (segment, content, pointer)
            }
            _ => (0, struct_at(root, 0)?, root),
        };
        let (word, shift) = (u64::from(self.offset / 4), (self.offset & 3) << 4);
        let data_words = pointer >> 32 & 0xFFFF;
        if word >= data_words {
            // Written by an older schema, or left out: the default.
            return Some(0);
        }
        Some((words(segment, content.checked_add(word)?)? >> shift) as u16)
    }
}

/// Kinds of pointers, in their low bits.
const STRUCT: u64 = 0;
const FAR: u64 = 2;
const DOUBLE_FAR: u64 = 6;

/// The segment and the word that a far pointer names.
fn landing(far: u64) -> (usize, u64) {
    ((far >> 32) as usize, far >> 3 & 0x1FFF_FFFF)
}

/// Where the struct begins that a pointer at `at` names.
fn struct_at(pointer: u64, at: u64) -> Option<u64> {
    let offset = i64::from(pointer as u32 as i32 >> 2);
    if pointer & 3 == STRUCT { at.checked_add(1)?.checked_add_signed(offset) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use capnp::message::{Builder, HeapAllocator};
    use capnp::schema_capnp::{brand, field};

    fn words_of(segments: &[&[u8]], segment: usize, index: u64) -> Option<u64> {
        let at = usize::try_from(index).ok()?.checked_mul(8)?;
        let bytes = segments.get(segment)?.get(at..at + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    fn tag_of(union: Union, segments: &[&[u8]]) -> Option<u16> {
        union.find(|segment, index| words_of(segments, segment, index))
    }

    #[test]
    fn unions_are_found_by_introspection() {
        assert!(Union::of::<node::Owned>().is_some());
        assert!(Union::of::<field::Owned>().is_some());
        assert_eq!(Union::of::<brand::Owned>(), None);
    }

    /// A first segment of every size from one word, so that the root is reached directly and through far pointers.
    #[test]
    fn tags_are_what_capnp_reads() {
        let union = Union::of::<node::Owned>().expect("a union");
        for first in 1..40 {
            for which in 0..5_u16 {
                let mut message = Builder::new(HeapAllocator::new().first_segment_words(first));
                let mut root = message.init_root::<node::Builder<'_>>();
                root.set_display_name("some name");
                match which {
                    0 => root.set_file(()),
                    1 => drop(root.init_struct()),
                    2 => drop(root.init_enum()),
                    3 => drop(root.init_interface()),
                    _ => drop(root.init_const()),
                }
                let segments = message.get_segments_for_output();
                assert_eq!(tag_of(union, &segments), Some(which), "first segment of {first} words");
            }
        }
        assert_eq!(tag_of(union, &[&[0; 8]]), Some(0));
        // A root without data has the default.
        assert_eq!(tag_of(union, &[&(0xFFFF_FFFC_u64).to_le_bytes()]), Some(0));
    }

    #[test]
    fn double_far_roots_are_followed() {
        let union = Union { offset: 1 };
        let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
        let root = words(&[DOUBLE_FAR | 1 << 3 | 1 << 32]);
        // A landing pad of two words: where the data is, and what it is.
        let pad = words(&[0, FAR | 2 << 3 | 2 << 32, 1 << 32]);
        let data = words(&[0, 0, 0xBBBB_0007_AAAA]);
        assert_eq!(tag_of(union, &[&root, &pad, &data]), Some(7));
    }

    #[test]
    fn no_words_can_lead_outside() {
        let union = Union { offset: 0 };
        let mut word = 1_u64;
        for _ in 0..100_000 {
            word = word.wrapping_mul(0x2545_F491_4F6C_DD1D).wrapping_add(0x9E37_79B9_7F4A_7C15);
            let segment = [word.to_le_bytes(), word.rotate_left(17).to_le_bytes()].concat();
            let _ = tag_of(union, &[&segment, &segment]);
        }
    }
}
