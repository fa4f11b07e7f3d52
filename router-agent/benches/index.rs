//! The prefix index under load: lookups over 64 workers, inserts, memory; one thread, then readers beside a writer.
//!
//! `cargo bench -p router-agent --bench index [-- TRACE]`: with a Mooncake trace (JSON lines with `hash_ids`), its
//! requests; without, synthetic conversations. Every request goes to a worker that a seeded generator draws, but a
//! turn of a known conversation goes where the last one went in 3 of 4 cases, so that prefixes are shared.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use fastrand::Rng;
use router_agent::index::{Hottest, Matches, PrefixIndex, WorkerSlot};
use xxhash_rust::xxh3::xxh3_64_with_seed;

mod support;
use support::{Times, time};

const WORKERS: u16 = 64;
/// Our blocks of 32 tokens per block of 512 in the trace.
const BLOCKS_PER_ID: u64 = 16;

struct Request {
    hashes: Vec<u64>,
    slot: WorkerSlot,
}

fn chain(ids: &[u64], per_id: u64) -> Vec<u64> {
    let mut last = 0;
    let blocks = ids.iter().flat_map(|id| (0..per_id).map(move |part| id * per_id + part));
    blocks
        .map(|block| {
            last = xxh3_64_with_seed(&block.to_le_bytes(), last);
            last
        })
        .collect()
}

fn trace(path: &str) -> Vec<Vec<u64>> {
    let file = BufReader::new(std::fs::File::open(path).expect("the trace can be opened"));
    file.lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(&line.expect("text")).expect("JSON");
            let ids = line["hash_ids"].as_array().expect("hash_ids");
            chain(&ids.iter().map(|id| id.as_u64().expect("a number")).collect::<Vec<_>>(), BLOCKS_PER_ID)
        })
        .collect()
}

/// 2,000 conversations of 6 turns with one system prompt of 64 blocks; 100 new blocks a turn in the mean.
fn conversations() -> Vec<Vec<u64>> {
    let mut random = Rng::with_seed(1);
    let mut turns: Vec<(u64, Vec<u64>)> = Vec::new();
    for conversation in 0..2_000_u64 {
        let mut ids: Vec<u64> = (0..64).collect();
        for turn in 0..6 {
            let start = (conversation + 1) * 10_000 + turn * 1_000;
            ids.extend(start..start + random.u64(10..190));
            turns.push((conversation + turn * 300 + random.u64(..200), chain(&ids, 1)));
        }
    }
    turns.sort_by_key(|(order, _)| *order);
    turns.into_iter().map(|(_, hashes)| hashes).collect()
}

