//! Everything that does not generate: models, health, metrics, tokens, administration.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;

use serde_json::json;

use super::error::ApiError;
use super::exchange::Exchange;
use super::fields::Fields;
use super::job::push_json;
use super::params::find_model;
use super::routes::Endpoint;
use crate::faults::Fault;
use crate::http::connection::Gone;
use crate::http::response::ResponseHead;

const METRICS_TYPE: &str = "text/plain; version=1.0.0; charset=utf-8";

impl Exchange<'_> {
    pub(super) async fn inform(&mut self, endpoint: Endpoint, body: &[u8]) -> Result<(), Gone> {
        let worker = self.worker;
        let text = match endpoint {
            Endpoint::Health => {
                let status = if worker.engine_dead.load(Ordering::Acquire) { 503 } else { 200 };
                let head = ResponseHead { content_type: None, ..self.response_head(status, "") };
                return self.respond(head, b"").await;
            }
            Endpoint::Metrics => {
                let engine = worker.engine.metrics().lock().clone();
                let http = worker.http_metrics.lock().clone();
                let text = worker.renderer.render(&engine, &http);
                return self.body(200, METRICS_TYPE, text.as_bytes()).await;
            }
            Endpoint::Version => "{\"version\":\"0.32.0\"}".to_owned(),
            Endpoint::Load => {
                let tracked = worker.config.enable_server_load_tracking;
                let load = if tracked { worker.stats.generating.now() } else { 0 };
                format!("{{\"server_load\":{load}}}")
            }
            Endpoint::IsSleeping => "{\"is_sleeping\":false}".to_owned(),
            Endpoint::ResetPrefixCache => {
                format!("{{\"success\":{}}}", worker.engine.reset_prefix_cache().await)
            }
            Endpoint::KvEventSources => self.kv_event_sources(),
            Endpoint::Models => self.models(),
            Endpoint::SimStats => serde_json::to_string(&worker.snapshot()).expect("numbers serialise"),
            Endpoint::SimReset => {
                worker.set_faults(Vec::new());
                let cleared = worker.engine.reset_prefix_cache().await;
                worker.stats.reset();
                json!({ "prefix_cache_cleared": cleared }).to_string()
            }
            Endpoint::RenderCompletion | Endpoint::RenderChat if !worker.config.enable_scale_out => {
                return self.body(403, "application/json", b"{\"detail\":\"Forbidden\"}").await;
            }
            Endpoint::SimFault => return self.fault(body).await,
            Endpoint::CountTokens => match self.count_tokens(body) {
                Ok(text) => text,
                Err(error) => return self.anthropic_error(&error).await,
            },
            _ => {
                let text = match endpoint {
                    Endpoint::RenderCompletion | Endpoint::RenderChat => self.render(endpoint, body),
                    Endpoint::Detokenize => self.detokenize(body),
                    _ => self.tokenize(body),
                };
                match text {
                    Ok(text) => text,
                    Err(error) => return self.error(&error).await,
                }
            }
        };
        self.json(&text).await
    }

    fn detokenize(&self, body: &[u8]) -> Result<String, ApiError> {
        let worker = self.worker;
        let fields = Fields::parse(self.head.content_type.as_deref(), body)?;
        find_model(&fields, &worker.config)?;
        let tokens = fields.raw("tokens").ok_or_else(|| fields.missing("tokens"))?;
        let tokens: Vec<u32> = serde_json::from_str(tokens.get()).map_err(|_| {
            let input = super::fields::python(tokens);
            ApiError::wrong_type("list_type", "body.tokens", "Input should be a valid list", &input)
        })?;
        let mut text = "{\"prompt\":".to_owned();
        push_json(&worker.vocabulary.text(&tokens), &mut text);
        text.push('}');
        Ok(text)
    }

    fn tokenize(&self, body: &[u8]) -> Result<String, ApiError> {
        let worker = self.worker;
        let fields = Fields::parse(self.head.content_type.as_deref(), body)?;
        find_model(&fields, &worker.config)?;
        let reader = worker.prompt_reader();
        let ids = if fields.raw("messages").is_some() {
            reader.chat(&fields)?
        } else {
            let prompt: String = fields.get("prompt")?.ok_or_else(|| fields.missing("prompt"))?;
            worker.vocabulary.learn(&prompt);
            reader.text(&prompt)?
        };
        let strings = fields.get("return_token_strs")?.unwrap_or(false);
        let strings =
            strings.then(|| ids.iter().map(|id| worker.vocabulary.text(&[*id])).collect::<Vec<_>>());
        let strings = serde_json::to_string(&strings).expect("strings serialise");
        let tokens = serde_json::to_string(&ids).expect("numbers serialise");
        Ok(format!(
            "{{\"count\":{},\"max_model_len\":{},\"tokens\":{tokens},\"token_strs\":{strings}}}",
            ids.len(),
            reader.max_model_len
        ))
    }

    fn count_tokens(&self, body: &[u8]) -> Result<String, ApiError> {
        let fields = Fields::parse(self.head.content_type.as_deref(), body)?;
        find_model(&fields, &self.worker.config)?;
        let tokens = super::messages::prompt(self.worker.prompt_reader(), &fields)?.len();
        Ok(format!(
            "{{\"input_tokens\":{tokens},\"context_management\":{{\"original_input_tokens\":{tokens}}}}}"
        ))
    }

    fn models(&self) -> String {
        let worker = self.worker;
        let base = worker.config.model.as_str();
        let loras =
            worker.config.loras.iter().map(|lora| (lora.name.as_str(), lora.path.as_str(), Some(base)));
        let mut text = "{\"object\":\"list\",\"data\":[".to_owned();
        for (index, (name, root, parent)) in std::iter::once((base, base, None)).chain(loras).enumerate() {
            let quoted = |text: Option<&str>| serde_json::to_string(&text).expect("a string serialises");
            let max_model_len = parent.is_none().then_some(worker.config.engine.max_model_len);
            let _ = write!(
                text,
                "{}{{\"id\":{},\"object\":\"model\",\"created\":{created},\"owned_by\":\"vllm\",\"root\":{},\
                 \"parent\":{},\"max_model_len\":{},\"permission\":[{{\"id\":\"modelperm-{:016x}\",\"object\":\
                 \"model_permission\",\"created\":{created},\"allow_create_engine\":false,\"allow_sampling\":true,\
                 \"allow_logprobs\":true,\"allow_search_indices\":false,\"allow_view\":true,\"allow_fine_tuning\":\
                 false,\"organization\":\"*\",\"group\":null,\"is_blocking\":false}}]}}",
                if index == 0 { "" } else { "," },
                quoted(Some(name)),
                quoted(Some(root)),
                quoted(parent),
                max_model_len.map_or("null".to_owned(), |len| len.to_string()),
                worker.rng.next_u64(),
                created = worker.created_s,
            ); // writing to a String cannot fail
        }
        text.push_str("]}");
        text
    }

    fn kv_event_sources(&self) -> String {
        let Some(events) = &self.worker.config.kv_events else { return "{}".to_owned() };
        let quoted = |text: Option<&str>| serde_json::to_string(&text).expect("a string serialises");
        format!(
            "{{\"0\":{{\"endpoint\":{},\"replay_endpoint\":{},\"buffer_steps\":{},\"topic\":{}}}}}",
            quoted(Some(&events.endpoint)),
            quoted(events.replay_endpoint.as_deref()),
            events.buffer_steps,
            quoted(Some(&events.topic)),
        )
    }

    /// `POST /sim/fault` takes one fault or a list of them, in place of what was armed; `DELETE` clears.
    async fn fault(&mut self, body: &[u8]) -> Result<(), Gone> {
        match self.head.method.as_str() {
            "DELETE" => self.worker.set_faults(Vec::new()),
            "POST" => {
                let one = serde_json::from_slice::<Fault>(body).map(|fault| vec![fault]);
                match one.or_else(|error| serde_json::from_slice::<Vec<Fault>>(body).map_err(|_| error)) {
                    Ok(faults) => self.worker.set_faults(faults),
                    Err(error) => {
                        let error = ApiError::bad_request(format!("not a fault: {error}"), None);
                        return self.error(&error).await;
                    }
                }
            }
            _ => {}
        }
        let text = serde_json::to_string(&self.worker.faults.list()).expect("faults serialise");
        self.json(&text).await
    }
}
