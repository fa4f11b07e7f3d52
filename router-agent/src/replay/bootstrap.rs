//! Confidence intervals by a paired block bootstrap.
//!
//! Latencies of neighbouring requests depend on each other: they waited in the same queue. So whole blocks of
//! consecutive requests are drawn with replacement, from each seed's trial in turn (Künsch 1989, in the circular form of
//! Politis and Romano 1992), and every statistic is taken again over what was drawn. All contenders of a load replayed
//! the same requests at the same moments, so each draw takes the same blocks of all of them: the interval of a ratio of
//! two contenders is that of the paired difference and narrower than their own intervals suggest.

use serde::Serialize;

use super::stats::Summary;

/// Consecutive requests that are drawn together: some ten seconds of the trace at a fleet's capacity.
const BLOCK_REQUESTS: usize = 40;
/// Draws per load.
const DRAWS: usize = 1_000;
/// Of every interval.
pub const CONFIDENCE: f64 = 0.95;

/// One of the figures of a summary.
pub type Statistic = fn(&Summary) -> f64;

/// Those that are compared, by name.
pub const STATISTICS: [(&str, Statistic); 4] = [
    ("mean", |summary| summary.mean),
    ("p50", |summary| summary.p50),
    ("p90", |summary| summary.p90),
    ("p99", |summary| summary.p99),
];

/// A figure over all seeds and its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Estimate {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

/// One value per request (none: it failed) of one trial per seed.
pub type Sample = Vec<Vec<Option<f64>>>;

/// The statistics of one contender, over the draws that it shares with the others.
pub struct Draws {
    whole: Summary,
    drawn: Vec<Summary>,
}

/// Draws for all contenders of one load. Every sample has the same seeds and requests.
pub fn draw(samples: &[Sample]) -> Vec<Draws> {
    let mut random = fastrand::Rng::with_seed(0x626f_6f74);
    let mut all: Vec<Draws> = samples
        .iter()
        .map(|sample| Draws {
            whole: Summary::of(sample.iter().flatten().flatten().copied().collect()),
            drawn: Vec::with_capacity(DRAWS),
        })
        .collect();
    for _ in 0..DRAWS {
        let lengths = samples.first().into_iter().flatten().map(Vec::len);
        let starts: Vec<Vec<usize>> = lengths
            .map(|length| {
                (0..length.div_ceil(block(length))).map(|_| random.usize(..length.max(1))).collect()
            })
            .collect();
        for (draws, sample) in all.iter_mut().zip(samples) {
            let mut values = Vec::new();
            for (trial, starts) in sample.iter().zip(&starts) {
                let indices = starts.iter().flat_map(|start| *start..start + block(trial.len()));
                values.extend(indices.take(trial.len()).filter_map(|index| trial[index % trial.len()]));
            }
            draws.drawn.push(Summary::of(values));
        }
    }
    all
}

/// At least four blocks, so that draws of a short trial differ.
fn block(length: usize) -> usize {
    BLOCK_REQUESTS.min(length / 4).max(1)
}

impl Draws {
    pub fn estimate(&self, statistic: Statistic) -> Estimate {
        interval(statistic(&self.whole), self.drawn.iter().map(statistic).collect())
    }

    /// Of this contender's statistic over the other's, from the same draws.
    pub fn ratio(&self, other: &Self, statistic: Statistic) -> Estimate {
        let ratios =
            self.drawn.iter().zip(&other.drawn).map(|(own, other)| statistic(own) / statistic(other));
        interval(statistic(&self.whole) / statistic(&other.whole), ratios.collect())
    }
}

/// Percentile interval, of the draws that had anything in them.
fn interval(value: f64, mut drawn: Vec<f64>) -> Estimate {
    drawn.retain(|value| !value.is_nan());
    drawn.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    let at = |share: f64| drawn.get((share * drawn.len().saturating_sub(1) as f64).round() as usize).copied();
    Estimate { value, low: at(tail).unwrap_or(f64::NAN), high: at(1.0 - tail).unwrap_or(f64::NAN) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Queue-like noise: a slow wave that all contenders share, and noise of each request.
    fn sample(seed: u64, factor: f64) -> Sample {
        let mut random = fastrand::Rng::with_seed(seed);
        let trial = |phase: f64, random: &mut fastrand::Rng| {
            (0..400)
                .map(|i| Some(factor * (2.0 + (f64::from(i) / 60.0 + phase).sin() + 0.2 * random.f64())))
                .collect()
        };
        vec![trial(0.0, &mut random), trial(1.0, &mut random), trial(2.0, &mut random)]
    }

    #[test]
    fn a_ten_per_cent_difference_is_found_and_none_is_not() {
        let draws = draw(&[sample(1, 1.0), sample(2, 1.0), sample(3, 1.1)]);
        let (_, mean) = STATISTICS[0];
        let same = draws[1].ratio(&draws[0], mean);
        assert!(same.low < 1.0 && same.high > 1.0, "{same:?}");
        let slower = draws[2].ratio(&draws[0], mean);
        assert!(slower.low > 1.05 && slower.high < 1.15, "{slower:?}");
        let own = draws[0].estimate(mean);
        assert!(own.low < own.value && own.value < own.high, "{own:?}");
        assert!(
            slower.high - slower.low < (own.high - own.low) / own.value,
            "pairing takes the shared wave out"
        );
    }

    #[test]
    fn a_short_trial_has_an_interval_too() {
        let values = (0..20).map(|i| Some(f64::from(i))).collect();
        let (_, mean) = STATISTICS[0];
        let estimate = draw(&[vec![values]])[0].estimate(mean);
        assert!(estimate.low < 9.5 && estimate.high > 9.5, "{estimate:?}");
    }

    #[test]
    fn failures_are_left_out_and_nothing_is_no_figure() {
        let draws = draw(&[vec![vec![Some(2.0), None, Some(2.0)]], vec![vec![None, None, None]]]);
        let (_, p50) = STATISTICS[1];
        assert_eq!(draws[0].estimate(p50), Estimate { value: 2.0, low: 2.0, high: 2.0 });
        assert!(draws[1].estimate(p50).value.is_nan());
    }
}
