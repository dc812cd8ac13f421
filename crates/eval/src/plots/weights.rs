//! Weights of the experts over the tokens of one response, stacked to 1.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{FAINT, Failure, INK, Plot, colour, drawable, text};
use crate::Result;

/// Expert weights of one response.
#[derive(Debug, Clone)]
pub struct WeightPlot {
    /// Which response it is.
    pub title: String,
    /// Names of the experts.
    pub experts: Vec<String>,
    /// Their indices in the order of colours.
    pub places: Vec<usize>,
    /// `[tokens, experts]`, row-major, from 0 on; the axis ends at 1 or where the largest row does.
    pub weights: Vec<f32>,
}

const WIDTH: u32 = 680;
const HEIGHT: u32 = 226;

impl WeightPlot {
    /// Where each expert stands in the legend, in as many rows as there must be.
    fn legend(&self) -> Vec<(i32, i32)> {
        let (mut x, mut y) = (50, 8);
        let corner = |name: &String| {
            let wide = 34 + 8 * name.chars().count() as i32;
            if x > 50 && x + wide > WIDTH as i32 {
                (x, y) = (50, y + 18);
            }
            let corner = (x, y);
            x += wide;
            corner
        };
        self.experts.iter().map(corner).collect()
    }
}

impl Plot for WeightPlot {
    fn size(&self) -> (u32, u32) {
        let lowest = self.legend().last().map_or(0, |p| p.1);
        (WIDTH, HEIGHT + 34 + lowest as u32)
    }

    fn draw<B>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<(), Failure>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let experts = self.experts.len().max(1);
        let tokens = self.weights.len() / experts;
        // What an axis cannot hold has no height.
        let height = |w: &f32| Some(f64::from(*w)).filter(|w| drawable(*w)).unwrap_or(0.0);
        let sums = self.weights.chunks(experts);
        let sums = sums.map(|row| row.iter().map(height).sum::<f64>());
        let top = sums.fold(1.0, f64::max);
        let (plot, legend) = area.split_vertically(HEIGHT * scale);
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
        // A band for each expert, with a step at every token.
        let mut floor = vec![0.0; tokens];
        for (expert, index) in self.places.iter().enumerate() {
            let ceiling: Vec<f64> = self
                .weights
                .chunks(experts)
                .zip(&floor)
                .map(|(row, from)| from + row.get(expert).map_or(0.0, height))
                .collect();
            let step = |(t, v): (usize, &f64)| [(t as f64, *v), (t as f64 + 1.0, *v)];
            let mut outline: Vec<(f64, f64)> = ceiling.iter().enumerate().flat_map(step).collect();
            let mut back: Vec<(f64, f64)> = floor.iter().enumerate().flat_map(step).collect();
            back.reverse();
            outline.extend(back);
            if !outline.is_empty() {
                let band = Polygon::new(outline, colour(*index).mix(0.85).filled());
                chart.draw_series([band])?;
            }
            floor = ceiling;
        }
        let shown = self.experts.iter().zip(&self.places);
        for ((name, expert), (x, y)) in shown.zip(self.legend()) {
            let pixel = |v: i32| v * scale as i32;
            let square = [(pixel(x), pixel(y)), (pixel(x + 12), pixel(y + 12))];
            legend.draw(&Rectangle::new(square, colour(*expert).mix(0.85).filled()))?;
            let at = (pixel(x + 17), pixel(y + 6));
            legend.draw(&Text::new(name.clone(), at, text(12, scale, HPos::Left)))?;
        }
        Ok(())
    }
}
