//! The read path: no lock, no allocation, no retry.
//!
//! A lookup goes from run to run. The one behind a run that was matched whole is usually its neighbour by number, which
//! is tried first, since no load has to wait for another then; else the table of first hashes knows it. A run is known
//! by its last hash, which names all before it, so of one that is matched whole only the top is read: one cache line.
//! In each run the lookup keeps the workers that hold all of what the run and the prompt share, and notes for the
//! others how far they came.
//!
//! **What an answer means** while writers write: every block that is counted for a worker was held by it at some moment
//! of the lookup, and the first that is not counted was not held at some moment of the lookup. Why no retry is needed:
//! if a run's generation changes while it is read, nobody held any of its blocks at that moment, so ending there is true.

use prefetch_index::prefetch_index;

use super::{
    Matches,
    run::{GROUP, GROUPS_MAX, NIL, RUN_BLOCKS, Runs, Top},
    starts::Starts,
};

/// How many runs ahead the top and the last hash are fetched: the neighbours by number, as if the prompt had them all.
const AHEAD: usize = 4;

/// A run that a lookup has found.
struct Entered<'index> {
    id: u32,
    top: &'index Top,
    /// Read before anything else of the run.
    generation: u32,
    /// Leading blocks that it shares with the rest of the prompt.
    common: usize,
}

/// See [`super::PrefixIndex::lookup`]. `out` has been reset. `slots_end`: no worker from here on holds anything.
pub(super) fn lookup(runs: &Runs, starts: &Starts, slots_end: usize, prompt: &[u64], out: &mut Matches) {
    match slots_end.div_ceil(64) {
        0 => {}
        1 => walk::<1>(runs, starts, prompt, out),
        2..=4 => walk::<4>(runs, starts, prompt, out),
        _ => walk::<16>(runs, starts, prompt, out),
    }
}

/// `WORDS`: of the sets of workers, one bit each.
fn walk<const WORDS: usize>(runs: &Runs, starts: &Starts, prompt: &[u64], out: &mut Matches) {
    let mut left = [u64::MAX; WORDS];
    let starts = starts.read();
    let (mut rest, mut at, mut neighbour) = (prompt, 0, NIL);
    while let Some(&first) = rest.first() {
        runs.prefetch(neighbour, AHEAD);
        prefetch_index(rest, (AHEAD + 1) * RUN_BLOCKS - 1);
        let guess = enter(runs, neighbour, rest);
        let Some(run) = guess.or_else(|| starts.find(first, |id| enter(runs, id, rest))) else { break };
        let Some(kept) = holders(runs, &run, &left, at, out) else { break };
        rest = &rest[run.common..];
        at += run.common as u32;
        left = kept;
        if left.iter().all(|word| *word == 0) {
            return;
        }
        neighbour = if run.common == RUN_BLOCKS { run.id + 1 } else { NIL };
    }
    if at > 0 {
        left.iter().enumerate().for_each(|(index, word)| out.set_word(index, *word, at));
    }
}

/// The run of this number, if there is one and it begins as the rest of the prompt does.
#[expect(clippy::inline_always, reason = "what it returns stays in registers: a third of a lookup")]
#[inline(always)]
fn enter<'index>(runs: &'index Runs, id: u32, rest: &[u64]) -> Option<Entered<'index>> {
    let top = runs.find(id)?;
    let generation = top.generation();
    let (len, last) = top.end();
    if rest.get(len.wrapping_sub(1)) == Some(&last) {
        return Some(Entered { id, top, generation, common: len });
    }
    let hashes = runs.hashes(id);
    hashes.prefetch();
    (hashes.get(0) == rest[0]).then(|| Entered { id, top, generation, common: hashes.common_blocks(0, rest) })
}

/// Of the workers `left`, those that hold the run's first `common` blocks; how far the others came is noted in `out`.
/// `None` if the run was freed meanwhile: then nobody holds any of it, and nothing has been noted.
fn holders<const WORDS: usize>(
    runs: &Runs,
    run: &Entered<'_>,
    left: &[u64; WORDS],
    at: u32,
    out: &mut Matches,
) -> Option<[u64; WORDS]> {
    let (mut kept, mut noted) = ([0; WORDS], [0; WORDS]);
    let mut group = run.top.group();
    let all_known = shared_by_many(runs, run, left, &mut kept);
    for _ in 0..if all_known { 0 } else { GROUPS_MAX } {
        let header = group.header();
        let (word, shift) = (header.number() * GROUP / 64, header.number() * GROUP % 64);
        if let Some(left) = left.get(word) {
            let asked = left >> shift & 0xFF;
            let sure = asked & header.sure(run.common);
            kept[word] |= sure << shift;
            let mut unsure = asked & !sure;
            while unsure != 0 {
                let lane = unsure.trailing_zeros() as usize % GROUP;
                unsure &= unsure - 1;
                let held = group.mask(lane).trailing_ones();
                if held as usize >= run.common {
                    kept[word] |= 1 << (shift + lane);
                } else if held > 0 {
                    noted[word] |= 1 << (shift + lane);
                    out.set(word * 64 + shift + lane, at + held);
                }
            }
        }
        let next = header.next();
        if next == NIL {
            break;
        }
        group = runs.group(next);
    }
    let same = run.top.generation() == run.generation;
    for (index, left) in left.iter().enumerate() {
        let gone = left & !kept[index] & !noted[index];
        if same && gone != 0 && at > 0 {
            out.set_word(index, gone, at);
        }
        if !same && noted[index] != 0 {
            out.set_back(index, noted[index], at);
        }
    }
    same.then_some(kept)
}

/// Of the workers `left`, those that hold what the run and the prompt share, where the run has sets of its holders and
/// they say it of everyone; else `false`.
fn shared_by_many<const WORDS: usize>(
    runs: &Runs,
    run: &Entered<'_>,
    left: &[u64; WORDS],
    kept: &mut [u64; WORDS],
) -> bool {
    let Some((id, blocks)) = run.top.wide().get() else { return false };
    if run.common > blocks {
        return false;
    }
    let wide = runs.wide(id);
    let mut unsure = 0;
    for (index, left) in left.iter().enumerate() {
        let (sure, any) = wide.word(index);
        kept[index] = left & sure;
        unsure |= left & any & !sure;
    }
    if unsure != 0 {
        *kept = [0; WORDS];
    }
    unsure == 0
}
