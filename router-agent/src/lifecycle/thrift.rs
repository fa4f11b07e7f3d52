//! Memory that a busy time needed and a quiet one does not goes back to the kernel ([`kernel::heap`]).

use std::{sync::Arc, time::Duration};

use crate::{gateway::Shared, kernel::heap};

/// How often to look.
const EVERY: Duration = Duration::from_secs(2);
/// Less is not worth a system call.
const FREED_MIN: usize = 2 * 1024 * 1024;
/// Looks, with requests under way, between which nothing is given back: it is about to be needed again, and giving back
/// holds the heaps' locks for a millisecond or more.
const BUSY_LOOKS: u32 = 30;
/// Looks after which a quiet gateway has freed what it will: its connections rest by then.
const QUIET_LOOKS: u32 = 15;

/// Looks after the heap, for ever.
pub async fn watch(shared: Arc<Shared>) {
    let (mut seen, mut quiet, mut busy) = (None, 0, 0);
    // Free already when something was given back last: whole pages of that are with the kernel.
    let mut free = 0;
    loop {
        tokio::time::sleep(EVERY).await;
        let activity = shared.activity();
        quiet = if seen.replace(activity) == Some(activity) { quiet + 1 } else { 0 };
        busy = if shared.in_flight() > 0 { busy + 1 } else { 0 };
        if quiet > QUIET_LOOKS || busy % BUSY_LOOKS != 0 {
            continue;
        }
        // Here, and not on a thread for what blocks: one that began before privileges were given up would be kept alive.
        free = give_back(free);
    }
}

/// Gives back what was freed since so much was free; what is free now.
fn give_back(before: usize) -> usize {
    let free = heap::free_bytes();
    if free < before.saturating_add(FREED_MIN) {
        return free.min(before);
    }
    heap::give_back();
    heap::free_bytes()
}
