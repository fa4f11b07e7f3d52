//! The bodies of `/v1/chat/completions`.

use std::fmt::Write as _;

use super::completions::push_finish;
use super::events::{EventWriter, Events};
use super::job::{Job, push_json};
use crate::engine::sequence::Delta;

/// A whole response.
pub(crate) fn body(job: &Job) -> String {
    let mut out = String::with_capacity(1024);
    push_open(job, "chat.completion", &mut out);
    for choice in 0..job.progress.len() {
        let delta = job.whole(choice);
        let comma = if choice == 0 { "" } else { "," };
        let _ =
            write!(out, "{comma}{{\"index\":{choice},\"message\":{{\"role\":\"assistant\",\"content\":\""); // cannot fail
        job.push_text(&delta, &mut out);
        out.push_str(
            "\",\"refusal\":null,\"annotations\":null,\"audio\":null,\"function_call\":null,\"reasoning\":null},\
             \"logprobs\":",
        );
        push_logprobs(job, &delta, &mut out);
        out.push_str(",\"finish_reason\":");
        push_finish(&delta, &mut out);
        out.push_str(",\"stop_reason\":null,\"token_ids\":");
        job.push_token_ids(&delta, &mut out);
        out.push_str(",\"routed_experts\":null}");
    }
    let _ = write!(out, "],\"service_tier\":null,\"system_fingerprint\":\"{}\",", job.fingerprint); // cannot fail
    job.push_usage(&job.usage_details(), &mut out);
    out.push_str(",\"prompt_logprobs\":null,\"prompt_token_ids\":");
    job.push_prompt_ids(0, &mut out);
    out.push_str(",\"prompt_text\":null,");
    job.push_kv_transfer(&mut out);
    out.push_str(",\"ec_transfer_params\":null,\"metrics\":null}");
    out
}

/// The stream's events. The role comes in an event of its own, together with (not before) the first token.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    begun: bool,
}

impl EventWriter for Stream {
    fn delta(&mut self, job: &Job, delta: &Delta, events: &mut Events) {
        if !std::mem::replace(&mut self.begun, true) {
            for choice in 0..job.progress.len() {
                Self::role(job, choice, events);
            }
        }
        events.data(|out| {
            push_open(job, "chat.completion.chunk", out);
            let _ = write!(out, "{{\"index\":{},\"delta\":{{\"content\":\"", delta.choice); // cannot fail
            job.push_text(delta, out);
            out.push_str("\"},\"logprobs\":");
            push_logprobs(job, delta, out);
            out.push_str(",\"finish_reason\":");
            push_finish(delta, out);
            if delta.finish.is_some() {
                out.push_str(",\"stop_reason\":null");
            }
            out.push_str(",\"token_ids\":");
            job.push_token_ids(delta, out);
            out.push_str("}]");
            if job.params.continuous_usage {
                out.push(',');
                job.push_usage("", out);
            }
            if !job.params.include_usage && job.progress.iter().all(|own| own.finish.is_some()) {
                let _ = write!(out, ",\"system_fingerprint\":\"{}\"", job.fingerprint); // cannot fail
            }
            out.push('}');
        });
    }

    fn end(&mut self, job: &Job, events: &mut Events) {
        if job.params.include_usage {
            events.data(|out| {
                push_open(job, "chat.completion.chunk", out);
                out.push_str("],");
                job.push_usage(&job.stream_usage_details(), out);
                let _ = write!(out, ",\"system_fingerprint\":\"{}\"}}", job.fingerprint); // cannot fail
            });
        }
        events.data(|out| out.push_str("[DONE]"));
    }
}

impl Stream {
    fn role(job: &Job, choice: usize, events: &mut Events) {
        events.data(|out| {
            push_open(job, "chat.completion.chunk", out);
            let _ = write!(
                out,
                "{{\"index\":{choice},\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\
                 \"finish_reason\":null}}]"
            ); // cannot fail
            if job.params.continuous_usage {
                let prompt = job.prompt_tokens();
                let _ = write!(
                    out,
                    ",\"usage\":{{\"prompt_tokens\":{prompt},\"total_tokens\":{prompt},\"completion_tokens\":0}}"
                ); // cannot fail
            }
            out.push_str(",\"prompt_token_ids\":");
            job.push_prompt_ids(choice, out);
            out.push_str(",\"prompt_text\":null}");
        });
    }
}

/// `{"id":…` up to the opening bracket of the choices.
fn push_open(job: &Job, object: &str, out: &mut String) {
    let _ = write!(
        out,
        "{{\"id\":\"{}\",\"object\":\"{object}\",\"created\":{},\"model\":",
        job.id, job.created_s
    ); // writing to a String cannot fail
    push_json(&job.params.model, out);
    out.push_str(",\"choices\":[");
}

fn push_logprobs(job: &Job, delta: &Delta, out: &mut String) {
    let Some(alternatives) = job.params.logprobs else {
        out.push_str("null");
        return;
    };
    let entry = |index: usize, rank: usize, rest: &str| {
        let word = job.alternative(delta.choice, index, rank);
        let bytes: Vec<_> = word.bytes().map(|byte| byte.to_string()).collect();
        let logprob = job.logprob(delta.choice, index, rank);
        format!("{{\"token\":\"{word}\",\"logprob\":{logprob},\"bytes\":[{}]{rest}}}", bytes.join(","))
    };
    let tokens: Vec<_> = delta
        .range
        .clone()
        .map(|index| {
            let top: Vec<_> = (0..alternatives).map(|rank| entry(index, rank, "")).collect();
            entry(index, 0, &format!(",\"top_logprobs\":[{}]", top.join(",")))
        })
        .collect();
    let _ = write!(out, "{{\"content\":[{}]}}", tokens.join(",")); // cannot fail
}
