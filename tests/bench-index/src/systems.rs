//! The indexes under one interface: all events at once on the calling thread, and single lookups.

use std::sync::Arc;

use dynamo_kv_router::{
    ConcurrentRadixTreeCompressed, PositionalIndexer,
    indexer::{SyncIndexer, WorkerTask},
    protocols::{
        ExternalSequenceBlockHash, KvCacheEvent, KvCacheEventData, KvCacheRemoveData, KvCacheStoreData,
        KvCacheStoredBlockData, LocalBlockHash, RouterEvent, WorkerWithDpRank, compute_seq_hash_for_block,
    },
};
use kv_index::{ChainBlockMap, ChainIndex, ContentHash, SequenceHash, StoredBlock};

use crate::{
    index::{Matches, PrefixIndex, WorkerSlot},
    workload::{Event, Prompt, Workload},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum System {
    Warmpath,
    KvIndex,
    DynamoRadix,
    DynamoPositional,
    WarmpathSlowed,
}

/// Blocks that `PositionalIndexer` jumps over: what its own benchmark takes.
const JUMP: usize = 8;

impl System {
    pub(crate) const ALL: [Self; 5] =
        [Self::Warmpath, Self::KvIndex, Self::DynamoRadix, Self::DynamoPositional, Self::WarmpathSlowed];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Warmpath => "warmpath",
            Self::KvIndex => "kv-index",
            Self::DynamoRadix => "dynamo-radix",
            Self::DynamoPositional => "dynamo-positional",
            Self::WarmpathSlowed => "warmpath-slowed",
        }
    }

    pub(crate) fn build(self, workers: u16) -> Box<dyn Index> {
        match self {
            Self::Warmpath => Box::new(Ours(PrefixIndex::default())),
            Self::WarmpathSlowed => {
                Box::new(Twice([Ours(PrefixIndex::default()), Ours(PrefixIndex::default())]))
            }
            Self::KvIndex => Box::new(Chain::new(workers)),
            Self::DynamoRadix => Box::new(Dynamo(Arc::new(ConcurrentRadixTreeCompressed::new()))),
            Self::DynamoPositional => Box::new(Dynamo(Arc::new(PositionalIndexer::new(JUMP)))),
        }
    }
}

pub(crate) fn prefix_hashes(contents: &[u64]) -> Vec<u64> {
    compute_seq_hash_for_block(&contents.iter().map(|hash| LocalBlockHash(*hash)).collect::<Vec<_>>())
}

/// See the module.
pub(crate) trait Index: Sync {
    /// All events in the system's own form; calling the result applies them and returns when all are applied.
    fn prepare<'a>(&'a self, workload: &'a Workload) -> Box<dyn FnOnce() + Send + 'a>;

    /// Something that looks up one prompt after the other and returns the longest match, in the form that a prompt is
    /// prepared to. `answer` is filled with (worker, blocks) where it is given.
    fn reader<'a>(
        &'a self,
        prompts: &'a [Prompt],
    ) -> Box<dyn FnMut(usize, Option<&mut Vec<(u16, u32)>>) -> u32 + 'a>;
}

struct Ours(PrefixIndex);

impl Ours {
    fn apply(&self, workload: &Workload, (slot, event): &(u16, Event)) {
        match event {
            Event::Stored { prompt, from } => {
                let hashes = &workload.prompts[*prompt].prefixes;
                let parent = hashes[..*from].last().copied();
                self.0.store(WorkerSlot(*slot), parent, &hashes[*from..]);
            }
            Event::Removed(hashes) => self.0.remove(WorkerSlot(*slot), hashes),
        }
    }
}

impl Index for Ours {
    fn prepare<'a>(&'a self, workload: &'a Workload) -> Box<dyn FnOnce() + Send + 'a> {
        Box::new(|| workload.events.iter().for_each(|event| self.apply(workload, event)))
    }

    fn reader<'a>(
        &'a self,
        prompts: &'a [Prompt],
    ) -> Box<dyn FnMut(usize, Option<&mut Vec<(u16, u32)>>) -> u32 + 'a> {
        let mut matches = Matches::new();
        Box::new(move |prompt, answer| {
            self.0.lookup(&prompts[prompt].prefixes, &mut matches);
            if let Some(answer) = answer {
                answer.extend(matches.iter().map(|(slot, blocks)| (slot.0, blocks)));
            }
            matches.best_blocks()
        })
    }
}

/// Two of ours, both kept up to date and asked.
struct Twice([Ours; 2]);

impl Index for Twice {
    fn prepare<'a>(&'a self, workload: &'a Workload) -> Box<dyn FnOnce() + Send + 'a> {
        let [one, two] = &self.0;
        Box::new(|| {
            for event in &workload.events {
                one.apply(workload, event);
                two.apply(workload, event);
            }
        })
    }

    fn reader<'a>(
        &'a self,
        prompts: &'a [Prompt],
    ) -> Box<dyn FnMut(usize, Option<&mut Vec<(u16, u32)>>) -> u32 + 'a> {
        let [mut one, mut two] = self.0.each_ref().map(|index| index.reader(prompts));
        Box::new(move |prompt, answer| one(prompt, answer).max(two(prompt, None)))
    }
}

struct Chain {
    index: ChainIndex,
    workers: Vec<u32>,
}

