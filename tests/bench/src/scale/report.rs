//! The figures as tables.

use std::fmt;

use super::{events::Events, fleet::Fleet, index::Index};
use crate::verdict::mib;

/// All of them.
pub(super) struct Report<'a> {
    pub(super) fleets: &'a [Fleet],
    pub(super) events: &'a Events,
    pub(super) index: &'a Index,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "One gateway, unary requests of 2 KB over 16 connections; workers and clients on the same two cores:\n"
        )?;
        writeln!(f, "| workers | all healthy after | RSS | without requests | a request | requests/s |")?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        for Fleet { workers, known_s, resident_kib, idle_share, request_us, requests_per_s, failed } in
            self.fleets
        {
            let failed = if *failed > 0 { format!(" ({failed} FAILED)") } else { String::new() };
            writeln!(
                f,
                "| {workers} | {known_s:.2} s | {:.1} MiB | {:.1} % of a core | {request_us:.1} µs CPU | {requests_per_s:.0}{failed} |",
                mib(*resident_kib),
                idle_share * 100.0,
            )?;
        }
        let Events {
            workers,
            blocks,
            batches,
            blocks_per_s,
            thread_us_per_block,
            behind_s,
            resident_kib,
            failed,
        } = self.events;
        writeln!(
            f,
            "\nKV events of {workers} workers: {blocks} blocks in {batches} batches were followed at {blocks_per_s:.0} blocks/s (as \
             fast as the simulated workers prefilled), {thread_us_per_block:.2} µs CPU of the event thread per block; the last \
             was known {:.0} ms behind the last answer; RSS {:.0} MiB{}.",
            behind_s * 1e3,
            mib(*resident_kib),
            if *failed > 0 { format!("; {failed} requests FAILED") } else { String::new() },
        )?;
        let Index {
            workers,
            pairs,
            blocks,
            bytes_per_pair,
            resident_bytes_per_pair,
            pairs_per_s,
            lookup_p50,
            lookup_p99,
            removal,
        } = self.index;
        writeln!(
            f,
            "\nThe index with {:.1} M pairs of {:.1} M blocks and {workers} workers: {bytes_per_pair:.1} bytes per pair by its own \
             account, {resident_bytes_per_pair:.1} resident; written at {:.1} M pairs/s; lookup of 256 blocks p50 {:.2} µs, p99 \
             {:.2} µs; one worker forgotten in {:.1} ms.",
            *pairs as f64 / 1e6,
            *blocks as f64 / 1e6,
            pairs_per_s / 1e6,
            lookup_p50.as_nanos() as f64 / 1e3,
            lookup_p99.as_nanos() as f64 / 1e3,
            removal.as_secs_f64() * 1e3,
        )
    }
}
