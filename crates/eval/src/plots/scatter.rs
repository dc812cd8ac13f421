//! Points with intervals both ways, numbered, the names beside: reward against divergence, utility
//! against cost.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{FAINT, Failure, INK, Plot, colour, drawn, label_width, range, text};
use crate::Result;
use crate::statistics::Estimate;

/// Points with a name and intervals in both coordinates.
#[derive(Debug, Clone)]
pub struct ScatterPlot {
    /// What it shows.
    pub title: String,
    /// Name and unit of the first coordinate.
    pub x: String,
    /// Name and unit of the second.
    pub y: String,
    /// Name and both coordinates.
    pub points: Vec<(String, Estimate, Estimate)>,
}

const WIDTH: u32 = 460;
const LINE: u32 = 17;

impl ScatterPlot {
    fn names(&self) -> Vec<String> {
        let numbered = self.points.iter().enumerate();
        numbered
            .map(|(i, (name, ..))| format!("{}  {name}", i + 1))
            .collect()
    }
}

impl Plot for ScatterPlot {
    fn size(&self) -> (u32, u32) {
        let lines = LINE * self.points.len() as u32 + 60;
        (WIDTH + label_width(&self.names()), lines.max(340))
    }

    fn draw<B>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<(), Failure>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let inside = |p: &&(String, Estimate, Estimate)| drawn(&p.1) && drawn(&p.2);
        let Some((_, x, y)) = self.points.iter().find(inside) else {
            return Ok(());
        };
        let points = || self.points.iter().enumerate().filter(|(_, p)| inside(p));
        let (plot, legend) = area.split_horizontally(WIDTH * scale);
        let mut chart = ChartBuilder::on(&plot)
            .caption(&self.title, text(13, scale, HPos::Center))
            .margin(8 * scale)
            .set_label_area_size(LabelAreaPosition::Left, 56 * scale)
            .set_label_area_size(LabelAreaPosition::Bottom, 42 * scale)
            .build_cartesian_2d(
                range(points().map(|(_, p)| &p.1), x.mean),
                range(points().map(|(_, p)| &p.2), y.mean),
            )?;
        chart
            .configure_mesh()
            .x_labels(6)
            .y_labels(6)
            .x_desc(&self.x)
            .y_desc(&self.y)
            .label_style(text(11, scale, HPos::Center))
            .axis_desc_style(text(11, scale, HPos::Center))
            .axis_style(INK.stroke_width(scale))
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (i, (_, x, y)) in points() {
            let line = colour(i).mix(0.55).stroke_width(scale);
            let wide = PathElement::new(vec![(x.low, y.mean), (x.high, y.mean)], line);
            let high = PathElement::new(vec![(x.mean, y.low), (x.mean, y.high)], line);
            chart.draw_series([wide, high])?;
        }
        for (i, (_, x, y)) in points() {
            let (px, py) = chart.backend_coord(&(x.mean, y.mean));
            let (left, top) = area.get_base_pixel();
            number(area, (px - left, py - top), i, scale)?;
        }
        for (i, (name, ..)) in self.points.iter().enumerate() {
            let y = (40 + LINE as usize * i) as i32 * scale as i32;
            number(&legend, (10 * scale as i32, y), i, scale)?;
            let at = (24 * scale as i32, y);
            legend.draw(&Text::new(name.clone(), at, text(12, scale, HPos::Left)))?;
        }
        Ok(())
    }
}

/// A filled circle with the number of a point.
fn number<B>(
    area: &DrawingArea<B, Shift>,
    position: (i32, i32),
    index: usize,
    scale: u32,
) -> Result<(), Failure>
where
    B: DrawingBackend,
    B::ErrorType: 'static,
{
    area.draw(&Circle::new(position, 8 * scale, colour(index).filled()))?;
    let style = text(10, scale, HPos::Center).color(&WHITE);
    area.draw(&Text::new(format!("{}", index + 1), position, style))?;
    Ok(())
}
