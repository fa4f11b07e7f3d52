//! `/v1/…/render`: the exact token ids that a request comes to, without generating (`--enable-scale-out`).

use super::error::ApiError;
use super::exchange::Exchange;
use super::fields::Fields;
use super::job::push_json;
use super::params::{Api, Params};
use super::routes::Endpoint;

impl Exchange<'_> {
    pub(super) fn render(&self, endpoint: Endpoint, body: &[u8]) -> Result<String, ApiError> {
        let worker = self.worker;
        let fields = Fields::parse(self.head.content_type.as_deref(), body)?;
        let reader = worker.prompt_reader();
        let chat = endpoint == Endpoint::RenderChat;
        let api = if chat { Api::Chat } else { Api::Completions };
        let params = Params::read(api, &fields, self.head, &worker.config)?;
        let prompts =
            if chat { vec![reader.chat(&fields)?] } else { reader.completion(fields.raw("prompt"))? };
        let rendered: Vec<_> = prompts.iter().map(|ids| self.rendered(&params, ids)).collect();
        Ok(if chat { rendered.concat() } else { format!("[{}]", rendered.join(",")) })
    }

    fn rendered(&self, params: &Params, ids: &[u32]) -> String {
        let worker = self.worker;
        let prefix = if params.api == Api::Chat { "chatcmpl-" } else { "cmpl-" };
        let room = worker.config.engine.max_model_len.saturating_sub(ids.len());
        let max_tokens = params.max_tokens.unwrap_or(room).min(room);
        let ids = serde_json::to_string(ids).expect("numbers serialise");
        let mut model = String::new();
        push_json(&params.model, &mut model);
        let salt = serde_json::to_string(&params.cache_salt).expect("a string serialises");
        format!(
            "{{\"request_id\":\"{prefix}{:016x}\",\"token_ids\":{ids},\"token_offsets\":null,\"features\":null,\
             \"content_parts\":null,\"sampling_params\":{{\"presence_penalty\":0.0,\"frequency_penalty\":0.0,\
             \"repetition_penalty\":1.0,\"temperature\":1.0,\"top_p\":1.0,\"min_p\":0.0,\"stop\":[],\
             \"stop_token_ids\":[],\"max_tokens\":{max_tokens},\"output_kind\":2,\"skip_clone\":true,\
             \"bad_words\":[],\"skip_reading_prefix_cache\":false}},\"model\":{model},\"reasoning_ended\":null,\
             \"reasoning_parser_kwargs\":null,\"return_token_ids\":null,\"output_mode\":\"tokens\",\"stream\":false,\
             \"stream_options\":null,\"cache_salt\":{salt},\"priority\":0,\"kv_transfer_params\":null,\
             \"ec_transfer_params\":null}}",
            worker.rng.next_u64()
        )
    }
}
