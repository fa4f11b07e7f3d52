//! Numbered records of the writer alone: chunks that never move, and places that are used again.

use std::ops::{Index, IndexMut};

const CHUNK: usize = 1024;

/// See the module.
pub(super) struct Slab<T> {
    chunks: Vec<Vec<T>>,
    free: Vec<u32>,
    live: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { chunks: Vec::new(), free: Vec::new(), live: 0 }
    }
}

impl<T: Default> Slab<T> {
    /// A number that is not in use. The record is as it was left when it was freed.
    pub(super) fn alloc(&mut self) -> u32 {
        self.live += 1;
        if let Some(id) = self.free.pop() {
            return id;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            self.chunks.push(Vec::with_capacity(CHUNK));
        }
        let first = (self.chunks.len() - 1) * CHUNK;
        let chunk = self.chunks.last_mut().expect("a chunk with room was just seen to");
        chunk.push(T::default());
        (first + chunk.len() - 1) as u32
    }

    pub(super) fn free(&mut self, id: u32) {
        self.live -= 1;
        self.free.push(id);
    }

    /// Records in use.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// Numbers given out so far, freed ones included.
    pub(super) fn end(&self) -> u32 {
        (self.live + self.free.len()) as u32
    }
}

impl<T> Index<u32> for Slab<T> {
    type Output = T;

    fn index(&self, id: u32) -> &T {
        &self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }
}

impl<T> IndexMut<u32> for Slab<T> {
    fn index_mut(&mut self, id: u32) -> &mut T {
        &mut self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }
}
