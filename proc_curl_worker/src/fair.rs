//! Who is next: clients in turn, each client's requests in order. Pure.

use std::collections::{BTreeMap, VecDeque};

/// A queue of many clients.
#[derive(Debug, Default)]
pub(crate) struct Fair {
    waiting: BTreeMap<u64, VecDeque<usize>>,
    /// Whose turn was the last.
    last: u64,
    len: usize,
}

impl Fair {
    pub(crate) fn push(&mut self, client: u64, item: usize) {
        self.waiting.entry(client).or_default().push_back(item);
        self.len += 1;
    }

    /// The next item of the client after the one whose turn was the last.
    pub(crate) fn pop(&mut self) -> Option<usize> {
        let next = self.waiting.range(self.last.wrapping_add(1)..).next().or_else(|| self.waiting.iter().next());
        let client = *next?.0;
        let queue = self.waiting.get_mut(&client)?;
        let item = queue.pop_front();
        if queue.is_empty() {
            self.waiting.remove(&client);
        }
        (self.last, self.len) = (client, self.len - 1);
        item
    }

    /// Forgets one.
    pub(crate) fn remove(&mut self, client: u64, item: usize) {
        let Some(queue) = self.waiting.get_mut(&client) else { return };
        let before = queue.len();
        queue.retain(|found| *found != item);
        self.len -= before - queue.len();
        if queue.is_empty() {
            self.waiting.remove(&client);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn len_of(&self, client: u64) -> usize {
        self.waiting.get(&client).map_or(0, VecDeque::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_with_many_requests_holds_nobody_up() {
        let mut fair = Fair::default();
        for item in 0..4 {
            fair.push(7, item);
        }
        fair.push(u64::MAX, 10);
        fair.push(1, 20);
        fair.remove(7, 1);
        let order: Vec<_> = std::iter::from_fn(|| fair.pop()).collect();
        assert_eq!(order, [20, 0, 10, 2, 3]);
        assert_eq!((fair.len(), fair.len_of(7)), (0, 0));
    }
}
