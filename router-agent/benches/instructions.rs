//! A piece of the hot path, so many times, for those who count its instructions: `cargo xtask instructions`.
//!
//! `instructions` lists the pieces, `instructions NAME COUNT` runs one. Nothing here depends on time or chance.

use std::{hint::black_box, sync::Arc};

use router_agent::{
    config::Config,
    index::{Matches, PrefixIndex, WorkerSlot},
    prompt::{ApiKind, BLOCK_BYTES, parse},
    records::{Facts, Recorder, Roster},
    routing::{Ask, Candidate, Decision, Policy, Router, Settings, Speed},
    telemetry::Metrics,
};
use router_common::framing::Framing;
use serde_json::json;

/// Does something so many times.
type Piece = fn(u64);

const PIECES: [(&str, Piece); 6] = [
    ("parse_2_kb", |count| parse_and_hash(2_000, count)),
    ("parse_400_kb", |count| parse_and_hash(400_000, count)),
    ("lookup_256_blocks_64_workers", lookup),
    ("decide_64_workers", decide),
    ("record_64_workers", record),
    ("relay_event", relay),
];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    match &args[..] {
        [] => PIECES.iter().for_each(|(name, _)| println!("{name}")),
        [name, count] => {
            let piece = PIECES.iter().find(|(of, _)| of == name).expect("one of the listed");
            piece.1(count.parse().expect("a number"));
        }
        _ => panic!("instructions [NAME COUNT]"),
    }
}

/// A chat of one message, from its bytes to the hashes of its blocks.
fn parse_and_hash(bytes: usize, count: u64) {
    let text: String =
        (0..).map(|n: u32| format!("The quick brown fox jumps over {n} dogs.\n")).take(bytes / 35).collect();
    let body =
        json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": text}]}).to_string();
    let mut hashes = Vec::new();
    for _ in 0..count {
        let request = parse(ApiKind::Chat, black_box(body.as_bytes())).expect("valid");
        black_box(request.hash_into(BLOCK_BYTES, request.root_seed(), &mut hashes));
    }
}

/// A prompt that two of 64 workers hold, half and whole.
fn lookup(count: u64) {
    let index = PrefixIndex::default();
    let prompt = |number: u64| -> Vec<u64> {
        (0..256).map(|at| (number << 32 | at).wrapping_mul(0x9E37_79B9_7F4A_7C15)).collect()
    };
    for slot in 0..64 {
        index.insert(WorkerSlot(slot), &prompt(slot.into()));
    }
    let asked = prompt(7);
    index.insert(WorkerSlot(20), &asked[..128]);
    let mut matches = Matches::new();
    for _ in 0..count {
        index.lookup(black_box(&asked), &mut matches);
        black_box(&matches);
    }
}

fn candidates() -> Vec<Candidate> {
    let mut random = fastrand::Rng::with_seed(1);
    let speed = Some(Speed { token_s: 1e-4, fleet_token_s: 1e-4, fixed_s: 0.01, batch_s: 0.05 });
    (0..64)
        .map(|slot| Candidate {
            matched_tokens: random.u32(..8_000),
            in_flight: random.u32(..20),
            queued_prefill_tokens: random.u64(..30_000),
            running: random.u32(..20),
            speed,
            ..Candidate::idle(WorkerSlot(slot))
        })
        .collect()
}

const ASK: Ask = Ask { prompt_tokens: 8_000, session: None };

fn decide(count: u64) {
    let (candidates, mut router) = (candidates(), Router::new(Settings::new(Policy::Warm), 1));
    for _ in 0..count {
        black_box(router.decide(black_box(&ASK), &candidates));
    }
}

/// The record of a decision, from its figures to the end of its try.
fn record(count: u64) {
    let candidates = candidates();
    let mut router = Router::new(Settings::new(Policy::Warm), 1);
    let decision: Decision = router.decide(&ASK, &candidates).expect("there are workers");
    let metrics = Metrics::new().expect("a fresh registry");
    let recorder = Arc::new(Recorder::new(&Config::default(), metrics.records.clone()));
    let (tenant, model) = (Arc::from("default"), Arc::from("a-model"));
    let roster = Arc::<Roster>::default();
    let facts = Facts {
        request_id: b"0123456789abcdef0123456789abcdef",
        tenant: &tenant,
        asked_model: Some(&model),
        model: Some(&model),
        route: "chat",
        attempt: 1,
        ask: ASK,
        match_kind: "approximate",
        candidates: &candidates,
        settings: router.settings(),
        decision,
        roster: &roster,
        hashes: &[],
        block_bytes: 128,
        stage: "whole",
        prefilled_by: None,
    };
    for _ in 0..count {
        drop(black_box(recorder.open(black_box(&facts))));
    }
}

/// An event of a chunked stream, as the relays read its framing.
fn relay(count: u64) {
    let event = format!(
        "data: {}\n\n",
        json!({"id": "chatcmpl-0123456789abcdef", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m",
            "choices": [{"index": 0, "delta": {"content": " word"}, "logprobs": null, "finish_reason": null}]})
    );
    let chunk = format!("{:x}\r\n{event}\r\n", event.len());
    let mut framing = Framing::chunked();
    for _ in 0..count {
        black_box(framing.advance_with(black_box(chunk.as_bytes()), |data| {
            black_box(data);
        }));
    }
}
