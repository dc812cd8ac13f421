//! Lines through points, one for each name; axes start at 0, or below where values do.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{FAINT, Failure, INK, Plot, colour, draw_mark, drawable, mark, text};
use crate::Result;

/// Marks on a curve at most; its line has every point.
const MARKS: usize = 16;

/// A curve: its name, place in the order of colours and marks, and points in order of the horizontal axis.
pub type Curve = (String, usize, Vec<(f64, f64)>);

/// Named curves over a common axis.
#[derive(Debug, Clone)]
pub struct CurvePlot {
    /// What it shows.
    pub title: String,
    /// Name of the horizontal axis, with its unit.
    pub x: String,
    /// Name of the vertical axis, with its unit.
    pub y: String,
    /// What is drawn.
    pub curves: Vec<Curve>,
}

impl Plot for CurvePlot {
    fn size(&self) -> (u32, u32) {
        (640, 340 + 18 * self.curves.len() as u32)
    }

    fn draw<B>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<(), Failure>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let inside = |p: &&(f64, f64)| drawable(p.0) && drawable(p.1);
        let points = || {
            self.curves
                .iter()
                .flat_map(|(_, _, points)| points)
                .filter(inside)
        };
        let right = points().fold(1e-9, |m, p| f64::max(m, p.0)) * 1.04;
        let top = points().fold(1e-9, |m, p| f64::max(m, p.1)) * 1.08;
        let bottom = points().fold(0.0, |m, p| f64::min(m, p.1)) * 1.08;
        let (plot, legend) = area.split_vertically(330 * scale);
        let mut chart = ChartBuilder::on(&plot)
            .caption(&self.title, text(14, scale, HPos::Center))
            .margin(8 * scale)
            .set_label_area_size(LabelAreaPosition::Left, 64 * scale)
            .set_label_area_size(LabelAreaPosition::Bottom, 42 * scale)
            .build_cartesian_2d(0.0..right, bottom..top)?;
        chart
            .configure_mesh()
            .x_desc(&self.x)
            .y_desc(&self.y)
            .label_style(text(11, scale, HPos::Center))
            .y_label_style(text(11, scale, HPos::Right))
            .axis_desc_style(text(11, scale, HPos::Center))
            .axis_style(INK.stroke_width(scale))
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (row, (name, i, points)) in self.curves.iter().enumerate() {
            let points: Vec<&(f64, f64)> = points.iter().filter(inside).collect();
            let line = LineSeries::new(
                points.iter().map(|p| **p),
                colour(*i).stroke_width(2 * scale),
            );
            chart.draw_series(line)?;
            let dots = points.iter().step_by(points.len().div_ceil(MARKS).max(1));
            let dots = dots.map(|p| {
                EmptyElement::at(**p) + Polygon::new(mark(*i, 4 * scale), colour(*i).filled())
            });
            chart.draw_series(dots)?;
            let y = (14 + 18 * row as i32) * scale as i32;
            let x = 76 * scale as i32;
            draw_mark(&legend, *i, (x, y), 5 * scale)?;
            let at = (x + 12 * scale as i32, y);
            legend.draw(&Text::new(name.clone(), at, text(12, scale, HPos::Left)))?;
        }
        Ok(())
    }
}
