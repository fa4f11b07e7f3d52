//! Every limit of the gateway, in one table. A limit that is reached gives a clear error or back-pressure, never growth.
//! Those that an operator may change are the defaults of `limits:` and `timeouts:` in the configuration.

use std::time::Duration;

/// Client connections open at once, over all threads; one more is answered with 503 and closed.
pub const CONNECTIONS_MAX: usize = 65_536;
/// Bytes of one request head (request line and headers); more is answered with 431.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Headers of one request; more is answered with 431.
pub const HEADERS_MAX: usize = 100;
/// How long a request head may take from its first byte to its last.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client connection may stay open between requests.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(75);
/// Certificates are looked at so often, whether their files have changed.
pub const CERTIFICATE_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Models with series of their own; more share one.
pub const MODEL_SERIES_MAX: usize = 1_000;
/// Refused connections per data thread that stay until the client has taken the refusal in, a second at most.
pub const REFUSALS_MAX: usize = 256;
/// TLS handshakes under way per data thread, and on the admin port; others wait for their turn, within
/// `timeouts.head`.
pub const HANDSHAKES_MAX: usize = 256;
/// Streams of one HTTP/2 connection at the same time; a client waits before it opens another.
pub const H2_STREAMS_MAX: u32 = 128;
/// The same of a connection of Envoy's to an endpoint picker: requests under way.
pub const EPP_STREAMS_MAX: u32 = 4096;
/// Messages to Envoy that wait until it reads them, per request.
pub const EPP_ANSWERS_WAITING: usize = 16;
/// Bytes of a body in one message to Envoy, which takes up to 64 KiB.
pub const EPP_CHUNK_BYTES: usize = 62_000;
/// Bytes of requests that an HTTP/2 connection may send ahead of this gateway.
pub const H2_WINDOW_BYTES: u32 = 1024 * 1024;
/// Bytes of a response that wait for a slow HTTP/2 reader, per stream, beside the piece that was read last.
pub const H2_SEND_BUFFER_BYTES: usize = 64 * 1024;
/// Streams that a client may reset before they were looked at (CVE-2023-44487); more ends the connection.
pub const H2_PENDING_RESETS_MAX: usize = 32;
/// Streams that this gateway resets for a client's mistakes (CVE-2025-8671); more ends the connection.
pub const H2_LOCAL_RESETS_MAX: usize = 256;
/// A silent HTTP/2 client is asked whether it is there; without an answer for as long again it is given up.
pub const H2_PING_INTERVAL: Duration = Duration::from_secs(20);
/// Bytes of one request body; more is answered with 413.
pub const BODY_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of all request bodies that are in memory, over all connections; beyond it one is answered with 503.
pub const BODIES_BYTES_MAX: usize = 1024 * 1024 * 1024;
/// How long a request body may pause between two reads; longer is answered with 408.
pub const BODY_IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// Entries of `keys`.
pub const KEYS_MAX: usize = 10_000;
/// Entries of `aliases`.
pub const ALIASES_MAX: usize = 1_000;
/// Bytes of the name of a model that an alias stands for.
pub const MODEL_NAME_BYTES_MAX: usize = 256;
/// Bytes of the defaults that one key adds to request bodies.
pub const BODY_DEFAULTS_BYTES_MAX: usize = 16 * 1024;
/// Bytes of all entries of the response cache, and as many again of answers that may become entries.
pub const CACHE_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes of a request and its answer that are cached together.
pub const CACHE_ENTRY_BYTES_MAX: usize = 1024 * 1024;
/// Less would hold no answer.
pub const CACHE_ENTRY_BYTES_MIN: usize = 4 * 1024;
/// Places to which the entries of the response cache are spread, each with a lock and a share of the bytes of its own.
pub const CACHE_SHARDS: usize = 4;
/// An entry may be no larger than this part of all: else a few would sweep out the rest, or find no place.
pub const CACHE_ENTRIES_MIN: usize = 2 * CACHE_SHARDS;
/// Older entries of the response cache are not used.
pub const CACHE_TTL: Duration = Duration::from_mins(10);
/// Bytes that an answer too long for the cache is read ahead of those who share it, where an entry may not have more.
pub const CACHE_WINDOW_BYTES: u64 = 64 * 1024;
/// How long a reader that is as far behind holds up the others who share an answer; then it is left behind.
pub const CACHE_PATIENCE: Duration = Duration::from_secs(2);
/// Entries of `hooks`.
pub const HOOKS_MAX: usize = 16;
/// How long a request waits for a hook's answer.
pub const HOOK_TIMEOUT: Duration = Duration::from_millis(200);
/// Bytes of a request body that a hook is sent; a longer one is as an error of the hook.
pub const HOOK_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Bytes of a hook's answer beside a body in it.
pub const HOOK_ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Bytes of what a hook lets a client be told.
pub const HOOK_MESSAGE_BYTES_MAX: usize = 1024;
/// Header fields that a hook may set.
pub const HOOK_HEADERS_MAX: usize = 16;
/// Requests that a hook has at the same time; one more is as an error of the hook.
pub const HOOK_CONCURRENCY: usize = 64;
/// As many as may be asked for.
pub const HOOK_CONCURRENCY_MAX: usize = 4_096;
/// Idle connections to hooks that a data thread keeps, for each.
pub const HOOK_IDLE_CONNECTIONS: usize = 32;
/// Tenants that have series of their own in the metrics; the others share one.
pub const TENANT_SERIES_MAX: usize = 1_000;
/// Idle client connections of a data thread that keep what a following request would need.
pub const IDLE_WITH_BUFFERS_MAX: usize = 64;
/// Bytes of a request body that are read before a refusal, so that its connection may go on; longer ones close it.
pub const REFUSED_BODY_BYTES_MAX: usize = 64 * 1024;
/// Workers in one fleet (slots of the index, rows of the `workers` map).
pub const WORKERS_MAX: usize = 1_024;
/// Sources of workers under `discovery`.
pub const DISCOVERY_SOURCES_MAX: usize = 32;
/// Workers that one source may name, those included that are not ready; the rest of an answer is not read.
pub const DISCOVERED_MAX: usize = 4_096;
/// Bytes of a file with a list of workers.
pub const DISCOVERY_FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// A worker that its source no longer names is still used for this long.
pub const DISCOVERY_GONE_AFTER: Duration = Duration::from_secs(5);
/// How long what is in flight on a worker that has gone may take.
pub const DISCOVERY_DRAIN_TIMEOUT: Duration = Duration::from_mins(10);
/// The longest pause between two questions to the DNS.
pub const DISCOVERY_DNS_INTERVAL: Duration = Duration::from_secs(30);
/// The shortest, whatever time to live the records have.
pub const DISCOVERY_DNS_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// How long a gateway that starts waits for the first answer of every source.
pub const DISCOVERY_FIRST_ANSWERS: Duration = Duration::from_secs(5);
/// Tries of one request over all workers, the first included.
pub const TRIES_MAX: usize = 3;
/// Retries that requests may cost together, as a share of the requests: an outage is not to be multiplied.
pub const RETRY_SHARE: f64 = 0.2;
/// Requests that wait for a worker, over all tenants; one more is answered with 429, or pushes out one of a tenant that has
/// more than its share.
pub const QUEUE_MAX: usize = 1_024;
/// How long a request waits for a worker; then it is answered with 429, or with 503 where none is routable.
pub const QUEUE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the head of a stream waits for the stream's first byte, so that another worker can be tried until then.
pub const HOLD_HEAD: Duration = Duration::from_secs(30);
/// How long a worker that answers 429 or 503 without `Retry-After` gets no requests that others can take.
pub const REST: Duration = Duration::from_secs(1);
/// The longest `Retry-After` of a worker that is believed.
pub const REST_MAX: Duration = Duration::from_secs(30);
/// What a retry waits beside the `Retry-After` that it was told: up to this, at random, doubled at each wait.
pub const BACKOFF_BASE: Duration = Duration::from_millis(100);
/// As often as it is doubled.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Idle connections kept per worker and data thread.
pub const IDLE_CONNECTIONS_MAX: usize = 256;
/// How long an idle worker connection is kept. vLLM closes after 5.0 s (`VLLM_HTTP_TIMEOUT_KEEP_ALIVE`), so stay below.
pub const IDLE_CONNECTION_TIMEOUT: Duration = Duration::from_secs(4);
/// How long connecting to a worker may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a worker may take for the response head. vLLM answers a unary request only when it is complete.
pub const RESPONSE_HEAD_TIMEOUT: Duration = Duration::from_mins(10);
/// How long requests in flight may take to end after a successor has taken over: nobody waits for that.
pub const UPGRADE_TIMEOUT: Duration = Duration::from_mins(10);
/// Memory of the prefix index, all workers together.
pub const INDEX_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Bytes of a worker's `/metrics` answer (vLLM 0.32: 53 KB); more is cut off and the scrape fails.
pub const SCRAPE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// How long a request waits for the LMCache controller; later answers are not used.
pub const LMCACHE_TIMEOUT: Duration = Duration::from_millis(20);
/// Bytes of the LMCache controller's answers; more is no answer.
pub const LMCACHE_ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;
/// LMCache instances without a worker that the log names, since the last reload.
pub const LMCACHE_STRANGERS_SAID: usize = 64;
/// Uncached tokens of prompts that are always prefilled where they are decoded.
pub const HANDOFF_TOKENS_MIN: u32 = 128;
/// The same while it is not learned what handing over takes.
pub const HANDOFF_TOKENS: u32 = 1024;
/// Longer ones are always handed over: else what that takes would not be learned again.
pub const HANDOFF_TOKENS_MAX: u32 = 8192;
/// Bytes of the answer to a prefill stage: one token, and where the KV blocks of the prompt are.
pub const PREFILL_ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of a worker's `/v1/models` answer (one model: 0.5 KB); more is no list.
pub const MODELS_BYTES_MAX: usize = 1024 * 1024;
/// A worker that has requests may be silent for this long before it is asked for a token, however it is as a rule.
pub const SILENCE_MIN: Duration = Duration::from_secs(5);
/// How long that token may take, beside what the worker's queue is expected to take.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a worker's answer to a probe: one token, and whatever else it says of it.
pub const PROBE_ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Threads that tokenise. One does some 500,000 new tokens per second; what was seen before costs next to nothing.
pub const TOKENIZE_THREADS: usize = 2;
/// As many as may be asked for.
pub const TOKENIZE_THREADS_MAX: usize = 256;
/// Requests that wait to be tokenised; one more is routed by its bytes.
pub const TOKENIZE_QUEUE_MAX: usize = 256;
/// How long a request waits for its tokens; then it is routed by its bytes.
pub const TOKENIZE_DEADLINE: Duration = Duration::from_millis(50);
/// Memory of the token cache: some 16 million tokens.
pub const TOKEN_CACHE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Less would not hold one long prompt.
pub const TOKEN_CACHE_BYTES_MIN: usize = 1024 * 1024;
/// Bytes of a worker's `/tokenize` answer: a million tokens, seven bytes each.
pub const TOKENIZE_ANSWER_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Records of decisions kept in memory.
pub const DECISIONS_KEPT: usize = 4_096;
/// As many as may be asked for.
pub const DECISIONS_KEPT_MAX: usize = 1_000_000;
/// Memory of those records: with up to 70 workers all of them (a candidate takes about 110 bytes).
pub const DECISIONS_BYTES: usize = 32 * 1024 * 1024;
/// Less would not hold the record of a large fleet and a long prompt.
pub const DECISIONS_BYTES_MIN: usize = 1024 * 1024;
/// Records that one answer of `/decisions` may have.
pub const DECISIONS_ANSWERED_MAX: usize = 1_000;
/// Connections that follow decisions; one more is answered with 429.
pub const DECISION_FOLLOWERS_MAX: usize = 64;
/// Decisions that a follower may be behind; then it loses the oldest.
pub const DECISION_EVENTS_WAITING: usize = 1_024;
/// Records that wait for the decision log's writer, who looks every 50 ms; one more is dropped.
pub const DECISION_LOG_WAITING: usize = 8_192;
/// The size at which the decision log is rotated.
pub const DECISION_LOG_ROTATE_BYTES: u64 = 256 * 1024 * 1024;
/// Less would rotate with every few records.
pub const DECISION_LOG_ROTATE_BYTES_MIN: u64 = 64 * 1024;
/// Rotated decision logs that are kept.
pub const DECISION_LOG_KEPT: usize = 4;
/// As many as may be asked for.
pub const DECISION_LOG_KEPT_MAX: usize = 1_000;
/// Traced requests that wait for the thread that exports their spans, which looks every 200 ms; one more is dropped.
pub const TRACES_WAITING: usize = 2_048;
/// Bytes of one message of KV events, all its frames (vLLM 0.32: 2 KB; a step of 16,384 tokens: some 100 KB). A worker that
/// sends more is not heard any longer.
pub const KV_EVENT_MESSAGE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Frames of one message of KV events (topic, number, payload; a replay has one more).
pub const KV_EVENT_FRAMES_MAX: usize = 8;
/// Messages that wait to be applied, per stream; what is beyond waits in the sockets, and then in the worker.
pub const KV_EVENT_MESSAGES_WAITING: usize = 16;
/// How long connecting to a publisher and shaking hands with it may take.
pub const KV_EVENT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a replay may pause. vLLM looks for requests every 100 ms.
pub const KV_REPLAY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Publishers connected to one endpoint that this gateway has bound.
pub const KV_PUBLISHERS_MAX: usize = 1024;
/// Blocks that a worker's events may add up to where the worker does not say how many it has.
pub const KV_BLOCKS_MAX: usize = 4 * 1024 * 1024;
/// Data parallel ranks of one worker.
pub const KV_RANKS_MAX: usize = 64;
/// Predictions whose requests have not been prefilled, over all workers; beyond it none is made.
pub const KV_PREDICTIONS_MAX: usize = 16_384;
/// What is read of a worker's response and not passed on yet, where hyper reads it; also the longest response head.
pub const WORKER_BUFFER_BYTES: usize = 64 * 1024;
/// Buffer of a raw body's relay while user space moves it.
pub const RELAY_BUFFER_BYTES: usize = 16 * 1024;
/// A stream goes to the kernel (again) when no more than this waits for the client.
pub const RELAY_RESUME_BYTES: u32 = 32 * 1024;
/// Bodies of known length below this are copied, whatever the configuration says of longer ones.
pub const RELAY_MIN_BYTES: u64 = 64 * 1024;
/// The share of responses that is copied so that what the worker says in them can be read.
pub const RELAY_SAMPLE: f64 = 0.02;
/// Rules of the XDP guard, deny and allow together.
pub const GUARD_RULES_MAX: usize = router_common::limits::GUARD_RULES_MAX as usize;
/// Rules of the guard that have a series of their own in the metrics; the others share one.
pub const GUARD_RULE_SERIES_MAX: usize = 1_000;
/// New connections per second and source that the guard lets through: far above what a client opens, far below a flood.
pub const GUARD_SYN_RATE: u32 = 1_000;
/// New connections that a source may open at once after a pause.
pub const GUARD_SYN_BURST: u32 = 2_000;

/// Bytes of a log filter that the admin port is given.
pub const LOG_FILTER_BYTES_MAX: usize = 1024;
/// Bytes of a body on the admin port, a prompt to be explained apart.
pub const ADMIN_BODY_BYTES_MAX: usize = 64 * 1024;
/// Followers of the admin port's events; one more is answered with 503.
pub const EVENT_FOLLOWERS_MAX: usize = 16;
/// Streams that the admin port lists at once.
pub const LIVE_STREAMS_SHOWN_MAX: usize = 1_000;
/// Seconds of which the admin port keeps a figure each, for charts.
pub const HISTORY_SECONDS: usize = 300;

/// When a peer that is silent is asked whether it is there (after 15 s), and given up (after 30 s). The kernel asks; a
/// stream that is only slow is not affected.
pub fn tcp_keepalive() -> socket2::TcpKeepalive {
    socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(15))
        .with_interval(Duration::from_secs(5))
        .with_retries(3)
}
