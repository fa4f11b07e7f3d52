//! The command line: vLLM's option names where vLLM has the option, and the time model's own.

use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};
use vllm_sim::{
    EngineConfig, EventFormat, HashAlgo, HashForm, KvEventsConfig, KvTransferConfig, Lora, Sim, SimConfig,
    SimHandle, TimeModel,
};

/// Simulated vLLM workers: HTTP, KV events, metrics and a time model, without a model.
#[derive(Debug, Parser)]
#[command(version)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(crate) struct Cli {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1", env = "VLLM_SIM_HOST")]
    host: IpAddr,
    /// Port of the first worker; the others take the ports after it. 0 lets the system choose them all.
    #[arg(long, default_value_t = 8001, env = "VLLM_SIM_PORT")]
    port: u16,
    /// Workers in this process.
    #[arg(long, default_value_t = 1, env = "VLLM_SIM_COUNT")]
    count: u16,
    /// OS threads; the workers are spread over them.
    #[arg(long, default_value_t = 1, env = "VLLM_SIM_THREADS")]
    threads: u16,
    /// Seed of the first worker; worker i uses seed + i. Decides every generated token and id.
    #[arg(long, default_value_t = 0, env = "VLLM_SIM_SEED")]
    seed: u64,
    /// Model name that requests use.
    #[arg(
        long = "served-model-name",
        visible_alias = "model",
        default_value = "sim",
        env = "VLLM_SIM_MODEL"
    )]
    model: String,
    /// LoRA adapter as NAME=PATH, listed and accepted as a model of its own; repeatable.
    #[arg(long = "lora-modules", value_name = "NAME=PATH")]
    loras: Vec<String>,
    /// Bearer token wanted on /v1/*.
    #[arg(long, env = "VLLM_API_KEY")]
    api_key: Option<String>,
    /// Echo (or invent) x-request-id on every response.
    #[arg(long)]
    enable_request_id_headers: bool,
    /// Let /load count.
    #[arg(long)]
    enable_server_load_tracking: bool,
    /// Offer /v1/completions/render and /v1/chat/completions/render.
    #[arg(long)]
    enable_scale_out: bool,
    /// Leave cached_tokens out of the usage, as vLLM does without --enable-prompt-tokens-details.
    #[arg(long)]
    no_prompt_tokens_details: bool,
    /// Answer 503 once so many requests wait.
    #[arg(long)]
    max_num_queued_reqs: Option<usize>,
    /// Idle connections are closed so long after their last response, seconds.
    #[arg(long, default_value_t = 5.0, env = "VLLM_HTTP_TIMEOUT_KEEP_ALIVE")]
    timeout_keep_alive_s: f64,
    /// Comments on streams that wait, every so many seconds; 0: none.
    #[arg(long, default_value_t = 0.0)]
    sse_keep_alive_interval: f64,
    /// Seconds that requests may go on after Ctrl-C or SIGTERM.
    #[arg(long, default_value_t = 0.0)]
    shutdown_timeout: f64,

    /// Tokens per KV block.
    #[arg(long, default_value_t = 16)]
    block_size: usize,
    /// KV blocks.
    #[arg(long, visible_alias = "num-blocks", default_value_t = 16_384)]
    num_gpu_blocks: usize,
    /// Sequences that run at once.
    #[arg(long, default_value_t = 256)]
    max_num_seqs: usize,
    /// Tokens computed per engine step.
    #[arg(long, default_value_t = 8_192)]
    max_num_batched_tokens: usize,
    /// Longest prompt + output, tokens.
    #[arg(long, default_value_t = 131_072)]
    max_model_len: usize,
    /// Do not reuse blocks over requests.
    #[arg(long)]
    no_enable_prefix_caching: bool,
    /// Hash of the KV blocks, as KV events publish it.
    #[arg(long, value_enum, default_value = "sha256")]
    prefix_caching_hash_algo: Algo,
    /// PYTHONHASHSEED of the imitated server.
    #[arg(long)]
    hash_seed: Option<String>,

    /// Prompt tokens computed per second.
    #[arg(long, default_value_t = 20_000.0)]
    prefill_tokens_per_s: f64,
    /// Inter-token latency of an otherwise idle engine, milliseconds.
    #[arg(long, default_value_t = 6.0)]
    itl_base_ms: f64,
    /// What each running sequence adds to it, milliseconds.
    #[arg(long, default_value_t = 0.05)]
    itl_slope_ms: f64,
    /// The engine's clock runs so many times faster.
    #[arg(long, default_value_t = 1.0)]
    time_scale: f64,

    /// Publish KV events here, e.g. tcp://*:5557 (binds) or tcp://127.0.0.1:5557 (connects). {port} is the worker's
    /// HTTP port, {i} its number.
    #[arg(long)]
    kv_events_endpoint: Option<String>,
    /// Serve replays of KV events here; {port} and {i} as above.
    #[arg(long)]
    kv_events_replay_endpoint: Option<String>,
    /// Topic of the KV events.
    #[arg(long, default_value = "kv@{host}:{port}@{model}")]
    kv_events_topic: String,
    /// Batches kept for replay.
    #[arg(long, default_value_t = 10_000)]
    kv_events_buffer_steps: usize,
    /// vLLM's option, of which the connector (NixlConnector) and kv_connector_extra_config.kv_lease_duration (seconds) count.
    #[arg(long, value_name = "JSON")]
    kv_transfer_config: Option<String>,
    /// Prompt tokens whose KV blocks are transferred per second.
    #[arg(long, default_value_t = 200_000.0)]
    kv_transfer_tokens_per_s: f64,

    /// Form of one event: map (vLLM 0.24 and later) or array (up to 0.23).
    #[arg(long, value_enum, default_value = "map")]
    kv_events_format: Format,
    /// Form of a block hash: int (low 64 bits) or bytes (whole digest).
    #[arg(long, value_enum, default_value = "int")]
    kv_events_hashes: Hashes,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Algo {
    Sha256,
    #[value(name = "sha256_cbor")]
    Sha256Cbor,
    Xxhash,
    #[value(name = "xxhash_cbor")]
    XxhashCbor,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Map,
    Array,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Hashes {
    Int,
    Bytes,
}

/// Starts the workers and serves until Ctrl-C or SIGTERM.
pub(crate) fn run(cli: &Cli) -> anyhow::Result<()> {
    let mut handles = Vec::new();
    let mut threads = Vec::new();
    let (send, receive) = std::sync::mpsc::channel();
    let per_thread = (0..cli.threads.max(1)).map(|thread| {
        let own = (0..cli.count).filter(move |index| index % cli.threads.max(1) == thread);
        own.map(|index| (index, cli.config(index)))
    });
    for configs in per_thread {
        let configs =
            configs.map(|(index, config)| Ok((index, config?))).collect::<anyhow::Result<Vec<_>>>()?;
        let send = send.clone();
        let thread =
            std::thread::Builder::new().name("sim".to_owned()).spawn(move || -> anyhow::Result<()> {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(async {
                    let mut ended = Vec::new();
                    for (index, config) in configs {
                        let handle = Sim::start(config).await;
                        if let Ok(handle) = &handle {
                            ended.push(handle.ended());
                        }
                        if send.send((index, handle)).is_err() {
                            return;
                        }
                    }
                    drop(send);
                    for ended in ended {
                        ended.await;
                    }
                });
                Ok(())
            })?;
        threads.push(thread);
    }
    drop(send);
    while let Ok((index, handle)) = receive.recv() {
        handles.push((index, handle.with_context(|| format!("worker {index}"))?));
    }
    handles.sort_by_key(|(index, _)| *index);
    let mut out = std::io::stdout().lock();
    for (index, handle) in &handles {
        writeln!(out, "ready {} seed {}", handle.url(), cli.seed + u64::from(*index))?;
    }
    out.flush()?;
    drop(out);

    let handles: Vec<_> = handles.into_iter().map(|(_, handle)| handle).collect();
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(stop_on_signal(&handles))?;
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a worker's thread panicked"))??;
    }
    Ok(())
}

