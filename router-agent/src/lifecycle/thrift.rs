//! Memory that a busy time needed and a quiet one does not goes back to the kernel ([`kernel::heap`]).

use std::{sync::Arc, time::Duration};

use crate::{gateway::Shared, kernel::heap};

/// How often to look.
const EVERY: Duration = Duration::from_secs(2);
/// Less is not worth a system call.
const FREE_MIN: usize = 2 * 1024 * 1024;
/// Looks, with requests under way, between which nothing is given back: it is about to be needed again, and giving back
/// holds the heaps' locks for a millisecond or more.
const BUSY_LOOKS: u32 = 30;

/// Looks after the heap, for ever.
pub async fn watch(shared: Arc<Shared>) {
    let mut seen = None;
    let mut looks = 0;
    loop {
        tokio::time::sleep(EVERY).await;
        looks += 1;
        let activity = shared.activity();
        if Some(activity) == seen || (shared.in_flight() > 0 && looks < BUSY_LOOKS) {
            continue;
        }
        (seen, looks) = (Some(activity), 0);
        // The control thread serves health checks in between.
        let _ = tokio::task::spawn_blocking(give_back).await; // it does not panic
    }
}

fn give_back() {
    if heap::free_bytes() > FREE_MIN {
        heap::give_back();
    }
}
