//! What readers see of the runs: hashes, and who holds which of them.
//!
//! A **run** is a stretch of up to 32 blocks, each the successor of the one before. Its holders stand in groups of
//! eight workers: per worker a mask with a bit per block, so a hole is a bit that is not set. A group belongs to its run
//! for as long as the run lives. A run's **top** is one cache line: the last hash, by which a lookup knows the run as
//! its own, and the first group. Tops lie one behind the other, so those of a prompt's runs mostly do.
//!
//! Everything is a word of its own, stored with release and loaded with acquire, so whoever sees a word sees what was
//! stored before it. A run's **generation** changes when the run is freed, before anything else of it does: a reader
//! that finds the same generation before and after has read one run's words; one that finds another knows that, in
//! between, nobody held any block of the run.

use prefetch_index::prefetch_index;

use super::{
    WorkerSlot,
    arena::Arena,
    places::RUNS_MAX,
    sync::{
        AtomicU32, AtomicU64,
        Ordering::{Acquire, Release},
    },
    wide::{WIDES_MAX, Wide, WideRef},
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

    /// Has all lines fetched at once, where the search for a divergence would wait for one after the other.
    pub(super) fn prefetch(&self) {
        const LINE: usize = 64 / size_of::<u64>();
        (0..RUN_BLOCKS).step_by(LINE).for_each(|at| prefetch_index(&self.0, at));
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

/// What a lookup reads of a run that it has whole: one cache line.
#[derive(Default)]
#[repr(align(64))]
pub(super) struct Top {
    generation: AtomicU32,
    /// Blocks that stand in the run.
    len: AtomicU32,
    /// The hash of the last of them.
    last: AtomicU64,
    /// The first workers that held any of it, and those who share their group.
    group: Group,
    /// See [`WideRef`].
    wide: AtomicU32,
}

#[cfg(not(shuttle))]
const _: () = assert!(size_of::<Top>() == 64);

impl Top {
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Acquire)
    }

    /// How many blocks there are and the hash of the last one, each as it was at some moment.
    pub(super) fn end(&self) -> (usize, u64) {
        (self.len.load(Acquire) as usize, self.last.load(Acquire))
    }

    pub(super) fn set_end(&self, len: usize, last: u64) {
        self.last.store(last, Release);
        self.len.store(len as u32, Release);
    }

    /// The first of the run's groups.
    pub(super) fn group(&self) -> &Group {
        &self.group
    }

    pub(super) fn wide(&self) -> WideRef {
        WideRef(self.wide.load(Acquire))
    }

    pub(super) fn set_wide(&self, wide: WideRef) {
        self.wide.store(wide.0, Release);
    }

    /// The run is free: from here on its words may become another run's.
    pub(super) fn retire(&self) {
        self.generation.store(self.generation().wrapping_add(1), Release);
        self.set_end(0, 0);
        self.set_wide(WideRef::NONE);
    }
}

/// Which blocks of a run eight workers hold.
#[derive(Default)]
pub(super) struct Group {
    /// See [`GroupHeader`].
    header: AtomicU64,
    masks: [AtomicU32; GROUP],
}

/// A group's header as it was at one moment.
///
/// Bits 0..8: the group's number (first worker / 8); 8..16: the workers that hold all 32 blocks; 16..24: those that hold
/// all before the cut, a place where prompts often part; 24..30: the cut; 32..64: the run's next group. The two sets spare
/// a reader their masks.
#[derive(Clone, Copy)]
pub(super) struct GroupHeader(u64);

impl GroupHeader {
    /// First worker / 8.
    pub(super) fn number(self) -> usize {
        (self.0 & 0xFF) as usize
    }

    /// Workers that are known to hold the first `common` blocks without a look at their masks.
    pub(super) fn sure(self, common: usize) -> u64 {
        let before_cut = if common <= self.cut() { self.0 >> 16 } else { 0 };
        (self.0 >> 8 | before_cut) & 0xFF
    }

    /// Blocks before the cut; 0: there is none.
    pub(super) fn cut(self) -> usize {
        (self.0 >> 24 & 0x3F) as usize
    }

