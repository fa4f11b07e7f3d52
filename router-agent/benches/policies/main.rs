//! What policies make of a trace, in a discrete-event simulation that takes seconds: `router_agent::replay`
//! has the workers' model. `cargo bench -p router-agent --bench policies -- [TRACE]`, by
//! default the committed sample; figures of docs/routing.md are of the whole Mooncake conversation trace.

use router_agent::{
    replay::{
        engine::Request,
        simulation::{Chooser, Wishes, Worker, run},
    },
    routing::{Policy, Settings},
};

mod trace;

use trace::Trace;

const WORKERS: usize = 8;
const TOKENS_PER_S: f64 = 7_000.0;
const KV_TOKENS: u64 = 32_768 * 16;
const SEEDS: u64 = 3;
const SAMPLE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/traces/mooncake_conversation_1000.jsonl");

/// What is compared: a policy, with or without learned speeds, with one worker so many times slower.
struct Case(&'static str, Policy, bool, f64);

#[derive(Default)]
struct Outcome {
    ttft_s: Vec<f64>,
    cached: f64,
    prefill_max_to_mean: f64,
    slow_share: f64,
}

fn main() {
    let path = std::env::args().skip(1).find(|arg| !arg.starts_with("--"));
    let trace = Trace::read(path.as_deref().unwrap_or(SAMPLE));
    println!(
        "load  policy                  TTFT mean    p50     p90     p99   cached  prefill max/mean  first worker's"
    );
    for load in [0.5, 0.8, 1.0, 1.2] {
        let rate = load * WORKERS as f64 * TOKENS_PER_S / trace.tokens_per_s();
        for case in [
            Case("warm", Policy::Warm, true, 1.0),
            Case("warm, the product", Policy::Warm, false, 1.0),
            Case("prefix", Policy::Prefix, false, 1.0),
            Case("least_loaded", Policy::LeastLoaded, false, 1.0),
            Case("round_robin", Policy::RoundRobin, false, 1.0),
            Case("warm, one 4 x slower", Policy::Warm, true, 4.0),
            Case("product, one 4 x slower", Policy::Warm, false, 4.0),
        ] {
            let mut all = Outcome::default();
            for seed in 1..=SEEDS {
                let one = replay(&trace.requests(rate, seed), &case);
                all.ttft_s.extend(one.ttft_s);
                all.cached += one.cached / SEEDS as f64;
                all.slow_share += one.slow_share / SEEDS as f64;
                all.prefill_max_to_mean = all.prefill_max_to_mean.max(one.prefill_max_to_mean);
            }
            all.ttft_s.sort_by(f64::total_cmp);
            let count = all.ttft_s.len();
            let at = |share: f64| all.ttft_s[((count as f64 * share) as usize).min(count - 1)];
            println!(
                "{load:<5} {:<24} {:7.2} {:7.2} {:7.2} {:7.2}  {:5.1} %  {:8.2}          {:5.1} %",
                case.0,
                all.ttft_s.iter().sum::<f64>() / count as f64,
                at(0.5),
                at(0.9),
                at(0.99),
                all.cached * 100.0,
                all.prefill_max_to_mean,
                all.slow_share * 100.0,
            );
        }
    }
}

fn replay(requests: &[Request], case: &Case) -> Outcome {
    let Case(_, policy, learns, slowness) = *case;
    let worker = |number: usize| Worker {
        identity: number as u64,
        tokens_per_s: if number == 0 { TOKENS_PER_S / slowness } else { TOKENS_PER_S },
        capacity_tokens: KV_TOKENS,
    };
    let workers: Vec<Worker> = (0..WORKERS).map(worker).collect();
    let settings = Settings::new(policy);
    let outcome = run(requests, &workers, Chooser::Policy { settings: &settings, learns }, Wishes::default());
    let sum: u64 = outcome.prefilled.iter().sum();
    Outcome {
        ttft_s: outcome.served.iter().map(|served| served.ttft_s).collect(),
        cached: outcome.cached_share(requests),
        prefill_max_to_mean: outcome.prefilled.iter().copied().max().unwrap_or(0) as f64 * WORKERS as f64
            / sum as f64,
        slow_share: outcome.prefilled[0] as f64 / sum as f64,
    }
}
