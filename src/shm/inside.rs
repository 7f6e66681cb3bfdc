//! What came inside its slots rather than on loan: a few words in private memory, which each thread keeps for the next
//! that come. Knows no slots.

use std::cell::Cell;

/// The longest message that may cross without being lent, in words.
pub(crate) const INSIDE_WORDS: usize = 25;

/// The words of a message that came inside its slots.
#[derive(Debug)]
pub(crate) struct Inside(Option<Box<Words>>);

#[derive(Debug)]
struct Words {
    words: [u64; INSIDE_WORDS],
    count: usize,
    next: Option<Box<Words>>,
}

impl Inside {
    /// Of `count` words, [`INSIDE_WORDS`] at most; whatever they are, to be written.
    #[inline]
    pub(crate) fn new(count: usize) -> Self {
        let spare = SPARE.try_with(|spare| {
            let mut taken = spare.words.take()?;
            spare.words.set(taken.next.take());
            spare.count.set(spare.count.get().saturating_sub(1));
            Some(taken)
        });
        let mut words = match spare {
            Ok(Some(words)) => words,
            _ => Box::new(Words { words: [0; INSIDE_WORDS], count: 0, next: None }),
        };
        words.count = count.min(INSIDE_WORDS);
        Self(Some(words))
    }

    #[inline]
    pub(crate) fn words(&self) -> &[u64] {
        self.0.as_ref().and_then(|inside| inside.words.get(..inside.count)).unwrap_or_default()
    }

    #[inline]
    pub(crate) fn words_mut(&mut self) -> &mut [u64] {
        self.0.as_mut().and_then(|inside| inside.words.get_mut(..inside.count)).unwrap_or_default()
    }
}

impl Drop for Inside {
    #[inline]
    fn drop(&mut self) {
        let Some(mut words) = self.0.take() else { return };
        // In a thread that is ending they are freed.
        let _ = SPARE.try_with(|spare| {
            if spare.count.get() < SPARES {
                words.next = spare.words.take();
                spare.words.set(Some(words));
                spare.count.set(spare.count.get().saturating_add(1));
            }
        });
    }
}

/// As many as a thread keeps: as many as are received together.
const SPARES: u32 = 64;

struct Spare {
    words: Cell<Option<Box<Words>>>,
    count: Cell<u32>,
}

thread_local! {
    static SPARE: Spare = const { Spare { words: Cell::new(None), count: Cell::new(0) } };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_words_as_asked_for() {
        for count in 0..=INSIDE_WORDS {
            let mut inside = Inside::new(count);
            inside.words_mut().fill(7);
            assert_eq!(inside.words(), vec![7; count]);
        }
        assert_eq!(Inside::new(INSIDE_WORDS + 1).words().len(), INSIDE_WORDS);
    }

    #[test]
    fn a_thread_keeps_some_and_not_more() {
        let kept = || SPARE.with(|spare| spare.count.get());
        let many: Vec<_> = (0..100).map(|_| Inside::new(1)).collect();
        assert_eq!(kept(), 0);
        drop(many);
        assert_eq!(kept(), SPARES);
        let one = Inside::new(3);
        assert_eq!(kept(), SPARES - 1);
        std::thread::spawn(move || drop(one)).join().unwrap();
        assert_eq!(kept(), SPARES - 1);
    }
}
