//! Where an HTTP/1.1 response body ends on the wire: Content-Length and chunked (RFC 9112 sections 6 and 7.1).
//!
//! One scanner for both sides of the splice. User space feeds it slices ([`Framing::advance`]); the kernel programs,
//! which may not hold a slice, skip data in bulk ([`Framing::skippable`], [`Framing::skip`]) and step through the few
//! bytes of framing between ([`Framing::step`]). The state is 16 bytes without padding, every bit pattern of it is
//! valid, and it is plain data: it lies in a BPF map while a response moves from one side to the other.
//!
//! The grammar is that of hyper's decoder, held against it in `tests/framing.rs`, and a little stricter where
//! leniency would let two readers disagree: a bare LF ends nothing, not even a trailer line. What the scanner never
//! does is to find the end later than hyper, or at another byte: bytes after the end belong to nobody.
//!
//! Cost: data is skipped without being looked at; about 1 ns per byte of framing.

use crate::bytes::map_value;

/// Bytes of chunk extensions in one body, and of its trailers, that are passed on; hyper's own limits.
pub const OVERHEAD_BYTES_MAX: u32 = 16 * 1024;

map_value! {
    /// The state between two bytes of a body.
    pub struct Framing {
        /// Data bytes left in the body or the chunk; while a chunk's size is being read, that size so far.
        pub remaining: u64,
        /// One of the states below; any other number is [`BROKEN`].
        pub state: u32,
        /// Bytes of chunk extensions so far, from the last chunk on of trailers.
        pub overhead: u32,
    }
}

/// Inside a Content-Length body.
pub const LENGTH: u32 = 0;
/// Before the first digit of a chunk's size: the only state in which something may be put between two chunks.
pub const SIZE_START: u32 = 1;
/// After a digit of a chunk's size.
pub const SIZE: u32 = 2;
/// In white space after a chunk's size.
pub const SIZE_SPACE: u32 = 3;
/// In a chunk extension.
pub const EXTENSION: u32 = 4;
/// After the CR of a chunk's size line.
pub const SIZE_LF: u32 = 5;
/// In a chunk's data.
pub const DATA: u32 = 6;
/// After a chunk's data.
pub const DATA_CR: u32 = 7;
/// After the CR that follows a chunk's data.
pub const DATA_LF: u32 = 8;
/// At the start of a trailer line, or of the empty line that ends the body.
pub const TRAILER_START: u32 = 9;
/// In a trailer line.
pub const TRAILER: u32 = 10;
/// After the CR of a trailer line.
pub const TRAILER_LF: u32 = 11;
/// After the CR of the empty line.
pub const END_LF: u32 = 12;
/// The body is complete.
pub const DONE: u32 = 13;
/// Not chunked framing; nothing can be said of what follows.
pub const BROKEN: u32 = 14;

impl Framing {
    /// A body with `Content-Length: length`.
    pub const fn length(length: u64) -> Self {
        Self { remaining: length, state: if length == 0 { DONE } else { LENGTH }, overhead: 0 }
    }

    /// A body with `Transfer-Encoding: chunked`.
    pub const fn chunked() -> Self {
        Self { remaining: 0, state: SIZE_START, overhead: 0 }
    }

    /// The last byte of the body has been seen.
    #[inline]
    pub const fn is_done(&self) -> bool {
        self.state == DONE
    }

    /// The bytes were not what they should be.
    #[inline]
    pub const fn is_broken(&self) -> bool {
        self.state >= BROKEN
    }

    /// Nothing more will be taken: done or broken.
    #[inline]
    pub const fn is_over(&self) -> bool {
        self.state >= DONE
    }

    /// Between two chunks, where a chunk of one's own may be put.
    pub const fn is_between_chunks(&self) -> bool {
        self.state == SIZE_START
    }

