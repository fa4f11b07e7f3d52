//! What a router needs of vLLM's `/metrics`, read from the Prometheus text format in one pass.
//!
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/>. A worker may run several engines
//! (data parallel), each with its own `engine` label: requests are summed, the fullest KV cache counts.

use super::KvFacts;
use crate::routing::Adapter;

/// Figures of one scrape. A figure that the worker does not export stays `None`.
#[derive(Debug, Default, Clone, PartialEq)]
pub(super) struct Scrape {
    pub(super) running: Option<f64>,
    pub(super) waiting: Option<f64>,
    /// 0 to 1.
    pub(super) kv_usage: Option<f64>,
    /// Tokens.
    pub(super) kv_capacity_tokens: Option<u64>,
    /// Unix seconds: another value than before means another process, with an empty cache.
    pub(super) process_start: Option<f64>,
    /// LoRA adapters, and whether requests run with them or wait for them.
    pub(super) adapters: Vec<(String, Adapter)>,
    /// What bears on the KV cache.
    pub(super) kv: KvFacts,
}

pub(super) fn parse(text: &str) -> Scrape {
    let mut scrape = Scrape::default();
    let mut adapters_at = f64::NEG_INFINITY;
    for line in text.lines() {
        let Some((series, value)) = split(line) else { continue };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let add = |total: &mut Option<f64>| *total = Some(total.unwrap_or(0.0) + value);
        match name {
            "vllm:num_requests_running" => add(&mut scrape.running),
            "vllm:num_requests_waiting" => add(&mut scrape.waiting),
            "vllm:kv_cache_usage_perc" => {
                scrape.kv_usage = Some(scrape.kv_usage.unwrap_or(0.0).max(value));
            }
            "vllm:cache_config_info" => {
                let number = |key: &str| label(labels, key).and_then(|v| v.parse::<u64>().ok());
                if let (Some(size), Some(blocks)) = (number("block_size"), number("num_gpu_blocks")) {
                    let total = scrape.kv_capacity_tokens.unwrap_or(0);
                    scrape.kv_capacity_tokens = Some(total.saturating_add(size.saturating_mul(blocks)));
                }
            }
            // The value is when it was said; series of other sets of adapters stay in the text.
            "vllm:lora_requests_info" if value > adapters_at => {
                adapters_at = value;
                scrape.adapters = adapters(labels);
            }
            "process_start_time_seconds" => scrape.process_start = Some(value),
            _ => {}
        }
        read_kv(&mut scrape.kv, name, labels, value);
    }
    scrape.kv.process_start = scrape.process_start;
    scrape
}

fn adapters(labels: &str) -> Vec<(String, Adapter)> {
    let listed = |key, state| {
        let names = label(labels, key).unwrap_or_default().split(',').map(str::trim);
        names.filter(|name| !name.is_empty()).map(move |name| (name.to_owned(), state))
    };
    let running = listed("running_lora_adapters", Adapter::Running);
    running.chain(listed("waiting_lora_adapters", Adapter::Waiting)).collect()
}

/// Engines in one scrape; more are data parallel ranks than anybody runs behind one server.
const ENGINES_MAX: usize = 64;

fn read_kv(kv: &mut KvFacts, name: &str, labels: &str, value: f64) {
    let is = |key: &str, wanted: &str| label(labels, key) == Some(wanted);
    match name {
        "http_requests_total" if is("method", "POST") && is("status", "2xx") => {
            match label(labels, "handler") {
                Some("/reset_prefix_cache") => kv.resets += value as u64,
                Some("/sleep") => kv.sleeps += value as u64,
                _ => {}
            }
        }
        "vllm:engine_sleep_state" if is("sleep_state", "awake") => kv.is_asleep |= value == 0.0,
        "vllm:generation_tokens_total" => add_tokens(kv, labels, value),
        "vllm:prompt_tokens_by_source_total" if is("source", "local_compute") => {
            add_tokens(kv, labels, value);
        }
        "vllm:num_requests_running" if kv.model_name.is_none() => {
            kv.model_name = label(labels, "model_name").map(str::to_owned);
        }
        "vllm:cache_config_info" => {
            let number = |key: &str| label(labels, key).and_then(|text| text.parse::<u64>().ok());
            kv.block_tokens = number("block_size").and_then(|tokens| tokens.try_into().ok());
            kv.blocks = kv.blocks.max(number("num_gpu_blocks"));
            kv.hash_algo = label(labels, "prefix_caching_hash_algo").map(str::to_owned);
        }
        _ => {}
    }
}

fn add_tokens(kv: &mut KvFacts, labels: &str, value: f64) {
    let engine = label(labels, "engine").and_then(|text| text.parse().ok()).unwrap_or(0);
    if engine < ENGINES_MAX {
        kv.computed_tokens.resize(kv.computed_tokens.len().max(engine + 1), 0);
        kv.computed_tokens[engine] += value as u64;
    }
}

