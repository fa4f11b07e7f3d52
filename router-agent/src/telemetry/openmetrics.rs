//! The OpenMetrics text format (version 1.0.0), for scrapers that ask for it: the only one of Prometheus's text formats
//! that has a place for exemplars. The `prometheus` crate writes the older one.

use std::fmt::Write as _;

use prometheus::proto::{LabelPair, Metric, MetricFamily, MetricType};

use super::exemplars::Exemplars;

/// What such a scraper's `Accept` holds.
pub const MEDIA_TYPE: &str = "application/openmetrics-text";
/// What it is answered.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Writes all families; `exemplars` are those of the histogram `family`, by its label `worker`.
pub(super) fn encode(families: &[MetricFamily], (family, exemplars): (&str, &Exemplars)) -> String {
    let mut text = String::new();
    for of in families {
        let exemplars = Some(exemplars).filter(|_| of.name() == family);
        write_family(&mut text, of, exemplars);
    }
    text.push_str("# EOF\n");
    text
}

fn write_family(text: &mut String, family: &MetricFamily, exemplars: Option<&Exemplars>) {
    let full = family.name();
    // A counter's samples end in `_total`, and its family does not; one without that end is of no type that there is.
    let (name, kind) = match family.get_field_type() {
        MetricType::COUNTER => {
            full.strip_suffix("_total").map_or((full, "unknown"), |name| (name, "counter"))
        }
        MetricType::GAUGE => (full, "gauge"),
        MetricType::HISTOGRAM => (full, "histogram"),
        _ => (full, "unknown"),
    };
    let _ = writeln!(text, "# TYPE {name} {kind}");
    let _ = writeln!(text, "# HELP {name} {}", escaped(family.help()));
    for metric in family.get_metric() {
        let labels = metric.get_label();
        match family.get_field_type() {
            MetricType::COUNTER => sample(text, full, labels, None, metric.get_counter().get_value()),
            MetricType::HISTOGRAM => histogram(text, full, metric, exemplars),
            _ => sample(text, full, labels, None, metric.get_gauge().get_value()),
        }
    }
}

fn histogram(text: &mut String, name: &str, metric: &Metric, exemplars: Option<&Exemplars>) {
    let (labels, histogram) = (metric.get_label(), metric.get_histogram());
    let worker = labels.iter().find(|label| label.name() == "worker").map_or("", |label| label.value());
    let count = histogram.get_sample_count();
    let finite = histogram.get_bucket().iter().filter(|bucket| bucket.upper_bound().is_finite());
    let buckets = finite.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
    let bucket_name = format!("{name}_bucket");
    for (place, (bound, cumulative)) in buckets.chain([(f64::INFINITY, count)]).enumerate() {
        sample(text, &bucket_name, labels, Some(bound), cumulative as f64);
        if let Some(exemplar) = exemplars.and_then(|exemplars| exemplars.of(worker, place)) {
            text.pop(); // the end of the line
            let _ = writeln!(
                text,
                " # {{trace_id=\"{:032x}\"}} {} {:.3}",
                exemplar.trace_id,
                number(exemplar.seconds),
                exemplar.at_s
            );
        }
    }
    sample(text, &format!("{name}_sum"), labels, None, histogram.get_sample_sum());
    sample(text, &format!("{name}_count"), labels, None, count as f64);
}

fn sample(text: &mut String, name: &str, labels: &[LabelPair], bound: Option<f64>, value: f64) {
    text.push_str(name);
    let bound = bound.map(|bound| format!("le=\"{}\"", number(bound)));
    let labels = labels.iter().map(|label| format!("{}=\"{}\"", label.name(), escaped(label.value())));
    let all: Vec<String> = labels.chain(bound).collect();
    if !all.is_empty() {
        let _ = write!(text, "{{{}}}", all.join(","));
    }
    let is_whole = value.fract() == 0.0 && value.abs() < 1e15;
    let _ = if is_whole { writeln!(text, " {value:.0}") } else { writeln!(text, " {}", number(value)) };
}

/// As the specification writes floats: `1.0`, `0.005`, `+Inf`.
fn number(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf".to_owned() } else { "-Inf".to_owned() };
    }
    format!("{value:?}")
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\n', "\\n").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, IntGauge, Opts, Registry};

    use super::*;

    #[test]
    fn every_kind_of_metric_is_written_and_buckets_have_their_exemplars() {
        let registry = Registry::new();
        let counter = IntCounterVec::new(Opts::new("a_total", "A \"b\"."), &["x"]).unwrap();
        counter.with_label_values(&["q\"\\\n"]).inc_by(3);
        let gauge = IntGauge::new("g", "G.").unwrap();
        gauge.set(-2);
        let buckets = vec![0.5, 1.0];
        let times =
            HistogramVec::new(HistogramOpts::new("t_seconds", "T.").buckets(buckets), &["worker"]).unwrap();
        times.with_label_values(&["w"]).observe(0.75);
        registry.register(Box::new(counter)).unwrap();
        registry.register(Box::new(gauge)).unwrap();
        registry.register(Box::new(times)).unwrap();
        let exemplars = Exemplars::new(&[0.5, 1.0]);
        exemplars.note("w", 0.75, 0xabc);
        let text = encode(&registry.gather(), ("t_seconds", &exemplars));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[..3],
            ["# TYPE a counter", "# HELP a A \\\"b\\\".", "a_total{x=\"q\\\"\\\\\\n\"} 3"]
        );
        assert!(lines.contains(&"g -2") && lines.contains(&"# TYPE t_seconds histogram"), "{text}");
        assert!(lines.contains(&"t_seconds_bucket{worker=\"w\",le=\"0.5\"} 0"), "{text}");
        let with = "t_seconds_bucket{worker=\"w\",le=\"1.0\"} 1 # {trace_id=\"00000000000000000000000000000abc\"} 0.75 ";
        assert!(lines.iter().any(|line| line.starts_with(with)), "{text}");
        assert!(lines.contains(&"t_seconds_bucket{worker=\"w\",le=\"+Inf\"} 1"), "{text}");
        assert!(lines.contains(&"t_seconds_sum{worker=\"w\"} 0.75") && lines.ends_with(&["# EOF"]), "{text}");
    }
}
