//! What engines would say: every request of the trace goes to a worker, whose cache holds so many blocks and evicts the
//! least recently used, of one request the deepest first. What was not cached is stored, what was evicted is removed.
//!
//! A request follows the worker that last had most of it in 3 of 4 cases, else it goes where a seeded generator says, so
//! prefixes are shared, and caches overflow at different times.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    io::{BufRead as _, BufReader},
};

use anyhow::{Context, Result};
use fastrand::Rng;
use xxhash_rust::xxh3::xxh3_64;

/// A prompt in the hashes that each system wants.
pub(crate) struct Prompt {
    /// Of a block's contents alone.
    pub(crate) contents: Vec<u64>,
    /// Of the whole prefix, by the function that dynamo-kv-router also uses in its lookups; the others take any.
    pub(crate) prefixes: Vec<u64>,
}

/// What a worker says.
pub(crate) enum Event {
    /// It now holds blocks `from..` of a prompt.
    Stored { prompt: usize, from: usize },
    /// These blocks are gone.
    Removed(Vec<u64>),
}

pub(crate) struct Workload {
    pub(crate) workers: u16,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) events: Vec<(u16, Event)>,
    /// Per worker, what it holds in the end: the literal reference.
    pub(crate) held: Vec<HashMap<u64, (usize, usize)>>,
    pub(crate) stored_blocks: usize,
    pub(crate) removed_blocks: usize,
}

impl Workload {
    pub(crate) fn new(args: &crate::Args) -> Result<Self> {
        let prompts = read(args)?;
        let mut workload = Self {
            workers: args.workers,
            prompts,
            events: Vec::new(),
            held: vec![HashMap::new(); usize::from(args.workers)],
            stored_blocks: 0,
            removed_blocks: 0,
        };
        workload.serve(args.capacity);
        Ok(workload)
    }

    fn serve(&mut self, capacity: usize) {
        let mut random = Rng::with_seed(2);
        let mut last_of: HashMap<u64, u16> = HashMap::new();
        let mut orders: Vec<BTreeSet<(usize, Reverse<usize>, u64)>> = vec![BTreeSet::new(); self.held.len()];
        for (number, prompt) in self.prompts.iter().enumerate() {
            let known = prompt.prefixes.iter().rev().step_by(8).find_map(|hash| last_of.get(hash)).copied();
            let slot = known.filter(|_| random.u8(..4) > 0).unwrap_or_else(|| random.u16(..self.workers));
            let (held, order) = (&mut self.held[usize::from(slot)], &mut orders[usize::from(slot)]);
            let from = prompt.prefixes.iter().take_while(|hash| held.contains_key(hash)).count();
            for (depth, hash) in prompt.prefixes.iter().enumerate() {
                last_of.insert(*hash, slot);
                if let Some((stamp, depth)) = held.insert(*hash, (number, depth)) {
                    order.remove(&(stamp, Reverse(depth), *hash));
                }
                order.insert((number, Reverse(depth), *hash));
            }
            if from < prompt.prefixes.len() {
                self.stored_blocks += prompt.prefixes.len() - from;
                self.events.push((slot, Event::Stored { prompt: number, from }));
            }
            let mut removed = Vec::new();
            while order.len() > capacity {
                let (_, _, hash) = order.pop_first().expect("more than the capacity is held");
                held.remove(&hash);
                removed.push(hash);
            }
            self.removed_blocks += removed.len();
            if !removed.is_empty() {
                self.events.push((slot, Event::Removed(removed)));
            }
        }
    }

    /// How many leading blocks of a prompt a worker holds.
    pub(crate) fn expected(&self, slot: u16, prompt: &Prompt) -> u32 {
        let held = &self.held[usize::from(slot)];
        prompt.prefixes.iter().take_while(|hash| held.contains_key(hash)).count() as u32
    }

    pub(crate) fn held_blocks(&self) -> usize {
        self.held.iter().map(HashMap::len).sum()
    }

    pub(crate) fn describe(&self) -> String {
        let blocks: usize = self.prompts.iter().map(|prompt| prompt.prefixes.len()).sum();
        format!(
            "{} requests ({blocks} blocks) over {} workers: {} events, {} blocks stored, {} removed, {} held in the end",
            self.prompts.len(),
            self.workers,
            self.events.len(),
            self.stored_blocks,
            self.removed_blocks,
            self.held_blocks(),
        )
    }
}

fn read(args: &crate::Args) -> Result<Vec<Prompt>> {
    #[derive(serde::Deserialize)]
    struct Line {
        hash_ids: Vec<u64>,
    }
    let file = std::fs::File::open(&args.trace)
        .with_context(|| format!("cannot open the trace {}", args.trace.display()))?;
    let lines = BufReader::new(file).lines().enumerate();
    lines
        .map(|(number, line)| {
            let line: Line = serde_json::from_str(&line?)
                .with_context(|| format!("line {} of the trace is no request with `hash_ids`", number + 1))?;
            let parts = line.hash_ids.iter().flat_map(|id| (0..args.per_id).map(move |part| (*id, part)));
            let contents: Vec<u64> =
                parts.map(|(id, part)| xxh3_64(&(id * args.per_id + part).to_le_bytes())).collect();
            Ok(Prompt { prefixes: crate::systems::prefix_hashes(&contents), contents })
        })
        .collect()
}
