//! The engine: one task that steps `core::EngineCore` along the clock.
//!
//! The clock is tokio's, whose timers have a granularity of one millisecond: a step's end is computed exactly, and a
//! wake-up that comes late completes every step that is due by then, so that rates are exact and only the moment of a
//! single token is rounded. (vLLM merges tokens into one event under load too.) Should the engine fall more than
//! `LAG_MAX` behind, because the host is out of CPU, it gives the lag up instead of chasing it.

pub mod block_pool;
pub(crate) mod core;
pub(crate) mod sequence;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
pub use vllm_block_hash as hashing;

use self::core::EngineCore;
use self::hashing::{BlockHasher, HashAlgo};
use self::sequence::{Finish, Generation, Mailbox, Progress, Sequence, SequenceSpec};
use crate::config::EngineConfig;
use crate::kv_events::EventSink;
use crate::metrics::EngineMetrics;

/// Lag behind the clock that the engine still makes up for.
const LAG_MAX: Duration = Duration::from_secs(1);
/// Steps completed in one go before other tasks get a turn.
const STEPS_PER_TURN: usize = 8;

enum Command {
    Submit(Vec<Sequence>),
    ResetPrefixCache(oneshot::Sender<bool>),
    EndAll(Finish),
    ReleaseKept(String),
    Exit,
}

/// The way to the engine task; dropping every handle ends it.
#[derive(Clone)]
pub(crate) struct EngineHandle {
    commands: mpsc::UnboundedSender<Command>,
    hasher: BlockHasher,
    block_size: usize,
    enable_prefix_caching: bool,
    pending_aborts: Arc<AtomicUsize>,
    /// Submitted and not yet scheduled.
    queued: Arc<AtomicUsize>,
    frozen: watch::Sender<bool>,
    metrics: Arc<Mutex<EngineMetrics>>,
}

impl EngineHandle {
    /// Starts the engine on the current runtime.
    pub(crate) fn start(config: EngineConfig, sink: Option<EventSink>) -> Self {
        let metrics = Arc::new(Mutex::new(EngineMetrics::default()));
        // Hashes show in KV events only; without them the cheapest will do.
        let algo = if sink.is_some() { config.hash_algo } else { HashAlgo::XxhashCbor };
        let hasher = BlockHasher::new(algo, config.hash_seed.as_deref());
        let (commands, receiver) = mpsc::unbounded_channel();
        let (frozen, frozen_receiver) = watch::channel(false);
        let handle = Self {
            commands,
            hasher: hasher.clone(),
            block_size: config.block_size,
            enable_prefix_caching: config.enable_prefix_caching,
            pending_aborts: Arc::default(),
            queued: Arc::default(),
            frozen,
            metrics: metrics.clone(),
        };
        let task = EngineTask {
            core: EngineCore::new(config, hasher, sink.is_some(), metrics),
            commands: receiver,
            frozen: frozen_receiver,
            pending_aborts: handle.pending_aborts.clone(),
            queued: handle.queued.clone(),
            sink,
        };
        tokio::spawn(task.run());
        handle
    }

    /// Hands one HTTP request's sequences to the engine, one per choice.
    pub(crate) fn generate(&self, specs: Vec<SequenceSpec>, streamed: bool) -> Generation {
        let mailbox = Arc::new(Mailbox::new(specs.len(), streamed));
        let seen = vec![Progress::default(); specs.len()];
        let arrived = Instant::now();
        let sequences: Vec<_> = specs
            .into_iter()
            .enumerate()
            .map(|(choice, spec)| self.sequence(&mailbox, choice, spec, arrived))
            .collect();
        self.queued.fetch_add(sequences.len(), Ordering::AcqRel);
        if self.commands.send(Command::Submit(sequences)).is_err() {
            for choice in 0..seen.len() {
                mailbox.update(choice, |progress| progress.finish = Some(Finish::Error));
            }
        }
        Generation { mailbox, pending_aborts: self.pending_aborts.clone(), seen }
    }

