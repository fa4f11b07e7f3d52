//! What a chunk of an event stream begins with, told by words of eight bytes.

use router_common::relay::ERROR_EVENT;

/// What a chunk begins with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begins {
    /// An [`ERROR_EVENT`].
    Error,
    Event,
    Other,
}

/// Where the last word of an [`ERROR_EVENT`] is in it.
pub(crate) const TAIL_AT: usize = ERROR_EVENT.len() - 8;

const HEAD: u64 = word(ERROR_EVENT, 0);
const TAIL: u64 = word(ERROR_EVENT, TAIL_AT);
/// `router_common::flows::EVENT_PREFIX`.
const PREFIX: u64 = word(b"data:\0\0\0", 0);
const PREFIX_MASK: u64 = word(&[0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0], 0);

/// By the chunk's first word, and the one at [`TAIL_AT`] if there is one.
#[inline(always)]
pub(crate) fn begins(head: u64, tail: impl FnOnce() -> Option<u64>) -> Begins {
    if head & PREFIX_MASK != PREFIX {
        Begins::Other
    } else if head == HEAD && tail() == Some(TAIL) {
        Begins::Error
    } else {
        Begins::Event
    }
}

const fn word<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    let mut word = [0; 8];
    let mut i = 0;
    while i < 8 {
        word[i] = bytes[at + i];
        i += 1;
    }
    u64::from_ne_bytes(word)
}
