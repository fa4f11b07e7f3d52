//! The bodies of `/v1/completions`.

use std::fmt::Write as _;

use super::events::{EventWriter, Events};
use super::job::{Job, push_json};
use crate::engine::sequence::Delta;

/// A whole response.
pub(crate) fn body(job: &Job) -> String {
    let mut out = String::with_capacity(1024);
    push_open(job, &mut out);
    for choice in 0..job.progress.len() {
        let delta = job.whole(choice);
        let comma = if choice == 0 { "" } else { "," };
        let _ = write!(out, "{comma}{{\"index\":{choice},\"text\":\""); // writing to a String cannot fail
        job.push_text(&delta, &mut out);
        out.push_str("\",\"logprobs\":");
        push_logprobs(job, &delta, &mut out);
        out.push_str(",\"finish_reason\":");
        push_finish(&delta, &mut out);
        out.push_str(",\"stop_reason\":null,\"token_ids\":");
        job.push_token_ids(&delta, &mut out);
        out.push_str(",\"prompt_logprobs\":null,\"prompt_token_ids\":");
        job.push_prompt_ids(choice, &mut out);
        out.push_str(",\"routed_experts\":null}");
    }
    let _ = write!(out, "],\"service_tier\":null,\"system_fingerprint\":\"{}\",", job.fingerprint);
    job.push_usage(&job.usage_details(), &mut out);
    out.push(',');
    job.push_kv_transfer(&mut out);
    out.push_str(",\"ec_transfer_params\":null,\"metrics\":null}");
    out
}

/// The stream's events: one per choice and set of new tokens, then the usage, if asked for.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    /// Choices whose first event, which carries the prompt's ids, is out.
    begun: Vec<usize>,
}

impl EventWriter for Stream {
    fn delta(&mut self, job: &Job, delta: &Delta, events: &mut Events) {
        let first = !self.begun.contains(&delta.choice);
        if first {
            self.begun.push(delta.choice);
        }
        events.data(|out| {
            push_open(job, out);
            let _ = write!(out, "{{\"index\":{},\"text\":\"", delta.choice); // writing to a String cannot fail
            job.push_text(delta, out);
            out.push_str("\",\"logprobs\":");
            push_logprobs(job, delta, out);
            out.push_str(",\"finish_reason\":");
            push_finish(delta, out);
            out.push_str(",\"stop_reason\":null,\"prompt_token_ids\":");
            if first {
                job.push_prompt_ids(delta.choice, out);
            } else {
                out.push_str("null");
            }
            out.push_str(",\"token_ids\":");
            job.push_token_ids(delta, out);
            out.push_str("}]");
            if job.params.continuous_usage {
                out.push(',');
                job.push_usage("", out);
            }
            // The last event of all names the system; with a usage event to come, that one does.
            let last = !job.params.include_usage && job.progress.iter().all(|own| own.finish.is_some());
            if last {
                let _ = write!(out, ",\"system_fingerprint\":\"{}\"", job.fingerprint);
            }
            out.push('}');
        });
    }

    fn end(&mut self, job: &Job, events: &mut Events) {
        if job.params.include_usage {
            events.data(|out| {
                push_open(job, out);
                out.push_str("],");
                job.push_usage(&job.stream_usage_details(), out);
                let _ = write!(out, ",\"system_fingerprint\":\"{}\"}}", job.fingerprint); // as above
            });
        }
        events.data(|out| out.push_str("[DONE]"));
    }
}

/// `{"id":…` up to the opening bracket of the choices.
fn push_open(job: &Job, out: &mut String) {
    let _ = write!(
        out,
        "{{\"id\":\"{}\",\"object\":\"text_completion\",\"created\":{},\"model\":",
        job.id, job.created_s
    ); // writing to a String cannot fail
    push_json(&job.params.model, out);
    out.push_str(",\"choices\":[");
}

pub(super) fn push_finish(delta: &Delta, out: &mut String) {
    match delta.finish {
        Some(finish) => {
            let _ = write!(out, "\"{}\"", finish.reason()); // writing to a String cannot fail
        }
        None => out.push_str("null"),
    }
}

fn push_logprobs(job: &Job, delta: &Delta, out: &mut String) {
    let Some(alternatives) = job.params.logprobs else {
        out.push_str("null");
        return;
    };
    let (choice, range) = (delta.choice, delta.range.clone());
    let list = |item: &dyn Fn(usize) -> String| range.clone().map(item).collect::<Vec<_>>().join(",");
    let _ = write!(
        out,
        "{{\"text_offset\":[{}],\"token_logprobs\":[{}],\"tokens\":[{}],\"top_logprobs\":[{}]}}",
        list(&|index| (index * crate::tokenizer::TOKEN_BYTES).to_string()),
        list(&|index| job.logprob(choice, index, 0).to_string()),
        list(&|index| format!("\"{}\"", job.alternative(choice, index, 0))),
        list(&|index| {
            let top = (0..alternatives.max(1)).map(|rank| {
                format!("\"{}\":{}", job.alternative(choice, index, rank), job.logprob(choice, index, rank))
            });
            format!("{{{}}}", top.collect::<Vec<_>>().join(","))
        }),
    ); // writing to a String cannot fail
}
