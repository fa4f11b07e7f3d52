//! A cumulative histogram with Prometheus' bucket rules.

/// Counts observations per bucket. The bounds are given when it is written out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    bounds: &'static [f64],
    /// One more than `bounds`: the last is +Inf.
    counts: Vec<u64>,
    sum: f64,
    count: u64,
}

impl Histogram {
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0, count: 0 }
    }

    pub(crate) fn observe(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] += 1;
        self.sum += value;
        self.count += 1;
    }

    /// Observations up to and including `bound`.
    pub(crate) fn below(&self, bound: f64) -> u64 {
        let buckets = self.bounds.partition_point(|own| *own <= bound);
        self.counts[..buckets].iter().sum()
    }

    pub(crate) fn bounds(&self) -> &'static [f64] {
        self.bounds
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn sum(&self) -> f64 {
        self.sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_belongs_to_it() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.0, 9.0] {
            histogram.observe(value);
        }
        assert_eq!([1.0, 2.0].map(|bound| histogram.below(bound)), [2, 4]);
        assert_eq!((histogram.count(), histogram.sum()), (5, 14.0));
    }
}
