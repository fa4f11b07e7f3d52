//! One trial of one system, in this order: all events applied by one thread (rate), memory, answers compared with the
//! reference, lookups with what they need in the processor's caches and without, and lookups beside a writer that
//! applies all events to a second index.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use fastrand::Rng;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::{ALLOCATED, systems::System, workload::Workload};

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Blocks stored and removed, per second of the writing thread's processor time, until the last is applied.
    pub(crate) write_blocks_per_s: f64,
    /// Allocated for the index, per (block, worker) held.
    pub(crate) bytes_per_held: f64,
    /// Answers (of one worker to one prompt) that the reference does not give.
    pub(crate) wrong_answers: usize,
    /// Lookups of 64 prompts, over and over.
    pub(crate) hot_us: Percentiles,
    /// Lookups of any prompt, each after 32 MiB of other memory were read.
    pub(crate) cold_us: Percentiles,
    /// Lookups of any prompt while a second thread writes.
    pub(crate) beside_us: Percentiles,
    /// Blocks stored, removed and looked up beside each other, per second.
    pub(crate) mixed_blocks_per_s: f64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

const HOT_PROMPTS: usize = 64;
const HOT_LOOKUPS: usize = 20_000;
const COLD_LOOKUPS: usize = 400;
const COMPARED: usize = 1_000;
const OTHER_MEMORY: usize = 32 << 20;

pub(crate) fn run(system: System, workload: &Workload) -> Figures {
    let before = ALLOCATED.allocated();
    let index = system.build(workload.workers);
    let took = {
        let apply = index.prepare(workload);
        let start = thread_time();
        apply();
        thread_time() - start
    };
    let bytes = ALLOCATED.allocated() - before;
    let written = workload.stored_blocks + workload.removed_blocks;

    let mut random = Rng::with_seed(7);
    let prompts = &workload.prompts;
    let mut look_up = index.reader(prompts);
    let mut wrong_answers = 0;
    for _ in 0..COMPARED {
        let prompt = random.usize(..prompts.len());
        let mut answers = vec![0; usize::from(workload.workers)];
        let mut found = Vec::new();
        look_up(prompt, Some(&mut found));
        found.into_iter().for_each(|(slot, blocks)| answers[usize::from(slot)] = blocks);
        let wrong = (0..workload.workers)
            .zip(&answers)
            .filter(|(slot, blocks)| workload.expected(*slot, &prompts[prompt]) != **blocks);
        wrong_answers += wrong.count();
    }

    let mut time = |prompt: usize| {
        let start = Instant::now();
        std::hint::black_box(look_up(prompt, None));
        start.elapsed().as_secs_f64() * 1e6
    };
    let hot: Vec<usize> = (0..HOT_PROMPTS).map(|_| random.usize(..prompts.len())).collect();
    let hot_us = percentiles((0..HOT_LOOKUPS).map(|turn| time(hot[turn % HOT_PROMPTS])).collect());
    let other = vec![1_u8; OTHER_MEMORY];
    let cold = |_| {
        std::hint::black_box(other.iter().step_by(64).map(|byte| usize::from(*byte)).sum::<usize>());
        time(random.usize(..prompts.len()))
    };
    let cold_us = percentiles((0..COLD_LOOKUPS).map(cold).collect());

    let (beside_us, mixed_blocks_per_s) = beside(system, workload);
    Figures {
        write_blocks_per_s: written as f64 / took.as_secs_f64(),
        bytes_per_held: bytes as f64 / workload.held_blocks() as f64,
        wrong_answers,
        hot_us,
        cold_us,
        beside_us,
        mixed_blocks_per_s,
    }
}

/// Processor time of this thread: what it would take on a machine that nobody else uses.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// One thread applies all events, this one looks up until the last is applied.
fn beside(system: System, workload: &Workload) -> (Percentiles, f64) {
    let index = system.build(workload.workers);
    let apply = index.prepare(workload);
    let mut look_up = index.reader(&workload.prompts);
    let mut random = Rng::with_seed(8);
    let (mut times, mut blocks) = (Vec::with_capacity(1 << 20), 0);
    let done = AtomicBool::new(false);
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            apply();
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            let prompt = random.usize(..workload.prompts.len());
            let begin = Instant::now();
            std::hint::black_box(look_up(prompt, None));
            times.push(begin.elapsed().as_secs_f64() * 1e6);
            blocks += workload.prompts[prompt].contents.len();
        }
    });
    blocks += workload.stored_blocks + workload.removed_blocks;
    (percentiles(times), blocks as f64 / start.elapsed().as_secs_f64())
}

fn percentiles(mut times: Vec<f64>) -> Percentiles {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or(0.0);
    Percentiles { p50: at(0.5), p99: at(0.99) }
}
