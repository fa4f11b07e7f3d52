//! What a router needs of vLLM's `/metrics`, read from the Prometheus text format in one pass.
//!
//! Format: <https://prometheus.io/docs/instrumenting/exposition_formats/>. A worker may run several engines
//! (data parallel), each with its own `engine` label: requests are summed, the fullest KV cache counts.

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
    }
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
