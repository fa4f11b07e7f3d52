//! What generation promises: reuse over turns, isolation, determinism, limits.

use serde_json::{Value, json};
use vllm_sim::{Lora, SimConfig};

use crate::support::{Client, get, post, start, tiny};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn cached(response: &Value) -> u64 {
    response["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

async fn call(client: &mut Client, path: &str, body: &Value) -> Value {
    let response = client.call(&post(path, body)).await;
    assert_eq!(response.status(), 200, "{}", response.body_text());
    response.json()
}

#[tokio::test]
async fn a_follow_up_turn_hits_what_was_generated() {
    let sim = start(tiny()).await;
    let mut client = Client::connect(sim.addr()).await;
    let mut messages = vec![
        json!({"role": "system", "content": "You are terse. ".repeat(20)}),
        json!({"role": "user", "content": "What is a prefix cache, and who needs one?"}),
    ];
    let mut before = Vec::<u64>::new();
    for turn in 0..4 {
        let body =
            json!({"messages": messages, "max_tokens": 50, "ignore_eos": true, "return_token_ids": true});
        let response = call(&mut client, CHAT, &body).await;
        let prompt: Vec<u64> = serde_json::from_value(response["prompt_token_ids"].clone()).unwrap();
        // All of the turn before is a prefix: its prompt and, but for the last token, its output.
        assert!(prompt.starts_with(&before), "turn {turn}: output tokenises to what was generated");
        let expected = before.len().saturating_sub(1) / 16 * 16;
        assert_eq!(cached(&response), expected as u64, "turn {turn}");
        let choice = &response["choices"][0];
        let output: Vec<u64> = serde_json::from_value(choice["token_ids"].clone()).unwrap();
        assert_eq!(output.len(), 50);
        before = [prompt, output].concat();
        messages.push(json!({"role": "assistant", "content": choice["message"]["content"]}));
        messages.push(json!({"role": "user", "content": format!("And then, for the {turn}th time?")}));
    }
}

#[tokio::test]
async fn a_full_hit_computes_its_last_block_again() {
    let sim = start(tiny()).await;
    let mut client = Client::connect(sim.addr()).await;
    for (tokens, expected) in [(64, 48), (65, 64), (63, 48), (16, 0), (17, 16)] {
        let body = json!({"prompt": vec![tokens; tokens], "max_tokens": 1});
        assert_eq!(cached(&call(&mut client, COMPLETIONS, &body).await), 0);
        assert_eq!(cached(&call(&mut client, COMPLETIONS, &body).await), expected, "{tokens} tokens");
    }
}

#[tokio::test]
async fn salts_and_adapters_share_nothing() {
    let config =
        SimConfig { loras: vec![Lora { name: "ad1".to_owned(), path: "/ad1".to_owned() }], ..tiny() };
    let sim = start(config).await;
    let mut client = Client::connect(sim.addr()).await;
    let bodies = [
        json!({"prompt": vec![1; 40], "max_tokens": 1}),
        json!({"prompt": vec![1; 40], "max_tokens": 1, "cache_salt": "a"}),
        json!({"prompt": vec![1; 40], "max_tokens": 1, "cache_salt": "b"}),
        json!({"prompt": vec![1; 40], "max_tokens": 1, "model": "ad1"}),
    ];
    for expected in [0, 32] {
        for body in &bodies {
            assert_eq!(cached(&call(&mut client, COMPLETIONS, body).await), expected, "{body}");
        }
    }
    let models = client.call(&get("/v1/models")).await.json();
    let models: Vec<_> = models["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!(models, ["tiny", "ad1"]);
    let unknown = client.call(&post(COMPLETIONS, &json!({"prompt": "x", "model": "ad2"}))).await;
    assert_eq!(unknown.status(), 404);
    assert!(unknown.body_text().contains("Valid aliases: tiny, ad1."));
}

#[tokio::test]
async fn the_seed_decides_the_output() {
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 20, "n": 2});
    let mut outputs = Vec::new();
    for seed in [1, 1, 2] {
        let sim = start(SimConfig { seed, ..tiny() }).await;
        let response = call(&mut Client::connect(sim.addr()).await, CHAT, &body).await;
        let text =
            |choice: usize| response["choices"][choice]["message"]["content"].as_str().unwrap().to_owned();
        assert_eq!(text(0).len(), 80, "four bytes per token");
        assert_ne!(text(0), text(1), "choices differ");
        outputs.push(text(0));
    }
    assert_eq!(outputs[0], outputs[1]);
    assert_ne!(outputs[0], outputs[2]);
}

#[tokio::test]
async fn streams_and_whole_responses_say_the_same() {
    let sim = start(tiny()).await;
    let mut client = Client::connect(sim.addr()).await;
    for path in [CHAT, COMPLETIONS] {
        let mut body =
            json!({"messages": [{"role": "user", "content": "hello"}], "prompt": "hello", "max_tokens": 30});
        let whole = call(&mut client, path, &body).await;
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let stream = client.call(&post(path, &body)).await;
        let (events, text) = (stream.events(), stream.text());
        let choice = &whole["choices"][0];
        assert_eq!(text, choice.get("text").unwrap_or(&choice["message"]["content"]).as_str().unwrap());
        let usage = &events.last().unwrap()["usage"];
        for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
            assert_eq!(usage[count], whole["usage"][count]);
        }
    }
}

