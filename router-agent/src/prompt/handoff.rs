//! The bodies of the two stages of a request that is prefilled on one worker and decoded on another, as vLLM's proxy for
//! its NIXL connector makes them (`tests/v1/kv_connector/nixl_integration/toy_proxy_server.py`).
//!
//! The prefill stage asks for one token, whole, and for the KV blocks to be kept (`do_remote_decode`); its answer says
//! in `kv_transfer_params` where they are. The decode stage is the client's own request with that object in it, byte for
//! byte as the worker wrote it: its fields differ from version to version. Keys and values that are not changed are
//! copied as they stand.

use std::ops::Range;

use super::{
    edit::{members, raw_member},
    scan::Text,
};

/// The member by which a request and an answer speak of KV blocks elsewhere.
const PARAMS: &str = "kv_transfer_params";
/// What the prefill worker is asked for.
const KEEP: &str = "{\"do_remote_decode\":true,\"do_remote_prefill\":false,\"remote_engine_id\":null,\
    \"remote_block_ids\":null,\"remote_host\":null,\"remote_port\":null}";
/// Members that are about an answer of more than one token, or about a stream.
const OF_THE_ANSWER: [&str; 3] = ["stream_options", "min_tokens", "min_completion_tokens"];
/// Bounds of the answer. A chat has the second where the client wrote it: vLLM looks at it first.
const BOUNDS: [&str; 2] = ["max_tokens", "max_completion_tokens"];

/// Why a request is for one worker, whatever its prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Whole {
    /// It is no JSON object; a worker says so.
    #[error("its body is no JSON object")]
    NotAnObject,
    /// Somebody in front of this gateway hands over itself.
    #[error("it has kv_transfer_params already")]
    HandedOver,
    /// The prefill stage's answer is all that is wanted.
    #[error("it asks for one token")]
    OneToken,
    /// One set of KV blocks is handed over, for one sequence.
    #[error("it asks for several answers")]
    SeveralAnswers,
    /// They are made where the prompt is computed.
    #[error("it asks for the prompt, or its log probabilities")]
    PromptWanted,
}

/// The body of the prefill stage.
pub fn prefill_body(body: &[u8]) -> Result<Vec<u8>, Whole> {
    let mut why_whole = None;
    let mut has_newer_bound = false;
    let mut edited = Vec::with_capacity(body.len() + KEEP.len() + 64);
    edited.push(b'{');
    let read = members(body, |key, value| {
        let is = |values: &[&str]| values.iter().any(|value_is| &body[value.clone()] == value_is.as_bytes());
        let asks = |name: &str, usual: &[&str]| key.is(name) && !is(usual);
        let whole = if asks(PARAMS, &["null"]) {
            Some(Whole::HandedOver)
        } else if asks("n", &["1", "null"])
            || asks("best_of", &["1", "null"])
            || asks("use_beam_search", &["false", "null"])
            || (key.is("prompt") && is_list(&body[value.clone()]))
        {
            Some(Whole::SeveralAnswers)
        } else if asks("echo", &["false", "null"]) || asks("prompt_logprobs", &["null"]) {
            Some(Whole::PromptWanted)
        } else if BOUNDS.iter().any(|name| key.is(name)) && is(&["1"]) {
            Some(Whole::OneToken)
        } else {
            None
        };
        why_whole = why_whole.or(whole);
        has_newer_bound |= key.is(BOUNDS[1]);
        let is_replaced =
            [PARAMS, "stream"].iter().chain(&BOUNDS).chain(&OF_THE_ANSWER).any(|name| key.is(name));
        if !is_replaced {
            push(&mut edited, key, &body[value]);
        }
    });
    if read.is_none() {
        return Err(Whole::NotAnObject);
    }
    if let Some(why) = why_whole {
        return Err(why);
    }
    edited.extend_from_slice(b"\"stream\":false,\"max_tokens\":1,");
    if has_newer_bound {
        edited.extend_from_slice(b"\"max_completion_tokens\":1,");
    }
    Ok(with_params(edited, KEEP.as_bytes()))
}

/// The body of the decode stage; `params` is [`transfer_params`] of the prefill stage's answer. None if the body is no
/// JSON object.
pub fn decode_body(body: &[u8], params: &[u8]) -> Option<Vec<u8>> {
    let mut edited = Vec::with_capacity(body.len() + params.len() + 32);
    edited.push(b'{');
    members(body, |key, value: Range<usize>| {
        if !key.is(PARAMS) {
            push(&mut edited, key, &body[value]);
        }
    })?;
    Some(with_params(edited, params))
}

/// Where the KV blocks are that the prefill stage has left, by its answer; none if it has left none.
pub fn transfer_params(answer: &[u8]) -> Option<&[u8]> {
    raw_member(answer, PARAMS).filter(|params| params.starts_with(b"{"))
}

/// Whether a prompt is a list of prompts, and not of token ids.
fn is_list(prompt: &[u8]) -> bool {
    let inside = prompt.strip_prefix(b"[").map(<[u8]>::trim_ascii_start);
    inside.is_some_and(|inside| inside.starts_with(b"[") || inside.starts_with(b"\""))
}

