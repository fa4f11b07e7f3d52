//! What a simulated worker is: its name, its limits, its speed.
//!
//! Field names follow vLLM's own options where one exists (`max_num_seqs`, `max_num_batched_tokens`, `block_size`, …),
//! so that a vLLM command line translates word by word.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use crate::engine::hashing::HashAlgo;

/// Everything that one simulated worker is told at its start.
#[allow(clippy::struct_excessive_bools, reason = "each is an option of vLLM's command line")]
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Address to listen on. Port 0 picks a free one; [`crate::SimHandle::addr`] says which.
    pub listen: SocketAddr,
    /// `--served-model-name`: the name that requests use and `/v1/models` lists.
    pub model: String,
    /// LoRA adapters, served as models of their own beside [`SimConfig::model`].
    pub loras: Vec<Lora>,
    /// `--api-key`: wanted on `/v1/*` only, as in vLLM.
    pub api_key: Option<String>,
    /// `--enable-request-id-headers`: echo (or invent) `x-request-id` on every response.
    pub enable_request_id_headers: bool,
    /// `--enable-server-load-tracking`: `/load` counts, instead of always saying 0.
    pub enable_server_load_tracking: bool,
    /// `--enable-scale-out`: `/v1/…/render`, which is 403 without.
    pub enable_scale_out: bool,
    /// `--enable-prompt-tokens-details`: `usage.prompt_tokens_details.cached_tokens`. On here, unlike in vLLM, because
    /// a router wants it on.
    pub enable_prompt_tokens_details: bool,
    /// `--max-num-queued-reqs`: 503 once so many requests wait.
    pub max_num_queued_reqs: Option<usize>,
    /// `VLLM_HTTP_TIMEOUT_KEEP_ALIVE`: an idle connection is closed so long after its last response.
    pub keep_alive_timeout: Duration,
    /// `--sse-keep-alive-interval`: comments on a stream that has nothing to say yet.
    pub sse_keep_alive_interval: Option<Duration>,
    /// `--shutdown-timeout`: how long in-flight requests may go on after [`crate::SimHandle::stop`].
    pub shutdown_timeout: Duration,
    /// Determines every generated token, id and random choice of this worker.
    pub seed: u64,
    pub engine: EngineConfig,
    /// `--kv-events-config`; `None` publishes nothing.
    pub kv_events: Option<KvEventsConfig>,
    /// `--kv-transfer-config`; without it requests that speak of blocks elsewhere are served as if they did not.
    pub kv_transfer: Option<KvTransferConfig>,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            model: "sim".to_owned(),
            loras: Vec::new(),
            api_key: None,
            enable_request_id_headers: false,
            enable_server_load_tracking: false,
            enable_scale_out: false,
            enable_prompt_tokens_details: true,
            max_num_queued_reqs: None,
            keep_alive_timeout: Duration::from_secs(5),
            sse_keep_alive_interval: None,
            shutdown_timeout: Duration::ZERO,
            seed: 0,
            engine: EngineConfig::default(),
            kv_events: None,
            kv_transfer: None,
        }
    }
}

/// A LoRA adapter: the name that requests give, and the path that vLLM hashes into the block key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lora {
    pub name: String,
    pub path: String,
}

/// The engine: memory, scheduling limits and speed.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Tokens per KV block.
    pub block_size: usize,
    /// KV blocks in all, the null block included (as `num_gpu_blocks` in `cache_config_info`).
    pub num_blocks: usize,
    /// Requests that may run at once.
    pub max_num_seqs: usize,
    /// Tokens that one engine step may compute: the chunk of chunked prefill.
    pub max_num_batched_tokens: usize,
    /// Longest prompt + output, tokens. Cut down at the start to what the KV blocks hold.
    pub max_model_len: usize,
    /// Reuse of full blocks over requests.
    pub enable_prefix_caching: bool,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// How block hashes are made. Visible in KV events only; [`HashAlgo::Sha256`] is vLLM's default.
    pub hash_algo: HashAlgo,
    /// `PYTHONHASHSEED` of the imitated server, the seed of the first block's parent.
    pub hash_seed: Option<String>,
    pub time: TimeModel,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            block_size: 16,
            num_blocks: 16_384,
            max_num_seqs: 256,
            max_num_batched_tokens: 8_192,
            max_model_len: 131_072,
            enable_prefix_caching: true,
            vocab_size: 151_936,
            hash_algo: HashAlgo::Sha256,
            hash_seed: None,
            time: TimeModel::default(),
        }
    }
}