    /// How many bytes from here on are data, not to be looked at; 0: the next byte goes to [`Framing::step`].
    #[inline]
    pub const fn skippable(&self) -> u64 {
        if self.state == LENGTH || self.state == DATA { self.remaining } else { 0 }
    }

    /// Passes over `bytes` of data; at most as many as are [skippable](Framing::skippable).
    #[inline]
    pub const fn skip(&mut self, bytes: u64) {
        self.remaining = self.remaining.saturating_sub(bytes);
        if self.remaining == 0 {
            self.state = if self.state == LENGTH { DONE } else { DATA_CR };
        }
    }

    /// Takes one byte of framing (or of data, which [`Framing::skip`] does faster).
    #[inline]
    pub const fn step(&mut self, byte: u8) {
        self.state = match self.state {
            LENGTH | DATA => {
                self.skip(1);
                self.state
            }
            SIZE_START => self.digit(byte, BROKEN),
            SIZE => match byte {
                b'\r' => SIZE_LF,
                b' ' | b'\t' => SIZE_SPACE,
                b';' => EXTENSION,
                _ => self.digit(byte, BROKEN),
            },
            SIZE_SPACE => match byte {
                b'\r' => SIZE_LF,
                b' ' | b'\t' => SIZE_SPACE,
                b';' => EXTENSION,
                _ => BROKEN,
            },
            EXTENSION => match byte {
                b'\r' => SIZE_LF,
                b'\n' => BROKEN,
                _ => self.pass_over(EXTENSION),
            },
            SIZE_LF => match byte {
                b'\n' if self.remaining > 0 => DATA,
                b'\n' => {
                    self.overhead = 0;
                    TRAILER_START
                }
                _ => BROKEN,
            },
            DATA_CR => after(byte, b'\r', DATA_LF),
            DATA_LF => after(byte, b'\n', SIZE_START),
            TRAILER_START => match byte {
                b'\r' => END_LF,
                b'\n' => BROKEN,
                _ => self.pass_over(TRAILER),
            },
            TRAILER => match byte {
                b'\r' => self.pass_over(TRAILER_LF),
                b'\n' => BROKEN,
                _ => self.pass_over(TRAILER),
            },
            TRAILER_LF => after(byte, b'\n', self.pass_over(TRAILER_START)),
            END_LF => after(byte, b'\n', DONE),
            _ => BROKEN,
        };
    }

    /// Takes bytes until the body is over or they are; says how many of them belong to the body.
    ///
    /// A byte at which the framing breaks is not counted: neither it nor anything after it belongs to the body.
    pub fn advance(&mut self, bytes: &[u8]) -> usize {
        self.advance_with(bytes, |_| ())
    }

    /// As [`Framing::advance`], and shows each stretch of data as it passes.
    pub fn advance_with<'a>(&mut self, bytes: &'a [u8], mut data: impl FnMut(&'a [u8])) -> usize {
        let mut at = 0;
        while at < bytes.len() && !self.is_over() {
            let skippable = self.skippable();
            if skippable > 0 {
                let here = usize::try_from(skippable).unwrap_or(usize::MAX).min(bytes.len() - at);
                data(&bytes[at..at + here]);
                self.skip(here as u64);
                at += here;
            } else {
                self.step(bytes[at]);
                at += usize::from(!self.is_broken());
            }
        }
        at
    }

    #[inline]
    const fn digit(&mut self, byte: u8, otherwise: u32) -> u32 {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            _ => return otherwise,
        };
        if self.remaining >> 60 != 0 {
            return BROKEN; // the size does not fit: no honest server has such chunks
        }
        self.remaining = (self.remaining << 4) | digit as u64;
        SIZE
    }

    #[inline]
    const fn pass_over(&mut self, next: u32) -> u32 {
        self.overhead += 1;
        if self.overhead >= OVERHEAD_BYTES_MAX { BROKEN } else { next }
    }
}

#[inline]
const fn after(byte: u8, expected: u8, next: u32) -> u32 {
    if byte == expected { next } else { BROKEN }
}
