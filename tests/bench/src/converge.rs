//! Several gateways that follow the KV events of the same workers: how long until all of them know the same, what that
//! takes of memory, and how soon a new gateway knows it, too.

use std::{
    fmt,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    document::{self, Marks},
    gateway::Gateway,
    processes::{get, resident_kib},
    scale::{
        client,
        fleet::{listed, workers},
    },
};

const MARKS: Marks = Marks {
    begin: "<!-- converge: begin (written by `cargo xtask bench converge --markdown`) -->",
    end: "<!-- converge: end -->",
};
const BLOCK: usize = 16;
/// Of a prompt.
const BLOCKS: usize = 512;
const CONNECTIONS: usize = 4;
/// Prompts sent one after the other, of which each is awaited everywhere.
const SINGLE: usize = 20;
const PATIENCE: Duration = Duration::from_mins(2);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How much of everything.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Gateways
    #[arg(long, default_value_t = 8)]
    gateways: usize,
    /// Workers that publish KV events
    #[arg(long, default_value_t = 16)]
    workers: u16,
    /// Prompts of 512 blocks, which have nothing in common, over all gateways
    #[arg(long, default_value_t = 2_000)]
    prompts: usize,
    /// Where logs are kept
    #[arg(long, value_name = "DIR", default_value = "target/converge")]
    logs: PathBuf,
    /// Write the report into this document, between its marks
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

/// What was seen.
struct Report {
    gateways: usize,
    workers: u16,
    prompts: usize,
    /// Pairs of block and worker that every gateway has in the end.
    blocks: u64,
    /// From the answer to one prompt until every gateway has its blocks: the middle one and the longest, seconds.
    one: (f64, f64),
    /// The same of all prompts, sent as fast as they were answered.
    behind_s: f64,
    /// Of a gateway before and with all blocks, KiB: the largest.
    resident_kib: (u64, u64),
    /// Of a new gateway: from its start, and from when it was ready, until it had everything, seconds.
    new: (f64, f64),
    failed: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gateways, workers, prompts, blocks, one, behind_s, resident_kib, new, failed } = *self;
        let mib = |kib: u64| kib as f64 / 1024.0;
        let more = resident_kib.1.saturating_sub(resident_kib.0) as f64 * 1024.0 / blocks as f64;
        writeln!(out, "| {gateways} gateways, {workers} workers, {prompts} prompts of {BLOCKS} blocks | |")?;
        writeln!(out, "|---|---|")?;
        writeln!(out, "| blocks that every gateway holds in the end | {blocks} |")?;
        writeln!(
            out,
            "| the last gateway has a prompt's blocks, after its answer: p50, most of {SINGLE} | {:.0} ms, {:.0} ms |",
            one.0 * 1e3,
            one.1 * 1e3
        )?;
        writeln!(
            out,
            "| the same after all prompts, as fast as they are answered | {:.0} ms |",
            behind_s * 1e3
        )?;
        writeln!(
            out,
            "| memory of a gateway: before, with all blocks, for each | {:.0} MiB, {:.0} MiB, {more:.0} bytes |",
            mib(resident_kib.0),
            mib(resident_kib.1)
        )?;
        writeln!(
            out,
            "| a new gateway has all blocks: after its start, after it is ready | {:.2} s, {:.2} s |",
            new.0, new.1
        )?;
        write!(out, "| answers other than 200 | {failed} |")
    }
}

/// Returns whether everything was answered.
pub(crate) fn run(args: &Args) -> Result<bool> {
    ensure!(args.gateways > 0 && args.workers > 0 && args.prompts > 0, "some of everything");
    std::fs::create_dir_all(&args.logs).with_context(|| args.logs.display().to_string())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(measure(args))?;
    println!("{report}");
    if let Some(path) = &args.markdown {
        document::write(path, MARKS, &report.to_string())?;
    }
    Ok(report.failed == 0)
}

