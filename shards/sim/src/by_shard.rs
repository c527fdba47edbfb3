//! Something for each shard that lives, of both processes, in the order of their indices.

use std::collections::{BTreeMap, btree_map};
use std::ops::{Index, IndexMut};

use tollgate_shards::ShardIndex;

#[derive(Debug)]
pub struct ByShard<T>(BTreeMap<u16, T>);

impl<T> ByShard<T> {
    pub fn indices(&self) -> Vec<u16> {
        self.0.keys().copied().collect()
    }

    pub fn has(&self, shard: ShardIndex) -> bool {
        self.0.contains_key(&shard.0)
    }

    pub fn get(&self, shard: ShardIndex) -> Option<&T> {
        self.0.get(&shard.0)
    }

    pub fn get_mut(&mut self, shard: ShardIndex) -> Option<&mut T> {
        self.0.get_mut(&shard.0)
    }

    pub fn insert(&mut self, shard: ShardIndex, it: T) {
        self.0.insert(shard.0, it);
    }

    pub fn remove(&mut self, shard: ShardIndex) -> Option<T> {
        self.0.remove(&shard.0)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> btree_map::Values<'_, u16, T> {
        self.0.values()
    }

    pub fn iter_mut(&mut self) -> btree_map::ValuesMut<'_, u16, T> {
        self.0.values_mut()
    }

    pub fn into_values(self) -> impl Iterator<Item = T> {
        self.0.into_values()
    }
}

impl<T> Default for ByShard<T> {
    fn default() -> Self {
        ByShard(BTreeMap::new())
    }
}

/// Those of the first process.
impl<T> FromIterator<T> for ByShard<T> {
    fn from_iter<I: IntoIterator<Item = T>>(all: I) -> Self {
        ByShard((0..).zip(all).collect())
    }
}

impl<T> Index<usize> for ByShard<T> {
    type Output = T;

    fn index(&self, index: usize) -> &T {
        &self.0[&(index as u16)]
    }
}

impl<T> IndexMut<usize> for ByShard<T> {
    fn index_mut(&mut self, index: usize) -> &mut T {
        self.0.get_mut(&(index as u16)).expect("a shard that lives")
    }
}

impl<'a, T> IntoIterator for &'a ByShard<T> {
    type Item = &'a T;
    type IntoIter = btree_map::Values<'a, u16, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<'a, T> IntoIterator for &'a mut ByShard<T> {
    type Item = &'a mut T;
    type IntoIter = btree_map::ValuesMut<'a, u16, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter_mut()
    }
}
