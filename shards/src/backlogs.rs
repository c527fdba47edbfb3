//! Which connection has the longest queue, found without looking through all of them: connections are listed by the class of their queue's
//! length, and each class is a quarter of a power of two wide. So the one that is found is at least four fifths as long as the longest.
//!
//! Joining, leaving and finding take a few steps, however many connections there are.

/// Two bits of a length beside its leading one, for each of 64 leading ones.
const CLASSES: usize = 256;
const NONE: u32 = u32::MAX;

/// The connections with a queue, by slot.
#[derive(Debug)]
pub struct Backlogs {
    /// First slot of each class.
    first: Box<[u32; CLASSES]>,
    /// A bit for each class that has one.
    occupied: [u64; CLASSES / 64],
    places: Vec<Place>,
    steps: u64,
}

/// A slot's place in the list of its class. Class 0 has no list: those are the empty queues.
#[derive(Debug, Clone, Copy)]
struct Place {
    class: u8,
    previous: u32,
    next: u32,
}

const NOWHERE: Place = Place { class: 0, previous: NONE, next: NONE };

impl Default for Backlogs {
    fn default() -> Self {
        Backlogs { first: Box::new([NONE; CLASSES]), occupied: [0; CLASSES / 64], places: Vec::new(), steps: 0 }
    }
}

impl Backlogs {
    /// Takes note of how long the queue of the connection in `slot` is, in bytes.
    #[inline]
    pub fn set(&mut self, slot: u32, bytes: usize) {
        let class = class_of(bytes);
        if self.places.get(slot as usize).map_or(0, |place| place.class) != class {
            self.relink(slot, class);
        }
    }

    /// A connection with the longest queue.
    pub fn longest(&mut self) -> Option<u32> {
        self.steps += 1;
        let word = self.occupied.iter().rposition(|classes| *classes > 0)?;
        let class = word * 64 + self.occupied[word].ilog2() as usize;
        Some(self.first[class])
    }

    /// How often the longest was looked for, and how often a queue changed its class.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    #[cold]
    fn relink(&mut self, slot: u32, class: u8) {
        let index = slot as usize;
        if self.places.len() <= index {
            self.places.resize(index + 1, NOWHERE);
        }
        let Place { class: before, previous, next } = std::mem::replace(&mut self.places[index], NOWHERE);
        if before > 0 {
            match previous {
                NONE => self.set_first(before, next),
                previous => self.places[previous as usize].next = next,
            }
            if next != NONE {
                self.places[next as usize].previous = previous;
            }
        }
        if class > 0 {
            let next = self.first[usize::from(class)];
            self.places[index] = Place { class, previous: NONE, next };
            if next != NONE {
                self.places[next as usize].previous = slot;
            }
            self.set_first(class, slot);
        }
        self.steps += 1;
    }

    fn set_first(&mut self, class: u8, slot: u32) {
        self.first[usize::from(class)] = slot;
        let (word, bit) = (usize::from(class) / 64, 1 << (class % 64));
        if slot == NONE {
            self.occupied[word] &= !bit;
        } else {
            self.occupied[word] |= bit;
        }
    }
}

/// The position of the leading one, and the two bits behind it. Longer queues never have a lesser class.
#[inline]
fn class_of(bytes: usize) -> u8 {
    let bits = (usize::BITS - bytes.leading_zeros()).min(63);
    (bits as u8) << 2 | (bytes >> bits.saturating_sub(3)) as u8 & 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_is_found_to_a_fifth_whatever_changes() {
        let mut backlogs = Backlogs::default();
        let mut lengths = vec![0usize; 300];
        let mut random = 1u64;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let slot = (random >> 33) as usize % lengths.len();
            lengths[slot] = if random >> 62 == 0 { 0 } else { (random >> 20) as usize % (1 << (random >> 56 & 31)) };
            backlogs.set(slot as u32, lengths[slot]);
            let longest = lengths.iter().copied().max().unwrap_or_default();
            match backlogs.longest() {
                Some(found) => assert!(lengths[found as usize] * 5 >= longest * 4, "{found} of {lengths:?}"),
                None => assert_eq!(longest, 0),
            }
        }
    }

    #[test]
    fn classes_grow_with_lengths_and_only_the_empty_queue_has_none() {
        assert_eq!(class_of(0), 0);
        let lengths = (1..5000).chain((13..usize::BITS - 1).flat_map(|bits| [(1 << bits) - 1, 1 << bits]));
        let classes: Vec<u8> = lengths.map(class_of).collect();
        assert!(classes[0] > 0 && classes.is_sorted());
    }
}
