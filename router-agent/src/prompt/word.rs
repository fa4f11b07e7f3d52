//! Eight bytes at a time, in one register, without vector instructions and so without `unsafe`.

const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// The high bit of every byte of `word` that is `byte`; exact up to and including the first one that is set.
pub(super) const fn equal(word: u64, byte: u8) -> u64 {
    let x = word ^ (LOW * byte as u64);
    x.wrapping_sub(LOW) & !x & HIGH
}

/// As [`equal`], for the bytes that are below `limit` (at most 0x80).
pub(super) const fn below(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(LOW * limit as u64) & !word & HIGH
}

/// Index of the first byte (of a word read little-endian) that is set; 8 if none is.
pub(super) const fn first_byte(set: u64) -> usize {
    set.trailing_zeros() as usize / 8
}
