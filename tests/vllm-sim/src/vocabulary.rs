//! Ids back to text, for `/detokenize`: the simulated tokenizer only hashes, so what it once cut is remembered.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::tokenizer::{IM_END, IM_START, TOKEN_BYTES, Tokenizer, WORDS, word};

/// Remembers the text of ids: the model's own words always, other pieces once `/tokenize` has cut them.
pub(crate) struct Vocabulary {
    tokenizer: Tokenizer,
    pieces: Mutex<HashMap<u32, Vec<u8>>>,
}

/// Pieces remembered; after that, forgotten all at once.
const PIECES_MAX: usize = 1 << 18;

impl Vocabulary {
    pub(crate) fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, pieces: Mutex::default() }
    }

    pub(crate) fn tokenizer(&self) -> Tokenizer {
        self.tokenizer
    }

    /// Remembers the pieces of a text.
    pub(crate) fn learn(&self, text: &str) {
        let mut pieces = self.pieces.lock();
        if pieces.len() > PIECES_MAX {
            pieces.clear();
        }
        if pieces.is_empty() {
            pieces.extend((0..WORDS).map(|index| (self.tokenizer.id(&word(index)), word(index).to_vec())));
        }
        for piece in text.as_bytes().chunks(TOKEN_BYTES) {
            pieces.insert(self.tokenizer.id(piece), piece.to_vec());
        }
    }

    /// The text of some ids; an unknown one is some word.
    pub(crate) fn text(&self, ids: &[u32]) -> String {
        self.learn("");
        let pieces = self.pieces.lock();
        let mut bytes = Vec::with_capacity(ids.len() * TOKEN_BYTES);
        for id in ids {
            match (*id, pieces.get(id)) {
                (IM_START, _) => bytes.extend_from_slice(b"<|im_start|>"),
                (IM_END, _) => bytes.extend_from_slice(b"<|im_end|>"),
                (_, Some(piece)) => bytes.extend_from_slice(piece),
                (id, None) => bytes.extend_from_slice(&word(u64::from(id) % WORDS)),
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_tokenised_comes_back() {
        let vocabulary = Vocabulary::new(Tokenizer::new(151_936));
        let text = "def main(args):\n    return 0";
        vocabulary.learn(text);
        let mut ids = Vec::new();
        vocabulary.tokenizer().encode(text, &mut ids);
        assert_eq!(vocabulary.text(&ids), text);
        assert_eq!(vocabulary.text(&[IM_START, IM_END]), "<|im_start|><|im_end|>");
    }
}
