//! What a session does whose memory is not shared: the slots of its rings, what they name, and how far they have been
//! emptied cross the socket, and are laid out on the other side as if they were shared. Channels see no difference.
//!
//! | packet | bytes |
//! |---|---|
//! | slot | 14 (4), slots of the ring (4), where the ring lies (8), the slot (56), how many words follow in all (8), the first of them |
//! | words | 15 (4), 0 (4), where the ring lies (8), further words of the slot begun last in this ring |
//! | cursor | 16 (4), slots of the ring (4), where the ring lies (8), how many slots its owner has emptied (8) |

use super::control::{FRAME, Knock, Reader};
use super::descriptor::{Descriptor, Envelope, Return};
use crate::ring::{self, Outlet, Payload, area};
use crate::shm::block::Frozen;
use crate::shm::handle::Handle;
use crate::shm::loans::Loans;
use crate::shm::mirror::{Area, Filling, Mirror, Parcel};
use crate::sys::misbehaved::PeerMisbehaved;
use crate::sys::words::OwnWords;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};

/// The most bytes of a packet.
pub(super) const PACKET: usize = 64 << 10;

const SLOT: u32 = 14;
const WORDS: u32 = 15;
const CURSOR: u32 = 16;

/// Where a packet of words has its words.
const HEAD: usize = 16;

/// Whether a packet is the carriage's.
pub(super) fn is_packet(packet: &[u8]) -> bool {
    (SLOT..=CURSOR).contains(&Reader { bytes: packet }.u32())
}

/// What is to be carried to the other side.
#[derive(Default)]
pub(super) struct Freight {
    routes: HashMap<u32, Route>,
    /// Channels that may have something, each once, in turn.
    busy: VecDeque<u32>,
    /// Frames in their order, each after what it names, if anything.
    named: VecDeque<Naming>,
    /// Made, and not sent yet.
    packet: Vec<u8>,
}

/// A frame, and what it names until that is on its way.
struct Naming {
    named: Option<(Sending, Payload)>,
    frame: [u8; FRAME],
}

/// What a slot names, and how many bytes of it are on their way.
struct Sending {
    frozen: Arc<Frozen>,
    done: usize,
}

/// The ring of messages that are in none: its slots are filled, and looked at by nobody.
const NO_RING: u64 = u64::MAX;
const NO_RING_SLOTS: u32 = 2;

/// One channel's way to the other side.
struct Route {
    own: Arc<OwnWords>,
    /// Where `own` lies in this side's arena.
    offset: u64,
    outlet: Outlet,
    /// What the last slot names.
    sending: Option<Sending>,
    /// What the other side knows of the emptying here.
    cursor: u64,
    /// Whether it is to know all of it.
    settles: bool,
    /// Frames, and how many slots come before each.
    after: VecDeque<(u64, [u8; FRAME])>,
    is_busy: bool,
    /// Nothing more goes this way.
    closes: bool,
}

