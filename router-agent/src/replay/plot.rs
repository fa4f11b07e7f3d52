//! Plots of a replay as SVG: how many requests had their first token within a time, and times to first token as they went.

use plotters::prelude::*;

use super::{drive::Record, stats::Summary};

/// Pixels.
const SIZE: (u32, u32) = (1_000, 760);
const COLOUR: RGBColor = RGBColor(31, 119, 180);

/// Why there is no plot.
#[derive(Debug, thiserror::Error)]
pub enum PlotError {
    /// Nothing was answered.
    #[error("no request has a time to first token")]
    Empty,
    /// The drawing library's word.
    #[error("{0}")]
    Draw(String),
}

/// The plot of the completed requests.
pub fn svg(title: &str, records: &[Record]) -> Result<String, PlotError> {
    let good = records.iter().filter(|record| record.error.is_none());
    let points: Vec<(f64, f64)> =
        good.filter_map(|record| Some((record.intended_s, record.ttft_s?))).collect();
    if points.is_empty() {
        return Err(PlotError::Empty);
    }
    let mut text = String::new();
    draw(&SVGBackend::with_string(&mut text, SIZE).into_drawing_area(), title, &points)
        .map_err(|error| PlotError::Draw(error.to_string()))?;
    Ok(text)
}

fn draw<'a, B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    title: &str,
    points: &[(f64, f64)],
) -> Result<(), DrawingAreaErrorKind<B::ErrorType>>
where
    B::ErrorType: 'a,
{
    area.fill(&WHITE)?;
    let area = area.titled(title, ("sans-serif", 22))?;
    let (upper, lower) = area.split_vertically(SIZE.1 / 2);
    let mut sorted: Vec<f64> = points.iter().map(|(_, ttft)| *ttft).collect();
    sorted.sort_by(f64::total_cmp);
    let Summary { p99, max, .. } = Summary::of(sorted.clone());
    let count = sorted.len() as f64;

    let mut chart = ChartBuilder::on(&upper)
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..(p99 * 1.2).max(1e-3), 0.0..100.0)?;
    chart.configure_mesh().x_desc("time to first token, s").y_desc("requests, %").draw()?;
    let share = sorted.iter().enumerate().map(|(i, ttft)| (*ttft, 100.0 * (i + 1) as f64 / count));
    chart.draw_series(LineSeries::new(share, COLOUR.stroke_width(2)))?;

    let last = points.iter().map(|(at, _)| *at).fold(1e-3, f64::max);
    let mut chart = ChartBuilder::on(&lower)
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..last, 0.0..(max * 1.05).max(1e-3))?;
    chart.configure_mesh().x_desc("sent at, s").y_desc("time to first token, s").draw()?;
    chart.draw_series(points.iter().map(|point| Circle::new(*point, 2, COLOUR.mix(0.6).filled())))?;
    area.present()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(index: usize, error: Option<&str>) -> Record {
        Record {
            index,
            intended_s: index as f64,
            late_s: 0.0,
            ttft_s: Some(0.1 * index as f64),
            itl_s: None,
            end_s: 10.0,
            prompt_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            worker: None,
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn every_completed_request_is_a_point() {
        let records: Vec<_> = (0..20).map(|i| record(i, (i % 2 == 0).then_some("broken"))).collect();
        let text = svg("a trace", &records).expect("there is something to draw");
        assert!(text.starts_with("<svg") && text.contains("a trace"));
        assert_eq!(text.matches("<circle").count(), 10);
        assert!(matches!(svg("nothing", &records[..1]), Err(PlotError::Empty)));
    }
}