/// How long an engine step takes:
///
/// ```text
/// step = prefill tokens / prefill_tokens_per_s  +  (itl_base + itl_slope * sequences that decode, if any)
/// ```
///
/// so a lone prompt's first token comes after `new tokens / prefill_tokens_per_s`, a decoding sequence sees an
/// inter-token latency of `itl_base + itl_slope * running`, and a prefill chunk delays every decode that shares its
/// step: the interference that chunked prefill has.
#[derive(Clone, Copy, Debug)]
pub struct TimeModel {
    pub prefill_tokens_per_s: f64,
    pub itl_base: Duration,
    pub itl_slope: Duration,
    /// The engine's clock runs so many times faster than the wall (trace replays).
    pub time_scale: f64,
}

impl Default for TimeModel {
    fn default() -> Self {
        Self {
            prefill_tokens_per_s: 20_000.0,
            itl_base: Duration::from_millis(6),
            itl_slope: Duration::from_micros(50),
            time_scale: 1.0,
        }
    }
}

impl TimeModel {
    /// Wall time of a step that computes `prefill_tokens` prompt tokens and one token for each of `decodes` sequences.
    pub fn step(&self, prefill_tokens: usize, decodes: usize) -> Duration {
        let prefill_s = prefill_tokens as f64 / self.prefill_tokens_per_s;
        let decode_s = if decodes == 0 {
            0.0
        } else {
            self.itl_base.as_secs_f64() + self.itl_slope.as_secs_f64() * decodes as f64
        };
        Duration::from_secs_f64((prefill_s + decode_s) / self.time_scale)
    }
}

/// `--kv-transfer-config` with the NIXL connector: blocks are kept for other workers and fetched from them.
#[derive(Clone, Debug)]
pub struct KvTransferConfig {
    /// `kv_lease_duration`: how long blocks are kept for who does not fetch them.
    pub lease: Duration,
    /// Prompt tokens whose blocks are transferred in a second.
    pub tokens_per_s: f64,
}

impl Default for KvTransferConfig {
    fn default() -> Self {
        Self { lease: Duration::from_secs(30), tokens_per_s: 200_000.0 }
    }
}

/// `--kv-events-config`: the ZMQ publisher.
#[derive(Clone, Debug)]
pub struct KvEventsConfig {
    /// PUB endpoint. BINDS if it contains `*` or `::` or starts with `ipc://` or `inproc://`, else CONNECTS: vLLM's
    /// rule, so that many workers can share one subscriber.
    pub endpoint: String,
    /// ROUTER endpoint for replay; always binds.
    pub replay_endpoint: Option<String>,
    /// First frame of every message.
    pub topic: String,
    /// Batches kept for replay.
    pub buffer_steps: usize,
    pub format: EventFormat,
    pub hash_form: HashForm,
}

impl Default for KvEventsConfig {
    fn default() -> Self {
        Self {
            endpoint: "tcp://*:5557".to_owned(),
            replay_endpoint: None,
            topic: String::new(),
            buffer_steps: 10_000,
            format: EventFormat::Map,
            hash_form: HashForm::Int,
        }
    }
}

/// How one event is written in msgpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventFormat {
    /// A map with a `type` key: vLLM 0.24 and later.
    Map,
    /// An array whose first element is the type: up to vLLM 0.23.
    Array,
}

/// `VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashForm {
    /// The low 64 bits of the digest, as an unsigned integer (the default).
    Int,
    /// The whole digest, as bytes.
    Bytes,
}