/// A sample line as (series, value); nothing for comments, blank lines and what is not a sample.
fn split(line: &str) -> Option<(&str, f64)> {
    if line.starts_with('#') {
        return None;
    }
    // The value follows the labels, which may hold spaces; an optional timestamp follows the value.
    let end = line.rfind('}').map_or_else(|| line.find(' '), |i| Some(i + 1))?;
    let value = line[end..].split_whitespace().next()?.parse().ok()?;
    Some((&line[..end], value))
}

fn label<'a>(labels: &'a str, key: &str) -> Option<&'a str> {
    let mut rest = labels;
    while let Some((name, tail)) = rest.split_once("=\"") {
        let end = tail.find('"')?;
        if name.trim_start_matches([',', ' ']) == key {
            return Some(&tail[..end]);
        }
        rest = &tail[end + 1..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_recording_of_vllm_under_load() {
        let text = include_str!("../../../tests/fixtures/vllm/metrics_under_load.txt");
        let scrape = parse(text);
        assert_eq!(scrape.running, Some(128.0));
        assert_eq!(scrape.waiting, Some(178.0));
        assert_eq!(scrape.process_start, Some(1.795_229_840_86e9));
        assert!(scrape.kv_usage.is_some_and(|u| (0.0..=1.0).contains(&u)));
        assert!(scrape.kv_capacity_tokens.is_some_and(|t| t > 0 && t % 16 == 0));
        let tokens = scrape.kv.computed_tokens.clone();
        assert!(tokens.len() == 1 && tokens[0] > 9_402, "{tokens:?}");
        let expected = KvFacts {
            process_start: scrape.process_start,
            resets: 1,
            computed_tokens: tokens,
            block_tokens: Some(16),
            blocks: Some(16_384),
            hash_algo: Some("sha256".into()),
            model_name: Some("tiny".into()),
            ..KvFacts::default()
        };
        assert_eq!(scrape.kv, expected);
    }

    #[test]
    fn a_sleeping_engine_and_each_engines_tokens_are_read() {
        let kv = parse(
            "vllm:engine_sleep_state{engine=\"0\",sleep_state=\"awake\"} 1.0\n\
             vllm:engine_sleep_state{engine=\"1\",sleep_state=\"awake\"} 0.0\n\
             vllm:generation_tokens_total{engine=\"1\"} 5\n\
             vllm:prompt_tokens_by_source_total{engine=\"1\",source=\"local_compute\"} 7\n\
             vllm:prompt_tokens_by_source_total{engine=\"1\",source=\"local_cache_hit\"} 100\n\
             vllm:generation_tokens_total{engine=\"99999999\"} 5\n\
             http_requests_total{handler=\"/sleep\",method=\"POST\",status=\"2xx\"} 3.0\n\
             http_requests_total{handler=\"/reset_prefix_cache\",method=\"POST\",status=\"4xx\"} 3.0\n",
        )
        .kv;
        let expected =
            KvFacts { is_asleep: true, sleeps: 3, computed_tokens: vec![0, 12], ..KvFacts::default() };
        assert_eq!(kv, expected);
    }

    #[test]
    fn engines_are_summed_and_the_fullest_cache_counts() {
        let scrape = parse(
            "vllm:num_requests_running{engine=\"0\",model_name=\"a b}c\"} 3.0\n\
             vllm:num_requests_running{engine=\"1\",model_name=\"x\"} 4.0 1700000000\n\
             vllm:kv_cache_usage_perc{engine=\"0\"} 0.25\nvllm:kv_cache_usage_perc{engine=\"1\"} 0.5\n\
             vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"100\"} 1.0\n\
             vllm:cache_config_info{block_size=\"16\",engine=\"1\",num_gpu_blocks=\"None\"} 1.0\n",
        );
        assert_eq!(scrape.running, Some(7.0));
        assert_eq!(scrape.kv_usage, Some(0.5));
        assert_eq!(scrape.kv_capacity_tokens, Some(1600));
    }

    #[test]
    fn adapters_are_those_of_the_latest_series() {
        let scrape = parse(
            "vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"old\",waiting_lora_adapters=\"\"} 1.7e9\n\
             vllm:lora_requests_info{max_lora=\"4\",running_lora_adapters=\"sql,chat\",waiting_lora_adapters=\"math\"} 1.8e9\n",
        );
        let expected = [("sql", Adapter::Running), ("chat", Adapter::Running), ("math", Adapter::Waiting)];
        assert_eq!(scrape.adapters, expected.map(|(name, state)| (name.to_owned(), state)));
    }

    #[test]
    fn rubbish_is_passed_over() {
        assert_eq!(parse("}{ x\nvllm:num_requests_running\n\u{e9} 1\n= =\n"), Scrape::default());
    }
}
