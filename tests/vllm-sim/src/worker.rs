//! One worker: what its connections share, and the life of a connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::api::Exchange;
use crate::config::SimConfig;
use crate::engine::EngineHandle;
use crate::faults::{Fault, FaultKind, Faults};
use crate::http::connection::{Connection, Next};
use crate::http::response;
use crate::kv_transfer::Connector;
use crate::metrics::{HttpMetrics, Renderer};
use crate::rng::SharedRng;
use crate::stats::{SimStats, Stats};
use crate::tokenizer::Tokenizer;
use crate::vocabulary::Vocabulary;

/// Where a worker is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    /// Told to stop, with time left: what runs may end, what is new is refused.
    Draining,
    /// The listener is closed; connections close as they become idle.
    Stopping,
}

pub(crate) struct Worker {
    pub(crate) config: SimConfig,
    pub(crate) engine: EngineHandle,
    /// Of blocks that other workers have computed, or decode with.
    pub(crate) connector: Option<Arc<Connector>>,
    pub(crate) rng: SharedRng,
    pub(crate) faults: Faults,
    pub(crate) stats: Stats,
    pub(crate) http_metrics: Mutex<HttpMetrics>,
    pub(crate) renderer: Renderer,
    pub(crate) vocabulary: Vocabulary,
    pub(crate) fingerprint: String,
    pub(crate) created_s: u64,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) killed: Arc<AtomicBool>,
    /// The engine process has died; the API server is about to notice.
    pub(crate) engine_dead: AtomicBool,
    pub(crate) event_batches: Arc<AtomicU64>,
}

impl Worker {
    pub(crate) fn new(
        config: SimConfig,
        engine: EngineHandle,
        connector: Option<Arc<Connector>>,
        event_batches: Arc<AtomicU64>,
    ) -> Self {
        let tokenizer = Tokenizer::new(config.engine.vocab_size);
        let name_key = xxhash_rust::xxh3::xxh3_64(format!("{:?}", config.engine).as_bytes());
        Self {
            engine,
            connector,
            rng: SharedRng::new(config.seed),
            faults: Faults::default(),
            stats: Stats::default(),
            http_metrics: Mutex::default(),
            renderer: Renderer::new(&config),
            vocabulary: Vocabulary::new(tokenizer),
            fingerprint: format!("vllm-0.32.0-{:08x}", name_key as u32),
            created_s: response::now_s(),
            phase: watch::Sender::new(Phase::Serving),
            killed: Arc::default(),
            engine_dead: AtomicBool::new(false),
            event_batches,
            config,
        }
    }

    pub(crate) fn prompt_reader(&self) -> crate::api::PromptReader {
        crate::api::PromptReader {
            tokenizer: self.vocabulary.tokenizer(),
            max_model_len: self.config.engine.max_model_len,
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.phase.borrow() > Phase::Serving
    }

    pub(crate) fn set_faults(&self, faults: Vec<Fault>) {
        self.engine.set_frozen(faults.iter().any(|fault| fault.kind == FaultKind::Freeze));
        self.faults.set(faults);
    }

    pub(crate) fn snapshot(&self) -> SimStats {
        let count = |count: fn(&Connector) -> u64| self.connector.as_deref().map_or(0, count);
        let engine = self.engine.metrics().lock();
        SimStats {
            requests: self.stats.requests.now(),
            aborts: self.stats.aborts.now(),
            connections_accepted: self.stats.accepted.now(),
            connections_open: self.stats.open.now(),
            generating: self.stats.generating.now(),
            running: engine.running as u64,
            waiting: engine.waiting as u64,
            finished: engine.finished_stop + engine.finished_length,
            preemptions: engine.preemptions,
            prompt_tokens: engine.prompt_tokens,
            cached_tokens: engine.cached_prompt_tokens,
            generated_tokens: engine.generation_tokens,
            cached_blocks: engine.cached_blocks as u64,
            kv_usage: engine.kv_usage,
            kv_kept: count(|connector| connector.kept() as u64),
            kv_sent: count(|connector| connector.sent.now()),
            kv_loaded: count(|connector| connector.loaded.now()),
            kv_expired: count(|connector| connector.expired.now()),
            event_batches: self.event_batches.load(Ordering::Relaxed),
        }
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve(self: Arc<Self>, stream: TcpStream) {
        let _open = self.stats.open.enter();
        self.stats.accepted.add();
        let mut connection = Connection::new(stream, self.killed.clone());
        if self.faults.on_accept(&self.rng) {
            connection.reset_on_close();
            return;
        }
        let mut phase = self.phase.subscribe();
        let mut served_before = false;
        loop {
            // A connection that never sent a request is never closed for being idle.
            let idle_max = served_before.then_some(self.config.keep_alive_timeout);
            let next = tokio::select! {
                biased;
                next = connection.next_request(idle_max) => next,
                () = stopping(&mut phase) => Next::End,
            };
            match next {
                Next::Request(head) => match Exchange::new(&self, &mut connection, &head).run().await {
                    Ok(crate::api::Outcome::Keep) => served_before = true,
                    Ok(crate::api::Outcome::Close) => break,
                    Err(_gone) => return,
                },
                Next::Invalid => {
                    let _ = connection.write(response::invalid_request().as_bytes()).await; // closing anyway
                    break;
                }
                Next::End => break,
            }
        }
        connection.close().await;
    }
}

/// Completes once the worker is told to close its connections.
pub(crate) async fn stopping(phase: &mut watch::Receiver<Phase>) {
    let _ = phase.wait_for(|phase| *phase == Phase::Stopping).await; // the worker holds the sender
}
