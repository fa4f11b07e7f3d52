//! A worker as the `workers` map shows it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::atomic::Ordering::Relaxed,
};

use router_common::workers::{BreakerState as BreakerRow, WorkerState, WorkerValue};

use super::{BreakerState, Health, Pulse, Worker};

/// The worker's row now, with the blocks that the index holds for it.
pub fn row(worker: &Worker, cached_blocks: u64) -> WorkerValue {
    let unresolved = SocketAddr::from((Ipv4Addr::UNSPECIFIED, worker.url.port));
    let metrics = &worker.metrics;
    let ended = [&metrics.completed, &metrics.failed, &metrics.rejected, &metrics.cancelled];
    WorkerValue {
        state: match worker.health() {
            Health::Unhealthy => WorkerState::Unhealthy,
            _ if worker.liveness.pulse() != Pulse::Live => WorkerState::Suspect,
            Health::Unknown => WorkerState::Unknown,
            Health::Healthy => WorkerState::Healthy,
        },
        breaker: match worker.breaker.state() {
            BreakerState::Closed => BreakerRow::Closed,
            BreakerState::Open => BreakerRow::Open,
            BreakerState::HalfOpen => BreakerRow::HalfOpen,
        },
        in_flight: worker.load.in_flight(),
        running: worker.engine.running.load(Relaxed),
        waiting: worker.engine.waiting.load(Relaxed),
        kv_usage_permille: worker.engine.kv_usage_permille.load(Relaxed),
        queued_prefill_tokens: worker.load.queued_prefill_tokens(),
        cached_blocks,
        requests_total: ended.iter().map(|counter| counter.get()).sum(),
        errors_total: metrics.failed.get(),
        ..WorkerValue::new(&worker.name, worker.address().unwrap_or(unresolved))
    }
}
