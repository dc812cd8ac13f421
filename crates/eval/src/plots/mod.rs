//! Plots, one file each. A plot is data that can draw itself on any backend; [`save`] makes the SVG
//! and the PNG.
//!
//! ```
//! use mope_eval::plots::{HeatPlot, svg};
//! let wins = HeatPlot {
//!     title: "wins".into(),
//!     rows: vec!["pcm".into()],
//!     columns: vec!["uniform".into()],
//!     values: vec![Some(0.75)],
//!     middle: 0.5,
//! };
//! assert!(svg(&wins)?.contains("0.75"));
//! # Ok::<(), mope_eval::Error>(())
//! ```

mod curves;
mod dots;
mod front;
mod heat;
mod scatter;
mod tick;
mod weights;

use std::path::Path;
use std::sync::OnceLock;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub use curves::{Curve, CurvePlot};
pub use dots::DotPlot;
pub use front::FrontPlot;
pub use heat::HeatPlot;
pub use scatter::ScatterPlot;
pub use weights::WeightPlot;

pub use crate::colours::COLOURS;

use crate::statistics::Estimate;
use crate::{Error, Result, write_atomic};

/// Why a backend could not draw.
pub type Failure = Box<dyn std::error::Error>;

/// Something that can be drawn.
pub trait Plot {
    /// Width and height at scale 1, in pixels.
    fn size(&self) -> (u32, u32);

    /// Draws on an area of `scale` times [`Self::size`].
    ///
    /// # Errors
    /// [`Failure`] of the backend: a file that cannot be written, a text that cannot be laid out.
    fn draw<B>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<(), Failure>
    where
        B: DrawingBackend,
        B::ErrorType: 'static;
}

/// A name with its place in the order of colours and marks: the same in every plot of a run, whatever the order of its
/// rows.
pub type Labelled = (String, usize);

/// The colour of the `i`-th strategy or expert.
pub fn colour(i: usize) -> RGBColor {
    let [r, g, b] = COLOURS[i % COLOURS.len()];
    RGBColor(r, g, b)
}

/// Corners of the mark of the `i`-th strategy or expert around the origin, in pixels: shapes stay apart where colours
/// don't, in grey and on poor prints. Seven shapes and eight colours make 56 marks.
fn mark(i: usize, radius: u32) -> Vec<(i32, i32)> {
    let around = |corners: usize, turn: f64, size: &dyn Fn(usize) -> f64| -> Vec<(i32, i32)> {
        let corner = |k: usize| {
            let angle = std::f64::consts::TAU * (k as f64 / corners as f64 + turn);
            let far = f64::from(radius) * size(k);
            let (x, y) = (far * angle.sin(), -far * angle.cos());
            (x.round() as i32, y.round() as i32)
        };
        (0..corners).map(corner).collect()
    };
    match i % 7 {
        0 => around(16, 0.0, &|_| 1.0),
        1 => around(4, 0.125, &|_| 1.25),
        2 => around(3, 0.0, &|_| 1.35),
        3 => around(4, 0.0, &|_| 1.35),
        4 => around(3, 0.5, &|_| 1.35),
        5 => around(8, 0.0, &|k| if k % 2 == 0 { 1.6 } else { 0.6 }),
        _ => around(8, 0.125, &|k| if k % 2 == 0 { 1.6 } else { 0.6 }),
    }
}

/// The mark of the `i`-th strategy or expert on a drawing area, around `centre`.
fn draw_mark<B>(
    area: &DrawingArea<B, Shift>,
    i: usize,
    centre: (i32, i32),
    radius: u32,
) -> Result<(), Failure>
where
    B: DrawingBackend,
    B::ErrorType: 'static,
{
    let corners = mark(i, radius).into_iter();
    let corners: Vec<(i32, i32)> = corners.map(|(x, y)| (centre.0 + x, centre.1 + y)).collect();
    Ok(area.draw(&Polygon::new(corners, colour(i).filled()))?)
}

/// Pixels of a PNG per pixel of the SVG, so that it prints well.
const PNG_SCALE: u32 = 2;
/// Pixels that are drawn per pixel of a PNG, each way: letters stand where they belong, not at the nearest pixel, and edges
/// are smooth.
const SMOOTH: u32 = 2;
/// What an SVG's text is set in: the font that it was measured with, or one as wide.
const FAMILIES: &str = "font-family=\"DejaVu Sans,Verdana,Helvetica,Arial,sans-serif\"";
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(225, 225, 225);

