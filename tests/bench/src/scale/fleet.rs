//! A gateway in front of so many workers: what it costs without requests, and what one costs.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use serde_json::json;

use super::{Args, client};
use crate::{
    gateway::Gateway,
    processes::{Process, get, resident_kib, sibling},
};

const CONNECTIONS: usize = 16;
/// Prompts of 2 KB; so many conversations, so that most requests find a prefix.
const CONVERSATIONS: usize = 500;
const PATIENCE: Duration = Duration::from_mins(1);

/// One size of fleet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fleet {
    pub(super) workers: u16,
    /// From the start of the process until every worker is known to be healthy.
    pub(super) known_s: f64,
    pub(super) resident_kib: u64,
    /// Of one core, without requests: health checks and scrapes.
    pub(super) idle_share: f64,
    /// User and system time of the gateway per request, the share above included.
    pub(super) request_us: f64,
    pub(super) requests_per_s: f64,
    pub(super) failed: usize,
}

/// Starts `count` workers that answer at once, with `more` arguments; and their URLs.
pub(super) fn workers(count: u16, more: &[&str], args: &Args) -> Result<(Process, Vec<String>)> {
    let mut sim = vec!["--port".to_owned(), "0".to_owned(), "--count".to_owned(), count.to_string()];
    let quick = ["--prefill-tokens-per-s", "1e9", "--itl-base-ms", "0.01", "--itl-slope-ms", "0"];
    sim.extend(quick.iter().chain(more).map(|arg| (*arg).to_owned()));
    let log = args.logs.join("workers.log");
    let process = Process::start(&sibling("vllm-sim")?, &sim, log.clone())?;
    let started = Instant::now();
    loop {
        let said = std::fs::read_to_string(&log)?;
        let urls: Vec<_> = said
            .lines()
            .filter_map(|line| line.strip_prefix("ready ")?.split(' ').next())
            .map(str::to_owned)
            .collect();
        if urls.len() == usize::from(count) && said.ends_with('\n') {
            return Ok((process, urls));
        }
        ensure!(
            started.elapsed() < PATIENCE,
            "{} of {count} workers started: see {}",
            urls.len(),
            log.display()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `workers:` of a configuration.
pub(super) fn listed(urls: &[String]) -> String {
    format!("workers: [{}]\n", urls.join(", "))
}

pub(super) async fn measure(count: u16, args: &Args) -> Result<Fleet> {
    let (_workers, urls) = workers(count, &[], args)?;
    let started = Instant::now();
    let gateway = Gateway::start("scale", &listed(&urls), &args.logs)?;
    let healthy = || {
        Ok::<_, anyhow::Error>(get(gateway.admin, "/workers")?.1.matches("\"health\":\"healthy\"").count())
    };
    while healthy()? < usize::from(count) {
        ensure!(started.elapsed() < PATIENCE, "{} of {count} workers are healthy", healthy()?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let known_s = started.elapsed().as_secs_f64();
    let question = |number: usize| {
        let text = format!("conversation {} ", number % CONVERSATIONS).repeat(140);
        let text = &text[..2_000];
        Bytes::from(json!({"messages": [{"role": "user", "content": text}], "max_tokens": 1}).to_string())
    };
    // Connections to every worker, and what is learned once, are not what one more request costs.
    let warm =
        client::send(gateway.address, "/v1/chat/completions", CONNECTIONS, question, args.requests / 4)
            .await?;
    let before = gateway.process.cpu();
    let load =
        client::send(gateway.address, "/v1/chat/completions", CONNECTIONS, question, args.requests).await?;
    let busy = gateway.process.cpu().saturating_sub(before);
    let before = gateway.process.cpu();
    tokio::time::sleep(args.idle).await;
    let idle = gateway.process.cpu().saturating_sub(before);
    Ok(Fleet {
        workers: count,
        known_s,
        resident_kib: resident_kib(gateway.process.id()),
        idle_share: idle.as_secs_f64() / args.idle.as_secs_f64(),
        request_us: busy.as_secs_f64() * 1e6 / args.requests as f64,
        requests_per_s: args.requests as f64 / load.seconds,
        failed: load.failed + warm.failed,
    })
}
