//! The `prefixes` map: the prompt prefixes that most requests share, and who holds them.
//!
//! A sample of the prefix index, made anew every second or so by the control thread: one entry per stretch of blocks
//! that the same workers hold, at most [`PREFIXES_MAX`](crate::limits::PREFIXES_MAX), the most used first (uses count
//! half for every minute since the last one). The key is the hash of the stretch's last block, which names the whole
//! prompt up to there.

use crate::{bytes::map_value, limits::PREFIX_WORKER_WORDS};

map_value! {
    /// One prefix.
    pub struct PrefixValue {
        /// The key of the stretch before this one, if that is in the index; 0 at the beginning of a prompt.
        pub parent_hash: u64,
        /// Requests that went through this stretch since it was first stored. One that grows keeps its count.
        pub hits: u64,
        /// `CLOCK_MONOTONIC` of the last of them, nanoseconds, to within the interval of publishing.
        pub last_used_ns: u64,
        /// Who holds it: bit `w % 64` of word `w / 64` is worker `w`, a key in `workers`. Workers from 256 on are not shown.
        pub workers: [u64; PREFIX_WORKER_WORDS],
        /// Blocks from the beginning of the prompt to the end of this stretch.
        pub depth_blocks: u32,
        /// Blocks of this stretch alone.
        pub own_blocks: u32,
    }
}
