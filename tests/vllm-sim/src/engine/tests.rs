//! The time model and the scheduler, on tokio's paused clock: every duration here is exact.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::EngineHandle;
use super::hashing::ExtraKeys;
use super::sequence::{Delta, Finish, Generation, KvBlocks, OutputText, SequenceSpec};
use crate::config::{EngineConfig, TimeModel};

const MS: Duration = Duration::from_millis(1);

/// 1,000 prompt tokens per second, 10 ms per token and 1 ms more for every running sequence.
fn config() -> EngineConfig {
    EngineConfig {
        max_num_batched_tokens: 1000,
        num_blocks: 1025,
        time: TimeModel { prefill_tokens_per_s: 1000.0, itl_base: 10 * MS, itl_slope: MS, time_scale: 1.0 },
        ..EngineConfig::default()
    }
}

/// A request for `output` tokens after `prompt` tokens, all of them `token`.
fn submit(engine: &EngineHandle, token: u32, prompt: usize, output: usize) -> Generation {
    let spec = SequenceSpec {
        prompt: Arc::new(vec![token; prompt]),
        extra: ExtraKeys::default(),
        session_id: None,
        report_hits: false,
        max_tokens: output,
        stop_after: None,
        text: OutputText { key: u64::from(token) },
        kv_blocks: KvBlocks::Own,
    };
    engine.generate(vec![spec], true)
}

