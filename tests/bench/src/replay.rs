//! `warmpath-bench replay`: the same trace under each policy, fresh workers and a fresh gateway every time.
//!
//! Open loop: a request is sent when the trace says so, whether or not earlier ones are answered, and its latency counts
//! from that intended moment. `--speed-up` runs arrivals and the workers' clocks that much faster; every time that is
//! reported is multiplied back, so it reads as trace time. The gateway's and the generator's own time is multiplied
//! with it: a higher speed-up overstates what they cost, it never hides it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinSet;

use crate::client::{Answer, Client};
use crate::processes::{Process, cpu_of, free_ports, host_cpu, sibling};
use crate::prompt::{PromptBody, TextPool};
use crate::report::{Record, Report, Setup, Trial};
use crate::schedule::arrivals;
use crate::trace::{BLOCK_TOKENS, Request, ceiling, read};

/// The committed sample of the trace.
pub(crate) const SAMPLE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../fixtures/traces/mooncake_conversation_500.jsonl");

/// Tokens per KV block of the simulated workers.
const KV_BLOCK_TOKENS: u64 = 16;

/// Policy name under which the generator spreads requests over the workers itself, without a gateway.
const NO_GATEWAY: &str = "no_gateway";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Trace, JSONL: timestamp (ms), input_length, output_length, hash_ids of 512-token blocks
    #[arg(long, value_name = "FILE", default_value = SAMPLE, hide_default_value = true)]
    file: PathBuf,
    /// Replay the first N requests of the file
    #[arg(long, value_name = "N", default_value_t = usize::MAX, hide_default_value = true)]
    requests: usize,
    /// Run arrivals and the workers' clocks this many times faster than the trace
    #[arg(long, default_value_t = 6.0)]
    speed_up: f64,
    /// Multiply the arrival rate, in trace time: the knob for the load
    #[arg(long, default_value_t = 1.0)]
    rate: f64,
    /// Simulated workers
    #[arg(long, default_value_t = 8)]
    workers: u16,
    /// Policies to compare; `no_gateway` sends round robin straight to the workers
    #[arg(long, value_delimiter = ',', default_value = "warm,round_robin,random,least_loaded,power_of_two")]
    policies: Vec<String>,
    /// Trials per policy, interleaved, each with the next seed
    #[arg(long, default_value_t = 1)]
    repeat: u64,
    /// Of the first repeat: arrival jitter and the workers' noise
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Prefill rate of one worker, tokens per second of trace time
    #[arg(long, default_value_t = 7_000.0)]
    prefill_tokens_per_s: f64,
    /// Inter-token latency of one worker with nothing else to do, milliseconds of trace time
    #[arg(long, default_value_t = 20.0)]
    itl_base_ms: f64,
    /// What each running sequence adds to it, milliseconds of trace time
    #[arg(long, default_value_t = 0.2)]
    itl_slope_ms: f64,
    /// KV cache of one worker, blocks of 16 tokens
    #[arg(long, default_value_t = 32_768)]
    kv_blocks: u64,
    /// Another argument for vllm-sim (repeatable)
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    sim_arg: Vec<String>,
    /// Another argument for `warmpath serve` (repeatable)
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    gateway_arg: Vec<String>,
    /// Start nothing: send to this address (host:port) and report it as one policy, `direct`
    #[arg(long, value_name = "ADDRESS")]
    direct: Option<SocketAddr>,
    /// Model name in the requests
    #[arg(long, default_value = "sim")]
    model: String,
    /// Give up on a request after this long, trace time
    #[arg(long, default_value_t = 600.0)]
    timeout_s: f64,
    /// Write every figure, and every request, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the logs of the processes go
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    log_dir: PathBuf,
}

/// Returns whether every request was answered and every trial is valid.
pub(crate) fn run(args: &Args) -> Result<bool> {
    ensure!(args.speed_up > 0.0 && args.rate > 0.0, "--speed-up and --rate must be above 0");
    ensure!(args.workers > 0, "--workers must be above 0");
    let file = std::fs::File::open(&args.file).with_context(|| args.file.display().to_string())?;
    let requests = read(std::io::BufReader::new(file), args.requests)
        .with_context(|| args.file.display().to_string())?;
    let id_max = requests.iter().flat_map(|request| request.block_ids.iter()).copied().max().unwrap_or(0);
    let replay = Replay { args, pool: TextPool::new(id_max), requests };
    let setup = replay.setup();
    print!("{setup}");

    std::fs::create_dir_all(&args.log_dir).with_context(|| args.log_dir.display().to_string())?;
    let policies = if args.direct.is_some() { vec!["direct".to_owned()] } else { args.policies.clone() };
    let mut trials = Vec::new();
    for repeat in 0..args.repeat {
        for index in 0..policies.len() {
            // Interleaved and rotated, so that a slow spell of the machine does not always hit the same policy.
            let policy = &policies[(index + repeat as usize) % policies.len()];
            let trial = replay.trial(policy, repeat).with_context(|| format!("policy {policy}"))?;
            eprintln!("{}", trial.line());
            trials.push(trial);
        }
    }
    let report = Report::new(setup, &policies, trials);
    print!("{report}");
    if let Some(path) = &args.json {
        let file = std::fs::File::create(path).with_context(|| path.display().to_string())?;
        serde_json::to_writer(std::io::BufWriter::new(file), &report)?;
    }
    Ok(report.is_clean())
}

