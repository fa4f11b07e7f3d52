//! `/metrics`, with vLLM's own names, labels, order and help texts.
//!
//! `vllm.txt` is a scrape recorded from vLLM 0.32.0 with its values taken out; rendering fills in the live ones. What
//! the simulation has no notion of (Python's garbage collector, flops) keeps a plausible constant.

mod engine;
mod histogram;
mod http;

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use engine::EngineMetrics;
use histogram::Histogram;
pub(crate) use http::HttpMetrics;

use crate::config::SimConfig;

const TEMPLATE: &str = include_str!("vllm.txt");
/// The template was recorded with `max_model_len` 2048; token histograms of longer contexts have more buckets.
const TEMPLATE_TOKENS_MAX: f64 = 2000.0;

/// The recorded model's KV block.
const BYTES_PER_BLOCK: usize = 4096;

/// Renders the exposition text of one worker.
pub(crate) struct Renderer {
    lines: Vec<Line>,
    created_s: f64,
    max_model_len: usize,
}

enum Line {
    Comment(&'static str),
    /// A sample: name with labels up to the value, its bare name, its `le` or other distinguishing label.
    Sample {
        text: String,
        name: &'static str,
        label: String,
        constant: f64,
    },
}

impl Renderer {
    pub(crate) fn new(config: &SimConfig) -> Self {
        let model = format!("model_name=\"{}\"", config.model.replace('\\', "\\\\").replace('"', "\\\""));
        let mut lines = Vec::new();
        for line in TEMPLATE.lines() {
            if line.starts_with('#') {
                lines.push(Line::Comment(line));
                continue;
            }
            let (text, value) = line.rsplit_once(' ').expect("a sample ends with its value");
            let name = text.split('{').next().expect("split yields one");
            let constant = value.parse().unwrap_or(0.0);
            let text = text.replace("model_name=\"tiny\"", &model);
            let text = if name == "vllm:cache_config_info" { cache_config(&text, config) } else { text };
            let label = ["le", "reason", "source", "finished_reason"]
                .iter()
                .find_map(|key| label_value(&text, key))
                .unwrap_or_default()
                .to_owned();
            lines.push(Line::Sample { text, name, label, constant });
        }
        let created_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |age| age.as_secs_f64());
        Self { lines, created_s, max_model_len: config.engine.max_model_len }
    }

    /// The whole text, ~50 KB.
    pub(crate) fn render(&self, engine: &EngineMetrics, http: &HttpMetrics) -> String {
        let mut out = String::with_capacity(64 << 10);
        for line in &self.lines {
            match line {
                Line::Comment(comment) => {
                    out.push_str(comment);
                    out.push('\n');
                }
                Line::Sample { text, name, label, constant } => {
                    if label == "+Inf" {
                        self.extra_buckets(engine, name, text, &mut out);
                    }
                    sample(&mut out, text, self.value(engine, name, label).unwrap_or(*constant));
                }
            }
        }
        http.render(self.created_s, &mut out);
        out
    }

    fn extra_buckets(&self, engine: &EngineMetrics, name: &str, text: &str, out: &mut String) {
        let Some(histogram) = histogram(engine, name.trim_end_matches("_bucket")) else { return };
        if !name.starts_with("vllm:request_") || !name.contains("tokens") {
            return;
        }
        for bound in histogram.bounds().iter().filter(|bound| **bound > TEMPLATE_TOKENS_MAX) {
            if *bound <= self.max_model_len as f64 {
                let text = text.replace("le=\"+Inf\"", &format!("le=\"{bound:?}\""));
                sample(out, &text, histogram.below(*bound) as f64);
            }
        }
    }

    fn value(&self, engine: &EngineMetrics, name: &str, label: &str) -> Option<f64> {
        if name.ends_with("_created") || name == "process_start_time_seconds" {
            return Some(self.created_s);
        }
        let scalar = |value: u64| Some(value as f64);
        let computed = engine.prompt_tokens.saturating_sub(engine.cached_prompt_tokens);
        match (name, label) {
            ("vllm:num_requests_running", _) => return scalar(engine.running as u64),
            ("vllm:num_requests_waiting", _) | ("vllm:num_requests_waiting_by_reason", "capacity") => {
                return scalar(engine.waiting as u64);
            }
            ("vllm:kv_cache_usage_perc", _) => return Some(engine.kv_usage),
            ("vllm:prefix_cache_queries_total", _) => return scalar(engine.prefix_queries),
            ("vllm:prefix_cache_hits_total", _) => return scalar(engine.prefix_hits),
            ("vllm:num_preemptions_total", _) => return scalar(engine.preemptions),
            ("vllm:prompt_tokens_total", _) => return scalar(engine.prompt_tokens),
            ("vllm:prompt_tokens_by_source_total", "local_compute") => return scalar(computed),
            ("vllm:prompt_tokens_by_source_total", "local_cache_hit")
            | ("vllm:prompt_tokens_cached_total", _)
            | ("vllm:prompt_tokens_cached_by_source_total", "device") => {
                return scalar(engine.cached_prompt_tokens);
            }
            ("vllm:generation_tokens_total", _) => return scalar(engine.generation_tokens),
            ("vllm:request_success_total", "stop") => return scalar(engine.finished_stop),
            ("vllm:request_success_total", "length") => return scalar(engine.finished_length),
            ("vllm:admission_rejections_total", "max_num_queued_reqs") => return scalar(engine.rejected),
            _ => {}
        }
        let (family, part) = name.rsplit_once('_')?;
        let histogram = histogram(engine, family)?;
        match part {
            "bucket" if label == "+Inf" => scalar(histogram.count()),
            "bucket" => scalar(histogram.below(label.parse().ok()?)),
            "count" => scalar(histogram.count()),
            "sum" => Some(histogram.sum()),
            _ => None,
        }
    }
}