impl Freight {
    /// A channel has something, or had its ring emptied.
    pub(super) fn wake(&mut self, number: u32, area: impl FnOnce() -> Option<(Arc<OwnWords>, u64)>) {
        let route = match self.routes.entry(number) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let Some((own, offset)) = area() else { return };
                place.insert(Route::new(own, offset))
            }
        };
        if !route.is_busy {
            route.is_busy = true;
            self.busy.push_back(number);
        }
    }

    /// Has a frame follow what is in a channel's ring by now; false if nothing was ever carried for that.
    pub(super) fn follow(&mut self, number: u32, frame: [u8; FRAME], closes: bool) -> bool {
        let Some(route) = self.routes.get_mut(&number) else { return false };
        route.after.push_back((ring::filled(&route.own), frame));
        route.closes |= closes;
        // What was emptied before the end is known before the end.
        route.settles |= closes;
        self.wake(number, || None);
        true
    }

    /// Sends a frame, after a message that it names.
    pub(super) fn name(&mut self, named: Option<(Handle, u16)>, frame: [u8; FRAME], loans: &Loans) {
        let named = named.and_then(|(handle, segments)| {
            let sending = Sending { frozen: loans.lent(handle)?, done: 0 };
            Some((sending, Descriptor::Message(Envelope::lent(handle, segments, 0)).to_words()))
        });
        self.named.push_back(Naming { named, frame });
    }

    /// Makes the next packet of those; false if there is none.
    fn next_named(&mut self) -> bool {
        let Some(Naming { named, frame }) = self.named.front_mut() else { return false };
        match named {
            None => {
                self.packet.extend(frame.iter());
                self.named.pop_front();
            }
            Some((sending, slot)) => {
                let ends = if sending.done == 0 {
                    sending.begin(NO_RING_SLOTS, NO_RING, slot, &mut self.packet)
                } else {
                    sending.go_on(NO_RING, &mut self.packet)
                };
                if ends {
                    *named = None;
                }
            }
        }
        true
    }

    /// Has the other side know how far every ring has been emptied: it may wait for the last slot.
    pub(super) fn settle(&mut self) {
        let unsettled = |route: &Route| ring::cursor(&route.own) != route.cursor;
        let numbers = self.routes.iter_mut().filter(|(_, route)| unsettled(route)).map(|(&number, route)| {
            route.settles = true;
            number
        });
        let numbers: Vec<_> = numbers.collect();
        numbers.into_iter().for_each(|number| self.wake(number, || None));
    }

    /// Carries on until there is nothing left or `send` says no; false in the latter case. Channels take turns.
    pub(super) fn carry(
        &mut self,
        loans: &Loans,
        mirror: &Weak<Mirror>,
        send: impl Fn(&[u8]) -> bool,
    ) -> Result<bool, PeerMisbehaved> {
        loop {
            if !self.packet.is_empty() {
                if !send(&self.packet) {
                    return Ok(false);
                }
                self.packet.clear();
            }
            if self.next_named() {
                continue;
            }
            let Some(number) = self.busy.pop_front() else { return Ok(true) };
            let Some(route) = self.routes.get_mut(&number) else { continue };
            if route.next(loans, mirror, &mut self.packet)? {
                self.busy.push_back(number);
            } else if route.closes {
                self.routes.remove(&number);
            } else {
                route.is_busy = false;
            }
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Route {
    fn new(own: Arc<OwnWords>, offset: u64) -> Self {
        Self {
            own,
            offset,
            outlet: Outlet::default(),
            sending: None,
            cursor: 0,
            settles: false,
            after: VecDeque::new(),
            is_busy: false,
            closes: false,
        }
    }

    /// Makes the next packet, which counts as sent from here on; false if there is none.
    fn next(&mut self, loans: &Loans, mirror: &Weak<Mirror>, packet: &mut Vec<u8>) -> Result<bool, PeerMisbehaved> {
        let (slots, offset) = (self.slots(), self.offset);
        if let Some(sending) = &mut self.sending {
            if sending.go_on(offset, packet) {
                self.sending = None;
            }
            return Ok(true);
        }
        // The other side may wait for the last slot.
        if std::mem::take(&mut self.settles) && self.tell_cursor(1, packet) {
            return Ok(true);
        }
        if let Some((slots, frame)) = self.after.front()
            && self.outlet.has_carried(*slots)
        {
            packet.extend(frame);
            self.after.pop_front();
            return Ok(true);
        }
        if let Some(payload) = self.outlet.next(&self.own)? {
            let home = |handle: Handle| mirror.upgrade().and_then(|mirror| mirror.give_up(handle));
            let (slot, frozen) = match Descriptor::from_words(payload)? {
                Descriptor::Message(envelope) => match envelope.lent_as() {
                    None => (Descriptor::Message(envelope), None),
                    Some(handle) => {
                        let Some(frozen) = loans.lent(handle) else { return Ok(false) };
                        (
                            Descriptor::Message(envelope.renamed(handle, envelope.returned().and_then(home))),
                            Some(frozen),
                        )
                    }
                },
                Descriptor::Returns(returns) => {
                    // Each copy has a name of its own, so each is returned once.
                    let renamed = |each: Return| Some(Return { handle: home(each.handle)?, ..each });
                    (Descriptor::Returns(returns.map(|each| each.and_then(renamed))), None)
                }
            };
            self.outlet.advance();
            match frozen {
                None => begin(slots, offset, &slot.to_words(), 0, packet),
                Some(frozen) => {
                    let mut sending = Sending { frozen, done: 0 };
                    let ends = sending.begin(slots, offset, &slot.to_words(), packet);
                    self.sending = (!ends).then_some(sending);
                }
            }
            return Ok(true);
        }
        // Before the other side's room gets short.
        Ok(self.tell_cursor(u64::from(slots / 4).max(1), packet))
    }

    /// Makes a packet of how far the ring was emptied, if that is so much further than the other side knows.
    fn tell_cursor(&mut self, further: u64, packet: &mut Vec<u8>) -> bool {
        let cursor = ring::cursor(&self.own);
        if cursor.saturating_sub(self.cursor) < further {
            return false;
        }
        self.cursor = cursor;
        head(CURSOR, self.slots(), self.offset, packet);
        packet.extend(cursor.to_le_bytes());
        true
    }

    fn slots(&self) -> u32 {
        (self.own.len().saturating_sub(area::SLOTS) / ring::SLOT) as u32
    }
}

impl Sending {
    /// Makes a packet of a slot and of the first words it names; true if these are all.
    fn begin(&mut self, slots: u32, ring: u64, slot: &Payload, packet: &mut Vec<u8>) -> bool {
        begin(slots, ring, slot, self.frozen.carried_bytes(), packet);
        self.add(packet)
    }

    /// Makes a packet of further words; true if these are the last.
    fn go_on(&mut self, ring: u64, packet: &mut Vec<u8>) -> bool {
        head(WORDS, 0, ring, packet);
        self.add(packet)
    }

    fn add(&mut self, packet: &mut Vec<u8>) -> bool {
        let room = PACKET.saturating_sub(packet.len());
        self.done = self.done.saturating_add(self.frozen.carry(self.done, room, packet));
        self.done == self.frozen.carried_bytes()
    }
}

fn head(kind: u32, slots: u32, ring: u64, packet: &mut Vec<u8>) {
    packet.extend(kind.to_le_bytes());
    packet.extend(slots.to_le_bytes());
    packet.extend(ring.to_le_bytes());
}

fn begin(slots: u32, ring: u64, slot: &Payload, bytes: usize, packet: &mut Vec<u8>) {
    head(SLOT, slots, ring, packet);
    packet.extend(slot.iter().flat_map(|word| word.to_le_bytes()));
    packet.extend(((bytes / 8) as u64).to_le_bytes());
}

/// Takes in a packet of the other side's. If that changes what an area publishes: where its copy lies, and what happened.
pub(super) fn take_in(mirror: &Mirror, packet: &[u8]) -> Result<Option<(usize, Knock)>, PeerMisbehaved> {
    let mut from = Reader { bytes: packet };
    let (kind, slots, offset) = (from.u32(), from.u32(), from.u64());
    if kind == WORDS {
        let area = mirror.known_area(offset).ok_or(PeerMisbehaved::Frame("words for an unknown ring"))?;
        let mut filling = area.filling.lock();
        let parcel = filling.parcel.take().ok_or(PeerMisbehaved::Frame("words without a slot"))?;
        return add(mirror, &area, &mut filling, parcel, from.bytes);
    }
    if !ring::SLOTS_RANGE.contains(&slots) || !slots.is_power_of_two() {
        return Err(PeerMisbehaved::Frame("impossible ring"));
    }
    let area = mirror.area(offset, area::words(slots))?;
    if kind == CURSOR {
        if from.bytes.len() != 8 {
            return Err(PeerMisbehaved::Frame("wrong length"));
        }
        ring::set_cursor(&area.words, from.u64());
        return Ok(Some((area.words.address(), Knock::EMPTIED)));
    }
    if packet.len() < HEAD + 64 {
        return Err(PeerMisbehaved::Frame("wrong length"));
    }
    let slot: Payload = std::array::from_fn(|_| from.u64());
    let words = from.u64();
    let mut filling = area.filling.lock();
    if filling.parcel.is_some() {
        return Err(PeerMisbehaved::Frame("a slot before the words of the last"));
    }
    match Descriptor::from_words(slot)? {
        Descriptor::Message(envelope) if envelope.lent_as().is_some() => {
            let parcel = mirror.begin(slot, words)?;
            add(mirror, &area, &mut filling, parcel, from.bytes)
        }
        _ if words == 0 && from.bytes.is_empty() => Ok(Some(put(&area, &mut filling, &slot))),
        _ => Err(PeerMisbehaved::Frame("words for a slot that names none")),
    }
}

fn add(
    mirror: &Mirror,
    area: &Area,
    filling: &mut Filling,
    mut parcel: Parcel,
    bytes: &[u8],
) -> Result<Option<(usize, Knock)>, PeerMisbehaved> {
    if !bytes.len().is_multiple_of(8) {
        return Err(PeerMisbehaved::Frame("not whole words"));
    }
    if !parcel.add(bytes)? {
        filling.parcel = Some(parcel);
        return Ok(None);
    }
    let Descriptor::Message(envelope) = Descriptor::from_words(parcel.slot)? else { return Ok(None) };
    let Some(handle) = envelope.lent_as() else { return Ok(None) };
    let (segments, blobs) = (usize::from(envelope.segments()), usize::from(envelope.blobs()));
    let entries = (segments != 1 || blobs > 0).then_some((segments, blobs));
    let handle = mirror.keep(parcel, handle, entries)?;
    let slot = Descriptor::Message(envelope.renamed(handle, envelope.returned())).to_words();
    Ok(Some(put(area, filling, &slot)))
}

fn put(area: &Area, filling: &mut Filling, slot: &Payload) -> (usize, Knock) {
    ring::fill(&area.words, filling.filled, slot);
    filling.filled = filling.filled.wrapping_add(1);
    (area.words.address(), Knock::FILLED)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(kind: u32, slots: u32, offset: u64, words: &[u64]) -> Vec<u8> {
        let mut packet = [kind.to_le_bytes(), slots.to_le_bytes()].concat();
        packet.extend(offset.to_le_bytes());
        packet.extend(words.iter().flat_map(|word| word.to_le_bytes()));
        packet
    }

    /// A message of `words` words in one segment, of which some come at once.
    fn slot(ticket: u32, words: u64, at_once: u64) -> Vec<u8> {
        let [low, high] = Handle::new(9, 512, words.max(1), ticket).to_words();
        let mut all = vec![1 | 1 << 16, 1, 0, low, high, 0, 0, words];
        all.extend((0..at_once).map(|word| word + 100));
        packet(SLOT, 4, 0, &all)
    }

    fn mirror() -> Arc<Mirror> {
        Mirror::new(9, 1 << 20).unwrap()
    }

    #[test]
    fn what_comes_in_pieces_is_laid_out_as_one() {
        let mirror = mirror();
        let theirs = mirror.claim(0, area::words(4)).unwrap();
        take_in(&mirror, &slot(7, 6, 2)).unwrap();
        assert_eq!(theirs.peek(area::SLOTS + 7), 0, "not all of it is here");
        take_in(&mirror, &packet(WORDS, 0, 0, &[102, 103, 104])).unwrap();
        take_in(&mirror, &packet(WORDS, 0, 0, &[105])).unwrap();
        assert_eq!(theirs.acquire(area::SLOTS + 7), 1);
        let handle = Handle::from_words([3, 4].map(|word| theirs.peek(area::SLOTS + word))).unwrap();
        assert_eq!((handle.len(), handle.ticket()), (6, 7));
        assert_eq!(mirror.give_up(handle), Some(Handle::new(9, 512, 6, 7)));
        assert_eq!(mirror.give_up(handle), None);
        take_in(&mirror, &packet(CURSOR, 4, 0, &[3])).unwrap();
        assert_eq!(theirs.acquire(area::CURSOR), 3);
    }

    #[test]
    fn packets_out_of_order_are_misbehaviour() {
        let begun = || {
            let mirror = mirror();
            take_in(&mirror, &slot(7, 6, 2)).unwrap();
            mirror
        };
        let broken = |mirror: &Mirror, packet: &[u8]| {
            let found = take_in(mirror, packet);
            assert!(found.is_err(), "{packet:?}");
        };
        broken(&mirror(), &packet(WORDS, 0, 0, &[1]));
        broken(&mirror(), &packet(WORDS, 0, 4096, &[1]));
        broken(&begun(), &slot(8, 6, 2));
        broken(&begun(), &packet(WORDS, 0, 0, &[0; 5]));
        broken(&begun(), &packet(WORDS, 0, 0, &[0; 2])[..HEAD + 9]);
        broken(&begun(), &packet(CURSOR, 8, 0, &[1]));
        broken(&begun(), &packet(CURSOR, 4, 0, &[1, 2]));
        broken(&mirror(), &slot(1, 6, 7));
        broken(&mirror(), &slot(1, 0, 0));
        broken(&mirror(), &slot(1, 3 << 16 | 1, 0));
        broken(&mirror(), &slot(1, u64::from(u32::MAX), 0));
        // The same loan twice.
        let twice = mirror();
        take_in(&twice, &slot(5, 1, 1)).unwrap();
        broken(&twice, &slot(5, 1, 1));
        // Another arena, a length that is not the bytes', rings that cannot be.
        let mut other = slot(1, 1, 1);
        other[HEAD + 24..HEAD + 40]
            .copy_from_slice(&Handle::new(8, 512, 1, 1).to_words().map(u64::to_le_bytes).concat());
        broken(&mirror(), &other);
        let mut other = slot(1, 1, 1);
        other[HEAD + 24..HEAD + 40]
            .copy_from_slice(&Handle::new(9, 512, 2, 1).to_words().map(u64::to_le_bytes).concat());
        broken(&mirror(), &other);
        for slots in [0, 1, 3, 1 << 17, u32::MAX] {
            broken(&mirror(), &packet(CURSOR, slots, 0, &[1]));
        }
        // More than there is room for.
        let full = mirror();
        let many = (0..100_000).find_map(|at| take_in(&full, &packet(CURSOR, 1 << 16, at * 4096, &[0])).err());
        assert!(many.is_some());
    }

    #[test]
    fn tables_are_rewritten_or_refused() {
        let message = |table: &[u64], body: usize, head: u64| {
            let words = (table.len() + body) as u64;
            let [low, high] = Handle::new(9, 512, table.len() as u64, 3).to_words();
            let mut all = vec![head, 1, 0, low, high, 0, 0, words];
            all.extend(table);
            all.extend(std::iter::repeat_n(7, body));
            take_in(&mirror(), &packet(SLOT, 4, 0, &all))
        };
        let two = 1 | 2 << 16;
        assert!(message(&[1, 4, 2, 5], 9, two).is_ok());
        for lie in [[1, 4, 2, 6], [1, 4, 2, 4], [1, u64::MAX, 2, 5], [1, 5, 2, u64::MAX]] {
            assert!(message(&lie, 9, two).is_err(), "{lie:?}");
        }
        let with_blob = 1 | 1 << 16 | 1 << 32;
        assert!(message(&[1, 4, 2, 33], 9, with_blob).is_ok());
        assert!(message(&[1, 4, 2, 0], 4, with_blob).is_ok());
        assert!(message(&[1, 4, 2, 41], 9, with_blob).is_err());
        assert!(message(&[1, 4, 2, u64::MAX], 9, with_blob).is_err());
        assert!(message(&[1, 4], 9, 1 | 700 << 16).is_err());
    }

    #[test]
    fn no_packet_can_panic_the_reader() {
        let good = slot(1, 2, 2);
        for at in 0..good.len() {
            for value in 0..=255 {
                let mut bent = good.clone();
                bent[at] = value;
                if is_packet(&bent) {
                    let _ = take_in(&SHARED, &bent);
                }
            }
            let _ = take_in(&SHARED, &good[..at]);
        }
    }

    static SHARED: std::sync::LazyLock<Arc<Mirror>> = std::sync::LazyLock::new(mirror);
}
