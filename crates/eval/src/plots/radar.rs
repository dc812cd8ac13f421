//! Utility by preference: one axis a preference, one outline a strategy.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{FAINT, Failure, Plot, colour, draw_mark, drawable, label_width, text};
use crate::Result;

/// Values of several strategies on several axes.
#[derive(Debug, Clone)]
pub struct RadarPlot {
    /// What it shows.
    pub title: String,
    /// Names of the axes, at least three.
    pub axes: Vec<String>,
    /// Name, place in the order of colours and marks, and one value an axis.
    pub outlines: Vec<(String, usize, Vec<f64>)>,
}

const RADIUS: f64 = 130.0;
const HEIGHT: u32 = 400;

impl RadarPlot {
    fn middle(&self) -> (f64, f64) {
        (f64::from(label_width(&self.axes)) + RADIUS, 215.0)
    }

    /// Place at `share` of an axis, in pixels at scale 1.
    fn place(&self, axis: usize, share: f64) -> (f64, f64) {
        let angle = std::f64::consts::TAU * axis as f64 / self.axes.len() as f64;
        let (x, y) = self.middle();
        (
            x + RADIUS * share * angle.sin(),
            y - RADIUS * share * angle.cos(),
        )
    }
}

impl Plot for RadarPlot {
    fn size(&self) -> (u32, u32) {
        let names: Vec<String> = self.outlines.iter().map(|o| o.0.clone()).collect();
        let labels = label_width(&self.axes);
        (
            2 * (labels + RADIUS as u32) + label_width(&names) + 20,
            HEIGHT,
        )
    }

    fn draw<B>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<(), Failure>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let pixel = |(x, y): (f64, f64)| {
            let scale = f64::from(scale);
            ((x * scale) as i32, (y * scale) as i32)
        };
        let title = Text::new(
            self.title.clone(),
            pixel((12.0, 18.0)),
            text(14, scale, HPos::Left),
        );
        area.draw(&title)?;
        let complete = |o: &&(String, usize, Vec<f64>)| o.2.iter().all(|v| drawable(*v));
        let values = || {
            self.outlines
                .iter()
                .filter(complete)
                .flat_map(|o| &o.2)
                .copied()
        };
        let (low, high) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| {
            (l.min(v), h.max(v))
        });
        if !low.is_finite() || self.axes.len() < 3 {
            return Ok(());
        }
        // The centre lies below the smallest value, so that every outline is seen.
        let (low, high) = (low - 0.25 * (high - low).max(0.01), high);
        let share = |v: f64| (v - low) / (high - low);
        let outline = |shares: &dyn Fn(usize) -> f64| -> Vec<(i32, i32)> {
            let around = (0..=self.axes.len()).map(|i| i % self.axes.len());
            around.map(|i| pixel(self.place(i, shares(i)))).collect()
        };
        for ring in 1..=4 {
            let share = f64::from(ring) / 4.0;
            area.draw(&PathElement::new(
                outline(&|_| share),
                FAINT.stroke_width(scale),
            ))?;
            let (x, y) = self.place(0, share);
            let value = format!("{:.2}", low + share * (high - low));
            let style = text(9, scale, HPos::Left);
            area.draw(&Text::new(value, pixel((x + 3.0, y + 6.0)), style))?;
        }
        for (i, name) in self.axes.iter().enumerate() {
            let ends = vec![pixel(self.middle()), pixel(self.place(i, 1.0))];
            area.draw(&PathElement::new(ends, FAINT.stroke_width(scale)))?;
            let (x, y) = self.place(i, 1.08);
            let aside = x - self.middle().0;
            let side = match aside {
                a if a > 5.0 => HPos::Left,
                a if a < -5.0 => HPos::Right,
                _ => HPos::Center,
            };
            let style = text(12, scale, side);
            area.draw(&Text::new(name.clone(), pixel((x, y)), style))?;
        }
        for (_, i, values) in self.outlines.iter().filter(complete) {
            let line = colour(*i).stroke_width(2 * scale);
            let path = outline(&|axis| share(values[axis]));
            area.draw(&PathElement::new(path.clone(), line))?;
            for point in path.into_iter().skip(1) {
                draw_mark(area, *i, point, 4 * scale)?;
            }
        }
        let left = 2.0 * self.middle().0;
        for (row, (name, i, _)) in self.outlines.iter().enumerate() {
            let y = 60.0 + 18.0 * row as f64;
            let line = vec![pixel((left, y)), pixel((left + 16.0, y))];
            area.draw(&PathElement::new(line, colour(*i).stroke_width(2 * scale)))?;
            draw_mark(area, *i, pixel((left + 8.0, y)), 5 * scale)?;
            let at = pixel((left + 22.0, y));
            area.draw(&Text::new(name.clone(), at, text(12, scale, HPos::Left)))?;
        }
        Ok(())
    }
}
