//! Things by number, found, added and removed at once. A number is never used again for something else.

/// What a source is called in its loop. Of no use in any other loop.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Token(pub(super) u64);

/// See the module's own words.
#[derive(Debug)]
pub(super) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place<T> {
    /// How often it was used.
    generation: u32,
    thing: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Adds what is made of its own token.
    pub(super) fn insert_with(&mut self, make: impl FnOnce(Token) -> T) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place { generation: 0, thing: None });
            // As many as fit memory, which is fewer.
            (self.places.len() - 1) as u32
        });
        let generation = self.places.get(index as usize).map_or(0, |place| place.generation);
        let token = Token(u64::from(generation) << 32 | u64::from(index));
        let thing = make(token);
        if let Some(place) = self.places.get_mut(index as usize) {
            place.thing = Some(thing);
        }
        token
    }

    pub(super) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let place = self.places.get_mut(token.0 as u32 as usize)?;
        if u64::from(place.generation) == token.0 >> 32 { place.thing.as_mut() } else { None }
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<T> {
        self.get_mut(token)?;
        let index = token.0 as u32;
        let place = self.places.get_mut(index as usize)?;
        // Four thousand million uses, and the place is left alone.
        if let Some(next) = place.generation.checked_add(1) {
            place.generation = next;
            self.free.push(index);
        }
        place.thing.take()
    }

    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.free.clear();
        std::mem::take(&mut self.places).into_iter().filter_map(|place| place.thing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_names_one_thing_ever() {
        let mut slab = Slab::default();
        let first = slab.insert_with(|_| "first");
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert_with(|_| "second");
        assert_ne!(first, second);
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut "second"));
        assert_eq!(slab.drain().collect::<Vec<_>>(), ["second"]);
    }
}
