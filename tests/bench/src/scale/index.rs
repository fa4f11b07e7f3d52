//! The prefix index by itself, as large as a large fleet makes it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fastrand::Rng;
use router_agent::index::{Matches, PrefixIndex, WorkerSlot};

use crate::processes::resident_kib;

/// Blocks that all prompts begin with, and of each prompt: a system prompt, then something of its own.
const COMMON_BLOCKS: usize = 32;
const PROMPT_BLOCKS: usize = 256;
const LOOKUPS: usize = 20_000;

/// What was measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Index {
    pub(super) workers: u16,
    pub(super) pairs: u64,
    pub(super) blocks: u64,
    /// Of its own account, and of the process.
    pub(super) bytes_per_pair: f64,
    pub(super) resident_bytes_per_pair: f64,
    pub(super) pairs_per_s: f64,
    pub(super) lookup_p50: Duration,
    pub(super) lookup_p99: Duration,
    /// Until one worker of them all is forgotten.
    pub(super) removal: Duration,
}

/// Hashes need only differ here: the index looks at nothing else.
fn prompt(number: u64) -> Vec<u64> {
    let mut common = Rng::with_seed(0);
    let mut own = Rng::with_seed(number + 1);
    let mut hashes: Vec<_> = (0..COMMON_BLOCKS).map(|_| common.u64(..)).collect();
    hashes.extend((COMMON_BLOCKS..PROMPT_BLOCKS).map(|_| own.u64(..)));
    hashes
}

/// Fills an index until it holds so many pairs. Each prompt is on two workers, as a prefix that was once moved.
pub(super) fn measure(workers: u16, pairs: u64) -> Result<Index> {
    let before_kib = resident_kib(std::process::id());
    let index = PrefixIndex::new(usize::MAX / 2);
    let mut random = Rng::with_seed(2);
    let (mut spent, mut written, mut prompts) = (Duration::ZERO, 0, 0);
    // What all prompts begin with is soon on every worker, and then counts no more.
    while prompts % 1_000 != 0 || index.stats().held_blocks < pairs {
        let hashes = prompt(prompts);
        prompts += 1;
        let first = random.u16(..workers);
        let second = (first + 1 + random.u16(..workers - 1)) % workers;
        let begin = Instant::now();
        index.insert(WorkerSlot(first), &hashes);
        index.insert(WorkerSlot(second), &hashes);
        spent += begin.elapsed();
        written += 2 * hashes.len() as u64;
    }
    let stats = index.stats();
    let grown = (resident_kib(std::process::id()) - before_kib) * 1024;
    let mut matches = Matches::new();
    let mut times: Vec<_> = (0..LOOKUPS)
        .map(|_| {
            let hashes = prompt(random.u64(..prompts));
            let begin = Instant::now();
            index.lookup(&hashes, &mut matches);
            begin.elapsed()
        })
        .collect();
    times.sort_unstable();
    // The last prompt is on the workers that were drawn for it, as deep as it is.
    let holders =
        (0..workers).filter(|slot| matches.blocks(WorkerSlot(*slot)) == PROMPT_BLOCKS as u32).count();
    ensure!(holders == 2, "{holders} workers hold a prompt that two were given");
    let begin = Instant::now();
    index.remove_worker(WorkerSlot(0));
    let removal = begin.elapsed();
    ensure!(index.blocks(WorkerSlot(0)) == 0, "a worker that was removed holds blocks");
    Ok(Index {
        workers,
        pairs: stats.held_blocks,
        blocks: stats.blocks,
        bytes_per_pair: stats.bytes as f64 / stats.held_blocks as f64,
        resident_bytes_per_pair: grown as f64 / stats.held_blocks as f64,
        pairs_per_s: written as f64 / spent.as_secs_f64(),
        lookup_p50: times[LOOKUPS / 2],
        lookup_p99: times[LOOKUPS * 99 / 100],
        removal,
    })
}
