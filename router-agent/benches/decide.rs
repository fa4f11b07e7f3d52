//! What one decision costs, by policy and number of candidates; the whole way from body to worker; and the record of it
//! in memory and in the `decisions` map, with one thread writing and with two.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering::Relaxed},
};

use fastrand::Rng;
use router_agent::{
    config::{Config, Decisions},
    index::{Matches, PrefixIndex, WorkerSlot},
    kernel::{Kernel, Options},
    prompt::{ApiKind, BLOCK_BYTES, parse},
    records::{Facts, Recorder, Roster},
    routing::{Ask, Candidate, Policy, Router, Settings, Speed},
    telemetry::Metrics,
};
use router_common::decisions::{DecisionPolicy, DecisionReason, DecisionValue};
use serde_json::json;

#[allow(dead_code, reason = "each benchmark uses a part of it")]
mod support;
use support::time;

fn main() {
    let mut random = Rng::with_seed(1);
    for workers in [4_u16, 64, 256] {
        let candidates: Vec<Candidate> = (0..workers)
            .map(|slot| Candidate {
                matched_tokens: random.u32(..8_000),
                in_flight: random.u32(..20),
                queued_prefill_tokens: random.u64(..30_000),
                running: random.u32(..20),
                ..Candidate::idle(WorkerSlot(slot))
            })
            .collect();
        let speed = Some(Speed { token_s: 1e-4, fleet_token_s: 1e-4, fixed_s: 0.01, batch_s: 0.05 });
        let learned: Vec<_> = candidates.iter().map(|candidate| Candidate { speed, ..*candidate }).collect();
        for (policy, known, candidates) in Policy::ALL
            .map(|policy| (policy, "", &candidates))
            .into_iter()
            .chain([(Policy::Warm, " with learned speeds", &learned)])
        {
            let mut router = Router::new(Settings::new(policy), 1);
            let ask = Ask { prompt_tokens: 8_000, session: Some(1) };
            // Sixteen at a time: one is below what the clock can tell.
            time(&format!("16 decisions, {policy}{known}, {workers} candidates"), 100, || {
                (0..16)
                    .filter_map(|_| router.decide(&ask, candidates))
                    .map(|d| u64::from(d.slot.0))
                    .sum::<u64>()
            });
        }
    }
    println!();
    for (name, bytes) in [("1 KB", 1_000), ("16 KB", 16_000), ("400 KB", 400_000)] {
        let text: String = (0..)
            .map(|n: u32| format!("The quick brown fox jumps over {n} dogs.\n"))
            .take(bytes / 35)
            .collect();
        let body =
            json!({"model": "m", "messages": [{"role": "user", "content": &text[..bytes.min(text.len())]}]})
                .to_string();
        for workers in [4_u16, 64, 256] {
            let index = PrefixIndex::default();
            let (mut hashes, mut matches, mut candidates) = (Vec::new(), Matches::new(), Vec::new());
            let mut router = Router::new(Settings::new(Policy::Warm), 1);
            let mut whole = || {
                let request = parse(ApiKind::Chat, body.as_bytes()).expect("valid");
                let size = request.hash_into(BLOCK_BYTES, request.root_seed(), &mut hashes);
                index.lookup(&hashes, &mut matches);
                candidates.clear();
                candidates.extend((0..workers).map(WorkerSlot).map(|slot| Candidate {
                    matched_tokens: size.tokens_of_blocks(matches.blocks(slot), BLOCK_BYTES, 4.0),
                    ..Candidate::idle(slot)
                }));
                let decision =
                    router.decide(&Ask { prompt_tokens: size.tokens(4.0), session: None }, &candidates);
                index.insert(decision.expect("there are workers").slot, &hashes);
            };
            (0..workers).for_each(|_| whole());
            time(&format!("body {name}, {workers} workers: parse to insert"), 300, &mut whole);
        }
    }
    println!();
    records_in_memory();
    records();
}

fn records() {
    let (mut kernel, capabilities) =
        Kernel::open(&Options { instance: Some("bench-decide".to_owned()), ..Options::default() });
    let Some(decisions) = kernel.take_decisions() else {
        return println!("record in the decisions map: skipped: {}", capabilities.load);
    };
    let decision = DecisionValue::new(3, DecisionPolicy::Warm, DecisionReason::PrefixHit);
    let sixteen = || (0..16).for_each(|_| decisions.record(&decision));
    time("16 records in the decisions map", 300, sixteen);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Relaxed) {
                sixteen();
            }
        });
        time("16 records while another thread does nothing else", 300, sixteen);
        done.store(true, Relaxed);
    });
}

/// A record in memory, from the figures of a decision to the end of its try: what a data thread pays for it.
fn records_in_memory() {
    for (workers, keep) in [(4_u16, 4_096), (64, 4_096), (256, 4_096), (4, 0)] {
        let candidates: Vec<Candidate> = (0..workers).map(|slot| Candidate::idle(WorkerSlot(slot))).collect();
        let mut router = Router::new(Settings::new(Policy::Warm), 1);
        let ask = Ask { prompt_tokens: 8_000, session: None };
        let decision = router.decide(&ask, &candidates).expect("there are workers");
        let config = Config { decisions: Decisions { keep, ..Decisions::default() }, ..Config::default() };
        let metrics = Metrics::new().expect("a fresh registry");
        let recorder = Arc::new(Recorder::new(&config, metrics.records.clone()));
        let (tenant, model) = (Arc::from("default"), Arc::from("a-model"));
        let roster = Arc::<Roster>::default();
        let facts = Facts {
            request_id: b"0123456789abcdef0123456789abcdef",
            tenant: &tenant,
            asked_model: Some(&model),
            model: Some(&model),
            route: "chat",
            stage: "whole",
            prefilled_by: None,
            attempt: 1,
            ask,
            match_kind: "approximate",
            candidates: &candidates,
            settings: router.settings(),
            decision,
            roster: &roster,
            hashes: &[],
            block_bytes: 128,
        };
        let sixteen = || {
            for _ in 0..16 {
                drop(recorder.is_wanted().then(|| recorder.open(&facts)));
            }
        };
        (0..keep / 16).for_each(|_| sixteen()); // from here on one goes for each that comes
        time(&format!("16 records in memory, {workers} candidates, {keep} kept"), 300, sixteen);
    }
}