fn place(prompts: Vec<Vec<u64>>) -> Vec<Request> {
    let mut random = Rng::with_seed(2);
    let mut last_of: HashMap<u64, WorkerSlot> = HashMap::new();
    prompts
        .into_iter()
        .map(|hashes| {
            // The deepest block that any earlier request ended with or passed through.
            let known = hashes.iter().rev().step_by(8).find_map(|hash| last_of.get(hash)).copied();
            let slot = known.filter(|_| random.u8(..4) > 0).unwrap_or(WorkerSlot(random.u16(..WORKERS)));
            last_of.extend(hashes.iter().map(|hash| (*hash, slot)));
            Request { hashes, slot }
        })
        .collect()
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

fn main() {
    let path = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let prompts = path.as_deref().map_or_else(conversations, trace);
    let requests = place(prompts);
    let blocks: usize = requests.iter().map(|request| request.hashes.len()).sum();
    println!("{} requests, {blocks} blocks, {WORKERS} workers", requests.len());

    for (name, bytes_max) in [("unbounded", 4 << 30), ("bounded to 1 MiB", 1 << 20)] {
        println!("\n{name}");
        let before = resident_bytes();
        let index = PrefixIndex::new(bytes_max);
        let start = Instant::now();
        for request in &requests {
            index.insert(request.slot, &request.hashes);
        }
        let took = start.elapsed();
        let stats = index.stats();
        index.audit().expect("sound");
        println!(
            "  inserts: {:.0} requests/s, {:.1} M blocks/s",
            requests.len() as f64 / took.as_secs_f64(),
            blocks as f64 / took.as_secs_f64() / 1e6
        );
        println!(
            "  memory: {} runs, {} blocks, {} held; {:.1} bytes per (block, worker) counted, {:.1} resident",
            stats.runs,
            stats.blocks,
            stats.held_blocks,
            stats.bytes as f64 / stats.held_blocks as f64,
            (resident_bytes() - before) as f64 / stats.held_blocks as f64
        );
        let mut matches = Matches::new();
        let mut random = Rng::with_seed(3);
        time("  lookup, random request", 1000, || {
            index.lookup(&requests[random.usize(..requests.len())].hashes, &mut matches);
            matches.best_blocks()
        });
        let longest = requests.iter().max_by_key(|request| request.hashes.len()).expect("requests");
        time(&format!("  lookup, the longest ({} blocks)", longest.hashes.len()), 300, || {
            index.lookup(&longest.hashes, &mut matches);
        });
        time("  insert, known request again", 500, || {
            let request = &requests[random.usize(..requests.len())];
            index.insert(request.slot, &request.hashes);
        });
        sample(&index);
        beside_a_writer(&index, &requests);
        let start = Instant::now();
        index.remove_worker(WorkerSlot(1));
        println!("  removal of one worker: {:.2} ms", start.elapsed().as_secs_f64() * 1e3);
    }
    shared_by_all();
}

/// What the `prefixes` map is made from: a step is what holds the lock at a time.
fn sample(index: &PrefixIndex) {
    let mut hottest = Hottest::default();
    hottest.begin(index, 1);
    time("  sample of the most used, one step", 300, || {
        if !hottest.step(index, 256, 1) {
            hottest.begin(index, 1);
        }
    });
    time("  sample of the most used, whole", 300, || {
        hottest.begin(index, 1);
        while hottest.step(index, 256, 1) {}
        hottest.finish(index).len()
    });
}

/// Lookups on this thread while another one does nothing but insert.
fn beside_a_writer(index: &PrefixIndex, requests: &[Request]) {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut inserts = 0_u64;
            for request in requests.iter().cycle() {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                index.insert(request.slot, &request.hashes);
                inserts += 1;
            }
            inserts
        });
        let mut matches = Matches::new();
        let mut random = Rng::with_seed(5);
        let (start, mut times) = (Instant::now(), Vec::new());
        while start.elapsed() < Duration::from_secs(1) {
            let request = &requests[random.usize(..requests.len())];
            let begin = Instant::now();
            index.lookup(&request.hashes, &mut matches);
            times.push(begin.elapsed());
        }
        done.store(true, Ordering::Relaxed);
        let inserts = writer.join().expect("the writer runs");
        let times = Times::new(times);
        println!(
            "  lookup beside a busy writer ({inserts} inserts/s): p50 {:?}, p99 {:?}, p99.9 {:?}",
            times.at(50.0),
            times.at(99.0),
            times.at(99.9)
        );
    });
}

/// Every worker holds one long prompt, each to its own depth: the most that one lookup can have to say.
fn shared_by_all() {
    println!("\none prompt of 3,200 blocks, held by 64 workers to 64 depths");
    let index = PrefixIndex::default();
    let hashes = chain(&(0..3_200).collect::<Vec<_>>(), 1);
    for slot in 0..WORKERS {
        index.insert(WorkerSlot(slot), &hashes[..50 * (usize::from(slot) + 1)]);
    }
    let mut matches = Matches::new();
    time("  lookup", 500, || index.lookup(&hashes, &mut matches));
    time("  insert by the worker that holds all", 500, || index.insert(WorkerSlot(WORKERS - 1), &hashes));
}
