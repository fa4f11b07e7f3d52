//! What must hold of the prefix index while one thread writes and others look up (`router-agent/src/index/lookup.rs`),
//! under schedules that shuttle chooses: every block that is counted was held at some moment of the lookup, and the first
//! that is not counted was not held at some moment of it.
//!
//! Before a change is made, its blocks are in doubt, and after it, they are certain again. A reader compares its answer
//! with all that was true between its beginning and its end.

use std::sync::{
    Arc,
    // Not shuttle's: to look at the history is no step of its own.
    Mutex,
};

use shuttle::{check_pct, check_random, thread};

use warmpath_schedules::index::{Matches, PrefixIndex, WorkerSlot};

const RANDOM_SCHEDULES: usize = 300;
const PCT_SCHEDULES: usize = 150;

/// What is true of one (worker, block).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Held {
    No,
    /// A change is under way.
    Perhaps,
    Yes,
}

type History = Vec<(u16, u64, Held)>;

#[derive(Clone, Copy)]
enum Step {
    Store(u16, &'static [u64]),
    Remove(u16, &'static [u64]),
    Clear(u16),
}

/// Two prompts that part after two blocks, and a long one that fills its run.
const A: &[u64] = &[11, 12, 13, 14];
const B: &[u64] = &[11, 12, 23];
const LONG: &[u64] = &{
    let mut hashes = [0; 35];
    let mut at = 0;
    while at < 35 {
        hashes[at] = 100 + at as u64;
        at += 1;
    }
    hashes
};

/// Most of `LONG`'s first run.
const BEGINNING: &[u64] = LONG.split_at(30).0;

struct World {
    index: PrefixIndex,
    /// All that ever changed, in order.
    history: Mutex<History>,
}

impl World {
    fn note(&self, slot: u16, hashes: &[u64], held: Held) {
        let mut history = self.history.lock().expect("no panic under this lock");
        history.extend(hashes.iter().map(|hash| (slot, *hash, held)));
    }

    fn take(&self, step: Step) {
        let (slot, hashes, held) = match step {
            Step::Store(slot, hashes) => (slot, hashes.to_vec(), Held::Yes),
            Step::Remove(slot, hashes) => (slot, hashes.to_vec(), Held::No),
            Step::Clear(slot) => (slot, [A, B, LONG].concat(), Held::No),
        };
        self.note(slot, &hashes, Held::Perhaps);
        match step {
            Step::Store(slot, hashes) => self.index.store(WorkerSlot(slot), None, hashes),
            Step::Remove(slot, hashes) => self.index.remove(WorkerSlot(slot), hashes),
            Step::Clear(slot) => self.index.clear(WorkerSlot(slot)),
        }
        self.note(slot, &hashes, held);
    }

    /// Looks up, and checks the answer against what was true meanwhile.
    fn look_up(&self, matches: &mut Matches, prompt: &[u64]) {
        let begin = self.history.lock().expect("no panic under this lock").len();
        self.index.lookup(prompt, matches);
        let history = self.history.lock().expect("no panic under this lock");
        for slot in [0, 1, 9, 70] {
            let counted = matches.blocks(WorkerSlot(slot)) as usize;
            for (at, hash) in prompt.iter().enumerate().take(counted + 1) {
                let of = |(_, other): &(usize, &(u16, u64, Held))| other.0 == slot && other.1 == *hash;
                let mut changes = history.iter().enumerate().filter(of);
                let before = changes.clone().take_while(|(number, _)| *number < begin).last();
                let at_first = before.map_or(Held::No, |(_, change)| change.2);
                let ever = |held: Held| {
                    at_first == Held::Perhaps
                        || at_first == held
                        || changes.clone().any(|(number, change)| number >= begin && change.2 != at_first)
                };
                let fits = if at < counted { ever(Held::Yes) } else { ever(Held::No) };
                assert!(
                    fits,
                    "worker {slot} was said to hold {counted} blocks; block {at} was {at_first:?} at first, then {:?}",
                    changes
                        .by_ref()
                        .filter(|(number, _)| *number >= begin)
                        .map(|(_, c)| c.2)
                        .collect::<Vec<_>>()
                );
            }
        }
    }
}

/// One writer takes the steps, two readers look up meanwhile; in the end, the index is sound.
fn run(before: &[Step], steps: &'static [Step], prompts: &'static [&'static [u64]]) {
    let world = Arc::new(World { index: PrefixIndex::new(1 << 22), history: Mutex::default() });
    before.iter().for_each(|step| world.take(*step));
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let world = world.clone();
            thread::spawn(move || {
                let mut matches = Matches::new();
                prompts.iter().for_each(|prompt| world.look_up(&mut matches, prompt));
            })
        })
        .collect();
    steps.iter().for_each(|step| world.take(*step));
    readers.into_iter().for_each(|reader| reader.join().expect("what a reader saw was true"));
    world.index.audit().expect("sound");
}

fn check(before: &'static [Step], steps: &'static [Step], prompts: &'static [&'static [u64]]) {
    check_random(move || run(before, steps, prompts), RANDOM_SCHEDULES);
    check_pct(move || run(before, steps, prompts), PCT_SCHEDULES, 4);
}

#[test]
fn a_run_that_is_freed_and_given_to_others() {
    use Step::{Clear, Remove, Store};
    check(
        &[Store(0, A)],
        &[Clear(0), Store(1, &[31, 32, 33]), Remove(1, &[31, 32, 33]), Store(9, A), Store(0, B)],
        &[A, B, A],
    );
}

#[test]
fn holes_that_open_and_close() {
    use Step::{Remove, Store};
    check(
        &[Store(0, A), Store(70, A)],
        &[Remove(0, &[12]), Store(0, &[12]), Remove(70, &[14]), Remove(70, &[11]), Store(70, &[11])],
        &[A, A],
    );
}

#[test]
fn runs_that_are_full_and_go_on() {
    use Step::{Remove, Store};
    check(
        &[Store(0, BEGINNING)],
        &[Store(0, LONG), Store(9, LONG), Remove(0, &[115]), Remove(9, &[134, 133])],
        &[LONG, LONG],
    );
}

#[test]
fn prompts_that_part_inside_a_run() {
    use Step::{Remove, Store};
    check(
        &[Store(0, A), Store(70, B)],
        &[Store(9, B), Remove(0, &[12]), Store(1, A), Store(0, &[12]), Remove(70, &[11, 12]), Store(70, A)],
        &[B, A, B],
    );
}
