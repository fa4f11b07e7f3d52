//! What a perfect cache could make of a trace.

use std::collections::{BTreeMap, HashMap};

use super::{BLOCK_TOKENS, Request};

/// What one cache, shared by the whole fleet and filled the moment a request arrives, would serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceiling {
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
}

impl Ceiling {
    pub fn share(self) -> f64 {
        self.cached_tokens as f64 / self.prompt_tokens as f64
    }
}

/// The leading blocks of each request, in the trace's order, that an LRU cache of `capacity_blocks` (of
/// [`BLOCK_TOKENS`]) holds. With `usize::MAX` no policy can beat it. With the fleet's own capacity it is what a policy
/// reaches that wastes nothing on copies; one that guesses better than LRU could still beat that.
pub fn ceiling(requests: &[Request], capacity_blocks: usize) -> Ceiling {
    let mut used_at: HashMap<u64, u64> = HashMap::new();
    let mut by_use: BTreeMap<u64, u64> = BTreeMap::new();
    let mut now = 0;
    let mut total = Ceiling { prompt_tokens: 0, cached_tokens: 0 };
    for request in requests {
        let leading = request.block_ids.iter().take_while(|id| used_at.contains_key(*id)).count() as u64;
        total.prompt_tokens += request.input_tokens;
        total.cached_tokens += request.input_tokens.min(leading * BLOCK_TOKENS);
        // Last block first: a prefix is worth nothing without its start, so the end is older and leaves first.
        for &id in request.block_ids.iter().rev() {
            now += 1;
            if let Some(before) = used_at.insert(id, now) {
                by_use.remove(&before);
            }
            by_use.insert(now, id);
        }
        while used_at.len() > capacity_blocks
            && let Some((_, id)) = by_use.pop_first()
        {
            used_at.remove(&id);
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(input_tokens: u64, ids: &[u64]) -> Request {
        Request::of_blocks(0, input_tokens, 1, ids.into())
    }

    #[test]
    fn the_ceiling_counts_leading_blocks_seen_before() {
        let requests = [
            request(1000, &[0, 1]),    // nothing seen yet
            request(1536, &[0, 1, 2]), // two blocks: 1,024
            request(700, &[0, 1]),     // all of it, the last block short: 700, not 1,024
            request(1024, &[5, 0]),    // block 0 was seen, but not at the head of this prompt
        ];
        assert_eq!(ceiling(&requests, usize::MAX), Ceiling { prompt_tokens: 4260, cached_tokens: 1724 });
    }

    #[test]
    fn a_full_cache_drops_the_least_recently_used_ends_first() {
        let requests = [
            request(1024, &[0, 1]),
            request(1024, &[0, 2]), // block 0: 512; the cache is full: 0, 2, 1 by last use
            request(1024, &[3, 4]), // drops 1, then 2
            request(1024, &[0, 2]), // block 0 is left: 512
            request(1024, &[3, 4]), // block 4 had to go for 2, block 3 is there: 512
        ];
        assert_eq!(ceiling(&requests, 3).cached_tokens, 3 * 512);
        assert_eq!(ceiling(&requests, 5).cached_tokens, 512 + 1024 + 1024);
        assert_eq!(ceiling(&requests, 0).cached_tokens, 0);
    }
}
