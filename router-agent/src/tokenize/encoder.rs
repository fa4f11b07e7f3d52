//! From text to token ids, piece by piece, with a cache of what pieces became.
//!
//! A text is cut where that is safe ([`super::cut`]); each piece's ids depend on the piece alone, so they are looked up by its
//! hash. A conversation's next turn has the pieces of the turn before and some new ones, and only those are tokenised: so
//! does every prompt with the same system text or tools, and a conversation whose middle was edited.

use std::{path::Path, sync::Arc};

use tokenizers::Tokenizer;
use xxhash_rust::xxh3::xxh3_128_with_seed;

use super::{
    LoadError, Unknown,
    cache::TokenCache,
    cut::{Cutter, Description},
};

/// A tokenizer, and what is known of it.
#[derive(Debug)]
pub(super) struct Encoder {
    tokenizer: Tokenizer,
    cutter: Cutter,
    /// What `add_special_tokens` puts around a text.
    around: (Vec<u32>, Vec<u32>),
    /// Sets this tokenizer's pieces apart from others' in the cache, and lets nobody foresee their hashes.
    seed: u64,
}

/// A text's token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// All of them.
    pub tokens: Arc<[u32]>,
    /// How many of them came from the cache.
    pub cached: usize,
}

impl Encoder {
    /// Reads a `tokenizer.json`.
    pub(super) fn load(path: &Path) -> Result<Self, LoadError> {
        let json = std::fs::read(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
        let format = |message: String| LoadError::Format { path: path.to_owned(), message };
        let mut tokenizer = Tokenizer::from_bytes(&json).map_err(|error| format(error.to_string()))?;
        // Settings of training, saved with it; nobody serves with them.
        tokenizer.with_padding(None).with_truncation(None).map_err(|error| format(error.to_string()))?;
        let description: Description =
            serde_json::from_slice(&json).map_err(|error| format(error.to_string()))?;
        let around = special_tokens_around(&tokenizer).ok_or_else(|| {
            format("its post-processor does more than to put tokens around a text".to_owned())
        })?;
        Ok(Self { tokenizer, cutter: Cutter::new(&description), around, seed: fastrand::u64(..) })
    }

    /// The ids of `text`, with the special tokens that the tokenizer puts around a text if it is asked to.
    pub(super) fn encode(&self, text: &str, special: bool, cache: &TokenCache) -> Result<Encoded, Unknown> {
        let pieces = self.cutter.pieces(text);
        let mut cached = 0;
        let mut ids = Vec::with_capacity(pieces.len());
        for (place, piece) in pieces.iter().enumerate() {
            let key = self.key(place, piece);
            if let Some(known) = cache.get(key) {
                cached += known.len();
                ids.push(known);
            } else {
                let new = self.piece(place, piece)?;
                cache.insert(key, new.clone());
                ids.push(new);
            }
        }
        let (before, behind) = &self.around;
        let mut tokens = Vec::with_capacity(text.len() / 2);
        tokens.extend(special.then_some(before).into_iter().flatten());
        for ids in &ids {
            tokens.extend_from_slice(ids);
        }
        tokens.extend(special.then_some(behind).into_iter().flatten());
        Ok(Encoded { tokens: tokens.into(), cached })
    }

    /// The ids of `text` in one go, without cuts and cache: what [`Encoder::encode`] must be equal to.
    pub(super) fn encode_whole(&self, text: &str, special: bool) -> Result<Vec<u32>, Unknown> {
        let encoding = self.tokenizer.encode_fast(text, special);
        encoding
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| Unknown::Refused(error.to_string()))
    }

    fn key(&self, place: usize, piece: &str) -> u128 {
        xxh3_128_with_seed(piece.as_bytes(), self.seed ^ u64::from(place == 0))
    }

    /// Some tokenizers treat the very start of a text differently, so a later piece is led by an added token, whose id is
    /// then left out.
    fn piece(&self, place: usize, piece: &str) -> Result<Arc<[u32]>, Unknown> {
        match &self.cutter.lead {
            Some((lead, id)) if place > 0 => {
                let led = self.encode_whole(&format!("{lead}{piece}"), false)?;
                match led.split_first() {
                    Some((first, rest)) if first == id => Ok(rest.into()),
                    _ => Err(Unknown::Refused(format!("the tokenizer does not split off {lead}"))),
                }
            }
            _ => Ok(self.encode_whole(piece, false)?.into()),
        }
    }
}

/// What the post-processor puts before and behind a text; none if it does anything else.
fn special_tokens_around(tokenizer: &Tokenizer) -> Option<(Vec<u32>, Vec<u32>)> {
    let ids = |text: &str, special| Some(tokenizer.encode_fast(text, special).ok()?.get_ids().to_vec());
    let around = |text: &str| {
        let (plain, special) = (ids(text, false)?, ids(text, true)?);
        let before = special.windows(plain.len()).position(|window| window == plain)?;
        Some((special[..before].to_vec(), special[before + plain.len()..].to_vec()))
    };
    let first = around("a")?;
    (around("Some more words, and 1 number.")? == first).then_some(first)
}