impl Chain {
    fn new(workers: u16) -> Self {
        let index = ChainIndex::with_max_workers(usize::from(workers));
        let workers = (0..workers)
            .map(|slot| index.intern_worker(&slot.to_string()).expect("as many as it was made for"));
        Self { workers: workers.collect(), index }
    }
}

impl Index for Chain {
    fn prepare<'a>(&'a self, workload: &'a Workload) -> Box<dyn FnOnce() + Send + 'a> {
        enum Own {
            Stored(Vec<StoredBlock>, Option<SequenceHash>),
            Removed(Vec<SequenceHash>),
        }
        let events: Vec<(u16, Own)> = workload
            .events
            .iter()
            .map(|(slot, event)| {
                let own = match event {
                    Event::Stored { prompt, from } => {
                        let Prompt { contents, prefixes } = &workload.prompts[*prompt];
                        let blocks =
                            contents[*from..].iter().zip(&prefixes[*from..]).map(|(content, prefix)| {
                                StoredBlock {
                                    seq_hash: SequenceHash(*prefix),
                                    content_hash: ContentHash(*content),
                                }
                            });
                        Own::Stored(blocks.collect(), prefixes[..*from].last().copied().map(SequenceHash))
                    }
                    Event::Removed(hashes) => {
                        Own::Removed(hashes.iter().copied().map(SequenceHash).collect())
                    }
                };
                (*slot, own)
            })
            .collect();
        Box::new(move || {
            let mut maps: Vec<ChainBlockMap> = self.workers.iter().map(|_| ChainBlockMap::new()).collect();
            for (slot, event) in &events {
                let (worker, map) = (self.workers[usize::from(*slot)], &mut maps[usize::from(*slot)]);
                match event {
                    Own::Stored(blocks, parent) => {
                        self.index.apply_stored(worker, blocks, *parent, map).expect("the parent is held");
                    }
                    Own::Removed(hashes) => self.index.apply_removed(worker, hashes, map),
                }
            }
            // The maps are a part of the index, which its writers keep.
            std::mem::forget(maps);
        })
    }

    fn reader<'a>(
        &'a self,
        prompts: &'a [Prompt],
    ) -> Box<dyn FnMut(usize, Option<&mut Vec<(u16, u32)>>) -> u32 + 'a> {
        Box::new(move |prompt, mut answer| {
            let mut best = 0;
            self.index.score_into(
                &prompts[prompt].contents,
                |hash| *hash,
                false,
                |worker, blocks| {
                    best = best.max(blocks);
                    if let Some(answer) = &mut answer {
                        let slot =
                            self.workers.iter().position(|known| *known == worker).expect("a known worker");
                        answer.push((slot as u16, blocks));
                    }
                },
            );
            best
        })
    }
}

struct Dynamo<T>(Arc<T>);

impl<T: SyncIndexer> Index for Dynamo<T> {
    fn prepare<'a>(&'a self, workload: &'a Workload) -> Box<dyn FnOnce() + Send + 'a> {
        let (sender, receiver) = flume::unbounded();
        for (number, (slot, event)) in workload.events.iter().enumerate() {
            let data = match event {
                Event::Stored { prompt, from } => {
                    let Prompt { contents, prefixes } = &workload.prompts[*prompt];
                    let blocks = contents[*from..].iter().zip(&prefixes[*from..]);
                    KvCacheEventData::Stored(KvCacheStoreData {
                        parent_hash: prefixes[..*from].last().copied().map(ExternalSequenceBlockHash),
                        start_position: Some(*from as u32),
                        blocks: blocks
                            .map(|(content, prefix)| KvCacheStoredBlockData {
                                block_hash: ExternalSequenceBlockHash(*prefix),
                                tokens_hash: LocalBlockHash(*content),
                                mm_extra_info: None,
                            })
                            .collect(),
                    })
                }
                Event::Removed(hashes) => KvCacheEventData::Removed(KvCacheRemoveData {
                    block_hashes: hashes.iter().copied().map(ExternalSequenceBlockHash).collect(),
                }),
            };
            let event = KvCacheEvent { event_id: number as u64, data, dp_rank: 0 };
            let task = WorkerTask::Event(RouterEvent::new(u64::from(*slot), event));
            sender.send(task).expect("the receiver is here");
        }
        // Its own loop over its own queue, on this thread; it ends with the queue. What removals need lives
        // and dies with that loop: memory is counted without it, to their advantage.
        Box::new(move || {
            drop(sender);
            self.0.worker(receiver, None).expect("the loop ends with the queue");
        })
    }

    fn reader<'a>(
        &'a self,
        prompts: &'a [Prompt],
    ) -> Box<dyn FnMut(usize, Option<&mut Vec<(u16, u32)>>) -> u32 + 'a> {
        let own: Vec<Vec<LocalBlockHash>> = prompts
            .iter()
            .map(|prompt| prompt.contents.iter().map(|hash| LocalBlockHash(*hash)).collect())
            .collect();
        Box::new(move |prompt, answer| {
            let found = self.0.find_matches(&own[prompt], false);
            if let Some(answer) = answer {
                let slot = |worker: &WorkerWithDpRank| worker.worker_id as u16;
                answer.extend(found.scores.iter().map(|(worker, blocks)| (slot(worker), *blocks)));
            }
            found.scores.values().copied().max().unwrap_or(0)
        })
    }
}