/// Waits for the first signal, then stops all workers at once; a second one kills them.
async fn stop_on_signal(handles: &[SimHandle]) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let stop_all = async {
        // Polled together: every worker closes its listener at once.
        let mut stops: Vec<_> = handles.iter().map(|handle| Box::pin(handle.stop())).collect();
        std::future::poll_fn(|context| {
            stops.retain_mut(|stop| stop.as_mut().poll(context).is_pending());
            if stops.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    };
    tokio::select! {
        () = stop_all => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    for handle in handles {
        handle.kill().await;
    }
    Ok(())
}

impl Cli {
    /// The configuration of worker `index`.
    fn config(&self, index: u16) -> anyhow::Result<SimConfig> {
        let port = if self.port == 0 {
            0
        } else {
            self.port.checked_add(index).context("the workers' ports go beyond 65535")?
        };
        let expand = |text: &str| {
            text.replace("{i}", &index.to_string())
                .replace("{port}", &port.to_string())
                .replace("{host}", &self.host.to_string())
                .replace("{model}", &self.model)
        };
        let loras = self.loras.iter().map(|own| {
            let (name, path) = own.split_once('=').with_context(|| format!("{own}: NAME=PATH wanted"))?;
            Ok(Lora { name: name.to_owned(), path: path.to_owned() })
        });
        let kv_events = self.kv_events_endpoint.as_deref().map(|endpoint| KvEventsConfig {
            endpoint: expand(endpoint),
            replay_endpoint: self.kv_events_replay_endpoint.as_deref().map(expand),
            topic: expand(&self.kv_events_topic),
            buffer_steps: self.kv_events_buffer_steps,
            format: match self.kv_events_format {
                Format::Map => EventFormat::Map,
                Format::Array => EventFormat::Array,
            },
            hash_form: match self.kv_events_hashes {
                Hashes::Int => HashForm::Int,
                Hashes::Bytes => HashForm::Bytes,
            },
        });
        let hash_algo = match self.prefix_caching_hash_algo {
            Algo::Sha256 => HashAlgo::Sha256,
            Algo::Sha256Cbor => HashAlgo::Sha256Cbor,
            Algo::Xxhash => HashAlgo::Xxhash,
            Algo::XxhashCbor => HashAlgo::XxhashCbor,
        };
        let millis = |ms: f64| duration(ms / 1000.0);
        Ok(SimConfig {
            listen: SocketAddr::new(self.host, port),
            model: self.model.clone(),
            loras: loras.collect::<anyhow::Result<_>>()?,
            api_key: self.api_key.clone(),
            enable_request_id_headers: self.enable_request_id_headers,
            enable_server_load_tracking: self.enable_server_load_tracking,
            enable_scale_out: self.enable_scale_out,
            enable_prompt_tokens_details: !self.no_prompt_tokens_details,
            max_num_queued_reqs: self.max_num_queued_reqs,
            keep_alive_timeout: duration(self.timeout_keep_alive_s)?,
            sse_keep_alive_interval: Some(duration(self.sse_keep_alive_interval)?)
                .filter(|own| !own.is_zero()),
            shutdown_timeout: duration(self.shutdown_timeout)?,
            seed: self.seed + u64::from(index),
            engine: EngineConfig {
                block_size: self.block_size,
                num_blocks: self.num_gpu_blocks,
                max_num_seqs: self.max_num_seqs,
                max_num_batched_tokens: self.max_num_batched_tokens,
                max_model_len: self.max_model_len,
                enable_prefix_caching: !self.no_enable_prefix_caching,
                hash_algo,
                hash_seed: self.hash_seed.clone(),
                time: TimeModel {
                    prefill_tokens_per_s: self.prefill_tokens_per_s,
                    itl_base: millis(self.itl_base_ms)?,
                    itl_slope: millis(self.itl_slope_ms)?,
                    time_scale: self.time_scale,
                },
                ..EngineConfig::default()
            },
            kv_events,
            kv_transfer: self.kv_transfer()?,
        })
    }
}

/// What counts of `--kv-transfer-config`.
#[derive(serde::Deserialize)]
struct TransferOption {
    kv_connector: String,
    #[serde(default)]
    kv_connector_extra_config: TransferExtra,
}

#[derive(Default, serde::Deserialize)]
struct TransferExtra {
    kv_lease_duration: Option<f64>,
}

impl Cli {
    fn kv_transfer(&self) -> anyhow::Result<Option<KvTransferConfig>> {
        let Some(json) = &self.kv_transfer_config else { return Ok(None) };
        let TransferOption { kv_connector, kv_connector_extra_config: extra } =
            serde_json::from_str(json).with_context(|| format!("--kv-transfer-config {json}"))?;
        anyhow::ensure!(kv_connector == "NixlConnector", "{kv_connector}: only NixlConnector is simulated");
        let default = KvTransferConfig::default();
        let lease = extra.kv_lease_duration.map_or(Ok(default.lease), duration)?;
        Ok(Some(KvTransferConfig { lease, tokens_per_s: self.kv_transfer_tokens_per_s }))
    }
}

fn duration(seconds: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(seconds).with_context(|| format!("{seconds} s is not a time span"))
}