struct Replay<'a> {
    args: &'a Args,
    pool: TextPool,
    requests: Vec<Request>,
}

/// What requests are sent to, and everything that must outlive the trial.
struct Target {
    addresses: Vec<SocketAddr>,
    /// Stopped before the workers: fields drop in this order.
    gateway: Option<Process>,
    sims: Option<Process>,
}

/// User and system time so far; of the host, busy and total ticks.
struct CpuTimes {
    generator: Duration,
    gateway: Option<Duration>,
    workers: Option<Duration>,
    host: (u64, u64),
}

impl Replay<'_> {
    fn setup(&self) -> Setup {
        let args = self.args;
        let span_s = arrivals(&self.requests, args.rate, args.seed)
            .last()
            .map_or(0.0, Duration::as_secs_f64)
            .max(0.001);
        let infinite = ceiling(&self.requests, usize::MAX);
        let fleet_tokens = args.kv_blocks * KV_BLOCK_TOKENS * u64::from(args.workers);
        let finite = ceiling(&self.requests, (fleet_tokens / BLOCK_TOKENS) as usize);
        let capacity_tokens_per_s =
            args.direct.is_none().then_some(f64::from(args.workers) * args.prefill_tokens_per_s);
        Setup {
            file: args.file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            requests: self.requests.len(),
            span_s,
            speed_up: args.speed_up,
            rate: args.rate,
            workers: if args.direct.is_some() { 1 } else { usize::from(args.workers) },
            prompt_tokens: infinite.prompt_tokens,
            output_tokens: self.requests.iter().map(|request| request.output_tokens).sum(),
            ceiling_share: infinite.share(),
            ceiling_lru_share: args.direct.is_none().then_some(finite.share()),
            prefill_tokens_per_s: args.prefill_tokens_per_s,
            itl_base_ms: args.itl_base_ms,
            itl_slope_ms: args.itl_slope_ms,
            kv_blocks: args.kv_blocks,
            capacity_tokens_per_s,
        }
    }

    fn trial(&self, policy: &str, repeat: u64) -> Result<Trial> {
        let seed = self.args.seed + repeat;
        let target = self.start(policy, repeat, seed)?;
        let times = arrivals(&self.requests, self.args.rate, seed);

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let clients = target.addresses.iter().map(|address| Arc::new(Client::new(*address))).collect();
        let cpu = || CpuTimes {
            generator: cpu_of("self"),
            gateway: target.gateway.as_ref().map(Process::cpu),
            workers: target.sims.as_ref().map(Process::cpu),
            host: host_cpu(),
        };
        let before = cpu();
        let started = Instant::now();
        let records = runtime.block_on(self.drive(clients, &times));
        let wall_s = started.elapsed().as_secs_f64();
        let after = cpu();
        drop(target);

        let per_request = |after: Option<Duration>, before: Option<Duration>| {
            Some(after?.saturating_sub(before?).as_secs_f64() * 1e3 / records.len() as f64)
        };
        Ok(Trial {
            policy: policy.to_owned(),
            repeat,
            seed,
            wall_s,
            gateway_cpu_ms_per_request: per_request(after.gateway, before.gateway),
            workers_cpu_ms_per_request: per_request(after.workers, before.workers),
            generator_cpu_ms_per_request: per_request(Some(after.generator), Some(before.generator)),
            host_cpu_busy_share: (after.host.0 - before.host.0) as f64
                / (after.host.1 - before.host.1) as f64,
            records,
        })
    }

    fn start(&self, policy: &str, repeat: u64, seed: u64) -> Result<Target> {
        let args = self.args;
        if let Some(address) = args.direct {
            return Ok(Target { addresses: vec![address], gateway: None, sims: None });
        }
        let log = |name: &str| args.log_dir.join(format!("{policy}-{repeat}-{name}.log"));
        let port = free_ports(args.workers)?;
        let workers: Vec<_> =
            (0..args.workers).map(|i| SocketAddr::from((Ipv4Addr::LOCALHOST, port + i))).collect();
        let mut sim_args: Vec<String> = [
            ("--port", port.to_string()),
            ("--count", args.workers.to_string()),
            ("--served-model-name", args.model.clone()),
            ("--prefill-tokens-per-s", args.prefill_tokens_per_s.to_string()),
            ("--itl-base-ms", args.itl_base_ms.to_string()),
            ("--itl-slope-ms", args.itl_slope_ms.to_string()),
            ("--num-gpu-blocks", args.kv_blocks.to_string()),
            ("--time-scale", args.speed_up.to_string()),
            ("--seed", seed.to_string()),
        ]
        .into_iter()
        .flat_map(|(name, value)| [name.to_owned(), value])
        .collect();
        sim_args.extend(args.sim_arg.iter().cloned());
        let mut sims = Process::start(&sibling("vllm-sim")?, &sim_args, log("sims"))?;
        for worker in &workers {
            sims.await_ready(*worker, "/health")?;
        }
        if policy == NO_GATEWAY {
            return Ok(Target { addresses: workers, gateway: None, sims: Some(sims) });
        }

        let port = free_ports(2)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut serve: Vec<String> = ["serve", "--policy", policy].map(str::to_owned).into();
        serve.extend(["--listen".to_owned(), address.to_string()]);
        serve.extend(["--admin".to_owned(), format!("127.0.0.1:{}", port + 1)]);
        serve.extend(workers.iter().flat_map(|worker| ["--worker".to_owned(), format!("http://{worker}")]));
        serve.extend(args.gateway_arg.iter().cloned());
        let mut gateway = Process::start(&sibling("warmpath")?, &serve, log("gateway"))?;
        gateway.await_ready(address, "/v1/models")?;
        Ok(Target { addresses: vec![address], gateway: Some(gateway), sims: Some(sims) })
    }

    /// Sends every request at its time and waits for all answers. Several clients are taken in turn.
    async fn drive(&self, clients: Vec<Arc<Client>>, times: &[Duration]) -> Vec<Record> {
        let speed_up = self.args.speed_up;
        let timeout = Duration::from_secs_f64(self.args.timeout_s / speed_up);
        let start = Instant::now() + Duration::from_millis(100);
        let mut tasks = JoinSet::new();
        for (index, (request, time)) in self.requests.iter().zip(times).enumerate() {
            let intended = start + time.div_f64(speed_up);
            tokio::time::sleep_until(intended.into()).await;
            let client = Arc::clone(&clients[index % clients.len()]);
            let body = PromptBody::new(&self.pool, &self.args.model, request);
            let expected_tokens = request.output_tokens;
            tasks.spawn(async move {
                let answer = tokio::time::timeout(timeout, client.send(body)).await.ok();
                let end = Instant::now();
                record(index, answer, expected_tokens, start, intended, end, speed_up)
            });
        }
        let mut records = tasks.join_all().await;
        records.sort_by_key(|record| record.index);
        records
    }
}

