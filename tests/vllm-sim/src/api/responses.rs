//! `/v1/responses`: its input, its bodies, its stream of named events.

use std::fmt::Write as _;

use serde_json::value::RawValue;

use super::error::ApiError;
use super::events::{EventWriter, Events};
use super::fields::Fields;
use super::job::{Job, push_json};
use super::prompt::PromptReader;
use crate::engine::sequence::{Delta, Finish};

/// What responses repeat of their request.
#[derive(Clone, Debug)]
pub(crate) struct Echo {
    temperature: f64,
    top_p: f64,
    tools: String,
    tool_choice: String,
    instructions: String,
    metadata: String,
    message_id: String,
}

impl Echo {
    pub(crate) fn read(fields: &Fields<'_>, message_id: String) -> Result<Self, ApiError> {
        let raw = |name: &str, default: &str| fields.raw(name).map_or(default, RawValue::get).to_owned();
        let tools = raw("tools", "[]");
        let tool_choice = raw("tool_choice", if tools == "[]" { "\"none\"" } else { "\"auto\"" });
        Ok(Self {
            temperature: fields.get("temperature")?.unwrap_or(1.0),
            top_p: fields.get("top_p")?.unwrap_or(1.0),
            tools,
            tool_choice,
            instructions: raw("instructions", "null"),
            metadata: raw("metadata", "null"),
            message_id,
        })
    }
}

/// `instructions`, `tools` and `input` through the chat template.
pub(crate) fn prompt(reader: PromptReader, fields: &Fields<'_>) -> Result<Vec<u32>, ApiError> {
    let input = fields.raw("input").ok_or_else(|| fields.missing("input"))?;
    let mut ids = Vec::new();
    if let Some(tools) = fields.raw("tools").filter(|tools| tools.get() != "[]") {
        reader.message("system", tools.get(), &mut ids)?;
    }
    if let Some(instructions) = fields.get::<String>("instructions")? {
        reader.message("system", &instructions, &mut ids)?;
    }
    if input.get().starts_with('"') {
        reader.message("user", &fields.get::<String>("input")?.unwrap_or_default(), &mut ids)?;
    } else {
        for item in fields.get::<Vec<&RawValue>>("input")?.unwrap_or_default() {
            let item: Fields<'_> = serde_json::from_str(item.get()).map_err(|_| {
                let input = super::fields::python(item);
                ApiError::wrong_type("dict_type", "body.input", "Input should be a valid dictionary", &input)
            })?;
            let role = item.get::<String>("role")?.unwrap_or_else(|| "user".to_owned());
            reader.tokenizer.open_message(&role, &mut ids);
            match ["content", "output", "arguments"].iter().find_map(|key| item.raw(key)) {
                Some(content) => reader.content(content, &mut ids)?,
                None => continue,
            }
            reader.tokenizer.close_message(&mut ids);
        }
    }
    reader.tokenizer.open_message("assistant", &mut ids);
    Ok(ids)
}

/// A whole response.
pub(crate) fn body(job: &Job) -> String {
    let mut text = String::new();
    job.push_text(&job.whole(0), &mut text);
    let mut out = String::with_capacity(2048);
    push_response(job, Some(&text), &mut out);
    out
}

/// The stream's events, numbered. There is no `[DONE]`.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    sequence_number: usize,
    begun: bool,
    text: String,
}

impl Stream {
    /// An event: its own members, then its number and type.
    fn event(&mut self, kind: &str, events: &mut Events, write: impl FnOnce(&mut String)) {
        let number = self.sequence_number;
        self.sequence_number += 1;
        events.named(kind, |out| {
            out.push('{');
            write(out);
            let _ = write!(out, ",\"type\":\"{kind}\"}}"); // writing to a String cannot fail
            debug_assert!(out.contains(&format!("\"sequence_number\":{number}")), "events are numbered");
        });
    }

    fn begin(&mut self, job: &Job, events: &mut Events) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let id = &job.echo().message_id;
        let number = self.sequence_number;
        self.event("response.output_item.added", events, |out| {
            let _ = write!(
                out,
                "\"item\":{{\"id\":\"{id}\",\"content\":[],\"role\":\"assistant\",\"status\":\"in_progress\",\"type\":\
                 \"message\",\"phase\":null}},\"output_index\":0,\"sequence_number\":{number}"
            ); // as above
        });
        self.event("response.content_part.added", events, |out| {
            let _ = write!(
                out,
                "\"content_index\":0,\"item_id\":\"{id}\",\"output_index\":0,\"part\":{{\"annotations\":[],\"text\":\
                 \"\",\"type\":\"output_text\",\"logprobs\":[]}},\"sequence_number\":{}",
                number + 1
            ); // as above
        });
    }
}

impl EventWriter for Stream {
    fn start(&mut self, job: &Job, events: &mut Events) {
        for kind in ["response.created", "response.in_progress"] {
            let number = self.sequence_number;
            self.event(kind, events, |out| {
                out.push_str("\"response\":");
                push_response(job, None, out);
                let _ = write!(out, ",\"sequence_number\":{number}"); // as above
            });
        }
    }

