//! A worker as the replay models it: vLLM's scheduler and cache, with a simple model of time.
//!
//! Running sequences come first, then waiting ones, first come first served, at most [`STEP_TOKENS`] a step. A step takes
//! its prefill tokens over the worker's rate, and, where sequences decode, 20 ms and 0.2 ms for each. The KV cache is least
//! recently used first, in entries of one block of the prompt. A sequence that would be preempted for want of blocks is
//! left out: it waits instead. `tests/vllm-sim` has the same model behind HTTP.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

/// Tokens that a step computes at most (vLLM: `max_num_batched_tokens`).
const STEP_TOKENS: usize = 8_192;
/// Sequences that run at once (vLLM: `max_num_seqs`).
const RUNNING_MAX: usize = 256;
/// Tokens of an engine's block.
pub const KV_BLOCK_TOKENS: usize = 16;
/// A step in which anything decodes.
const DECODE_STEP_S: f64 = 0.020;
/// And for each sequence that decodes in it.
const DECODE_SEQUENCE_S: f64 = 0.0002;

/// What an engine is asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// When, in seconds since the beginning.
    pub at_s: f64,
    /// Prompt tokens; at least 1.
    pub input: usize,
    /// Tokens of the answer; at least 1.
    pub output: usize,
    /// One per block of the prompt, which names everything up to its end; the last block may be short or missing.
    pub ids: Arc<[u64]>,
    /// Tokens of a block.
    pub block_tokens: usize,
}

/// What happened to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Its prompt is computed; `cached` tokens of it were there.
    FirstToken { request: usize, cached: usize },
    /// It has all its tokens.
    End { request: usize },
}

#[derive(Debug)]
struct Cache {
    /// Blocks of [`KV_BLOCK_TOKENS`].
    capacity: usize,
    /// Users, place in the order of release, size.
    entries: HashMap<u64, (u32, u64, usize)>,
    free: BTreeMap<u64, u64>,
    used: usize,
    held: usize,
    released: u64,
}

impl Cache {
    fn new(capacity: usize) -> Self {
        Self { capacity, entries: HashMap::new(), free: BTreeMap::new(), used: 0, held: 0, released: 0 }
    }

    fn take(&mut self, id: u64, size: usize) {
        let entry = self.entries.entry(id).or_insert_with(|| {
            self.used += size;
            (0, u64::MAX, size)
        });
        if entry.0 == 0 {
            self.free.remove(&entry.1);
            self.held += entry.2;
        }
        entry.0 += 1;
        while self.used > self.capacity
            && let Some((_, id)) = self.free.pop_first()
            && let Some((_, _, size)) = self.entries.remove(&id)
        {
            self.used -= size;
        }
    }

    fn release(&mut self, id: u64) {
        let entry = self.entries.get_mut(&id).expect("it was taken");
        entry.0 -= 1;
        if entry.0 == 0 {
            self.released += 1;
            entry.1 = self.released;
            self.held -= entry.2;
            self.free.insert(self.released, id);
        }
    }
}

#[derive(Debug)]
struct Sequence {
    request: usize,
    cached: usize,
    computed: usize,
    produced: usize,
    scheduled: usize,
    input: usize,
    output: usize,
    ids: Vec<u64>,
}

/// One engine.
#[derive(Debug)]
pub struct Engine {
    tokens_per_s: f64,
    cache: Cache,
    waiting: VecDeque<usize>,
    running: Vec<Sequence>,
    /// Ids of blocks that nobody shares: answers.
    private: u64,
    /// When the step under way ends, seconds.
    pub step_ends_s: Option<f64>,
    /// Tokens of prompts that were computed.
    pub prefilled: usize,
    /// Tokens of prompts that were in the cache.
    pub hit: usize,
}

impl Engine {
    /// The `number`th of a fleet, which prefills so fast and has room for so many tokens.
    pub fn new(number: usize, tokens_per_s: f64, capacity_tokens: u64) -> Self {
        Self {
            tokens_per_s,
            cache: Cache::new(capacity_tokens as usize / KV_BLOCK_TOKENS),
            waiting: VecDeque::new(),
            running: Vec::new(),
            private: (number as u64 + 1) << 48,
            step_ends_s: None,
            prefilled: 0,
            hit: 0,
        }
    }

    /// Takes `requests[request]` in, at `now_s`.
    pub fn submit(&mut self, request: usize, requests: &[Request], now_s: f64) {
        self.waiting.push_back(request);
        if self.step_ends_s.is_none() {
            self.plan(requests, now_s);
        }
    }

    /// The step is over: says what came of it, and begins the next.
    pub fn complete(&mut self, requests: &[Request], now_s: f64, mut tell: impl FnMut(Progress)) {
        let cache = &mut self.cache;
        self.running.retain_mut(|sequence| {
            if sequence.scheduled == 0 {
                return true;
            }
            sequence.computed += std::mem::take(&mut sequence.scheduled);
            if sequence.computed < sequence.input + sequence.produced {
                return true;
            }
            sequence.produced += 1;
            if sequence.produced == 1 {
                tell(Progress::FirstToken { request: sequence.request, cached: sequence.cached });
            }
            if sequence.produced < sequence.output {
                return true;
            }
            sequence.ids.iter().rev().for_each(|id| cache.release(*id));
            tell(Progress::End { request: sequence.request });
            false
        });
        self.plan(requests, now_s);
    }

