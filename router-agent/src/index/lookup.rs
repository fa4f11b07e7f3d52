//! The read path: no lock, no allocation, no retry.
//!
//! A lookup goes from run to run: the one behind a run that was matched whole is usually its neighbour by number, which
//! is tried first, since no load has to wait for another then; else the table of first hashes knows it. In each run it
//! keeps the workers that hold all of what the run and the prompt share, and notes for the others how far they came.
//!
//! **What an answer means** while writers write: every block that is counted for a worker was held by it at some moment
//! of the lookup, and the first that is not counted was not held at some moment of the lookup. Why no retry is needed:
//! if a run's generation changes while it is read, nobody held any of its blocks at that moment, so ending there is true.

use super::{
    Matches,
    run::{GROUP, GROUPS_MAX, Hashes, HeadValue, NIL, RUN_BLOCKS, Runs, WORKERS_MAX},
    starts::Starts,
};

const WORDS: usize = WORKERS_MAX / 64;

/// Workers, one bit each.
type Set = [u64; WORDS];

/// A run that a lookup has found.
struct Entered<'index> {
    id: u32,
    head: HeadValue,
    hashes: &'index Hashes,
}

/// See [`super::PrefixIndex::lookup`]. `out` has been reset. `slots_end`: no worker from here on holds anything.
pub(super) fn lookup(runs: &Runs, starts: &Starts, slots_end: usize, prompt: &[u64], out: &mut Matches) {
    let words = slots_end.div_ceil(64);
    let mut left: Set = [0; WORDS];
    left[..words].fill(u64::MAX);
    let (mut at, mut neighbour) = (0, NIL);
    while let Some(&first) = prompt.get(at) {
        let rest = &prompt[at..];
        let (run, common) = match whole(runs, neighbour, rest) {
            Some(run) => (run, RUN_BLOCKS),
            None => match enter(runs, starts, neighbour, first) {
                Some(run) => {
                    let common = run.hashes.common_blocks(0, rest);
                    (run, common)
                }
                None => break,
            },
        };
        let Some(kept) = holders(runs, &run, common, &left[..words], at as u32, out) else { break };
        at += common;
        left = kept;
        if left[..words].iter().all(|word| *word == 0) {
            return;
        }
        neighbour = if common == RUN_BLOCKS { run.id + 1 } else { NIL };
    }
    for (index, word) in left[..words].iter().enumerate() {
        if at > 0 {
            out.set_word(index, *word, at as u32);
        }
    }
}

/// The run of this number, if all of it comes next in the prompt. Its last hash says so, since it names all before it.
fn whole<'index>(runs: &'index Runs, id: u32, prompt: &[u64]) -> Option<Entered<'index>> {
    let last = *prompt.get(RUN_BLOCKS - 1)?;
    let (head, hashes) = runs.find(id)?;
    let head = head.get();
    (hashes.get(RUN_BLOCKS - 1) == last).then_some(Entered { id, head, hashes })
}

/// The run that begins with this hash. Its head is read before its hashes.
fn enter<'index>(runs: &'index Runs, starts: &Starts, neighbour: u32, first: u64) -> Option<Entered<'index>> {
    let check = |id| {
        let (head, hashes) = runs.find(id)?;
        let head = head.get();
        (hashes.get(0) == first).then_some(Entered { id, head, hashes })
    };
    (neighbour != NIL).then(|| check(neighbour)).flatten().or_else(|| starts.find(first, check))
}

/// Of the workers `left`, those that hold the run's first `common` blocks; how far the others came is noted in `out`.
/// `None` if the run was freed meanwhile: then nobody holds any of it, and nothing has been noted.
fn holders(
    runs: &Runs,
    run: &Entered<'_>,
    common: usize,
    left: &[u64],
    at: u32,
    out: &mut Matches,
) -> Option<Set> {
    let (mut kept, mut noted): (Set, Set) = ([0; WORDS], [0; WORDS]);
    let mut group = run.head.first_group();
    for _ in 0..GROUPS_MAX {
        if group == NIL {
            break;
        }
        let words = runs.group(group);
        let header = words.header();
        group = header.next();
        let (word, shift) = (header.number() * GROUP / 64, header.number() * GROUP % 64);
        let Some(asked) = left.get(word).map(|word| word >> shift & 0xFF) else { continue };
        let full = asked & header.full();
        kept[word] |= full << shift;
        let mut rest = asked & !full;
        while rest != 0 {
            let lane = rest.trailing_zeros();
            rest &= rest - 1;
            let held = words.mask(lane as usize).trailing_ones();
            if held as usize >= common {
                kept[word] |= 1 << (shift as u32 + lane);
            } else if held > 0 {
                noted[word] |= 1 << (shift as u32 + lane);
                out.set(word * 64 + shift + lane as usize, at + held);
            }
        }
    }
    let same = runs.head(run.id).get().generation() == run.head.generation();
    for (index, left) in left.iter().enumerate() {
        let gone = if same { left & !kept[index] & !noted[index] } else { *left & noted[index] };
        if at > 0 || !same {
            out.set_word(index, gone, at);
        }
    }
    same.then_some(kept)
}
