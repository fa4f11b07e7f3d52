//! Plots of a replay: how many requests had their first token within a time, and times to first token as they went.

use std::{path::Path, str::FromStr, sync::Once};

use plotters::{
    prelude::*,
    style::{FontStyle, register_font},
};

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

/// What a plot is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Lines and text.
    Svg,
    /// Pixels, 8 bits per channel.
    Png,
}

/// A file that a plot can be written to; its name says how.
#[derive(Clone, Debug)]
pub struct PlotFile {
    /// Where.
    pub path: Box<Path>,
    /// How.
    pub format: Format,
}

impl FromStr for PlotFile {
    type Err = &'static str;

    fn from_str(path: &str) -> Result<Self, Self::Err> {
        let path = Path::new(path);
        let format = match path.extension().and_then(|extension| extension.to_str()) {
            Some(extension) if extension.eq_ignore_ascii_case("svg") => Format::Svg,
            Some(extension) if extension.eq_ignore_ascii_case("png") => Format::Png,
            _ => return Err("a plot is a file whose name ends in .svg or .png"),
        };
        Ok(Self { path: path.into(), format })
    }
}

/// The plot of the completed requests, as the bytes of a file.
pub fn plot(title: &str, records: &[Record], format: Format) -> Result<Vec<u8>, PlotError> {
    let good = records.iter().filter(|record| record.error.is_none());
    let points: Vec<(f64, f64)> =
        good.filter_map(|record| Some((record.intended_s, record.ttft_s?))).collect();
    if points.is_empty() {
        return Err(PlotError::Empty);
    }
    know_font();
    let wrong = |error: &dyn std::fmt::Display| PlotError::Draw(error.to_string());
    match format {
        Format::Svg => {
            let mut text = String::new();
            draw(&SVGBackend::with_string(&mut text, SIZE).into_drawing_area(), title, &points)
                .map_err(|error| wrong(&error))?;
            Ok(text.into_bytes())
        }
        Format::Png => {
            let mut pixels = vec![0; 3 * SIZE.0 as usize * SIZE.1 as usize];
            draw(&BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area(), title, &points)
                .map_err(|error| wrong(&error))?;
            encode(&pixels).map_err(|error| wrong(&error))
        }
    }
}

/// Who draws wants to know how wide a text is.
fn know_font() {
    static FONT: Once = Once::new();
    FONT.call_once(|| {
        let known = register_font("sans-serif", FontStyle::Normal, notosans::REGULAR_TTF);
        debug_assert!(known.is_ok(), "the font is one");
    });
}

fn encode(pixels: &[u8]) -> Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, SIZE.0, SIZE.1);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(file)
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
        let text = plot("a trace", &records, Format::Svg).expect("there is something to draw");
        let text = String::from_utf8(text).expect("SVG is text");
        assert!(text.starts_with("<svg") && text.contains("a trace"));
        assert_eq!(text.matches("<circle").count(), 10);
        assert!(matches!(plot("nothing", &[], Format::Svg), Err(PlotError::Empty)));
        assert!(matches!(plot("nothing", &records[..1], Format::Png), Err(PlotError::Empty)));
    }

    #[test]
    fn pixels_show_points_and_words() {
        let drawn = |title: &str, count: usize| {
            let records: Vec<_> = (0..count).map(|i| record(i, None)).collect();
            let file = plot(title, &records, Format::Png).expect("there is something to draw");
            let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info().expect("a PNG");
            let mut pixels = vec![0; reader.output_buffer_size().expect("of a size")];
            reader.next_frame(&mut pixels).expect("a picture");
            assert_eq!((reader.info().width, reader.info().height), SIZE);
            pixels
        };
        let count =
            |pixels: &[u8], is: &dyn Fn(&[u8]) -> bool| pixels.chunks(3).filter(|pixel| is(pixel)).count();
        let blue = |pixel: &[u8]| pixel[2] > pixel[0].saturating_add(60);
        let dark = |pixel: &[u8]| pixel.iter().all(|channel| *channel < 90);
        let (few, many) = (drawn("", 3), drawn("a title", 60));
        assert!(count(&many, &blue) > count(&few, &blue) + 200, "points");
        let top = 3 * 1_000 * 30;
        assert!(count(&many[..top], &dark) > count(&few[..top], &dark) + 50, "the title's letters");
    }

    #[test]
    fn a_name_says_the_format() {
        assert_eq!("a/b.PNG".parse::<PlotFile>().expect("one").format, Format::Png);
        assert_eq!("b.svg".parse::<PlotFile>().expect("one").format, Format::Svg);
        assert!("b.pdf".parse::<PlotFile>().expect_err("none").contains(".svg or .png"));
    }
}
