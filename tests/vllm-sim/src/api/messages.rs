//! `/v1/messages`: Anthropic's API on top of chat.
//!
//! A whole response is as recorded; the stream's events and the error shape follow vLLM's code (no recording exists).

use std::fmt::Write as _;

use super::error::ApiError;
use super::events::{EventWriter, Events};
use super::fields::Fields;
use super::job::{Job, push_json};
use super::prompt::PromptReader;
use crate::engine::sequence::{Delta, Finish};

/// `system`, `tools` and `messages` through the chat template.
pub(crate) fn prompt(reader: PromptReader, fields: &Fields<'_>) -> Result<Vec<u32>, ApiError> {
    let mut ids = Vec::new();
    if let Some(system) = fields.raw("system") {
        reader.tokenizer.open_message("system", &mut ids);
        reader.content(system, &mut ids)?;
        reader.tokenizer.close_message(&mut ids);
    }
    ids.extend(reader.chat(fields)?);
    if ids.len() > reader.max_model_len {
        return Err(ApiError::too_long(reader.max_model_len, reader.max_model_len + 1, true));
    }
    Ok(ids)
}

/// A whole response.
pub(crate) fn body(job: &Job) -> String {
    let mut out = String::with_capacity(1024);
    let _ =
        write!(out, "{{\"id\":\"{}\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[{{", job.id); // cannot fail
    out.push_str("\"type\":\"text\",\"text\":\"");
    job.push_text(&job.whole(0), &mut out);
    out.push_str("\"}],\"model\":");
    push_json(&job.params.model, &mut out);
    let _ = write!(out, ",\"stop_reason\":\"{}\",\"usage\":{}}}", stop_reason(job), usage(job)); // cannot fail
    out
}

/// The stream's events.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    begun: bool,
}

impl EventWriter for Stream {
    fn delta(&mut self, job: &Job, delta: &Delta, events: &mut Events) {
        if !std::mem::replace(&mut self.begun, true) {
            events.named("message_start", |out| {
                let _ = write!(out, "{{\"type\":\"message_start\",\"message\":{{\"id\":\"{}\",", job.id); // cannot fail
                out.push_str("\"content\":[],\"model\":");
                push_json(&job.params.model, out);
                let _ = write!(
                    out,
                    ",\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{{\"input_tokens\":{},\"output_tokens\":\
                     0}}}}}}",
                    job.prompt_tokens()
                ); // cannot fail
            });
            events.named("content_block_start", |out| {
                out.push_str(
                    "{\"type\":\"content_block_start\",\"content_block\":{\"type\":\"text\",\"text\":\"\"},\"index\":0}",
                );
            });
        }
        let mut text = String::new();
        job.push_text(delta, &mut text);
        if !text.is_empty() {
            events.named("content_block_delta", |out| {
                let _ = write!(
                    out,
                    "{{\"type\":\"content_block_delta\",\"delta\":{{\"type\":\"text_delta\",\"text\":\"{text}\"}},\
                     \"index\":0}}"
                ); // cannot fail
            });
        }
    }

    fn end(&mut self, job: &Job, events: &mut Events) {
        events
            .named("content_block_stop", |out| out.push_str("{\"type\":\"content_block_stop\",\"index\":0}"));
        events.named("message_delta", |out| {
            let _ = write!(
                out,
                "{{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":\"{}\"}},\"usage\":{}}}",
                stop_reason(job),
                usage(job)
            ); // cannot fail
        });
        events.named("message_stop", |out| out.push_str("{\"type\":\"message_stop\"}"));
    }
}

fn stop_reason(job: &Job) -> &'static str {
    match job.progress[0].finish {
        Some(Finish::Length) => "max_tokens",
        _ => "end_turn",
    }
}

/// Anthropic counts cached tokens apart from the input's.
fn usage(job: &Job) -> String {
    let cached = job.cached_tokens();
    let details = if job.prompt_details {
        format!(",\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":{cached}")
    } else {
        String::new()
    };
    let input = if job.prompt_details { job.prompt_tokens() - cached } else { job.prompt_tokens() };
    format!("{{\"input_tokens\":{input},\"output_tokens\":{}{details}}}", job.output_tokens())
}