    fn plan(&mut self, requests: &[Request], now_s: f64) {
        let (mut budget, mut prefill, mut decodes) = (STEP_TOKENS, 0, 0);
        for sequence in &mut self.running {
            let tokens = (sequence.input + sequence.produced - sequence.computed).min(budget);
            sequence.scheduled = tokens;
            budget -= tokens;
            if sequence.produced == 0 {
                prefill += tokens;
                continue;
            }
            decodes += 1;
            if sequence.produced % KV_BLOCK_TOKENS == 0 && tokens > 0 {
                self.private += 1;
                self.cache.take(self.private, 1);
                sequence.ids.push(self.private);
            }
        }
        while budget > 0
            && self.running.len() < RUNNING_MAX
            && let Some(&next) = self.waiting.front()
        {
            let request = &requests[next];
            let Request { input, output, block_tokens, ref ids, .. } = *request;
            let known = ids.iter().take_while(|id| self.cache.entries.contains_key(*id)).count();
            let cached = (known * block_tokens).min((input - 1) / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS);
            let free_hits = ids[..known].iter().map(|id| self.cache.entries[id]).filter(|e| e.0 == 0);
            let needed = (input - cached) / KV_BLOCK_TOKENS + 1 + free_hits.map(|e| e.2).sum::<usize>();
            // One that is larger than the whole cache runs alone, as if there were room.
            if needed + self.cache.held > self.cache.capacity && !self.running.is_empty() {
                break;
            }
            self.waiting.pop_front();
            for (place, id) in ids.iter().enumerate() {
                let tokens = input.saturating_sub(place * block_tokens).min(block_tokens);
                self.cache.take(*id, tokens.div_ceil(KV_BLOCK_TOKENS));
            }
            self.hit += cached;
            self.prefilled += input - cached;
            let scheduled = (input - cached).min(budget);
            budget -= scheduled;
            prefill += scheduled;
            self.running.push(Sequence {
                request: next,
                cached,
                computed: cached,
                produced: 0,
                scheduled,
                input,
                output,
                ids: ids.to_vec(),
            });
        }
        let decode_s = if decodes > 0 { DECODE_STEP_S + DECODE_SEQUENCE_S * f64::from(decodes) } else { 0.0 };
        let is_idle = prefill == 0 && decodes == 0;
        self.step_ends_s = (!is_idle).then(|| now_s + prefill as f64 / self.tokens_per_s + decode_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(at_s: f64, input: usize, ids: &[u64]) -> Request {
        Request { at_s, input, output: 2, ids: ids.into(), block_tokens: 512 }
    }

    /// First tokens, with the tokens that were cached, and the end of the last answer.
    fn run(engine: &mut Engine, requests: &[Request]) -> (Vec<(usize, f64, usize)>, f64) {
        let (mut first, mut end_s) = (Vec::new(), 0.0);
        for (number, request) in requests.iter().enumerate() {
            engine.submit(number, requests, request.at_s);
        }
        while let Some(now_s) = engine.step_ends_s {
            engine.complete(requests, now_s, |progress| match progress {
                Progress::FirstToken { request, cached } => first.push((request, now_s, cached)),
                Progress::End { .. } => end_s = now_s,
            });
        }
        (first, end_s)
    }

    #[test]
    fn a_prefix_that_was_computed_is_not_computed_again() {
        let requests = [request(0.0, 1_000, &[1, 2]), request(0.0, 1_000, &[1, 2])];
        let mut engine = Engine::new(0, 1_000.0, 100_000);
        let (first, end_s) = run(&mut engine, &requests);
        assert_eq!(first[0].2, 0);
        assert_eq!(engine.prefilled + engine.hit, 2_000);
        assert!(first[1].2 >= 512, "{first:?}");
        assert!(end_s > 1.0);
    }

    #[test]
    fn a_small_cache_forgets_what_was_used_longest_ago() {
        let requests: Vec<_> = [1, 2, 1].iter().map(|id| request(0.0, 512, &[*id])).collect();
        let mut engine = Engine::new(0, 1_000.0, 600);
        run(&mut engine, &requests);
        assert_eq!(engine.hit, 0);
        let mut engine = Engine::new(0, 1_000.0, 6_000);
        run(&mut engine, &requests);
        assert!(engine.hit > 0);
    }

    #[test]
    fn a_prompt_larger_than_the_cache_is_answered_all_the_same() {
        let requests = [request(0.0, 5_000, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10])];
        let (first, _) = run(&mut Engine::new(0, 1_000.0, 512), &requests);
        assert_eq!(first.len(), 1);
    }
}
