//! Fronts of two rewards over a sweep of preferences, what each dominates shaded.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{
    FAINT, Failure, INK, Labelled, Plot, colour, draw_mark, drawable, label_width, margin, mark,
    text, tick,
};
use crate::Result;
use crate::statistics::front::pareto;

/// Mean rewards of several strategies over a sweep.
#[derive(Debug, Clone)]
pub struct FrontPlot {
    /// What it shows.
    pub title: String,
    /// Names of the two directions.
    pub directions: [String; 2],
    /// Name with its place, and points, one a preference, along the sweep.
    pub fronts: Vec<(Labelled, Vec<[f64; 2]>)>,
    /// Corner that volumes are measured from.
    pub reference: [f64; 2],
}

const WIDTH: u32 = 460;
const LINE: u32 = 17;
/// Ticks at most on an axis.
const TICKS: usize = 6;

impl Plot for FrontPlot {
    fn size(&self) -> (u32, u32) {
        let names: Vec<String> = self.fronts.iter().map(|f| f.0.0.clone()).collect();
        let lines = LINE * self.fronts.len() as u32 + 60;
        (WIDTH + label_width(&names) + 20, lines.max(360))
    }

    fn draw<B>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<(), Failure>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let inside = |p: &&[f64; 2]| p.iter().all(|v| drawable(*v));
        let axis = |d: usize| {
            let all = self
                .fronts
                .iter()
                .flat_map(|f| &f.1)
                .filter(inside)
                .map(|p| p[d]);
            let (low, high) = all.fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
                (l.min(v), h.max(v))
            });
            let margin = margin(low, high, 0.1);
            low - margin..high + margin
        };
        let (x, y) = (axis(0), axis(1));
        if !x.start.is_finite() || !y.start.is_finite() {
            return Ok(());
        }
        let corner = [
            self.reference[0].max(x.start),
            self.reference[1].max(y.start),
        ];
        let labels = (tick::axis_label(&x, TICKS), tick::axis_label(&y, TICKS));
        let (plot, legend) = area.split_horizontally(WIDTH * scale);
        let mut chart = ChartBuilder::on(&plot)
            .caption(&self.title, text(13, scale, HPos::Center))
            .margin(8 * scale)
            .set_label_area_size(LabelAreaPosition::Left, 56 * scale)
            .set_label_area_size(LabelAreaPosition::Bottom, 42 * scale)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .x_labels(TICKS)
            .y_labels(TICKS)
            .x_label_formatter(&labels.0)
            .y_label_formatter(&labels.1)
            .x_desc(&self.directions[0])
            .y_desc(&self.directions[1])
            .label_style(text(11, scale, HPos::Center))
            .axis_desc_style(text(11, scale, HPos::Center))
            .axis_style(INK.stroke_width(scale))
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .draw()?;
        for ((_, i), points) in &self.fronts {
            let above = |p: &&[f64; 2]| inside(p) && p[0] > corner[0] && p[1] > corner[1];
            let kept: Vec<Vec<f64>> = points.iter().filter(above).map(|p| p.to_vec()).collect();
            let mut best: Vec<&Vec<f64>> = pareto(&kept).into_iter().map(|i| &kept[i]).collect();
            best.sort_by(|a, b| a[0].total_cmp(&b[0]));
            if let (Some(first), Some(last)) = (best.first(), best.last()) {
                let mut outline = vec![(corner[0], corner[1]), (corner[0], first[1])];
                for (p, next) in best.iter().zip(best.iter().skip(1)) {
                    outline.extend([(p[0], p[1]), (p[0], next[1])]);
                }
                outline.extend([(last[0], last[1]), (last[0], corner[1])]);
                chart.draw_series([Polygon::new(outline, colour(*i).mix(0.07).filled())])?;
            }
        }
        for ((_, i), points) in &self.fronts {
            let points = points.iter().filter(inside);
            let path: Vec<(f64, f64)> = points.map(|p| (p[0], p[1])).collect();
            let line = colour(*i).stroke_width(scale);
            chart.draw_series([PathElement::new(path.clone(), line)])?;
            let dots = path.into_iter();
            let dots = dots.map(|p| {
                EmptyElement::at(p) + Polygon::new(mark(*i, 4 * scale), colour(*i).filled())
            });
            chart.draw_series(dots)?;
        }
        for (row, ((name, i), _)) in self.fronts.iter().enumerate() {
            let y = (40 + LINE as usize * row) as i32 * scale as i32;
            draw_mark(&legend, *i, (10 * scale as i32, y), 5 * scale)?;
            let at = (22 * scale as i32, y);
            legend.draw(&Text::new(name.clone(), at, text(12, scale, HPos::Left)))?;
        }
        Ok(())
    }
}
