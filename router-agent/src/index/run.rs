//! What readers see of the runs: hashes, and who holds which of them.
//!
//! A **run** is a stretch of up to 32 blocks, each the successor of the one before. Its holders stand in groups of
//! eight workers: per worker a mask with a bit per block, so a hole is a bit that is not set. A group belongs to its run
//! for as long as the run lives.
//!
//! Everything is a word of its own, stored with release and loaded with acquire, so whoever sees a word sees what was
//! stored before it. A run's **generation** changes when the run is freed, before anything else of it does: a reader
//! that finds the same generation before and after has read one run's words; one that finds another knows that, in
//! between, nobody held any block of the run.

use super::{
    arena::Arena,
    sync::{
        AtomicU32, AtomicU64,
        Ordering::{Acquire, Release},
    },
};

/// Blocks of a run.
pub(super) const RUN_BLOCKS: usize = 32;

/// Workers of a group.
pub(super) const GROUP: usize = 8;

/// Workers that an index can tell apart.
pub const WORKERS_MAX: usize = 1024;

/// Groups of a run, at most.
pub(super) const GROUPS_MAX: usize = WORKERS_MAX / GROUP;

/// No run, group or use.
pub(super) const NIL: u32 = u32::MAX;

/// The hashes of a run; 0 where there is none yet.
#[derive(Default)]
#[repr(align(64))]
pub(super) struct Hashes([AtomicU64; RUN_BLOCKS]);

impl Hashes {
    pub(super) fn get(&self, at: usize) -> u64 {
        self.0[at].load(Acquire)
    }

    pub(super) fn set(&self, at: usize, hash: u64) {
        self.0[at].store(hash, Release);
    }

    /// How many leading blocks of the run and of the prompt are the same. A hash names its whole prefix, so they agree
    /// up to some place and nowhere after it: the last block is compared first, and a place of divergence is found by
    /// bisection. `from`: the run's block that is known to be the prompt's first.
    pub(super) fn common_blocks(&self, from: usize, prompt: &[u64]) -> usize {
        let len = (RUN_BLOCKS - from).min(prompt.len());
        if self.get(from + len - 1) == prompt[len - 1] {
            return len;
        }
        let (mut same, mut different) = (0, len - 1);
        while different - same > 1 {
            let middle = usize::midpoint(same, different);
            if self.get(from + middle) == prompt[middle] {
                same = middle;
            } else {
                different = middle;
            }
        }
        different.max(1)
    }
}

/// A run's generation and the first of its groups.
pub(super) struct Head(AtomicU64);

impl Default for Head {
    fn default() -> Self {
        Self(AtomicU64::new(u64::from(NIL)))
    }
}

/// A head as it was at one moment.
#[derive(Clone, Copy)]
pub(super) struct HeadValue(u64);

impl HeadValue {
    pub(super) fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(super) fn first_group(self) -> u32 {
        self.0 as u32
    }
}

impl Head {
    pub(super) fn get(&self) -> HeadValue {
        HeadValue(self.0.load(Acquire))
    }

    pub(super) fn set_first_group(&self, group: u32) {
        self.0.store(u64::from(self.get().generation()) << 32 | u64::from(group), Release);
    }

    /// The run is free: from here on its words may become another run's.
    pub(super) fn retire(&self) {
        self.0.store(u64::from(self.get().generation().wrapping_add(1)) << 32 | u64::from(NIL), Release);
    }
}

/// Which blocks of a run eight workers hold.
#[derive(Default)]
pub(super) struct Group {
    /// Bits 0..8: the group's number (first worker / 8); 8..16: the workers that hold all 32 blocks, which spares a
    /// reader their masks; 32..64: the run's next group.
    header: AtomicU64,
    masks: [AtomicU32; GROUP],
}

/// A group's header as it was at one moment.
#[derive(Clone, Copy)]
pub(super) struct GroupHeader(u64);

impl GroupHeader {
    /// First worker / 8.
    pub(super) fn number(self) -> usize {
        (self.0 & 0xFF) as usize
    }

