//! A worker: the scheduler and the time model of `tests/vllm-sim` without its HTTP: running sequences first, then waiting
//! ones first come first served, at most 8,192 tokens a step; a step takes its prefill tokens over the rate, and, where
//! sequences decode, 20 ms and 0.2 ms for each. The KV cache is least recently used first, in entries of one trace
//! block, so a sequence that is preempted for want of blocks is left out: it does not happen at these loads.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::trace::{BLOCK_TOKENS, Request};

const STEP_TOKENS: usize = 8_192;
const RUNNING_MAX: usize = 256;
const KV_BLOCK_TOKENS: usize = 16;
/// Blocks of 16 tokens.
const KV_BLOCKS: usize = 32_768;

/// What happened to a request.
pub(crate) enum Progress {
    FirstToken(usize),
    End,
}

#[derive(Default)]
struct Cache {
    /// Users, place in the order of release, size.
    entries: HashMap<u64, (u32, u64, usize)>,
    free: BTreeMap<u64, u64>,
    used: usize,
    held: usize,
    released: u64,
}

impl Cache {
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
        while self.used > KV_BLOCKS
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

struct Sequence {
    request: usize,
    computed: usize,
    produced: usize,
    scheduled: usize,
    input: usize,
    output: usize,
    ids: Vec<u64>,
}

/// One engine.
pub(crate) struct Engine {
    tokens_per_s: f64,
    cache: Cache,
    waiting: VecDeque<usize>,
    running: Vec<Sequence>,
    /// Ids of blocks that nobody shares: answers.
    private: u64,
    /// When the step under way ends.
    pub(crate) step_ends_s: Option<f64>,
    pub(crate) prefilled: usize,
    pub(crate) hit: usize,
}

impl Engine {
    pub(crate) fn new(number: usize, tokens_per_s: f64) -> Self {
        Self {
            tokens_per_s,
            cache: Cache::default(),
            waiting: VecDeque::new(),
            running: Vec::new(),
            private: (number as u64 + 1) << 48,
            step_ends_s: None,
            prefilled: 0,
            hit: 0,
        }
    }

    pub(crate) fn submit(&mut self, request: usize, requests: &[Request], now_s: f64) {
        self.waiting.push_back(request);
        if self.step_ends_s.is_none() {
            self.plan(requests, now_s);
        }
    }

    /// The step is over: says what came of it, and begins the next.
    pub(crate) fn complete(&mut self, requests: &[Request], now_s: f64, mut tell: impl FnMut(Progress)) {
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
                tell(Progress::FirstToken(sequence.request));
            }
            if sequence.produced < sequence.output {
                return true;
            }
            sequence.ids.iter().rev().for_each(|id| cache.release(*id));
            tell(Progress::End);
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
            let known = request.ids.iter().take_while(|id| self.cache.entries.contains_key(*id)).count();
            let cached = (known * BLOCK_TOKENS).min((request.input - 1) / KV_BLOCK_TOKENS * KV_BLOCK_TOKENS);
            let free_hits = request.ids[..known].iter().map(|id| self.cache.entries[id]).filter(|e| e.0 == 0);
            let needed =
                (request.input - cached) / KV_BLOCK_TOKENS + 1 + free_hits.map(|e| e.2).sum::<usize>();
            if needed + self.cache.held > KV_BLOCKS {
                break;
            }
            self.waiting.pop_front();
            for (place, id) in request.ids.iter().enumerate() {
                let tokens = (request.input - place * BLOCK_TOKENS).min(BLOCK_TOKENS);
                self.cache.take(*id, tokens.div_ceil(KV_BLOCK_TOKENS));
            }
            self.hit += cached;
            self.prefilled += request.input - cached;
            let scheduled = (request.input - cached).min(budget);
            budget -= scheduled;
            prefill += scheduled;
            self.running.push(Sequence {
                request: next,
                computed: cached,
                produced: 0,
                scheduled,
                input: request.input,
                output: request.output,
                ids: request.ids.clone(),
            });
        }
        let decode_s = if decodes > 0 { 0.020 + 0.0002 * f64::from(decodes) } else { 0.0 };
        let is_idle = prefill == 0 && decodes == 0;
        self.step_ends_s = (!is_idle).then(|| now_s + prefill as f64 / self.tokens_per_s + decode_s);
    }
}