    fn delta(&mut self, job: &Job, delta: &Delta, events: &mut Events) {
        self.begin(job, events);
        let (id, number) = (&job.echo().message_id, self.sequence_number);
        let mut text = String::new();
        job.push_text(delta, &mut text);
        self.text.push_str(&text);
        self.event("response.output_text.delta", events, |out| {
            let _ = write!(
                out,
                "\"content_index\":0,\"delta\":\"{text}\",\"item_id\":\"{id}\",\"logprobs\":[],\"output_index\":0,\
                 \"sequence_number\":{number}"
            ); // as above
        });
    }

    fn end(&mut self, job: &Job, events: &mut Events) {
        self.begin(job, events);
        let (id, number, text) =
            (&job.echo().message_id, self.sequence_number, std::mem::take(&mut self.text));
        self.event("response.output_text.done", events, |out| {
            let _ = write!(
                out,
                "\"content_index\":0,\"item_id\":\"{id}\",\"logprobs\":[],\"output_index\":0,\"sequence_number\":\
                 {number},\"text\":\"{text}\""
            ); // as above
        });
        self.event("response.content_part.done", events, |out| {
            let _ = write!(
                out,
                "\"content_index\":0,\"item_id\":\"{id}\",\"output_index\":0,\"part\":{},\"sequence_number\":{}",
                part(&text),
                number + 1
            ); // as above
        });
        self.event("response.output_item.done", events, |out| {
            let _ = write!(
                out,
                "\"item\":{},\"output_index\":0,\"sequence_number\":{}",
                message(id, &text),
                number + 2
            ); // as above
        });
        self.event("response.completed", events, |out| {
            out.push_str("\"response\":");
            push_response(job, Some(&text), out);
            let _ = write!(out, ",\"sequence_number\":{}", number + 3); // as above
        });
    }
}

fn part(text: &str) -> String {
    format!("{{\"annotations\":[],\"text\":\"{text}\",\"type\":\"output_text\",\"logprobs\":null}}")
}

fn message(id: &str, text: &str) -> String {
    format!(
        "{{\"id\":\"{id}\",\"content\":[{}],\"role\":\"assistant\",\"status\":\"completed\",\"type\":\"message\",\
         \"phase\":null}}",
        part(text)
    )
}

/// The response object: in progress without a text, ended with one.
fn push_response(job: &Job, text: Option<&str>, out: &mut String) {
    let echo = job.echo();
    let cut = text.is_some() && job.progress[0].finish == Some(Finish::Length);
    let status = match (text, cut) {
        (None, _) => "in_progress",
        (Some(_), true) => "incomplete",
        (Some(_), false) => "completed",
    };
    let incomplete = if cut { "{\"reason\":\"max_output_tokens\"}" } else { "null" };
    let _ = write!(
        out,
        "{{\"id\":\"{}\",\"created_at\":{},\"incomplete_details\":{incomplete},\"instructions\":{},\"metadata\":{},\
         \"model\":",
        job.id, job.created_s, echo.instructions, echo.metadata
    ); // as above
    push_json(&job.params.model, out);
    let output = text.map_or(String::new(), |text| message(&echo.message_id, text));
    let usage = match text {
        None => "null".to_owned(),
        Some(_) => format!(
            "{{\"input_tokens\":{},\"input_tokens_details\":{{\"cached_tokens\":{},\"cache_write_tokens\":0,\
             \"input_tokens_per_turn\":[],\"cached_tokens_per_turn\":[]}},\"output_tokens\":{},\
             \"output_tokens_details\":{{\"reasoning_tokens\":0,\"tool_output_tokens\":0,\"output_tokens_per_turn\":\
             [],\"tool_output_tokens_per_turn\":[]}},\"total_tokens\":{}}}",
            job.prompt_tokens(),
            job.cached_tokens(),
            job.output_tokens(),
            job.prompt_tokens() + job.output_tokens(),
        ),
    };
    let _ = write!(
        out,
        ",\"object\":\"response\",\"output\":[{output}],\"parallel_tool_calls\":true,\"temperature\":{:?},\
         \"tool_choice\":{},\"tools\":{},\"top_p\":{:?},\"background\":false,\"max_output_tokens\":{},\
         \"max_tool_calls\":null,\"previous_response_id\":null,\"prompt\":null,\"reasoning\":null,\"service_tier\":\
         \"auto\",\"status\":\"{status}\",\"text\":null,\"top_logprobs\":null,\"truncation\":\"disabled\",\"usage\":\
         {usage},\"user\":null,\"presence_penalty\":0.0,\"frequency_penalty\":0.0,\"kv_transfer_params\":null,\
         \"ec_transfer_params\":null,\"input_messages\":null,\"output_messages\":null}}",
        echo.temperature, echo.tool_choice, echo.tools, echo.top_p, job.max_tokens,
    ); // as above
}
