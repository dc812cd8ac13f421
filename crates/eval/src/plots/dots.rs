//! Means with intervals: a row for each strategy, a panel for each dimension, preference or measure.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{
    FAINT, Failure, INK, Labelled, Plot, colour, draw_mark, drawn, label_width, range, text, tick,
};
use crate::Result;
use crate::statistics::Estimate;

/// Means with 95 % intervals, in panels over one range.
#[derive(Debug, Clone)]
pub struct DotPlot {
    /// The rows, from the top.
    pub rows: Vec<Labelled>,
    /// Heading of each panel, with one estimate a row; `None` where there is none.
    pub panels: Vec<(String, Vec<Option<Estimate>>)>,
    /// Name and unit of the axis.
    pub axis: String,
    /// Where the dashed line stands.
    pub at: f64,
}

/// Panels side by side; more go below.
const ABREAST: usize = 4;
const PANEL: u32 = 210;
/// Width of a panel that stands alone.
const ALONE: u32 = 400;
const ROW: u32 = 22;
const HEAD: u32 = 30;
const FOOT: u32 = 48;
const GAP: u32 = 14;

impl DotPlot {
    fn names(&self) -> Vec<String> {
        self.rows.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Room for the names and their marks.
    fn left(&self) -> u32 {
        label_width(&self.names()) + 18
    }

    fn panel(&self) -> u32 {
        if self.panels.len() > 1 { PANEL } else { ALONE }
    }

    fn inner(&self) -> u32 {
        ROW * self.rows.len() as u32
    }
}

impl Plot for DotPlot {
    fn size(&self) -> (u32, u32) {
        let count = self.panels.len().max(1);
        let wide = count.min(ABREAST) as u32;
        let lines = count.div_ceil(ABREAST) as u32;
        (
            self.left() + wide * (self.panel() + GAP) + 8,
            lines * (HEAD + self.inner() + FOOT),
        )
    }

    fn draw<B>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<(), Failure>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let pixel = |v: u32| (v * scale) as i32;
        let all = self.panels.iter().flat_map(|(_, e)| e.iter().flatten());
        let range = range(all, self.at);
        let left = self.left();
        for (i, (title, estimates)) in self.panels.iter().enumerate() {
            let (column, line) = ((i % ABREAST) as u32, (i / ABREAST) as u32);
            let x = left + column * (self.panel() + GAP);
            let y = line * (HEAD + self.inner() + FOOT) + HEAD;
            let middle = pixel(x + self.panel() / 2);
            let bold = text(13, scale, HPos::Center);
            area.draw(&Text::new(title.clone(), (middle, pixel(y - 14)), bold))?;
            let below = (middle, pixel(y + self.inner() + 34));
            let small = text(11, scale, HPos::Center);
            area.draw(&Text::new(self.axis.clone(), below, small))?;
            let panel = Panel {
                rows: &self.rows,
                estimates,
                range: &range,
                at: self.at,
                corner: (pixel(x), pixel(y)),
                size: (pixel(self.panel()), pixel(self.inner())),
            };
            panel.draw(area, scale)?;
            if column == 0 {
                for (row, (name, place)) in self.rows.iter().enumerate() {
                    let y = pixel(y + ROW * row as u32 + ROW / 2);
                    let style = text(12, scale, HPos::Right);
                    draw_mark(area, *place, (pixel(left - 12), y), 4 * scale)?;
                    area.draw(&Text::new(name.clone(), (pixel(left - 22), y), style))?;
                }
            }
        }
        Ok(())
    }
}

/// The inside of one panel, ticks below it.
struct Panel<'a> {
    rows: &'a [Labelled],
    estimates: &'a [Option<Estimate>],
    range: &'a std::ops::Range<f64>,
    at: f64,
    /// Left upper corner, width and height, in pixels of the whole area.
    corner: (i32, i32),
    size: (i32, i32),
}

impl Panel<'_> {
    fn draw<B>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<(), Failure>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let ((left, top), (width, height)) = (self.corner, self.size);
        let span = self.range.end - self.range.start;
        let x = |v: f64| left + ((v - self.range.start) / span * f64::from(width)).round() as i32;
        let (bottom, row) = (top + height, (ROW * scale) as i32);
        // The smallest ticks that leave room for their labels.
        let room = width / (48 * scale as i32);
        let ticks = tick::ticks(self.range, room.max(2) as usize);
        let decimals = tick::decimals(&ticks);
        for &value in &ticks {
            let line = vec![(x(value), top), (x(value), bottom)];
            area.draw(&PathElement::new(line, FAINT.stroke_width(scale)))?;
            let below = (x(value), bottom + 12 * scale as i32);
            let style = text(11, scale, HPos::Center);
            area.draw(&Text::new(tick::label(value, decimals), below, style))?;
        }
        let dash = 4 * scale as i32;
        for from in (top..bottom).step_by(2 * dash as usize) {
            let line = vec![(x(self.at), from), (x(self.at), (from + dash).min(bottom))];
            area.draw(&PathElement::new(line, INK.stroke_width(scale)))?;
        }
        let axis = vec![(left, bottom), (left + width, bottom)];
        area.draw(&PathElement::new(axis, INK.stroke_width(scale)))?;
        for (i, ((_, place), estimate)) in self.rows.iter().zip(self.estimates).enumerate() {
            let y = top + row * i as i32 + row / 2;
            if let Some(e) = estimate.as_ref().filter(|e| drawn(e)) {
                let line = vec![(x(e.low), y), (x(e.high), y)];
                let style = colour(*place).stroke_width(2 * scale);
                area.draw(&PathElement::new(line, style))?;
                draw_mark(area, *place, (x(e.mean), y), 5 * scale)?;
            }
        }
        Ok(())
    }
}
