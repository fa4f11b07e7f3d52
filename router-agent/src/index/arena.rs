//! Records that readers reach by number while the writer adds more: chunks that are made once and never move or go.

use std::sync::OnceLock;

use prefetch_index::prefetch_index;

/// Records per chunk.
#[cfg(not(shuttle))]
const CHUNK: usize = 1024;
#[cfg(shuttle)]
const CHUNK: usize = 4;

/// See the module.
pub(super) struct Arena<T> {
    chunks: Box<[OnceLock<Box<[T]>>]>,
}

impl<T: Default> Arena<T> {
    /// Room for at least so many records; only the directory (24 bytes per chunk) is allocated now.
    pub(super) fn new(records_max: usize) -> Self {
        let chunks = records_max.min(u32::MAX as usize).div_ceil(CHUNK);
        Self { chunks: (0..chunks).map(|_| OnceLock::new()).collect() }
    }

    /// The record, if the writer has ever made room for it.
    pub(super) fn get(&self, id: u32) -> Option<&T> {
        self.chunks.get(id as usize / CHUNK)?.get()?.get(id as usize % CHUNK)
    }

    /// Has the line of the record so many numbers behind this one fetched. What lies beyond the chunk is not there: a
    /// prefetch of such an address does nothing.
    pub(super) fn prefetch(&self, id: u32, behind: usize) {
        if let Some(chunk) = self.chunks.get(id as usize / CHUNK).and_then(OnceLock::get) {
            prefetch_index(chunk, id as usize % CHUNK + behind);
        }
    }

    /// Makes the record exist; says whether there is room for it.
    pub(super) fn ensure(&self, id: u32) -> bool {
        let Some(chunk) = self.chunks.get(id as usize / CHUNK) else { return false };
        chunk.get_or_init(|| (0..CHUNK).map(|_| T::default()).collect());
        true
    }

    /// Memory of the directory.
    pub(super) fn directory_bytes(&self) -> usize {
        size_of_val(&*self.chunks)
    }
}
