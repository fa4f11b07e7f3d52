//! A file with a list of workers, entries as under `workers:`.
//!
//! It is read twice a second and compared by content, as the configuration is (`lifecycle/watch.rs` says why that, and no
//! notification of the kernel's). A change counts once two looks have seen the same, so that a file is not taken at its word
//! while it is being written.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::{MissedTickBehavior, interval};

use super::{Found, Readiness, teller::Teller};
use crate::{config::parse_workers, limits::DISCOVERY_FILE_BYTES_MAX};

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Tells what the file says, for ever.
pub(super) async fn follow(path: PathBuf, teller: Teller) {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last = None;
    let mut told = None;
    loop {
        looks.tick().await;
        let now = Some(read(&path));
        let is_settled = last == now || told.is_none();
        last.clone_from(&now);
        if !is_settled || told == now {
            continue;
        }
        match now.clone().unwrap_or_else(|| Ok(String::new())).and_then(|text| workers(&path, &text)) {
            Ok(found) => teller.answer(found).await,
            Err(error) => teller.fail(error).await,
        }
        told = now;
    }
}

fn read(path: &Path) -> Result<String, String> {
    let cannot = |error| format!("cannot read {}: {error}", path.display());
    let mut text = String::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(DISCOVERY_FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > DISCOVERY_FILE_BYTES_MAX {
        return Err(format!("{} is longer than {DISCOVERY_FILE_BYTES_MAX} bytes", path.display()));
    }
    Ok(text)
}

fn workers(path: &Path, text: &str) -> Result<Vec<Found>, String> {
    let workers = parse_workers(text).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(workers.into_iter().map(|worker| Found { worker, readiness: Readiness::Ready }).collect())
}
