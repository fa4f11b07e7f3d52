//! Block hashing: the prompt's stream cut into blocks of a fixed number of bytes, each hashed with its predecessor's
//! hash as the seed, so that one 64-bit number names a whole prefix.
//!
//! The tail that does not fill a block is never hashed. The hash is XXH3 with a seed, which takes its short path up
//! to 240 bytes; at 128 bytes a block costs some 10 ns.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::piece::{BYTES_PER_TOKEN, Form, Piece};

/// Bytes per block: some 32 tokens, and exactly 32 where the prompt is given as token ids.
pub const BLOCK_BYTES: usize = 128;

/// The longest block that may be asked for.
pub const BLOCK_BYTES_MAX: usize = 1024;

/// How long a prompt is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PromptSize {
    /// Bytes of the stream, the tail included; all prompts of a batch together.
    pub bytes: u64,
    /// The number of tokens, where the client sent token ids.
    pub tokens_exact: Option<u32>,
}

impl PromptSize {
    /// Tokens, exactly or by the given measure.
    pub fn tokens(&self, bytes_per_token: f64) -> u32 {
        self.tokens_exact.unwrap_or_else(|| (self.bytes as f64 / bytes_per_token).ceil() as u32)
    }

    /// The tokens that `blocks` leading blocks hold; never more than the prompt has.
    pub fn tokens_of_blocks(&self, blocks: u32, block_bytes: usize, bytes_per_token: f64) -> u32 {
        let bytes_per_token =
            if self.tokens_exact.is_some() { BYTES_PER_TOKEN as f64 } else { bytes_per_token };
        let tokens = f64::from(blocks) * block_bytes as f64 / bytes_per_token;
        (tokens as u32).min(self.tokens(bytes_per_token))
    }
}

/// Hashes the blocks of `pieces` into `out`, which is emptied first. `root` stands in front of the first block:
/// model, adapter and cache salt belong there ([`super::Request::root_seed`]).
///
/// # Panics
/// If `block_bytes` is 0 or above [`BLOCK_BYTES_MAX`].
pub fn hash_into(pieces: &[Piece<'_>], block_bytes: usize, root: u64, out: &mut Vec<u64>) -> PromptSize {
    out.clear();
    let mut hasher = BlockHasher::new(block_bytes, root, out);
    let mut tokens = None;
    for piece in pieces {
        if let Form::Tokens(ids) = &piece.form {
            *tokens.get_or_insert(0) += (ids.len() / BYTES_PER_TOKEN) as u32;
        }
        piece.write(&mut |bytes| hasher.update(bytes));
    }
    PromptSize { bytes: hasher.bytes, tokens_exact: tokens }
}

/// The running state of [`hash_into`].
struct BlockHasher<'o> {
    block_bytes: usize,
    /// Hash of the last whole block: the next one's seed.
    last: u64,
    /// A block that has begun in one piece and goes on in the next.
    begun: [u8; BLOCK_BYTES_MAX],
    begun_len: usize,
    bytes: u64,
    out: &'o mut Vec<u64>,
}

impl<'o> BlockHasher<'o> {
    fn new(block_bytes: usize, root: u64, out: &'o mut Vec<u64>) -> Self {
        assert!((1..=BLOCK_BYTES_MAX).contains(&block_bytes), "a block of {block_bytes} bytes");
        Self { block_bytes, last: root, begun: [0; BLOCK_BYTES_MAX], begun_len: 0, bytes: 0, out }
    }

    #[inline]
    fn update(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        if self.begun_len > 0 {
            let taken = bytes.len().min(self.block_bytes - self.begun_len);
            self.begun[self.begun_len..self.begun_len + taken].copy_from_slice(&bytes[..taken]);
            self.begun_len += taken;
            bytes = &bytes[taken..];
            if self.begun_len < self.block_bytes {
                return;
            }
            self.last = xxh3_64_with_seed(&self.begun[..self.block_bytes], self.last);
            self.out.push(self.last);
            self.begun_len = 0;
        }
        let mut blocks = bytes.chunks_exact(self.block_bytes);
        for block in &mut blocks {
            self.last = xxh3_64_with_seed(block, self.last);
            self.out.push(self.last);
        }
        let tail = blocks.remainder();
        self.begun[..tail.len()].copy_from_slice(tail);
        self.begun_len = tail.len();
    }
}