#[tokio::test]
async fn without_a_limit_the_model_ends_by_itself() {
    let mut config = tiny();
    config.engine.max_model_len = 512;
    let sim = start(config).await;
    let mut client = Client::connect(sim.addr()).await;
    let messages = json!([{"role": "user", "content": "hello"}]);
    let response = call(&mut client, CHAT, &json!({"messages": messages, "return_token_ids": true})).await;
    let choice = &response["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    let ids = choice["token_ids"].as_array().unwrap();
    assert_eq!(ids.last().unwrap(), &json!(2), "end of sequence");
    assert_eq!(
        choice["message"]["content"].as_str().unwrap().len(),
        (ids.len() - 1) * 4,
        "which has no text"
    );
    assert_eq!(response["usage"]["completion_tokens"], ids.len());

    let body = json!({"messages": messages, "ignore_eos": true});
    let response = call(&mut client, CHAT, &body).await;
    assert_eq!(response["choices"][0]["finish_reason"], "length");
    assert_eq!(response["usage"]["total_tokens"], 512, "to the end of the context");
}

#[tokio::test]
async fn every_prompt_form_is_read() {
    let sim = start(tiny()).await;
    let mut client = Client::connect(sim.addr()).await;
    for (prompt, tokens, choices) in [
        (json!("abcdefgh"), 2, 1),
        (json!(["abcd", "efghi"]), 3, 2),
        (json!([1, 2, 3]), 3, 1),
        (json!([[1, 2], [3]]), 3, 2),
    ] {
        let body = json!({"prompt": prompt, "max_tokens": 2});
        let response = call(&mut client, COMPLETIONS, &body).await;
        assert_eq!(response["usage"]["prompt_tokens"], tokens, "{prompt}");
        assert_eq!(response["choices"].as_array().unwrap().len(), choices);
    }
    let parts = json!([
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
    ]);
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let plain = json!({"messages": [{"role": "user", "content": parts}], "max_tokens": 1});
    let mut with_tools = plain.clone();
    with_tools["tools"] = tools;
    let plain = call(&mut client, CHAT, &plain).await["usage"]["prompt_tokens"].as_u64().unwrap();
    let with_tools = call(&mut client, CHAT, &with_tools).await["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(plain > 64, "an image has tokens");
    assert!(with_tools > plain + 15, "tools have tokens");
}

#[tokio::test]
async fn the_other_apis_share_the_cache() {
    let sim = start(tiny()).await;
    let mut client = Client::connect(sim.addr()).await;
    let content = "A question that is long enough to fill some blocks. ".repeat(8);
    let messages = json!([{"role": "user", "content": content}]);
    let chat = call(&mut client, CHAT, &json!({"messages": messages, "max_tokens": 3})).await;
    let prompt = chat["usage"]["prompt_tokens"].as_u64().unwrap();
    let expected = (prompt - 1) / 16 * 16;

    let anthropic = json!({"model": "tiny", "messages": messages, "max_tokens": 3});
    let usage = call(&mut client, "/v1/messages", &anthropic).await["usage"].clone();
    assert_eq!(usage["cache_read_input_tokens"], expected);
    assert_eq!(usage["input_tokens"], prompt - expected);

    let responses = json!({"input": content, "max_output_tokens": 3});
    let usage = call(&mut client, "/v1/responses", &responses).await["usage"].clone();
    assert_eq!(usage["input_tokens_details"]["cached_tokens"], expected);

    let counted = call(&mut client, "/v1/messages/count_tokens", &anthropic).await;
    assert_eq!(counted["input_tokens"], prompt);
    let tokenised = call(&mut client, "/tokenize", &json!({"messages": messages})).await;
    assert_eq!(tokenised["count"], prompt);
}

#[tokio::test]
async fn messages_stream_in_anthropic_events() {
    let sim = start(tiny()).await;
    let mut client = Client::connect(sim.addr()).await;
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3, "stream": true});
    let response = client.call(&post("/v1/messages", &body)).await;
    let text = response.body_text();
    let mut names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    names.dedup();
    assert_eq!(
        names,
        [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    let events = response.events();
    assert_eq!(events[0]["message"]["usage"]["output_tokens"], 0);
    assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], "max_tokens");
    assert_eq!(events[events.len() - 2]["usage"]["output_tokens"], 3);
    let refused = client.call(&post("/v1/messages", &json!({"model": "other", "messages": []}))).await;
    assert_eq!((refused.status(), refused.json()["type"].as_str()), (404, Some("error")));
}

#[tokio::test]
async fn tokens_come_back_as_text() {
    let sim = start(tiny()).await;
    let mut client = Client::connect(sim.addr()).await;
    let text = "def main(args):\n    return 0";
    let tokens = call(&mut client, "/tokenize", &json!({"prompt": text})).await["tokens"].clone();
    let back = call(&mut client, "/detokenize", &json!({"tokens": tokens})).await;
    assert_eq!(back["prompt"], text);
}
