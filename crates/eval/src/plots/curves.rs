//! Lines through points, one for each name; axes start at 0, or below where values do.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{FAINT, Failure, INK, Plot, colour, text};
use crate::Result;

/// Named curves over a common axis.
#[derive(Debug, Clone)]
pub struct CurvePlot {
    /// What it shows.
    pub title: String,
    /// Name of the horizontal axis, with its unit.
    pub x: String,
    /// Name of the vertical axis, with its unit.
    pub y: String,
    /// Names and points in order of the horizontal axis.
    pub curves: Vec<(String, Vec<(f64, f64)>)>,
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
        let points = || self.curves.iter().flat_map(|(_, points)| points);
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
        for (i, (name, points)) in self.curves.iter().enumerate() {
            let line = LineSeries::new(points.iter().copied(), colour(i).stroke_width(2 * scale));
            chart.draw_series(line)?;
            let dots = points
                .iter()
                .map(|p| Circle::new(*p, 3 * scale, colour(i).filled()));
            chart.draw_series(dots)?;
            let y = (8 + 18 * i as i32) * scale as i32;
            let (left, side) = (70 * scale as i32, 12 * scale as i32);
            let square = [(left, y), (left + side, y + side)];
            legend.draw(&Rectangle::new(square, colour(i).filled()))?;
            let place = (left + side + 6 * scale as i32, y + side / 2);
            legend.draw(&Text::new(name.clone(), place, text(12, scale, HPos::Left)))?;
        }
        Ok(())
    }
}
