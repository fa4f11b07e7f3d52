//! Summary statistics over the requests of a trial.

use serde::Serialize;

/// Mean and nearest-rank percentiles, in the unit of the values. All `NaN` (JSON `null`) when there are none.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Summary {
    pub count: usize,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Summary {
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            count: values.len(),
            mean: mean(&values),
            p50: percentile(&values, 50.0),
            p90: percentile(&values, 90.0),
            p99: percentile(&values, 99.0),
            max: values.last().copied().unwrap_or(f64::NAN),
        }
    }
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The smallest value that at least `percent` per cent of `sorted` do not exceed.
fn percentile(sorted: &[f64], percent: f64) -> f64 {
    let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// How unevenly values are spread: the largest share over the mean share. 1.0 is even; `parts` counts those with
/// nothing too. `NaN` when there is nothing to spread.
pub fn max_over_mean(values: impl IntoIterator<Item = u64>, parts: usize) -> f64 {
    let (mut max, mut total) = (0, 0);
    for value in values {
        max = max.max(value);
        total += value;
    }
    max as f64 * parts as f64 / total as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let summary = Summary::of((1..=200).rev().map(f64::from).collect());
        assert!(close(summary.mean, 100.5));
        assert!(close(summary.p50, 100.0) && close(summary.p90, 180.0) && close(summary.p99, 198.0));
        assert!(close(summary.max, 200.0));
    }

    #[test]
    fn one_value_is_every_percentile_and_none_is_nan() {
        let one = Summary::of(vec![3.0]);
        assert!(close(one.p50, 3.0) && close(one.p99, 3.0) && close(one.mean, 3.0));
        let none = Summary::of(Vec::new());
        assert!(none.mean.is_nan() && none.p50.is_nan() && none.max.is_nan());
    }

    #[test]
    fn spread_counts_idle_workers() {
        assert!(close(max_over_mean([5, 5, 5, 5], 4), 1.0));
        assert!(close(max_over_mean([10], 4), 4.0), "all on one of four");
        assert!(max_over_mean([], 4).is_nan());
    }
}
