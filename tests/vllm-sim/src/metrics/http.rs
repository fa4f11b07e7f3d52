//! The `http_*` families of `prometheus_fastapi_instrumentator`, whose handlers appear as they are first used.

use std::fmt::Write as _;
use std::time::Duration;

use super::{Histogram, sample};

const HIGH_RESOLUTION_S: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 7.5, 10.0,
    30.0, 60.0,
];
const LOW_RESOLUTION_S: &[f64] = &[0.1, 0.5, 1.0];
/// Handlers that vLLM leaves out.
const EXCLUDED: &[&str] = &["/metrics", "/health", "/load", "/ping", "/version", "/server_info"];

/// Counters per handler.
#[derive(Clone, Debug)]
pub(crate) struct HttpMetrics {
    handlers: Vec<Handler>,
    statuses: Vec<Status>,
    all: Histogram,
}

#[derive(Clone, Debug)]
struct Handler {
    path: &'static str,
    method: String,
    requests: u64,
    request_bytes: u64,
    response_bytes: u64,
    seconds: Histogram,
}

type BytesOf = fn(&Handler) -> u64;

#[derive(Clone, Debug)]
struct Status {
    path: &'static str,
    method: String,
    class: u16,
    requests: u64,
}

impl Default for HttpMetrics {
    fn default() -> Self {
        Self { handlers: Vec::new(), statuses: Vec::new(), all: Histogram::new(HIGH_RESOLUTION_S) }
    }
}

impl HttpMetrics {
    /// Counts one answered request; `path` is the route's, or "none".
    pub(crate) fn observe(
        &mut self,
        (method, path): (&str, &'static str),
        status: u16,
        (request_bytes, response_bytes): (u64, u64),
        took: Duration,
    ) {
        if EXCLUDED.contains(&path) {
            return;
        }
        self.all.observe(took.as_secs_f64());
        let class = status / 100;
        match self
            .statuses
            .iter_mut()
            .find(|own| own.path == path && own.method == method && own.class == class)
        {
            Some(own) => own.requests += 1,
            None => self.statuses.push(Status { path, method: method.to_owned(), class, requests: 1 }),
        }
        let index = self.handlers.iter().position(|own| own.path == path && own.method == method);
        let index = index.unwrap_or_else(|| {
            self.handlers.push(Handler {
                path,
                method: method.to_owned(),
                requests: 0,
                request_bytes: 0,
                response_bytes: 0,
                seconds: Histogram::new(LOW_RESOLUTION_S),
            });
            self.handlers.len() - 1
        });
        let handler = &mut self.handlers[index];
        handler.requests += 1;
        handler.request_bytes += request_bytes;
        handler.response_bytes += response_bytes;
        handler.seconds.observe(took.as_secs_f64());
    }

    pub(super) fn render(&self, created_s: f64, out: &mut String) {
        let mut family = |name: &str, help: &str, kind: &str, samples: &[(String, f64)]| {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n"); // writing to a String cannot fail
            for (text, value) in samples {
                sample(out, text, *value);
            }
        };
        let mut counted = |name: &str,
                           help: &str,
                           kind: &str,
                           total: &str,
                           samples: &[(String, f64)],
                           labels: &[String]| {
            family(&format!("{name}{total}"), help, kind, samples);
            let created: Vec<_> =
                labels.iter().map(|labels| (format!("{name}_created{labels}"), created_s)).collect();
            family(&format!("{name}_created"), help, "gauge", &created);
        };

        let labels: Vec<_> = self
            .statuses
            .iter()
            .map(|own| {
                format!("{{handler=\"{}\",method=\"{}\",status=\"{}xx\"}}", own.path, own.method, own.class)
            })
            .collect();
        let samples: Vec<_> = std::iter::zip(&labels, &self.statuses)
            .map(|(labels, own)| (format!("http_requests_total{labels}"), own.requests as f64))
            .collect();
        let help = "Total number of requests by method, status and handler.";
        counted("http_requests", help, "counter", "_total", &samples, &labels);

        let by_path: Vec<_> =
            self.handlers.iter().map(|own| format!("{{handler=\"{}\"}}", own.path)).collect();
        let sizes: [(&str, &str, BytesOf); 2] = [
            ("http_request_size_bytes", "incoming requests", |own| own.request_bytes),
            ("http_response_size_bytes", "outgoing responses", |own| own.response_bytes),
        ];
        for (name, what, bytes) in sizes {
            let help = format!(
                "Content length of {what} by handler. Only value of header is respected. Otherwise ignored. No \
                 percentile calculated. "
            );
            let samples: Vec<_> = std::iter::zip(&by_path, &self.handlers)
                .flat_map(|(labels, own)| {
                    [
                        (format!("{name}_count{labels}"), own.requests as f64),
                        (format!("{name}_sum{labels}"), bytes(own) as f64),
                    ]
                })
                .collect();
            counted(name, &help, "summary", "", &samples, &by_path);
        }

        let name = "http_request_duration_highr_seconds";
        let help = "Latency with many buckets but no API specific labels. Made for more accurate percentile \
                    calculations. ";
        counted(name, help, "histogram", "", &buckets(name, &[], &self.all), &[String::new()]);

        let name = "http_request_duration_seconds";
        let help = "Latency with only few buckets by handler. Made to be only used if aggregation by handler is \
                    important. ";
        let (mut samples, mut labels) = (Vec::new(), Vec::new());
        for own in &self.handlers {
            let keys = [("handler", own.path), ("method", own.method.as_str())];
            samples.extend(buckets(name, &keys, &own.seconds));
            labels.push(join(&keys));
        }
        counted(name, help, "histogram", "", &samples, &labels);
    }
}

fn join(labels: &[(&str, &str)]) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{value}\"")).collect();
    format!("{{{}}}", labels.join(","))
}

/// The samples of one histogram; labels stay in alphabetical order.
fn buckets(name: &str, labels: &[(&str, &str)], histogram: &Histogram) -> Vec<(String, f64)> {
    let bounds = histogram.bounds().iter().map(|bound| (format!("{bound:?}"), histogram.below(*bound)));
    let mut samples: Vec<_> = bounds
        .chain([("+Inf".to_owned(), histogram.count())])
        .map(|(bound, count)| {
            let mut all = labels.to_vec();
            all.push(("le", &bound));
            all.sort_unstable();
            (format!("{name}_bucket{}", join(&all)), count as f64)
        })
        .collect();
    samples.push((format!("{name}_count{}", join(labels)), histogram.count() as f64));
    samples.push((format!("{name}_sum{}", join(labels)), histogram.sum()));
    samples
}