/// Appends a member as it stood.
fn push(edited: &mut Vec<u8>, key: Text<'_>, value: &[u8]) {
    edited.push(b'"');
    edited.extend_from_slice(key.raw);
    edited.extend_from_slice(b"\":");
    edited.extend_from_slice(value);
    edited.push(b',');
}

/// The last member, and the end of the object.
fn with_params(mut edited: Vec<u8>, params: &[u8]) -> Vec<u8> {
    edited.push(b'"');
    edited.extend_from_slice(PARAMS.as_bytes());
    edited.extend_from_slice(b"\":");
    edited.extend_from_slice(params);
    edited.push(b'}');
    edited
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn json_of(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).expect("what is made is JSON")
    }

    #[test]
    fn the_prefill_stage_asks_for_one_whole_token_and_for_its_blocks_to_be_kept() {
        let body = json!({
            "model": "m", "messages": [{"role": "user", "content": "a \"b\" \u{e9}"}], "stream": true,
            "stream_options": {"include_usage": true}, "max_completion_tokens": 100, "min_tokens": 5,
            "temperature": 0.5, "n": 1,
        });
        let stage = json_of(&prefill_body(body.to_string().as_bytes()).unwrap());
        assert_eq!(
            stage,
            json!({
                "model": "m", "messages": body["messages"], "temperature": 0.5, "n": 1, "stream": false,
                "max_tokens": 1, "max_completion_tokens": 1,
                "kv_transfer_params": {
                    "do_remote_decode": true, "do_remote_prefill": false, "remote_engine_id": null,
                    "remote_block_ids": null, "remote_host": null, "remote_port": null,
                },
            })
        );
        let stage = json_of(&prefill_body(br#"{"prompt":"x","max_tokens":7,"max_tokens":9}"#).unwrap());
        assert_eq!((&stage["max_tokens"], stage.get("max_completion_tokens")), (&json!(1), None));
    }

    #[test]
    fn the_decode_stage_is_the_clients_request_with_the_parameters_as_they_came() {
        let answer =
            br#"{"id":"x","kv_transfer_params":{"remote_block_ids":[[1, 2]],"new": null},"usage":{}}"#;
        let params = transfer_params(answer).unwrap();
        let body = br#"{ "prompt" : "x", "kv_transfer_params": null, "stream":true }"#;
        let stage = decode_body(body, params).unwrap();
        assert_eq!(
            String::from_utf8(stage).unwrap(),
            r#"{"prompt":"x","stream":true,"kv_transfer_params":{"remote_block_ids":[[1, 2]],"new": null}}"#
        );
        assert_eq!(decode_body(b"{}", b"{}").unwrap(), b"{\"kv_transfer_params\":{}}");
        assert_eq!(transfer_params(br#"{"kv_transfer_params":null}"#), None);
        assert_eq!(transfer_params(b"nonsense"), None);
    }

    #[test]
    fn what_one_worker_has_to_do_alone_is_told() {
        for (body, why) in [
            (r#"{"n":2}"#, Whole::SeveralAnswers),
            (r#"{"best_of":3}"#, Whole::SeveralAnswers),
            (r#"{"use_beam_search":true}"#, Whole::SeveralAnswers),
            (r#"{"prompt":[ "a"]}"#, Whole::SeveralAnswers),
            (r#"{"prompt":[[1, 2]]}"#, Whole::SeveralAnswers),
            (r#"{"echo":true}"#, Whole::PromptWanted),
            (r#"{"prompt_logprobs":0}"#, Whole::PromptWanted),
            (r#"{"max_tokens":1}"#, Whole::OneToken),
            (r#"{"kv_transfer_params":{}}"#, Whole::HandedOver),
            ("[]", Whole::NotAnObject),
        ] {
            assert_eq!(prefill_body(body.as_bytes()), Err(why), "{body}");
        }
        for body in [
            r#"{"n":null,"echo":false}"#,
            r#"{"prompt":[ 1,2]}"#,
            r#"{"n":1,"prompt_logprobs":null,"max_tokens":10}"#,
            "{}",
        ] {
            assert!(prefill_body(body.as_bytes()).is_ok(), "{body}");
        }
    }

    proptest! {
        #[test]
        fn nothing_else_is_changed(
            members in proptest::collection::btree_map("(messages|stream|x\\PC*)", ".*", 0..6),
            number: i64,
        ) {
            let mut object = json!(members);
            object["y"] = json!([number, {"max_tokens": 1}]);
            let mut decode = json_of(&decode_body(object.to_string().as_bytes(), b"{\"a\":1}").unwrap());
            prop_assert_eq!(decode["kv_transfer_params"].take(), json!({"a": 1}));
            decode.as_object_mut().unwrap().remove("kv_transfer_params");
            prop_assert_eq!(&decode, &object);
            let stage = json_of(&prefill_body(object.to_string().as_bytes()).unwrap());
            for (key, value) in object.as_object().unwrap().iter().filter(|(key, _)| *key != "stream") {
                prop_assert_eq!(&stage[key], value);
            }
        }

        #[test]
        fn no_bytes_make_a_stage_panic(body: Vec<u8>) {
            let _ = (prefill_body(&body), decode_body(&body, b"{}"), transfer_params(&body));
        }
    }
}