    fn sequence(
        &self,
        mailbox: &Arc<Mailbox>,
        choice: usize,
        spec: SequenceSpec,
        arrived: Instant,
    ) -> Sequence {
        let mut tokens = Vec::with_capacity(spec.prompt.len() + spec.max_tokens.min(1024));
        tokens.extend_from_slice(&spec.prompt);
        let mut hashes = Vec::new();
        if self.enable_prefix_caching {
            self.hasher.extend(&tokens, self.block_size, &spec.extra, &mut hashes);
        }
        Sequence {
            mailbox: mailbox.clone(),
            choice,
            prompt_len: tokens.len(),
            tokens,
            hashes,
            extra: spec.extra,
            session_id: spec.session_id,
            report_hits: spec.report_hits,
            max_tokens: spec.max_tokens,
            stop_after: spec.stop_after,
            text: spec.text,
            blocks: Vec::new(),
            kv_blocks: spec.kv_blocks,
            registered: 0,
            computed: 0,
            scheduled: 0,
            cached: None,
            preemptions: 0,
            arrived,
            started: None,
            first_token: None,
            last_token: None,
        }
    }

    /// Requests that wait to be scheduled.
    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Ordering::Acquire)
    }

    /// Forgets the prefix cache; false while blocks are in use.
    pub(crate) async fn reset_prefix_cache(&self) -> bool {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::ResetPrefixCache(reply)).is_ok() && answer.await.unwrap_or(false)
    }

    /// Ends everything in flight.
    pub(crate) fn end_all(&self, finish: Finish) {
        let _ = self.commands.send(Command::EndAll(finish)); // an engine that has gone has nothing in flight
    }

    /// Gives back the blocks that were kept beyond the end of this request.
    pub(crate) fn release_kept(&self, request_id: String) {
        let _ = self.commands.send(Command::ReleaseKept(request_id)); // an engine that has gone keeps nothing
    }

    /// Ends the engine, and with it the KV events.
    pub(crate) fn exit(&self) {
        self.set_frozen(false);
        let _ = self.commands.send(Command::Exit); // it may have ended
    }

    /// Stops (or resumes) the engine where it is, as SIGSTOP does to the engine process.
    pub(crate) fn set_frozen(&self, frozen: bool) {
        self.frozen.send_replace(frozen);
    }

    pub(crate) fn metrics(&self) -> &Mutex<EngineMetrics> {
        &self.metrics
    }
}

struct EngineTask {
    core: EngineCore,
    commands: mpsc::UnboundedReceiver<Command>,
    frozen: watch::Receiver<bool>,
    pending_aborts: Arc<AtomicUsize>,
    queued: Arc<AtomicUsize>,
    sink: Option<EventSink>,
}

impl EngineTask {
    async fn run(mut self) {
        let mut clock = Instant::now();
        let mut steps = 0;
        loop {
            if *self.frozen.borrow_and_update() {
                if self.frozen.wait_for(|frozen| !frozen).await.is_err() {
                    return; // every handle is gone
                }
                clock = Instant::now(); // what was missed is not made up for
            }
            while let Ok(command) = self.commands.try_recv() {
                if self.obey(command).is_break() {
                    return;
                }
            }
            if self.pending_aborts.swap(0, Ordering::AcqRel) > 0 {
                self.core.reap_aborted();
            }
            let now = Instant::now();
            if now.saturating_duration_since(clock) > LAG_MAX {
                clock = now;
            }
            let step = self.core.plan(clock);
            self.queued.store(self.core.waiting_len() + self.commands.len(), Ordering::Release);
            let Some(step) = step else {
                debug_assert!(self.core.is_idle(), "whatever waits fits an empty pool");
                let Some(command) = self.commands.recv().await else { return };
                if self.obey(command).is_break() {
                    return;
                }
                clock = Instant::now();
                continue;
            };
            clock += step;
            if clock > Instant::now() {
                tokio::time::sleep_until(clock).await;
                steps = 0;
            } else {
                steps += 1;
                if steps % STEPS_PER_TURN == 0 {
                    tokio::task::yield_now().await;
                }
            }
            let events = self.core.complete(clock);
            if let Some(sink) = self.sink.as_ref().filter(|_| !events.is_empty()) {
                sink.publish(events);
            }
        }
    }

    fn obey(&mut self, command: Command) -> ControlFlow<()> {
        match command {
            Command::Submit(sequences) => {
                for sequence in sequences {
                    self.core.submit(sequence);
                }
            }
            Command::ResetPrefixCache(reply) => {
                let _ = reply.send(self.core.reset_prefix_cache()); // the client may have gone
            }
            Command::EndAll(finish) => self.core.end_all(finish),
            Command::ReleaseKept(request_id) => self.core.release_kept(&request_id),
            Command::Exit => return ControlFlow::Break(()),
        }
        ControlFlow::Continue(())
    }
}