async fn measure(args: &Args) -> Result<Report> {
    let publish = ["--kv-events-endpoint", "tcp://*:0", "--kv-events-replay-endpoint", "tcp://*:0"];
    // Nothing is evicted, however the prompts are spread.
    let room = ((args.prompts + SINGLE + 1) * BLOCKS).to_string();
    let more = [&publish[..], &["--num-gpu-blocks", &room, "--kv-events-buffer-steps", "100000"]].concat();
    let (_workers, urls) = workers(args.workers, &more, &args.logs)?;
    let config = format!("{}threads: 1\nrouting: {{policy: round_robin}}\n", listed(&urls));
    let start = |name: String| Gateway::start(&name, &config, &args.logs);
    let gateways: Vec<_> =
        (0..args.gateways).map(|number| start(format!("converge-{number}"))).collect::<Result<_>>()?;
    for gateway in &gateways {
        until("every worker is followed", || is_exact(gateway, args.workers)).await?;
    }
    let largest = || gateways.iter().map(|gateway| resident_kib(gateway.process.id())).max().unwrap_or(0);
    let before_kib = largest();

    let everywhere = |blocks: u64| {
        move |gateways: &[Gateway]| {
            let held = gateways.iter().map(held).collect::<Result<Vec<_>>>()?;
            Ok(held.iter().all(|held| *held >= blocks))
        }
    };
    let (mut failed, mut sent) = (0, 0);
    let mut single = Vec::new();
    for number in 0..SINGLE {
        let gateway = &gateways[number % gateways.len()];
        let question = move |_| prompt(number);
        failed += client::send(gateway.address, "/v1/completions", 1, question, 1).await?.failed;
        sent += BLOCKS as u64;
        single.push(until("a prompt is known", || everywhere(sent)(&gateways)).await?);
    }
    single.sort_by(f64::total_cmp);
    let one = (single[single.len() / 2], single[single.len() - 1]);

    let each = args.prompts / gateways.len();
    let mut loads = JoinSet::new();
    for (place, gateway) in gateways.iter().enumerate() {
        let question = move |number: usize| prompt(SINGLE + place * each + number);
        loads.spawn(client::send(gateway.address, "/v1/completions", CONNECTIONS, question, each));
    }
    while let Some(load) = loads.join_next().await {
        failed += load.context("the clients of a gateway ended")??.failed;
    }
    sent += (each * gateways.len() * BLOCKS) as u64;
    let behind_s = until("every prompt is known", || everywhere(sent)(&gateways)).await?;
    let with_kib = largest();

    let started = Instant::now();
    let new = [start("converge-new".to_owned())?];
    let starting_s = started.elapsed().as_secs_f64();
    let new_s = until("the new gateway knows it all", || {
        Ok(is_exact(&new[0], args.workers)? && everywhere(sent)(&new)?)
    })
    .await?;
    Ok(Report {
        gateways: gateways.len(),
        workers: args.workers,
        prompts: each * gateways.len() + SINGLE,
        blocks: sent,
        one,
        behind_s,
        resident_kib: (before_kib, with_kib),
        new: (starting_s + new_s, new_s),
        failed,
    })
}

/// A completion of token ids that no other number shares from its first block on.
fn prompt(number: usize) -> Bytes {
    let ids = (0..BLOCKS * BLOCK).map(|at| if at == 0 { number as u32 } else { (at % 30_000) as u32 });
    Bytes::from(json!({"prompt": ids.collect::<Vec<_>>(), "max_tokens": 1}).to_string())
}

/// Seconds until it is so.
async fn until(what: &str, is_so: impl Fn() -> Result<bool>) -> Result<f64> {
    let began = Instant::now();
    while !is_so()? {
        ensure!(began.elapsed() < PATIENCE, "waited {PATIENCE:?} until {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(began.elapsed().as_secs_f64())
}

fn metrics(gateway: &Gateway) -> Result<String> {
    Ok(get(gateway.admin, "/metrics")?.1)
}

/// Blocks that the gateway knows of, on all workers.
fn held(gateway: &Gateway) -> Result<u64> {
    let metrics = metrics(gateway)?;
    let lines = metrics.lines().filter(|line| line.starts_with("warmpath_kv_blocks{"));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(values.sum::<f64>() as u64)
}

fn is_exact(gateway: &Gateway, workers: u16) -> Result<bool> {
    let metrics = metrics(gateway)?;
    let states = metrics.lines().filter(|line| line.starts_with("warmpath_kv_events_state{"));
    let exact = states.filter(|line| line.contains("\"exact\"") && line.ends_with(" 1")).count();
    Ok(exact == usize::from(workers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_document_has_the_marks() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/shared-state.md");
        document::replace(&std::fs::read_to_string(path).unwrap(), MARKS, "x").unwrap();
    }

    #[test]
    fn prompts_have_nothing_in_common() {
        let ids =
            |number| serde_json::from_slice::<serde_json::Value>(&prompt(number)).unwrap()["prompt"].clone();
        assert_ne!(ids(3)[0], ids(4)[0]);
        assert_eq!(ids(3).as_array().unwrap().len(), BLOCKS * BLOCK);
    }
}