    pub(super) fn next(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The bits of a worker, as its mask wants them.
    fn with_lane(self, lane: usize, mask: u32) -> Self {
        let before_cut = first_blocks(self.cut());
        let full = u64::from(mask == u32::MAX) << 8;
        let cut = u64::from(before_cut != 0 && mask & before_cut == before_cut) << 16;
        Self(self.0 & !(0x1_0100 << lane) | (full | cut) << lane)
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
    pub(super) fn begin(&self, number: usize, cut: usize, next: u32) {
        self.header.store(number as u64 | (cut as u64) << 24 | u64::from(next) << 32, Release);
    }

    pub(super) fn set_next(&self, next: u32) {
        self.header.store(self.header().0 & 0xFFFF_FFFF | u64::from(next) << 32, Release);
    }

    /// What is gone leaves the short cuts before the mask; what is new enters them after.
    fn set_mask(&self, lane: usize, mask: u32) {
        let before = self.header();
        let after = before.with_lane(lane, mask);
        if after.0 & before.0 != before.0 {
            self.header.store(after.0 & before.0, Release);
        }
        self.masks[lane].store(mask, Release);
        if after.0 & !before.0 != 0 {
            self.header.store(after.0, Release);
        }
    }

    pub(super) fn set_cut(&self, cut: usize) {
        let moved = GroupHeader(self.header().0 & !(0x3FFF << 16) | (cut as u64) << 24);
        let set = (0..GROUP).fold(moved, |header, lane| header.with_lane(lane, self.mask(lane)));
        self.header.store(set.0, Release);
    }

    /// Whether the short cuts say what the masks say.
    pub(super) fn is_sound(&self) -> bool {
        let header = self.header();
        (0..GROUP).fold(header, |header, lane| header.with_lane(lane, self.mask(lane))).0 == header.0
    }
}

/// The mask of so many blocks.
pub(super) fn first_blocks(count: usize) -> u32 {
    ((1_u64 << count) - 1) as u32
}

/// All runs and groups.
pub(super) struct Runs {
    tops: Arena<Top>,
    hashes: Arena<Hashes>,
    groups: Arena<Group>,
    wides: Arena<Wide>,
}

/// A run's first group is its own and has its number; the number of any other has this bit.
pub(super) const FURTHER: u32 = 1 << 31;

/// Records beyond what the bound in bytes allows, for the insert at hand: it is evicted afterwards.
const SPARE: usize = 1 << 16;

impl Runs {
    pub(super) const RUN_BYTES: usize = size_of::<Top>() + size_of::<Hashes>();
    pub(super) const GROUP_BYTES: usize = size_of::<Group>();
    pub(super) const WIDE_BYTES: usize = size_of::<Wide>();

    pub(super) fn new(bytes_max: usize) -> Self {
        let runs_max = (bytes_max / Self::RUN_BYTES + SPARE).min(RUNS_MAX - 1024);
        Self {
            tops: Arena::new(runs_max),
            hashes: Arena::new(runs_max),
            groups: Arena::new((bytes_max / Self::GROUP_BYTES + SPARE).min((1 << 31) - 1024)),
            wides: Arena::new((bytes_max / Self::WIDE_BYTES + SPARE).min(WIDES_MAX)),
        }
    }

    /// Makes a run exist; says whether there is room for it. Who sees its top sees its hashes, too.
    pub(super) fn ensure_run(&self, id: u32) -> bool {
        self.hashes.ensure(id) && self.tops.ensure(id)
    }

    /// Makes a further group exist; says whether there is room for it.
    pub(super) fn ensure_group(&self, id: u32) -> bool {
        self.groups.ensure(id & !FURTHER)
    }

    pub(super) fn ensure_wide(&self, id: u32) -> bool {
        self.wides.ensure(id)
    }

    pub(super) fn wide(&self, id: u32) -> &Wide {
        self.wides.get(id).expect("sets that exist")
    }

    /// Says which blocks of a run a worker of this group holds.
    pub(super) fn set_mask(&self, run: u32, group: u32, slot: WorkerSlot, mask: u32) {
        self.group(group).set_mask(usize::from(slot.0) % GROUP, mask);
        if let Some((id, blocks)) = self.top(run).wide().get() {
            let first = first_blocks(blocks);
            self.wide(id).set(slot, mask & first == first, mask != 0);
        }
    }

    /// A run by a number that may never have been given out.
    pub(super) fn find(&self, id: u32) -> Option<&Top> {
        self.tops.get(id)
    }

    /// Has the top of a run so many numbers behind this one fetched, if it lies near and there is such a run.
    pub(super) fn prefetch(&self, id: u32, behind: usize) {
        self.tops.prefetch(id, behind);
    }

    pub(super) fn top(&self, id: u32) -> &Top {
        self.tops.get(id).expect("a run that exists")
    }

    /// Blocks that stand in a run by a number that may never have been given out.
    pub(super) fn len(&self, id: u32) -> usize {
        self.find(id).map_or(0, |top| top.end().0)
    }

    pub(super) fn hashes(&self, id: u32) -> &Hashes {
        self.hashes.get(id).expect("a run that exists")
    }

    pub(super) fn group(&self, id: u32) -> &Group {
        if id & FURTHER == 0 {
            return self.top(id).group();
        }
        self.groups.get(id & !FURTHER).expect("a group that exists")
    }

    /// The groups of a run that cannot be freed meanwhile.
    pub(super) fn groups(&self, run: u32) -> impl Iterator<Item = (u32, &Group)> + '_ {
        let mut id = run;
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
        self.tops.directory_bytes()
            + self.hashes.directory_bytes()
            + self.groups.directory_bytes()
            + self.wides.directory_bytes()
    }
}
