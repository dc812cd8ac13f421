//! Weights of the experts over the tokens of one response, stacked to 1.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{FAINT, Failure, INK, Plot, colour, text};
use crate::Result;

/// Expert weights of one response.
#[derive(Debug, Clone)]
pub struct WeightPlot {
    /// Which response it is.
    pub title: String,
    /// Names of the experts.
    pub experts: Vec<String>,
    /// `[tokens, experts]`, row-major, from 0 on; the axis ends at 1 or where the largest row does.
    pub weights: Vec<f32>,
}

impl Plot for WeightPlot {
    fn size(&self) -> (u32, u32) {
        (680, 260)
    }

    fn draw<B>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<(), Failure>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let experts = self.experts.len().max(1);
        let tokens = self.weights.len() / experts;
        let sums = self.weights.chunks(experts);
        let sums = sums.map(|row| row.iter().map(|w| f64::from(*w)).sum::<f64>());
        let top = sums.fold(1.0, f64::max);
        let (plot, legend) = area.split_vertically(226 * scale);
        let mut chart = ChartBuilder::on(&plot)
            .caption(&self.title, text(13, scale, HPos::Center))
            .margin(6 * scale)
            .set_label_area_size(LabelAreaPosition::Left, 44 * scale)
            .set_label_area_size(LabelAreaPosition::Bottom, 40 * scale)
            .build_cartesian_2d(0.0..tokens.max(1) as f64, 0.0..top)?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(10)
            .y_labels(3)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.1}"))
            .x_desc("token")
            .y_desc("weight")
            .label_style(text(11, scale, HPos::Center))
            .axis_desc_style(text(11, scale, HPos::Center))
            .axis_style(INK.stroke_width(scale))
            .bold_line_style(FAINT)
            .draw()?;
        for (t, row) in self.weights.chunks(experts).enumerate() {
            let mut from = 0.0;
            for (expert, &weight) in row.iter().enumerate() {
                let to = from + f64::from(weight);
                let corners = [(t as f64, from), (t as f64 + 1.0, to)];
                chart.draw_series([Rectangle::new(corners, colour(expert).mix(0.85).filled())])?;
                from = to;
            }
        }
        let mut x = 50;
        for (expert, name) in self.experts.iter().enumerate() {
            let (left, top, side) = (x * scale as i32, 8 * scale as i32, 12 * scale as i32);
            let square = [(left, top), (left + side, top + side)];
            legend.draw(&Rectangle::new(square, colour(expert).mix(0.85).filled()))?;
            let place = (left + side + 5 * scale as i32, top + side / 2);
            legend.draw(&Text::new(name.clone(), place, text(12, scale, HPos::Left)))?;
            x += 34 + 8 * name.chars().count() as i32;
        }
        Ok(())
    }
}
