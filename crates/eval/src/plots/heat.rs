//! A matrix of numbers as shades: win rates, utility by preference, weights by preference.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::{Failure, Plot, drawable, label_width, text};
use crate::Result;

/// A matrix with names.
#[derive(Debug, Clone)]
pub struct HeatPlot {
    /// What it shows.
    pub title: String,
    /// Names of the rows.
    pub rows: Vec<String>,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// `[rows, columns]`, row-major.
    pub values: Vec<Option<f64>>,
    /// The value that is white; above it is blue, below it orange.
    pub middle: f64,
}

const CELL: (u32, u32) = (52, 30);
const TITLE: u32 = 34;

impl HeatPlot {
    /// Largest distance from the middle.
    fn reach(&self) -> f64 {
        let distances = self.values.iter().flatten().filter(|v| drawable(**v));
        distances.fold(1e-9, |m, v| (v - self.middle).abs().max(m))
    }
}

/// White at 0, blue at 1, orange at −1.
fn shade(t: f64) -> RGBColor {
    let end = if t >= 0.0 {
        (0, 114, 178)
    } else {
        (213, 94, 0)
    };
    let t = t.abs().min(1.0) * 0.85;
    let mix = |to: i32| (255.0 + t * f64::from(to - 255)).round() as u8;
    RGBColor(mix(end.0), mix(end.1), mix(end.2))
}

impl Plot for HeatPlot {
    fn size(&self) -> (u32, u32) {
        let wide = label_width(&self.rows) + CELL.0 * self.columns.len() as u32 + 24;
        let high = TITLE + label_width(&self.columns) + CELL.1 * self.rows.len() as u32 + 12;
        (wide.max(9 * self.title.chars().count() as u32), high)
    }

    fn draw<B>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<(), Failure>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let pixel = |v: u32| (v * scale) as i32;
        let (left, top) = (label_width(&self.rows), TITLE + label_width(&self.columns));
        let title = (pixel(12), pixel(TITLE / 2));
        let style = text(14, scale, HPos::Left);
        area.draw(&Text::new(self.title.clone(), title, style))?;
        let upright = text(12, scale, HPos::Left);
        let upright = TextStyle {
            font: upright.font.transform(FontTransform::Rotate270),
            pos: Pos::new(HPos::Left, VPos::Center),
            ..upright
        };
        for (column, name) in self.columns.iter().enumerate() {
            let x = left + CELL.0 * column as u32 + CELL.0 / 2;
            let at = (pixel(x), pixel(top - 8));
            area.draw(&Text::new(name.clone(), at, upright.clone()))?;
        }
        let reach = self.reach();
        for (row, name) in self.rows.iter().enumerate() {
            let y = top + CELL.1 * row as u32;
            let at = (pixel(left - 8), pixel(y + CELL.1 / 2));
            let style = text(12, scale, HPos::Right);
            area.draw(&Text::new(name.clone(), at, style))?;
            for column in 0..self.columns.len() {
                let value = self.values[row * self.columns.len() + column];
                let Some(value) = value.filter(|v| drawable(*v)) else {
                    continue;
                };
                let x = left + CELL.0 * column as u32;
                let corners = [
                    (pixel(x), pixel(y)),
                    (pixel(x + CELL.0 - 2), pixel(y + CELL.1 - 2)),
                ];
                let t = (value - self.middle) / reach;
                area.draw(&Rectangle::new(corners, shade(t).filled()))?;
                let mut style = text(11, scale, HPos::Center);
                if t.abs() > 0.7 {
                    style = style.color(&WHITE);
                }
                let at = (pixel(x + CELL.0 / 2), pixel(y + CELL.1 / 2));
                area.draw(&Text::new(format!("{value:.2}"), at, style))?;
            }
        }
        Ok(())
    }
}
