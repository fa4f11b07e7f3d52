//! The generating endpoints: from a request body to a whole response or a stream of events.

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::error::ApiError;
use super::events::{EventWriter, Events};
use super::exchange::Exchange;
use super::fields::Fields;
use super::job::Job;
use super::params::{Api, Params};
use super::prompt::PromptReader;
use super::responses::{self, Echo};
use super::routes::Endpoint;
use super::{chat, completions, messages};
use crate::engine::hashing::ExtraKeys;
use crate::engine::sequence::{Finish, Generation, KvBlocks, OutputText, Progress, SequenceSpec};
use crate::faults::{Ending, FaultKind};
use crate::http::connection::{Gone, frame_chunk};
use crate::http::response::now_s;
use crate::kv_transfer::{Kept, Transfer};
use crate::rng::mix64;

/// Output that the model makes when nobody limits it, tokens.
const NATURAL_OUTPUT_TOKENS: std::ops::Range<u64> = 32..256;

/// A request that can be served.
struct Asked {
    params: Params,
    prompts: Vec<Vec<u32>>,
    reader: PromptReader,
    echo: Option<Echo>,
}

impl Exchange<'_> {
    pub(super) async fn generate(&mut self, endpoint: Endpoint, body: &[u8]) -> Result<(), Gone> {
        let worker = self.worker;
        let _in_flight = worker.stats.generating.enter();
        let fault = worker.faults.on_request(&worker.rng);
        match &fault {
            Some(FaultKind::Hang) => {
                self.connection.gone().await;
                return Err(self.aborted());
            }
            Some(FaultKind::ResetAfterRequest) => {
                self.connection.reset_on_close();
                return Err(Gone);
            }
            Some(FaultKind::SlowHead { delay_ms }) => {
                self.pause(Duration::from_millis(*delay_ms)).await?;
            }
            Some(FaultKind::Status { status, retry_after_s }) => {
                return self.error(&ApiError::injected(*status, *retry_after_s)).await;
            }
            _ => {}
        }
        let asked = match self.read(endpoint, body) {
            Err(error) if endpoint == Endpoint::Messages => return self.anthropic_error(&error).await,
            Err(error) => return self.error(&error).await,
            Ok(asked) => asked,
        };
        let is_streamed = asked.params.stream;
        if is_streamed {
            self.begin_stream().await?;
        }
        if let (Transfer::Load(remote), Some(connector)) = (&asked.params.transfer, &worker.connector) {
            let tokens = asked.prompts.first().map_or(0, Vec::len);
            let loaded = self.connection.until(connector.load(remote, tokens)).await;
            if let Err(why) = loaded.map_err(|Gone| self.aborted())? {
                tracing::debug!(why, "KV blocks not fetched");
                let error = ApiError::kv_load_failed();
                return if is_streamed {
                    self.end_with_error(&error).await
                } else {
                    self.error(&error).await
                };
            }
        }
        let (job, generation) = self.submit(asked);
        if is_streamed {
            self.stream(job, generation, fault).await
        } else {
            self.whole(job, generation, fault).await
        }
    }

    /// Reads the request, and whether it can be served.
    fn read(&self, endpoint: Endpoint, body: &[u8]) -> Result<Asked, ApiError> {
        let worker = self.worker;
        let api = match endpoint {
            Endpoint::Chat => Api::Chat,
            Endpoint::Responses => Api::Responses,
            Endpoint::Messages => Api::Messages,
            _ => Api::Completions,
        };
        let fields = Fields::parse(self.head.content_type.as_deref(), body)?;
        let params = Params::read(api, &fields, self.head, &worker.config)?;
        let reader = worker.prompt_reader();
        let prompts = match api {
            Api::Completions => reader.completion(fields.raw("prompt"))?,
            Api::Chat => vec![reader.chat(&fields)?],
            Api::Responses => vec![responses::prompt(reader, &fields)?],
            Api::Messages => vec![messages::prompt(reader, &fields)?],
        };
        let message_id = || format!("msg_{:016x}", worker.rng.next_u64());
        let echo = (api == Api::Responses).then(|| Echo::read(&fields, message_id())).transpose()?;
        if worker.engine_dead.load(Ordering::Acquire) {
            return Err(ApiError::engine_dead());
        }
        if worker.is_draining() {
            return Err(ApiError::shutting_down());
        }
        if worker.config.max_num_queued_reqs.is_some_and(|limit| worker.engine.queued() >= limit) {
            worker.engine.metrics().lock().rejected += 1;
            return Err(ApiError::busy());
        }
        if let Some(prompt) = prompts.iter().find(|prompt| prompt.len() >= reader.max_model_len) {
            return Err(ApiError::too_long(reader.max_model_len, prompt.len(), false));
        }
        Ok(Asked { params, prompts, reader, echo })
    }

    /// Hands the request to the engine.
    fn submit(&self, Asked { params, prompts, reader, echo }: Asked) -> (Job, Generation) {
        let worker = self.worker;
        let prefix = match params.api {
            Api::Completions => "cmpl-",
            Api::Chat | Api::Messages => "chatcmpl-",
            Api::Responses => "resp_",
        };
        let invent = || format!("{:016x}", worker.rng.next_u64());
        let id = format!("{prefix}{}", self.head.request_id.clone().unwrap_or_else(invent));
        let kept = (params.transfer == Transfer::Keep && prompts.len() == 1)
            .then(|| Arc::new(Kept { request_id: id.clone(), blocks: OnceLock::new() }));
        let prompts: Vec<_> = prompts.into_iter().map(Arc::new).collect();
        let (mut specs, mut texts) = (Vec::new(), Vec::new());
        for prompt in &prompts {
            let room = reader.max_model_len - prompt.len();
            let key = prompt.iter().fold(worker.config.seed, |key, token| mix64(key ^ u64::from(*token)));
            for choice in 0..params.n as u64 {
                let text = OutputText { key: mix64(key ^ mix64(params.seed) ^ choice) };
                texts.push(text);
                let ends_itself = params.max_tokens.is_none() && !params.ignore_eos;
                let natural = NATURAL_OUTPUT_TOKENS.end - NATURAL_OUTPUT_TOKENS.start;
                let natural = (NATURAL_OUTPUT_TOKENS.start + mix64(text.key) % natural) as usize;
                specs.push(SequenceSpec {
                    prompt: prompt.clone(),
                    extra: ExtraKeys {
                        lora: params.lora.clone().map(|lora| (lora.name, lora.path)),
                        cache_salt: params.cache_salt.clone(),
                    },
                    session_id: params.session_id.clone(),
                    report_hits: params.report_hits,
                    max_tokens: params.max_tokens.unwrap_or(room).min(room),
                    stop_after: ends_itself.then_some(natural.max(params.min_tokens)),
                    text,
                    kv_blocks: match (&params.transfer, &kept) {
                        (Transfer::Load(_), _) => KvBlocks::Loaded,
                        (_, Some(kept)) => KvBlocks::Keep(kept.clone()),
                        _ => KvBlocks::Own,
                    },
                });
            }
        }
        let max_tokens = specs.first().map_or(0, |spec| spec.max_tokens);
        let generation = worker.engine.generate(specs, params.stream);
        let job = Job {
            id,
            created_s: now_s(),
            fingerprint: worker.fingerprint.clone(),
            progress: vec![Progress::default(); texts.len()],
            prompts,
            texts,
            tokenizer: reader.tokenizer,
            block_size: worker.config.engine.block_size,
            prompt_details: worker.config.enable_prompt_tokens_details,
            max_tokens,
            kept,
            kv_transfer: None,
            echo,
            params,
        };
        (job, generation)
    }

    async fn whole(
        &mut self,
        mut job: Job,
        mut generation: Generation,
        fault: Option<FaultKind>,
    ) -> Result<(), Gone> {
        if self.connection.until(generation.finished()).await.is_err() {
            return Err(self.aborted());
        }
        job.progress.clone_from(&generation.seen);
        if let (Some(kept), Some(connector)) = (&job.kept, &self.worker.connector) {
            job.kv_transfer = connector.keep(kept, job.prompt_tokens());
        }
        let died = job.progress.iter().any(|progress| progress.finish == Some(Finish::Error));
        match fault {
            Some(FaultKind::Die { how, .. }) => return Err(self.die(how)),
            Some(FaultKind::TruncatedChunk { .. }) => return Err(self.die(Ending::Fin)),
            Some(FaultKind::ErrorEvent { .. }) => return self.error(&ApiError::engine_dead()).await,
            Some(FaultKind::Stall { for_ms, .. }) => self.stall(for_ms).await?,
            _ if died => return self.error(&ApiError::engine_dead()).await,
            _ => {}
        }
        let body = match job.params.api {
            Api::Completions => completions::body(&job),
            Api::Chat => chat::body(&job),
            Api::Responses => responses::body(&job),
            Api::Messages => messages::body(&job),
        };
        let mut head = self.response_head(200, "application/json");
        head.first.extend(self.load_metrics());
        self.respond(head, body.as_bytes()).await
    }

    async fn stream(
        &mut self,
        mut job: Job,
        mut generation: Generation,
        fault: Option<FaultKind>,
    ) -> Result<(), Gone> {
        let mut writer: Box<dyn EventWriter> = match job.params.api {
            Api::Completions => Box::new(completions::Stream::default()),
            Api::Chat => Box::new(chat::Stream::default()),
            Api::Responses => Box::new(responses::Stream::default()),
            Api::Messages => Box::new(messages::Stream::default()),
        };
        let (mut deltas, mut events, mut fault) = (Vec::new(), Events::default(), StreamFault::new(fault));
        writer.start(&job, &mut events);
        loop {
            for event in events.iter() {
                match fault.next() {
                    Some(FaultKind::Die { how, .. }) => return Err(self.die(*how)),
                    Some(FaultKind::TruncatedChunk { .. }) => return self.truncate(event).await,
                    Some(FaultKind::ErrorEvent { .. }) => {
                        return self.end_with_error(&ApiError::engine_dead()).await;
                    }
                    Some(FaultKind::Stall { for_ms, .. }) => {
                        let for_ms = *for_ms;
                        self.stall(for_ms).await?;
                    }
                    _ => {}
                }
                if self.connection.write_chunk(event.as_bytes()).await.is_err() {
                    return Err(self.aborted());
                }
            }
            events.clear();
            if generation.is_finished() {
                return self.end_stream().await;
            }
            if self.next(&mut generation, &mut deltas).await.is_err() {
                return Err(self.aborted());
            }
            if deltas.iter().any(|delta| delta.finish == Some(Finish::Error)) {
                return self.end_with_error(&ApiError::engine_dead()).await;
            }
            for delta in &deltas {
                job.note(delta);
                writer.delta(&job, delta, &mut events);
            }
            if generation.is_finished() {
                writer.end(&job, &mut events);
            }
        }
    }

    /// Waits for tokens, with comments while there are none, if configured.
    async fn next(
        &mut self,
        generation: &mut Generation,
        deltas: &mut Vec<crate::engine::sequence::Delta>,
    ) -> Result<(), Gone> {
        let Some(interval) = self.worker.config.sse_keep_alive_interval else {
            return self.connection.until(generation.next(deltas)).await;
        };
        loop {
            let next = tokio::time::timeout(interval, generation.next(deltas));
            if self.connection.until(next).await?.is_ok() {
                return Ok(());
            }
            self.connection.write_chunk(b": keep-alive\n\n").await?;
        }
    }

    async fn end_with_error(&mut self, error: &ApiError) -> Result<(), Gone> {
        self.connection.write_chunk(error.stream_event().as_bytes()).await?;
        self.connection.write_chunk(b"data: [DONE]\n\n").await?;
        self.end_stream().await
    }

    /// Waits, unless the client leaves.
    async fn pause(&mut self, time: Duration) -> Result<(), Gone> {
        self.connection.until(tokio::time::sleep(time)).await.map_err(|Gone| self.aborted())
    }

    async fn stall(&mut self, for_ms: Option<u64>) -> Result<(), Gone> {
        if let Some(for_ms) = for_ms {
            return self.pause(Duration::from_millis(for_ms)).await;
        }
        self.connection.gone().await;
        Err(self.aborted())
    }

    async fn truncate(&mut self, event: &str) -> Result<(), Gone> {
        let mut chunk = Vec::new();
        frame_chunk(event.as_bytes(), &mut chunk);
        self.connection.write(&chunk[..chunk.len() / 2]).await?;
        Err(Gone)
    }

    fn die(&mut self, how: Ending) -> Gone {
        if how == Ending::Rst {
            self.connection.reset_on_close();
        }
        Gone
    }

    fn aborted(&self) -> Gone {
        self.worker.stats.aborts.add();
        Gone
    }

    /// ORCA-style load report, on request.
    fn load_metrics(&self) -> Option<(&'static str, String)> {
        let format = self.head.load_metrics_format.as_deref()?;
        let metrics = self.worker.engine.metrics().lock();
        let (waiting, usage) = (metrics.waiting as f64, metrics.kv_usage);
        let value = if format.eq_ignore_ascii_case("json") {
            format!(
                "JSON {{\"named_metrics\": {{\"num_requests_waiting\": {waiting:?}, \"kv_cache_usage_perc\": \
                 {usage:?}}}}}"
            )
        } else if format.eq_ignore_ascii_case("text") {
            format!(
                "TEXT named_metrics.num_requests_waiting={waiting:?}, named_metrics.kv_cache_usage_perc={usage:?}"
            )
        } else {
            return None;
        };
        Some(("endpoint-load-metrics", value))
    }
}

/// A fault that strikes a stream at one of its events.
struct StreamFault {
    kind: Option<FaultKind>,
    events: u64,
}

impl StreamFault {
    fn new(kind: Option<FaultKind>) -> Self {
        Self { kind, events: 0 }
    }

    /// Counts an event about to be sent; the fault, if this is its moment.
    fn next(&mut self) -> Option<&FaultKind> {
        let position = self.events;
        self.events += 1;
        match self.kind.as_ref()? {
            FaultKind::Die { after_events, .. }
            | FaultKind::ErrorEvent { after_events }
            | FaultKind::Stall { after_events, .. }
            | FaultKind::TruncatedChunk { after_events }
                if *after_events == position =>
            {
                self.kind.as_ref()
            }
            _ => None,
        }
    }
}