/// Makes the bundled font the one that text is measured and drawn with.
fn font() -> Result<&'static str> {
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    const FAMILY: &str = "sans-serif";
    let bytes = include_bytes!("../fonts/DejaVuSans.ttf");
    let registered = *REGISTERED
        .get_or_init(|| plotters::style::register_font(FAMILY, FontStyle::Normal, bytes).is_ok());
    if registered {
        return Ok(FAMILY);
    }
    Err(Error::Plot {
        path: "font".into(),
        message: "the bundled font is damaged".into(),
    })
}

/// A text style of `size` pixels at scale 1.
fn text(size: u32, scale: u32, horizontal: HPos) -> TextStyle<'static> {
    ("sans-serif", size * scale)
        .into_font()
        .color(&INK)
        .pos(Pos::new(horizontal, VPos::Center))
}

fn failed(path: &Path, e: impl std::fmt::Display) -> Error {
    Error::Plot {
        path: path.into(),
        message: e.to_string(),
    }
}

/// The plot as SVG.
///
/// # Errors
/// [`Error::Plot`].
pub fn svg(plot: &impl Plot) -> Result<String> {
    font()?;
    let mut out = String::new();
    {
        let area = SVGBackend::with_string(&mut out, plot.size()).into_drawing_area();
        let drawn = area.fill(&WHITE).map_err(Failure::from);
        drawn
            .and_then(|()| plot.draw(&area, 1))
            .and_then(|()| area.present().map_err(Failure::from))
            .map_err(|e| failed(Path::new("svg"), e))?;
    }
    Ok(out.replace("font-family=\"sans-serif\"", FAMILIES))
}

/// The mean of each square of `SMOOTH × SMOOTH` pixels; `width` and the height are those of the result.
fn smoothed(drawn: &[u8], width: u32) -> Vec<u8> {
    let (wide, step) = (width as usize * SMOOTH as usize, SMOOTH as usize);
    let rows = drawn.chunks_exact(3 * wide * step);
    let mean = |rows: &[u8], x: usize, channel: usize| {
        let pixels =
            (0..step * step).map(|i| (i / step * wide + x * step + i % step) * 3 + channel);
        let sum: usize = pixels.map(|at| usize::from(rows[at])).sum();
        ((sum + step * step / 2) / (step * step)) as u8
    };
    let each_row =
        rows.flat_map(|rows| (0..width as usize * 3).map(move |at| mean(rows, at / 3, at % 3)));
    each_row.collect()
}

/// Writes `folder/name.svg` and `folder/name.png`; returns the SVG.
///
/// # Errors
/// [`Error::Plot`] and [`Error::Io`].
pub fn save(folder: &Path, name: &str, plot: &impl Plot) -> Result<String> {
    let svg = svg(plot)?;
    write_atomic(&folder.join(format!("{name}.svg")), svg.as_bytes())?;
    let path = folder.join(format!("{name}.png"));
    // plotters chooses the format by the ending and writes the file itself.
    let beside = crate::files::unforeseen(&path, "part.png");
    let (width, height) = plot.size();
    let size = (width * PNG_SCALE, height * PNG_SCALE);
    let large = (size.0 * SMOOTH, size.1 * SMOOTH);
    let mut drawn = vec![0; large.0 as usize * large.1 as usize * 3];
    {
        let area = BitMapBackend::with_buffer(&mut drawn, large).into_drawing_area();
        area.fill(&WHITE)
            .map_err(Failure::from)
            .and_then(|()| plot.draw(&area, PNG_SCALE * SMOOTH))
            .and_then(|()| area.present().map_err(Failure::from))
            .map_err(|e| failed(&path, e))?;
    }
    let written = {
        let mut file = BitMapBackend::new(&beside, size);
        file.blit_bitmap((0, 0), size, &smoothed(&drawn, size.0))
            .and_then(|()| file.present())
            .map_err(|e| failed(&path, e))
    };
    let saved = written.and_then(|()| std::fs::rename(&beside, &path).map_err(Error::io(&path)));
    if saved.is_err() {
        // The first error is the one to report; a left-over `.part.png` is never read.
        drop(std::fs::remove_file(&beside));
    }
    saved.map(|()| svg)
}

/// Width of a left margin that holds the labels, in pixels at scale 1.
fn label_width(labels: &[String]) -> u32 {
    let longest = labels.iter().map(|l| l.chars().count()).max().unwrap_or(0);
    12 + 7 * longest as u32
}

/// A number that an axis can hold; others are not drawn.
fn drawable(value: f64) -> bool {
    /// Beyond it a range's width may overflow.
    const LARGEST: f64 = 1e100;
    value.abs() <= LARGEST
}

/// An estimate that axes can hold.
fn drawn(estimate: &Estimate) -> bool {
    [estimate.mean, estimate.low, estimate.high]
        .into_iter()
        .all(drawable)
}

/// Free space beside values from `low` to `high`: a share of their range, and so much that it is one.
fn margin(low: f64, high: f64, share: f64) -> f64 {
    let size = low.abs().max(high.abs());
    ((high - low) * share).max(0.01).max(1e-6 * size)
}

