//! The scheduler: vLLM's continuous batching with chunked prefill, without a model.
//!
//! Pure state, no clock and no IO: [`EngineCore::plan`] decides what the next step computes and how long that takes,
//! [`EngineCore::complete`] applies it. The rules are vLLM V1's: running sequences first, in order; then waiting ones,
//! first come first served, while the token budget, `max_num_seqs` and the KV blocks last; when a running sequence
//! finds no block, the youngest one is preempted and recomputes later.
//!
//! Cost: O(running) per step, O(blocks of the prompt) per admission.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::block_pool::{BlockId, BlockPool};
use super::hashing::BlockHasher;
use super::sequence::{Finish, KvBlocks, Sequence};
use crate::config::EngineConfig;
use crate::kv_events::KvEvent;
use crate::metrics::EngineMetrics;
use crate::tokenizer::{IM_END, Tokenizer};

pub(crate) struct EngineCore {
    config: EngineConfig,
    tokenizer: Tokenizer,
    hasher: BlockHasher,
    pool: BlockPool,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    /// Blocks of requests that have ended, for other workers.
    kept: HashMap<String, Vec<BlockId>>,
    /// Events since the last step's batch; `None` when nobody publishes them.
    events: Option<Vec<KvEvent>>,
    metrics: Arc<Mutex<EngineMetrics>>,
    /// Prompt tokens and total tokens of the step under way.
    step_tokens: usize,
}

impl EngineCore {
    pub(crate) fn new(
        config: EngineConfig,
        hasher: BlockHasher,
        publish_events: bool,
        metrics: Arc<Mutex<EngineMetrics>>,
    ) -> Self {
        Self {
            tokenizer: Tokenizer::new(config.vocab_size),
            pool: BlockPool::new(config.num_blocks),
            hasher,
            waiting: VecDeque::new(),
            running: Vec::new(),
            kept: HashMap::new(),
            events: publish_events.then(Vec::new),
            metrics,
            step_tokens: 0,
            config,
        }
    }

    pub(crate) fn submit(&mut self, sequence: Sequence) {
        self.waiting.push_back(sequence);
    }

    pub(crate) fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Forgets the prefix cache; false while blocks are in use.
    pub(crate) fn reset_prefix_cache(&mut self) -> bool {
        let done = self.pool.reset();
        if done && let Some(events) = &mut self.events {
            events.push(KvEvent::Cleared);
        }
        self.publish_gauges();
        done
    }

    /// Drops the sequences whose client has gone.
    pub(crate) fn reap_aborted(&mut self) {
        self.waiting.retain(|sequence| !sequence.is_aborted());
        let pool = &mut self.pool;
        self.running.retain_mut(|sequence| {
            let aborted = sequence.is_aborted();
            if aborted {
                pool.release(sequence.blocks.drain(..).rev());
            }
            !aborted
        });
        self.publish_gauges();
    }

    /// Gives back what was kept of a request.
    pub(crate) fn release_kept(&mut self, request_id: &str) {
        if let Some(blocks) = self.kept.remove(request_id) {
            self.pool.release(blocks.into_iter().rev());
        }
        self.publish_gauges();
    }

    /// Ends everything now, with `finish`.
    pub(crate) fn end_all(&mut self, finish: Finish) {
        for mut sequence in self.waiting.drain(..).chain(self.running.drain(..)) {
            self.pool.release(sequence.blocks.drain(..).rev());
            sequence.mailbox.update(sequence.choice, |progress| progress.finish = Some(finish));
        }
        self.publish_gauges();
    }

    /// Decides the next step. `None` when there is nothing to compute.
    pub(crate) fn plan(&mut self, now: Instant) -> Option<Duration> {
        let mut budget = self.config.max_num_batched_tokens;
        let (mut prefill_tokens, mut decodes) = (0, 0);
        let mut preempted = false;
        for sequence in &mut self.running {
            sequence.scheduled = 0;
        }
        let mut index = 0;
        while index < self.running.len() && budget > 0 {
            let sequence = &self.running[index];
            let tokens = (sequence.tokens.len() - sequence.computed).min(budget);
            let target = sequence.computed + tokens;
            let before = self.running.len();
            let has_room = self.make_room(index, target);
            preempted |= self.running.len() < before;
            if !has_room {
                break;
            }
            self.grow(index, target);
            let sequence = &mut self.running[index];
            sequence.scheduled = tokens;
            budget -= tokens;
            if sequence.output_len() > 0 && tokens == 1 && target == sequence.tokens.len() {
                decodes += 1;
            } else {
                prefill_tokens += tokens;
            }
            index += 1;
        }
        while !preempted && budget > 0 && self.running.len() < self.config.max_num_seqs {
            let Some(tokens) = self.admit_next(budget, now) else { break };
            budget -= tokens;
            prefill_tokens += tokens;
        }
        self.step_tokens = self.config.max_num_batched_tokens - budget;
        self.publish_gauges();
        (self.step_tokens > 0).then(|| self.config.time.step(prefill_tokens, decodes))
    }

