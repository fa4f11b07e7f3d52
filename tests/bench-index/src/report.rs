//! The table: medians over the trials, with the interval that holds the median of repeated trials with 95 % confidence
//! (order statistics of the binomial distribution; with fewer than six trials: all of them).

use crate::{systems::System, trial::Figures};

type Figure = fn(&Figures) -> f64;

const ROWS: [(&str, Figure); 10] = [
    ("writes, M blocks/s", |figures| figures.write_blocks_per_s / 1e6),
    ("writes and lookups beside each other, M blocks/s", |figures| figures.mixed_blocks_per_s / 1e6),
    ("lookup hot, p50 in us", |figures| figures.hot_us.p50),
    ("lookup hot, p99 in us", |figures| figures.hot_us.p99),
    ("lookup cold, p50 in us", |figures| figures.cold_us.p50),
    ("lookup cold, p99 in us", |figures| figures.cold_us.p99),
    ("lookup beside a writer, p50 in us", |figures| figures.beside_us.p50),
    ("lookup beside a writer, p99 in us", |figures| figures.beside_us.p99),
    ("bytes per (block, worker)", |figures| figures.bytes_per_held),
    ("wrong answers", |figures| figures.wrong_answers as f64),
];

pub(crate) fn print(results: &[(System, Vec<Figures>)]) {
    println!("\n| | {} |", results.iter().map(|(system, _)| system.name()).collect::<Vec<_>>().join(" | "));
    println!("|---{}|", "|---".repeat(results.len()));
    for (name, figure) in ROWS {
        let cells = results.iter().map(|(_, trials)| cell(trials.iter().map(figure).collect()));
        println!("| {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
}

fn cell(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let median = if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    };
    let out = values_outside(values.len());
    format!("{} ({}-{})", shown(median), shown(values[out]), shown(values[values.len() - 1 - out]))
}

/// How many values may be left out at each end, so that what is between still holds the median with 95 %.
fn values_outside(count: usize) -> usize {
    let (mut chance, mut term, mut out) = (0.0, 0.5_f64.powi(count as i32), 0);
    for at in 0..count / 2 {
        chance += term;
        if 2.0 * chance > 0.05 {
            break;
        }
        out = at;
        term *= (count - at) as f64 / (at + 1) as f64;
    }
    out
}

fn shown(value: f64) -> String {
    match value {
        value if value == 0.0 => "0".to_owned(),
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