fn histogram<'a>(engine: &'a EngineMetrics, family: &str) -> Option<&'a Histogram> {
    Some(match family {
        "vllm:request_prompt_tokens" => &engine.request_prompt_tokens,
        "vllm:request_generation_tokens" => &engine.request_generation_tokens,
        "vllm:iteration_tokens_total" => &engine.iteration_tokens,
        "vllm:request_max_num_generation_tokens" | "vllm:request_params_max_tokens" => {
            &engine.request_max_tokens
        }
        "vllm:request_params_n" => &engine.request_n,
        "vllm:request_prefill_kv_computed_tokens" => &engine.request_computed_tokens,
        "vllm:request_num_preemptions" => &engine.request_preemptions,
        "vllm:time_to_first_token_seconds" => &engine.time_to_first_token,
        "vllm:inter_token_latency_seconds" => &engine.inter_token_latency,
        "vllm:request_time_per_output_token_seconds" => &engine.time_per_output_token,
        "vllm:e2e_request_latency_seconds" => &engine.e2e_latency,
        "vllm:request_queue_time_seconds" => &engine.queue_time,
        "vllm:request_inference_time_seconds" => &engine.inference_time,
        "vllm:request_prefill_time_seconds" => &engine.prefill_time,
        "vllm:request_decode_time_seconds" => &engine.decode_time,
        _ => return None,
    })
}

/// Writes one sample line.
fn sample(out: &mut String, text: &str, value: f64) {
    out.push_str(text);
    out.push(' ');
    push_float(out, value);
    out.push('\n');
}

/// `prometheus_client`'s number format: Python's `repr`, with Go's earlier switch to exponents.
fn push_float(out: &mut String, value: f64) {
    let repr = format!("{value:?}");
    let digits = repr.find('.').unwrap_or(repr.len());
    if value > 0.0 && digits > 6 && !repr.contains('e') {
        let mantissa = format!("{}.{}{}", &repr[..1], &repr[1..digits], &repr[digits + 1..]);
        let mantissa = mantissa.trim_end_matches(['0', '.']);
        let _ = write!(out, "{mantissa}e+{:02}", digits - 1); // writing to a String cannot fail
    } else {
        out.push_str(&repr);
    }
}

fn label_value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let pattern = format!("{key}=\"");
    let mut from = 0;
    loop {
        let start = from + text[from..].find(&pattern)?;
        let value = start + pattern.len();
        if matches!(text.as_bytes()[start - 1], b'{' | b',') {
            return text[value..].split('"').next();
        }
        from = value;
    }
}

/// Puts this worker's cache configuration into the recorded `cache_config_info` labels.
fn cache_config(text: &str, config: &SimConfig) -> String {
    let engine = &config.engine;
    let mut text = text.to_owned();
    let tokens = engine.num_blocks * engine.block_size;
    let concurrency = tokens as f64 / engine.max_model_len as f64;
    for (key, value) in [
        ("block_size", engine.block_size.to_string()),
        ("effective_attention_block_size", engine.block_size.to_string()),
        ("num_gpu_blocks", engine.num_blocks.to_string()),
        ("kv_cache_memory_bytes", (engine.num_blocks * BYTES_PER_BLOCK).to_string()),
        ("kv_cache_size_tokens", tokens.to_string()),
        ("kv_cache_max_concurrency", format!("{concurrency:?}")),
        ("prefix_caching_hash_algo", engine.hash_algo.name().to_owned()),
        ("enable_prefix_caching", if engine.enable_prefix_caching { "True" } else { "False" }.to_owned()),
    ] {
        let Some(old) = label_value(&text, key) else { continue };
        let old = format!("{key}=\"{old}\"");
        for separator in ['{', ','] {
            text = text.replace(&format!("{separator}{old}"), &format!("{separator}{key}=\"{value}\""));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_prometheus_client_does() {
        let written = |value| {
            let mut out = String::new();
            push_float(&mut out, value);
            out
        };
        assert_eq!(written(0.0), "0.0");
        assert_eq!(written(31_042.0), "31042.0");
        assert_eq!(written(4_590_604_288.0), "4.590604288e+09");
        assert_eq!(written(0.150_704_999_084_416_8), "0.1507049990844168");
        assert_eq!(written(1_000_000.0), "1e+06");
    }

    #[test]
    fn live_values_take_the_place_of_the_recorded_ones() {
        let config = SimConfig { model: "llama".to_owned(), ..SimConfig::default() };
        let mut engine = EngineMetrics { running: 3, prefix_hits: 48, ..EngineMetrics::default() };
        engine.request_prompt_tokens.observe(30_000.0);
        let text = Renderer::new(&config).render(&engine, &HttpMetrics::default());
        let has = |line: &str| text.lines().any(|own| own == line);
        assert!(has("vllm:num_requests_running{engine=\"0\",model_name=\"llama\"} 3.0"));
        assert!(has("vllm:prefix_cache_hits_total{engine=\"0\",model_name=\"llama\"} 48.0"));
        assert!(has(
            "vllm:request_prompt_tokens_bucket{engine=\"0\",le=\"20000.0\",model_name=\"llama\"} 0.0"
        ));
        assert!(has(
            "vllm:request_prompt_tokens_bucket{engine=\"0\",le=\"50000.0\",model_name=\"llama\"} 1.0"
        ));
        assert!(text.contains(",num_gpu_blocks=\"16384\","));
    }
}
