//! KV events: what following them costs, and how long the last one takes into the index.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::json;

use super::{
    Args, client,
    fleet::{listed, workers},
};
use crate::{
    gateway::Gateway,
    processes::{get, resident_kib},
};

const BLOCK: usize = 16;
const BLOCKS: usize = 512;
const CONNECTIONS: usize = 32;
const PATIENCE: Duration = Duration::from_mins(2);
/// Linux accounts CPU time in ticks of this length.
const TICK_S: f64 = 0.01;

/// What was followed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Events {
    pub(super) workers: u16,
    /// Pairs of block and worker that were told of.
    pub(super) blocks: u64,
    pub(super) batches: u64,
    /// Blocks per second, from the first prompt to the last block in the index.
    pub(super) blocks_per_s: f64,
    /// Time of the thread that follows the events, per block.
    pub(super) thread_us_per_block: f64,
    /// Behind the last answer, until the index had everything.
    pub(super) behind_s: f64,
    pub(super) resident_kib: u64,
    pub(super) failed: usize,
}

fn sum(metrics: &str, name: &str) -> f64 {
    let values =
        metrics.lines().filter(|line| line.starts_with(name)).filter_map(|line| line.rsplit(' ').next());
    values.filter_map(|value| value.parse::<f64>().ok()).sum()
}

fn metrics(gateway: &Gateway) -> Result<String> {
    Ok(get(gateway.admin, "/metrics")?.1)
}

/// User and system time of a process's threads of that name.
fn thread_s(pid: u32, name: &str) -> f64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    stats
        .filter(|stat| stat.contains(&format!("({name})")))
        .filter_map(|stat| {
            let fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(2);
            Some(fields.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>())
        })
        .sum::<f64>()
        * TICK_S
}

pub(super) async fn measure(args: &Args) -> Result<Events> {
    let count = args.publishers;
    let publish = ["--kv-events-endpoint", "tcp://*:0", "--kv-events-replay-endpoint", "tcp://*:0"];
    let per_worker = args.prompts * BLOCKS / usize::from(count) * 2;
    let blocks = per_worker.max(4096).to_string();
    let more = [&publish[..], &["--num-gpu-blocks", &blocks, "--kv-events-buffer-steps", "100000"]].concat();
    let (_workers, urls) = workers(count, &more, args)?;
    let gateway = Gateway::start(
        "scale-events",
        &format!("{}routing: {{policy: round_robin}}\n", listed(&urls)),
        &args.logs,
    )?;
    let started = Instant::now();
    let exact = || {
        let metrics = metrics(&gateway)?;
        let lines = metrics.lines().filter(|line| line.starts_with("warmpath_kv_events_state{"));
        Ok::<_, anyhow::Error>(
            lines.filter(|line| line.contains("\"exact\"") && line.ends_with(" 1")).count(),
        )
    };
    while exact()? < usize::from(count) {
        ensure!(started.elapsed() < PATIENCE, "{} of {count} workers are followed", exact()?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Prompts of token ids that have nothing in common.
    let question = |number: usize| {
        let prompt: Vec<u32> =
            (0..BLOCKS * BLOCK).map(|at| ((number * 7_919 + at) % 30_000) as u32).collect();
        Bytes::from(json!({"prompt": prompt, "max_tokens": 1}).to_string())
    };
    let id = gateway.process.id();
    let (before_s, begin) = (thread_s(id, "kv-events"), Instant::now());
    let load = client::send(gateway.address, "/v1/completions", CONNECTIONS, question, args.prompts).await?;
    let answered = Instant::now();
    let expected = (args.prompts * BLOCKS) as f64;
    let held = || Ok::<_, anyhow::Error>(sum(&metrics(&gateway)?, "warmpath_kv_blocks{"));
    while held()? < expected {
        ensure!(answered.elapsed() < PATIENCE, "{} of {expected} blocks are known", held()?);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let behind_s = answered.elapsed().as_secs_f64();
    let blocks = held()?;
    let thread_us = (thread_s(id, "kv-events") - before_s) * 1e6;
    let batches = sum(&metrics(&gateway)?, "warmpath_kv_event_batches_total");
    Ok(Events {
        workers: count,
        blocks: blocks as u64,
        batches: batches as u64,
        blocks_per_s: blocks / begin.elapsed().as_secs_f64(),
        thread_us_per_block: thread_us / blocks,
        behind_s,
        resident_kib: Some(resident_kib(id)).filter(|kib| *kib > 0).context("the gateway has ended")?,
        failed: load.failed,
    })
}