    /// Applies the step planned last; `now` is its end. Returns the batch of KV events to publish.
    pub(crate) fn complete(&mut self, now: Instant) -> Vec<KvEvent> {
        let mut metrics = self.metrics.lock();
        metrics.iteration_tokens.observe(self.step_tokens as f64);
        let (pool, tokenizer, max_len) = (&mut self.pool, self.tokenizer, self.config.max_model_len);
        let kept = &mut self.kept;
        self.running.retain_mut(|sequence| {
            if sequence.scheduled == 0 {
                return true;
            }
            sequence.computed += std::mem::take(&mut sequence.scheduled);
            if sequence.computed < sequence.tokens.len() {
                return true;
            }
            let position = sequence.output_len();
            let output_len = position + 1;
            let (token, finish) = if sequence.stop_after == Some(output_len) {
                (IM_END, Some(Finish::Stop))
            } else {
                let at_end = output_len >= sequence.max_tokens || sequence.tokens.len() + 1 >= max_len;
                (tokenizer.id(&sequence.text.word(position)), at_end.then_some(Finish::Length))
            };
            sequence.tokens.push(token);
            metrics.generation_tokens += 1;
            if let Some(last) = sequence.last_token.replace(now) {
                metrics.inter_token_latency.observe((now - last).as_secs_f64());
            } else {
                sequence.first_token = Some(now);
                metrics.first_token(sequence, now);
            }
            let cached = sequence.cached.unwrap_or(0);
            if let Some(finish) = finish {
                metrics.finished(sequence, finish, now);
                let blocks = std::mem::take(&mut sequence.blocks);
                match &sequence.kv_blocks {
                    KvBlocks::Keep(keep) if finish == Finish::Length => {
                        kept.insert(keep.request_id.clone(), blocks.clone());
                        let _ = keep.blocks.set(blocks); // one sequence, one end
                    }
                    _ => pool.release(blocks.into_iter().rev()),
                }
            }
            sequence.mailbox.update(sequence.choice, |progress| {
                progress.tokens = output_len;
                progress.cached = cached;
                progress.finish = finish;
            });
            finish.is_none()
        });
        drop(metrics);
        self.publish_gauges();
        self.events.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Makes sure that `running[index]` can grow to `target` tokens, preempting younger sequences; false if it had to
    /// go itself.
    fn make_room(&mut self, index: usize, target: usize) -> bool {
        let needed = target.div_ceil(self.config.block_size) - self.running[index].blocks.len();
        while needed > self.pool.free_len() {
            let Some(mut victim) = self.running.pop() else { return false };
            self.pool.release(victim.blocks.drain(..).rev());
            victim.computed = 0;
            victim.registered = 0;
            victim.scheduled = 0;
            victim.preemptions += 1;
            self.metrics.lock().preemptions += 1;
            self.waiting.push_front(victim);
            if self.running.len() == index {
                return false;
            }
        }
        true
    }

    /// Allocates the blocks of `running[index]` up to `target` tokens and registers those that become full. Room was
    /// made before.
    fn grow(&mut self, index: usize, target: usize) {
        let sequence = &mut self.running[index];
        let block_size = self.config.block_size;
        while sequence.blocks.len() * block_size < target {
            let (id, evicted) = self.pool.allocate().expect("room was made");
            sequence.blocks.push(id);
            if let (Some(events), Some(hash)) = (&mut self.events, evicted) {
                events.push(KvEvent::Removed { hash });
            }
        }
        let full = target / block_size;
        if !self.config.enable_prefix_caching || full <= sequence.registered {
            return;
        }
        self.hasher.extend(&sequence.tokens[..target], block_size, &sequence.extra, &mut sequence.hashes);
        let first = sequence.registered;
        for position in first..full {
            self.pool.register(sequence.blocks[position], sequence.hashes[position]);
        }
        sequence.registered = full;
        if let Some(events) = &mut self.events {
            events.push(KvEvent::stored(sequence, first..full, block_size));
        }
    }

    /// Moves the oldest waiting sequence to the running ones, if it fits. Returns the tokens that it computes now.
    fn admit_next(&mut self, budget: usize, now: Instant) -> Option<usize> {
        let block_size = self.config.block_size;
        let sequence = self.waiting.front_mut()?;
        let len = sequence.tokens.len();
        let mut hits = Vec::new();
        let mut free_hits = 0;
        if self.config.enable_prefix_caching {
            self.hasher.extend(&sequence.tokens, block_size, &sequence.extra, &mut sequence.hashes);
            // At least one token is computed, so a full hit leaves its last block out.
            for hash in sequence.hashes.iter().take((len - 1) / block_size) {
                let Some(id) = self.pool.lookup(hash) else { break };
                free_hits += usize::from(self.pool.is_free(id));
                hits.push(id);
            }
        }
        let hit = hits.len() * block_size;
        // What another worker has computed is all there but for the last token, which is computed again.
        let is_loaded = matches!(sequence.kv_blocks, KvBlocks::Loaded);
        let cached = if is_loaded { len - 1 } else { hit };
        let tokens = (len - cached).min(budget);
        let needed = (cached + tokens).div_ceil(block_size) - hits.len();
        if needed + free_hits > self.pool.free_len() {
            return None;
        }
        let mut sequence = self.waiting.pop_front().expect("it was at the front");
        for id in &hits {
            self.pool.touch(*id);
        }
        if is_loaded {
            sequence.kv_blocks = KvBlocks::Own; // once: preempted, it has lost them
        }
        sequence.computed = cached;
        sequence.registered = hits.len();
        sequence.blocks = hits;
        sequence.scheduled = tokens;
        if sequence.cached.is_none() {
            sequence.cached = Some(cached);
            sequence.started = Some(now);
            let mut metrics = self.metrics.lock();
            metrics.prefix_queries += sequence.prompt_len as u64;
            metrics.prefix_hits += hit as u64;
            if let Some(events) = self.events.as_mut().filter(|_| sequence.report_hits && hit > 0) {
                events.push(KvEvent::stored(&sequence, 0..hit / block_size, block_size));
            }
        }
        self.running.push(sequence);
        self.grow(self.running.len() - 1, cached + tokens);
        Some(tokens)
    }

    fn publish_gauges(&self) {
        let mut metrics = self.metrics.lock();
        metrics.running = self.running.len();
        metrics.waiting = self.waiting.len();
        metrics.kv_usage = self.pool.usage();
        metrics.cached_blocks = self.pool.cached_len();
    }
}