/// When each token came, counted from `since`, and how it ended.
async fn run(mut generation: Generation, since: Instant) -> (Vec<Duration>, Finish) {
    let (mut times, mut deltas) = (Vec::new(), Vec::<Delta>::new());
    loop {
        generation.next(&mut deltas).await;
        for delta in &deltas {
            times.extend(delta.range.clone().map(|_| since.elapsed()));
            if let Some(finish) = delta.finish {
                return (times, finish);
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_request_takes_its_prefill_and_then_a_step_per_token() {
    let engine = EngineHandle::start(config(), None);
    let start = Instant::now();
    let (times, finish) = run(submit(&engine, 1, 300, 4), start).await;
    assert_eq!(times, [300, 311, 322, 333].map(|ms| ms * MS));
    assert_eq!(finish, Finish::Length);
}

#[tokio::test(start_paused = true)]
async fn a_cached_prefix_costs_nothing() {
    let engine = EngineHandle::start(config(), None);
    run(submit(&engine, 1, 320, 1), Instant::now()).await;
    let start = Instant::now();
    let (times, _) = run(submit(&engine, 1, 400, 1), start).await;
    assert_eq!(times, [80 * MS], "320 of 400 tokens are there");
    let metrics = engine.metrics().lock().clone();
    assert_eq!((metrics.prefix_queries, metrics.prefix_hits), (720, 320));
}

#[tokio::test(start_paused = true)]
async fn without_prefix_caching_everything_is_computed() {
    let config = EngineConfig { enable_prefix_caching: false, ..config() };
    let engine = EngineHandle::start(config, None);
    for _ in 0..2 {
        let start = Instant::now();
        assert_eq!(run(submit(&engine, 1, 320, 1), start).await.0, [320 * MS]);
    }
}

#[tokio::test(start_paused = true)]
async fn prefills_queue_up_and_latency_grows_with_the_batch() {
    let engine = EngineHandle::start(EngineConfig { max_num_batched_tokens: 100, ..config() }, None);
    let start = Instant::now();
    let (first, second) =
        tokio::join!(run(submit(&engine, 1, 100, 3), start), run(submit(&engine, 2, 100, 3), start));
    // The first prefill fills its step. The second shares one with the first's decode, which takes one token of the
    // budget, so one prompt token is left for the step after.
    assert_eq!(first.0, [100, 100 + 99 + 11, 210 + 1 + 11].map(|ms| ms * MS));
    assert_eq!(second.0, [222, 222 + 11, 233 + 11].map(|ms| ms * MS));
}

#[tokio::test(start_paused = true)]
async fn a_long_prompt_is_computed_in_chunks_between_the_tokens_of_others() {
    let engine = EngineHandle::start(EngineConfig { max_num_batched_tokens: 101, ..config() }, None);
    let start = Instant::now();
    let short = tokio::spawn(run(submit(&engine, 1, 10, 6), start));
    tokio::time::sleep(5 * MS).await;
    let (long, _) = run(submit(&engine, 2, 250, 1), start).await;
    let (short, _) = short.await.unwrap();
    // Steps of 100 prompt tokens and one decode: 111 ms each, then the last 50.
    assert_eq!(short[..4], [10, 121, 232, 293].map(|ms| ms * MS));
    assert_eq!(long, [293 * MS]);
}

#[tokio::test(start_paused = true)]
async fn no_more_run_than_may_and_the_rest_come_in_order() {
    let engine = EngineHandle::start(EngineConfig { max_num_seqs: 1, ..config() }, None);
    let start = Instant::now();
    let requests: Vec<_> =
        (1..4).map(|token| tokio::spawn(run(submit(&engine, token, 10, 2), start))).collect();
    let mut ends = Vec::new();
    for request in requests {
        ends.push(*request.await.unwrap().0.last().unwrap());
    }
    assert_eq!(ends, [21, 42, 63].map(|ms| ms * MS));
    let metrics = engine.metrics().lock().clone();
    assert_eq!((metrics.queue_time.below(0.3), metrics.queue_time.sum()), (3, 0.063));
}

#[tokio::test(start_paused = true)]
async fn out_of_blocks_the_youngest_is_preempted_and_still_ends_right() {
    // Ten blocks: two sequences of four blocks each, growing by two, do not fit together.
    let config = EngineConfig { num_blocks: 11, max_model_len: 160, ..config() };
    let engine = EngineHandle::start(config, None);
    let start = Instant::now();
    let (old, young) =
        tokio::join!(run(submit(&engine, 1, 64, 40), start), run(submit(&engine, 2, 64, 40), start));
    assert_eq!((old.0.len(), young.0.len()), (40, 40));
    assert!(old.0.last() < young.0.last());
    let metrics = engine.metrics().lock().clone();
    assert!(metrics.preemptions > 0);
    assert_eq!(metrics.generation_tokens, 80);
    assert_eq!((metrics.running, metrics.waiting, metrics.kv_usage), (0, 0, 0.0));
}

#[tokio::test(start_paused = true)]
async fn the_cache_forgets_what_was_used_longest_ago() {
    // Twelve blocks; each prompt takes four.
    let config = EngineConfig { num_blocks: 13, max_model_len: 192, ..config() };
    let engine = EngineHandle::start(config, None);
    let mut hits = Vec::new();
    for token in [1, 2, 3, 1, 4, 2, 1] {
        let before = engine.metrics().lock().prefix_hits;
        run(submit(&engine, token, 64, 1), Instant::now()).await;
        hits.push(engine.metrics().lock().prefix_hits - before);
    }
    // 4 takes the blocks of 2, the oldest: 2 misses (and takes those of 3), 1 is still there.
    assert_eq!(hits, [0, 0, 0, 48, 0, 0, 48]);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_request_frees_its_place() {
    let engine = EngineHandle::start(EngineConfig { max_num_seqs: 1, ..config() }, None);
    let start = Instant::now();
    let mut dropped = submit(&engine, 1, 10, 1000);
    let next = tokio::spawn(run(submit(&engine, 2, 10, 1), start));
    let mut deltas = Vec::new();
    dropped.next(&mut deltas).await;
    drop(dropped);
    // The step that was under way ends, then the next request's turn comes.
    assert_eq!(next.await.unwrap().0, [(10 + 11 + 10) * MS]);
    assert_eq!(engine.metrics().lock().finished_length, 1, "an aborted request is not a finished one");
}

#[tokio::test(start_paused = true)]
async fn time_can_run_faster() {
    let mut config = config();
    config.time.time_scale = 10.0;
    let engine = EngineHandle::start(config, None);
    let start = Instant::now();
    let (times, _) = run(submit(&engine, 1, 300, 101), start).await;
    // 30 ms of prefill, 100 steps of 1.1 ms; a timer's granularity may round the last one up.
    let took = *times.last().unwrap();
    assert!(took >= 140 * MS && took <= 141 * MS, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_frozen_engine_makes_up_for_nothing() {
    let engine = EngineHandle::start(config(), None);
    let start = Instant::now();
    let request = tokio::spawn(run(submit(&engine, 1, 100, 3), start));
    tokio::time::sleep(105 * MS).await;
    engine.set_frozen(true);
    tokio::time::sleep(400 * MS).await;
    engine.set_frozen(false);
    // The step under way at the freeze ends; the next one begins at the thaw.
    assert_eq!(request.await.unwrap().0, [100, 111, 516].map(|ms| ms * MS));
}

#[tokio::test(start_paused = true)]
async fn equal_engines_do_equal_things() {
    let mut runs = Vec::new();
    for _ in 0..2 {
        let engine =
            EngineHandle::start(EngineConfig { num_blocks: 40, max_model_len: 600, ..config() }, None);
        let start = Instant::now();
        let requests: Vec<_> = (0..12_u32)
            .map(|index| {
                let engine = engine.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(index * 7 * MS).await;
                    let tokens = 30 + index as usize * 13 % 200;
                    run(submit(&engine, index % 3, tokens, 5 + index as usize), start).await.0
                })
            })
            .collect();
        let mut times = Vec::new();
        for request in requests {
            times.push(request.await.unwrap());
        }
        let metrics = engine.metrics().lock().clone();
        runs.push((times, metrics.prefix_hits, metrics.preemptions));
    }
    assert_eq!(runs[0], runs[1]);
}