/// Smallest range that holds all intervals and `at`, with a margin of a twentieth.
fn range<'a>(estimates: impl Iterator<Item = &'a Estimate>, at: f64) -> std::ops::Range<f64> {
    let ends = estimates.filter(|e| drawn(e)).flat_map(|e| [e.low, e.high]);
    let (low, high) = ends.fold((at, at), |(low, high), v| (low.min(v), high.max(v)));
    let margin = margin(low, high, 0.05);
    low - margin..high + margin
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn estimate(mean: f64) -> Option<Estimate> {
        Some(Estimate {
            mean,
            low: mean - 0.1,
            high: mean + 0.2,
            count: 10,
        })
    }

    #[test]
    fn squares_of_pixels_become_one() {
        // Two pixels beside each other, each of four: black and white, and one grey.
        let (black, white, grey) = ([0u8; 3], [255u8; 3], [100u8; 3]);
        let drawn = [black, white, grey, grey, white, black, grey, grey].concat();
        assert_eq!(smoothed(&drawn, 2), [128, 128, 128, 100, 100, 100]);
    }

    #[test]
    fn marks_are_apart() {
        let marks: std::collections::BTreeSet<_> = (0..56)
            .map(|i| {
                let RGBColor(r, g, b) = colour(i);
                (mark(i, 5), (r, g, b))
            })
            .collect();
        assert_eq!(marks.len(), 56);
    }

    #[test]
    fn every_plot_is_drawn_with_its_labels_in_both_formats() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["base".to_string(), "fixed <log>".to_string()];
        let rows = [(names[0].clone(), 1), (names[1].clone(), 0)];
        let rewards = DotPlot {
            rows: rows.to_vec(),
            panels: vec![
                ("style".into(), vec![estimate(0.1), None]),
                ("expertise".into(), vec![estimate(-1.0), estimate(2.0)]),
            ],
            axis: "reward".into(),
            at: 0.0,
        };
        let svg = save(folder.path(), "rewards", &rewards).unwrap();
        for part in ["base", "fixed &lt;log&gt;", "style", "expertise"] {
            assert!(svg.contains(part), "{part}");
        }
        let utility = DotPlot {
            rows: rows.to_vec(),
            panels: vec![("utility".into(), vec![estimate(0.4), estimate(0.6)])],
            axis: "utility".into(),
            at: 0.5,
        };
        assert!(
            save(folder.path(), "utility", &utility)
                .unwrap()
                .contains("utility")
        );
        let wins = HeatPlot {
            title: "wins".into(),
            rows: names.to_vec(),
            columns: names.to_vec(),
            values: vec![None, Some(0.25), Some(0.75), None],
            middle: 0.5,
        };
        assert!(
            save(folder.path(), "win_rates", &wins)
                .unwrap()
                .contains("0.75")
        );
        let weights = WeightPlot {
            title: "a question".into(),
            experts: names.to_vec(),
            places: vec![0, 3],
            weights: vec![0.5, 0.5, 0.9, 0.1, 0.0, 1.0],
        };
        assert!(
            save(folder.path(), "weights", &weights)
                .unwrap()
                .contains("token")
        );
        let curves = CurvePlot {
            title: "speed".into(),
            x: "lanes".into(),
            y: "tokens".into(),
            curves: vec![("Q8".into(), 0, vec![(1.0, 2.0), (2.0, 3.5)])],
        };
        assert!(
            save(folder.path(), "curves", &curves)
                .unwrap()
                .contains("lanes")
        );
        let point = |name: &str, x| Some(((name.to_string(), 0), estimate(x)?, estimate(-x)?));
        let scatter = ScatterPlot {
            title: "far".into(),
            x: "nats".into(),
            y: "utility".into(),
            points: vec![point("a", 0.5).unwrap(), point("b", 1.5).unwrap()],
        };
        assert!(
            save(folder.path(), "scatter", &scatter)
                .unwrap()
                .contains("nats")
        );
        let front = FrontPlot {
            title: "sweep".into(),
            directions: ["+style".into(), "−length".into()],
            fronts: vec![(("soup".into(), 3), vec![[0.0, 1.0], [1.0, 0.5]])],
            reference: [-2.0, -2.0],
        };
        assert!(
            save(folder.path(), "front", &front)
                .unwrap()
                .contains("+style")
        );
        for name in [
            "rewards",
            "utility",
            "win_rates",
            "weights",
            "curves",
            "scatter",
            "front",
        ] {
            let png = std::fs::read(folder.path().join(format!("{name}.png"))).unwrap();
            assert_eq!(&png[1..4], b"PNG");
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 14);
    }
}