    /// Workers that hold all 32 blocks.
    pub(super) fn full(self) -> u64 {
        self.0 >> 8 & 0xFF
    }

    pub(super) fn next(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

impl Group {
    pub(super) fn header(&self) -> GroupHeader {
        GroupHeader(self.header.load(Acquire))
    }

    pub(super) fn mask(&self, lane: usize) -> u32 {
        self.masks[lane].load(Acquire)
    }

    /// Before the group is linked to its run; its masks are zero.
    pub(super) fn begin(&self, number: usize, next: u32) {
        self.header.store(number as u64 | u64::from(next) << 32, Release);
    }

    /// What is gone leaves the short cut before the mask; what is new enters it after.
    pub(super) fn set_mask(&self, lane: usize, mask: u32) {
        let full = 1 << (8 + lane);
        let header = self.header.load(Acquire);
        if mask != u32::MAX && header & full != 0 {
            self.header.store(header & !full, Release);
        }
        self.masks[lane].store(mask, Release);
        if mask == u32::MAX && header & full == 0 {
            self.header.store(header | full, Release);
        }
    }
}

/// All runs and groups.
pub(super) struct Runs {
    heads: Arena<Head>,
    hashes: Arena<Hashes>,
    groups: Arena<Group>,
}

/// Records beyond what the bound in bytes allows, for the insert at hand: it is evicted afterwards.
const SPARE: usize = 1 << 16;

impl Runs {
    pub(super) const RUN_BYTES: usize = size_of::<Head>() + size_of::<Hashes>();
    pub(super) const GROUP_BYTES: usize = size_of::<Group>();

    pub(super) fn new(bytes_max: usize) -> Self {
        // A block's place is 32 bits: run and position.
        let runs_max = (bytes_max / Self::RUN_BYTES + SPARE).min((1 << 27) - 1024);
        Self {
            heads: Arena::new(runs_max),
            hashes: Arena::new(runs_max),
            groups: Arena::new(bytes_max / Self::GROUP_BYTES + SPARE),
        }
    }

    /// Makes a run exist; says whether there is room for it.
    pub(super) fn ensure_run(&self, id: u32) -> bool {
        self.heads.ensure(id) && self.hashes.ensure(id)
    }

    pub(super) fn ensure_group(&self, id: u32) -> bool {
        self.groups.ensure(id)
    }

    /// A run by a number that may never have been given out.
    pub(super) fn find(&self, id: u32) -> Option<(&Head, &Hashes)> {
        Some((self.heads.get(id)?, self.hashes.get(id)?))
    }

    pub(super) fn head(&self, id: u32) -> &Head {
        self.heads.get(id).expect("a run that exists")
    }

    pub(super) fn hashes(&self, id: u32) -> &Hashes {
        self.hashes.get(id).expect("a run that exists")
    }

    pub(super) fn group(&self, id: u32) -> &Group {
        self.groups.get(id).expect("a group that exists")
    }

    /// The groups of a run that cannot be freed meanwhile.
    pub(super) fn groups(&self, run: u32) -> impl Iterator<Item = (u32, &Group)> + '_ {
        let mut id = self.head(run).get().first_group();
        std::iter::from_fn(move || {
            let group = (id != NIL).then(|| (id, self.group(id)))?;
            id = group.1.header().next();
            Some(group)
        })
    }

    /// Which of these blocks of a run anyone holds; the run cannot be freed meanwhile.
    pub(super) fn held(&self, run: u32, asked: u32) -> u32 {
        let mut held = 0;
        for (_, group) in self.groups(run) {
            held |= (0..GROUP).fold(0, |held, lane| held | group.mask(lane));
            if held & asked == asked {
                break;
            }
        }
        held & asked
    }

    pub(super) fn directory_bytes(&self) -> usize {
        self.heads.directory_bytes() + self.hashes.directory_bytes() + self.groups.directory_bytes()
    }
}
