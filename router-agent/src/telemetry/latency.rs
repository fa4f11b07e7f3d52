//! The `latency` map as Prometheus histograms: buckets whose ends double, in seconds, per worker.
//!
//! Read when it is scraped, so that the kernel programs and the data threads count in one place only.

use std::collections::{BTreeMap, HashMap};

use prometheus::{
    core::{Collector, Desc},
    proto::{Bucket, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};
use router_common::latency::{BUCKETS, LatencyKind, LatencyValue, bucket_end_seconds};

use crate::{fleet::WorkerList, kernel::Flows};

/// The first bucket that is exported ends at 16 µs; shorter times are in it.
const FIRST: usize = 13;
/// The last one with an end ends at 137 s.
const LAST: usize = 36;
const _: () = assert!(LAST < BUCKETS);

struct Family {
    kind: LatencyKind,
    name: &'static str,
    help: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        kind: LatencyKind::TimeToFirstByte,
        name: "warmpath_stream_first_byte_seconds",
        help: "Request sent to a worker to first body byte of an event stream, stamped by whoever moved it (kernel or user space).",
    },
    Family {
        kind: LatencyKind::EventGap,
        name: "warmpath_stream_event_gap_seconds",
        help: "One event of a stream to the next, stamped by whoever moved them (kernel or user space).",
    },
];

/// Both histograms of every worker.
pub(super) struct LatencyCollector {
    flows: Flows,
    workers: WorkerList,
    descs: Vec<Desc>,
}

impl LatencyCollector {
    pub(super) fn new(flows: Flows, workers: WorkerList) -> prometheus::Result<Self> {
        let desc = |family: &Family| {
            Desc::new(
                family.name.to_owned(),
                family.help.to_owned(),
                vec!["worker".to_owned()],
                HashMap::new(),
            )
        };
        let descs = FAMILIES.iter().map(desc).collect::<prometheus::Result<_>>()?;
        Ok(Self { flows, workers, descs })
    }
}

impl Collector for LatencyCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let family = |family: &Family| {
            // Two workers have one name while one of them leaves: the one that came last has the series.
            let workers = self.workers.load();
            let named: BTreeMap<_, _> =
                workers.iter().map(|worker| (&worker.name, u32::from(worker.slot.0))).collect();
            let of_worker = |(name, slot): (&&String, &u32)| {
                self.flows.latency(*slot, family.kind).map(|value| metric(name, &value))
            };
            let mut out = MetricFamily::default();
            out.set_name(family.name.to_owned());
            out.set_help(family.help.to_owned());
            out.set_field_type(MetricType::HISTOGRAM);
            out.set_metric(named.iter().filter_map(of_worker).collect());
            out
        };
        FAMILIES.iter().map(family).collect()
    }
}

fn metric(worker: &str, value: &LatencyValue) -> Metric {
    let mut label = LabelPair::default();
    label.set_name("worker".to_owned());
    label.set_value(worker.to_owned());
    let mut sum = value.buckets[..FIRST].iter().sum::<u64>();
    let buckets = (FIRST..=LAST)
        .map(|i| {
            sum += value.buckets[i];
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bucket_end_seconds(i));
            bucket.set_cumulative_count(sum);
            bucket
        })
        .collect();
    let mut histogram = Histogram::default();
    // Not `count`, which is read a moment sooner: a histogram must not contradict itself.
    histogram.set_sample_count(value.buckets.iter().sum());
    histogram.set_sample_sum(value.sum_ns as f64 / 1e9);
    histogram.set_bucket(buckets);
    let mut metric = Metric::from_label(vec![label]);
    metric.set_histogram(histogram);
    metric
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_end_where_the_map_s_do() {
        let mut buckets = [0; BUCKETS];
        (buckets[3], buckets[FIRST], buckets[24], buckets[BUCKETS - 1]) = (1, 2, 4, 8);
        let value = LatencyValue {
            worker: 0,
            kind: LatencyKind::EventGap,
            count: 14, // one behind
            sum_ns: 1_500_000_000,
            buckets,
        };
        let metric = metric("w", &value);
        let histogram = metric.get_histogram();
        assert_eq!(histogram.get_sample_count(), 15);
        assert!((histogram.get_sample_sum() - 1.5).abs() < 1e-9);
        let counts: Vec<_> = histogram.get_bucket().iter().map(Bucket::cumulative_count).collect();
        assert_eq!(
            (counts[0], counts[24 - FIRST - 1], counts[24 - FIRST], counts[LAST - FIRST]),
            (3, 3, 7, 7)
        );
        let end = histogram.get_bucket()[24 - FIRST].upper_bound();
        assert!((0.020..0.034).contains(&end), "20 ms are in bucket 24, which ends at {end}");
    }
}
