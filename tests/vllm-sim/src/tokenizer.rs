//! A pseudo tokeniser: four bytes of UTF-8 are one token, and a fixed ChatML-like template.
//!
//! What it promises to a router under test:
//! - *Prefix stable per segment*: a text is cut every four bytes from its own start, so a longer text with the same
//!   beginning has the same leading tokens (but for a last one shorter than four bytes).
//! - *Conversations line up*: each message's content is its own segment, and every generated token is exactly four
//!   bytes of ASCII, so a follow-up turn that sends the generated text back tokenises to the ids that were generated,
//!   as happens on a real server whose template is stable.
//! - Ids depend on the bytes alone: equal on every worker, whatever its seed.

use crate::rng::mix64;

/// `<|im_start|>`.
pub const IM_START: u32 = 1;
/// `<|im_end|>`, also the end-of-sequence token.
pub const IM_END: u32 = 2;
const SPECIAL_TOKENS: u32 = 3;
/// Bytes per token.
pub const TOKEN_BYTES: usize = 4;
/// Tokens that one image stands for.
const IMAGE_TOKENS: u64 = 64;

/// Cuts text into token ids below `vocab_size`.
#[derive(Clone, Copy, Debug)]
pub struct Tokenizer {
    vocab_size: u32,
}

impl Tokenizer {
    /// `vocab_size` must leave room for the special tokens.
    pub fn new(vocab_size: u32) -> Self {
        Self { vocab_size: vocab_size.max(SPECIAL_TOKENS + 1) }
    }

    pub fn vocab_size(self) -> u32 {
        self.vocab_size
    }

    /// The id of one piece of at most four bytes.
    pub fn id(self, piece: &[u8]) -> u32 {
        let mut word = [0; TOKEN_BYTES];
        word[..piece.len()].copy_from_slice(piece);
        // Murmur3's finaliser: a bijection of 32 bits, so ids collide only through the modulus.
        let mut h = u32::from_le_bytes(word) ^ (piece.len() as u32) << 30;
        h ^= h >> 16;
        h = h.wrapping_mul(0x85eb_ca6b);
        h ^= h >> 13;
        h = h.wrapping_mul(0xc2b2_ae35);
        h ^= h >> 16;
        h % (self.vocab_size - SPECIAL_TOKENS) + SPECIAL_TOKENS
    }

    /// Appends the ids of `text` as one segment.
    pub fn encode(self, text: &str, ids: &mut Vec<u32>) {
        let bytes = text.as_bytes();
        ids.reserve(bytes.len() / TOKEN_BYTES + 1);
        ids.extend(bytes.chunks(TOKEN_BYTES).map(|piece| self.id(piece)));
    }

    /// Tokens that [`Tokenizer::encode`] would append.
    pub fn count(text: &str) -> usize {
        text.len().div_ceil(TOKEN_BYTES)
    }

    /// Appends one chat message, from its opening token to the line end after its closing one.
    pub fn open_message(self, role: &str, ids: &mut Vec<u32>) {
        ids.push(IM_START);
        self.encode(&format!("{role}\n"), ids);
    }

    /// Ends what [`Tokenizer::open_message`] began.
    pub fn close_message(self, ids: &mut Vec<u32>) {
        ids.push(IM_END);
        self.encode("\n", ids);
    }

    /// Appends the placeholder tokens of an image, audio clip or video, which depend on its URL or data.
    pub fn encode_media(self, source: &str, ids: &mut Vec<u32>) {
        let key = xxhash_rust::xxh3::xxh3_64(source.as_bytes());
        for i in 0..IMAGE_TOKENS {
            let h = mix64(key ^ mix64(i));
            ids.push((h % u64::from(self.vocab_size - SPECIAL_TOKENS)) as u32 + SPECIAL_TOKENS);
        }
    }
}

/// The words that the simulated model says: four ASCII bytes each, none of which JSON escapes.
///
/// Word `i` is a consonant-vowel pair twice, or a space and three letters, so that the text looks like text.
pub fn word(index: u64) -> [u8; TOKEN_BYTES] {
    const CONSONANTS: &[u8; 16] = b"bcdfghklmnprstvz";
    const VOWELS: &[u8; 4] = b"aeio";
    let c = |shift: u32| CONSONANTS[(index >> shift) as usize & 15];
    let v = |shift: u32| VOWELS[(index >> shift) as usize & 3];
    if index >> 12 & 1 == 0 { [b' ', c(0), v(4), c(6)] } else { [c(0), v(4), c(6), v(10)] }
}

/// Number of distinct arguments of [`word`].
pub const WORDS: u64 = 1 << 13;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_text_keeps_the_tokens_of_its_beginning() {
        let tokenizer = Tokenizer::new(151_936);
        let (mut short, mut long) = (Vec::new(), Vec::new());
        tokenizer.encode("The quick brown fox jump", &mut short);
        tokenizer.encode("The quick brown fox jumps over", &mut long);
        assert_eq!(short.len(), 6);
        assert_eq!(short, long[..6]);
    }

    #[test]
    fn a_partial_piece_is_not_the_padded_one() {
        let tokenizer = Tokenizer::new(151_936);
        assert_ne!(tokenizer.id(b"ab"), tokenizer.id(b"ab\0\0"));
    }

    #[test]
    fn words_are_four_plain_ascii_bytes_and_ids_stay_below_the_vocabulary() {
        let tokenizer = Tokenizer::new(2048);
        for index in 0..WORDS {
            let word = word(index);
            assert!(word.iter().all(|b| *b == b' ' || b.is_ascii_lowercase()));
            assert!((SPECIAL_TOKENS..2048).contains(&tokenizer.id(&word)));
        }
    }
}
