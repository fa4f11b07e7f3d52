//! The metrics with a series per worker: a worker that leaves takes its series along, so that their number is bounded by the
//! fleet and not by its history.

use std::{collections::HashMap, fmt};

use prometheus::core::{Collector, MetricVec, MetricVecBuilder};

/// The label that names a worker.
pub(super) const WORKER_LABEL: &str = "worker";

/// Removes the series of the worker of this name from one metric.
type Forget = Box<dyn Fn(&str) + Send + Sync>;

/// See the module.
#[derive(Default)]
pub(super) struct ByWorker(Vec<Forget>);

impl fmt::Debug for ByWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} metrics by worker", self.0.len())
    }
}

impl ByWorker {
    /// The metric has the label.
    pub(super) fn note<T: MetricVecBuilder + 'static>(&mut self, metric: MetricVec<T>) {
        self.0.push(Box::new(move |worker| forget(&metric, worker)));
    }

    pub(super) fn forget(&self, worker: &str) {
        self.0.iter().for_each(|forget| forget(worker));
    }
}

fn forget<T: MetricVecBuilder>(metrics: &MetricVec<T>, worker: &str) {
    for family in metrics.collect() {
        for metric in family.get_metric() {
            let labels: HashMap<&str, &str> =
                metric.get_label().iter().map(|label| (label.name(), label.value())).collect();
            if labels.get(WORKER_LABEL) == Some(&worker) {
                // Somebody else may have removed it meanwhile.
                let _ = metrics.remove(&labels);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::telemetry::Metrics;

    #[test]
    fn a_worker_s_series_go_with_it_and_the_others_stay() {
        let metrics = Metrics::new().expect("a fresh registry");
        for name in ["gone", "stays"] {
            metrics.worker(name).completed.inc();
            metrics.kv_events.worker(name).stored.inc();
        }
        metrics.forget_worker("gone");
        let text = metrics.encode().expect("it encodes");
        assert!(!text.contains("worker=\"gone\""), "{text}");
        assert!(
            text.contains("warmpath_worker_requests_total{outcome=\"completed\",worker=\"stays\"} 1"),
            "{text}"
        );
        assert!(text.contains("warmpath_kv_events_total{event=\"stored\",worker=\"stays\"} 1"), "{text}");
        assert_eq!(metrics.worker("gone").completed.get(), 0, "the next of that name begins anew");
    }
}