/// Turns instants of wall clock into seconds of trace time.
fn record(
    index: usize,
    answer: Option<Answer>,
    expected_tokens: u64,
    start: Instant,
    intended: Instant,
    end: Instant,
    speed_up: f64,
) -> Record {
    let since = |from: Instant, to: Instant| to.saturating_duration_since(from).as_secs_f64() * speed_up;
    let mut record = Record {
        index,
        intended_s: since(start, intended),
        late_s: 0.0,
        ttft_s: None,
        itl_s: None,
        end_s: since(start, end),
        prompt_tokens: 0,
        cached_tokens: 0,
        output_tokens: 0,
        worker: None,
        error: None,
    };
    let Some(answer) = answer else {
        record.error = Some("timeout".to_owned());
        return record;
    };
    record.late_s = since(intended, answer.begun);
    record.worker = Some(answer.worker);
    record.error = answer.error;
    if let Some(usage) = answer.usage {
        record.prompt_tokens = usage.prompt_tokens;
        record.cached_tokens = usage.cached_tokens();
        record.output_tokens = usage.completion_tokens;
        if usage.completion_tokens != expected_tokens && record.error.is_none() {
            record.error = Some("another number of tokens than asked for".to_owned());
        }
    }
    record.ttft_s = answer.first_token.map(|first| since(intended, first));
    if let (Some(first), Some(last)) = (answer.first_token, answer.last_token)
        && record.output_tokens > 1
    {
        record.itl_s = Some(since(first, last) / (record.output_tokens - 1) as f64);
    }
    record
}

/// Requests and prefilled tokens by worker.
pub(crate) fn by_worker(records: &[Record]) -> BTreeMap<&str, (u64, u64)> {
    let mut workers = BTreeMap::new();
    for record in records {
        if let Some(worker) = &record.worker {
            let (requests, prefilled) = workers.entry(worker.as_str()).or_insert((0, 0));
            *requests += 1;
            *prefilled += record.prompt_tokens - record.cached_tokens.min(record.prompt_tokens);
        }
    }
    workers
}
