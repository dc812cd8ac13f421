//! Win-rate matrix: each strategy (row) against each other one (column).

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{Failure, Plot, label_width, text};
use crate::Result;

/// Pairwise win rates.
#[derive(Debug, Clone)]
pub struct WinRatePlot {
    /// Names of the strategies.
    pub strategies: Vec<String>,
    /// `[strategies, strategies]`, row-major: share of pairs that the row wins.
    pub rates: Vec<Option<f64>>,
}

const CELL: u32 = 58;
const TITLE: u32 = 34;

/// Blue for winning, orange for losing, white for even.
fn shade(rate: f64) -> RGBColor {
    let end = if rate >= 0.5 {
        (0, 114, 178)
    } else {
        (213, 94, 0)
    };
    let t = ((rate - 0.5).abs() * 2.0).min(1.0) * 0.85;
    let mix = |to: i32| (255.0 + t * f64::from(to - 255)).round() as u8;
    RGBColor(mix(end.0), mix(end.1), mix(end.2))
}

impl Plot for WinRatePlot {
    fn size(&self) -> (u32, u32) {
        let (labels, cells) = (
            label_width(&self.strategies),
            CELL * self.strategies.len() as u32,
        );
        // Columns are named by the numbers of the rows, so names may be long.
        (labels + 30 + cells.max(240) + 12, TITLE + 24 + cells + 12)
    }

    fn draw<B>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<(), Failure>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let n = self.strategies.len();
        let pixel = |v: u32| (v * scale) as i32;
        let left = label_width(&self.strategies) + 30;
        let top = TITLE + 24;
        let title = "Win rate of the row over the column";
        area.draw(&Text::new(
            title,
            (pixel(12), pixel(TITLE / 2)),
            text(14, scale, HPos::Left),
        ))?;
        for (row, name) in self.strategies.iter().enumerate() {
            let y = top + CELL * row as u32;
            let (middle, across) = (y + CELL / 2, left + CELL * row as u32 + CELL / 2);
            let label = Text::new(
                format!("{name}  {}", row + 1),
                (pixel(left - 8), pixel(middle)),
                text(12, scale, HPos::Right),
            );
            area.draw(&label)?;
            let number = Text::new(
                format!("{}", row + 1),
                (pixel(across), pixel(top - 12)),
                text(12, scale, HPos::Center),
            );
            area.draw(&number)?;
            for column in 0..n {
                let Some(rate) = self.rates[row * n + column] else {
                    continue;
                };
                let x = left + CELL * column as u32;
                let corners = [
                    (pixel(x), pixel(y)),
                    (pixel(x + CELL - 2), pixel(y + CELL - 2)),
                ];
                area.draw(&Rectangle::new(corners, shade(rate).filled()))?;
                let mut style = text(12, scale, HPos::Center);
                if (rate - 0.5).abs() > 0.35 {
                    style = style.color(&WHITE);
                }
                let place = (pixel(x + CELL / 2), pixel(y + CELL / 2));
                area.draw(&Text::new(format!("{rate:.2}"), place, style))?;
            }
        }
        Ok(())
    }
}
