//! Points with intervals both ways and their names beside them: utility against divergence, utility against cost.

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{FAINT, Failure, INK, Labelled, Plot, colour, draw_mark, drawn, range, text, tick};
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
    /// Name with its place, and both coordinates.
    pub points: Vec<(Labelled, Estimate, Estimate)>,
}

const WIDTH: u32 = 520;
const HEIGHT: u32 = 360;
/// Ticks at most on an axis.
const TICKS: usize = 6;
/// Size of a name, and the room of one letter of it.
const NAME: u32 = 12;
const LETTER: f64 = 6.6;

/// Left, top, right and bottom, in pixels.
type Space = [f64; 4];

fn overlap(a: &Space, b: &Space) -> f64 {
    let side = |i: usize| (a[i + 2].min(b[i + 2]) - a[i].max(b[i])).max(0.0);
    side(0) * side(1)
}

/// Centres of names near their points: of twelve positions around the point the one that covers least of marks and names
/// and stays inside, names that come first choosing first.
fn arrange(points: &[(f64, f64)], widths: &[f64], scale: f64, inside: &Space) -> Vec<(f64, f64)> {
    let mark = |&(x, y): &(f64, f64)| {
        [
            x - 6.0 * scale,
            y - 6.0 * scale,
            x + 6.0 * scale,
            y + 6.0 * scale,
        ]
    };
    let mut taken: Vec<Space> = points.iter().map(mark).collect();
    let high = f64::from(NAME) * scale;
    let mut out = Vec::new();
    for (i, &(x, y)) in points.iter().enumerate() {
        let half = widths[i] / 2.0;
        let aside = half + 9.0 * scale;
        let near = 7.0 * scale + high / 2.0;
        // Aslant first: intervals run straight through the point.
        let mut candidates = Vec::new();
        for sign in [1.0, -1.0] {
            candidates.extend([(sign * aside, -near * 0.8), (sign * aside, near * 0.8)]);
        }
        candidates.extend([(aside, 0.0), (-aside, 0.0), (0.0, -near), (0.0, near)]);
        for sign in [1.0, -1.0] {
            candidates.extend([
                (0.0, sign * (near + high * 1.1)),
                (sign * aside, -near * 1.6),
            ]);
        }
        let space = |&(dx, dy): &(f64, f64)| {
            let (cx, cy) = (x + dx, y + dy);
            [cx - half, cy - high / 2.0, cx + half, cy + high / 2.0]
        };
        let cost = |candidate: &(f64, f64)| {
            let space = space(candidate);
            let covered: f64 = taken.iter().map(|t| overlap(t, &space)).sum();
            let area = (space[2] - space[0]) * (space[3] - space[1]);
            covered + 3.0 * (area - overlap(&space, inside))
        };
        // Of equals the first.
        let mut best = candidates[0];
        for candidate in &candidates[1..] {
            if cost(candidate) + 1e-6 < cost(&best) {
                best = *candidate;
            }
        }
        taken.push(space(&best));
        out.push((x + best.0, y + best.1));
    }
    out
}

impl Plot for ScatterPlot {
    fn size(&self) -> (u32, u32) {
        // Many names need room.
        (
            WIDTH,
            HEIGHT + 10 * self.points.len().saturating_sub(8) as u32,
        )
    }

    fn draw<B>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<(), Failure>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let inside = |p: &&(Labelled, Estimate, Estimate)| drawn(&p.1) && drawn(&p.2);
        let points: Vec<&(Labelled, Estimate, Estimate)> =
            self.points.iter().filter(inside).collect();
        let Some((_, x, y)) = points.first() else {
            return Ok(());
        };
        let (x, y) = (
            range(points.iter().map(|p| &p.1), x.mean),
            range(points.iter().map(|p| &p.2), y.mean),
        );
        let (x_label, y_label) = (tick::axis_label(&x, TICKS), tick::axis_label(&y, TICKS));
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, text(13, scale, HPos::Center))
            .margin(8 * scale)
            .set_label_area_size(LabelAreaPosition::Left, 56 * scale)
            .set_label_area_size(LabelAreaPosition::Bottom, 42 * scale)
            .build_cartesian_2d(x.clone(), y.clone())?;
        chart
            .configure_mesh()
            .x_labels(TICKS)
            .y_labels(TICKS)
            .x_label_formatter(&x_label)
            .y_label_formatter(&y_label)
            .x_desc(&self.x)
            .y_desc(&self.y)
            .label_style(text(11, scale, HPos::Center))
            .y_label_style(text(11, scale, HPos::Right))
            .axis_desc_style(text(11, scale, HPos::Center))
            .axis_style(INK.stroke_width(scale))
            .bold_line_style(FAINT)
            .light_line_style(TRANSPARENT)
            .draw()?;
        for ((_, place), x, y) in &points {
            let line = colour(*place).mix(0.45).stroke_width(scale);
            let wide = PathElement::new(vec![(x.low, y.mean), (x.high, y.mean)], line);
            let high = PathElement::new(vec![(x.mean, y.low), (x.mean, y.high)], line);
            chart.draw_series([wide, high])?;
        }
        let (left, top) = area.get_base_pixel();
        let at = |x: f64, y: f64| {
            let (px, py) = chart.backend_coord(&(x, y));
            (px - left, py - top)
        };
        let centres: Vec<(i32, i32)> = points.iter().map(|(_, x, y)| at(x.mean, y.mean)).collect();
        let (corner, other) = (at(x.start, y.end), at(x.end, y.start));
        let bounds = [corner.0, corner.1, other.0, other.1].map(f64::from);
        let widths: Vec<f64> = points
            .iter()
            .map(|((name, _), ..)| LETTER * f64::from(scale) * name.chars().count() as f64)
            .collect();
        let floats: Vec<(f64, f64)> = centres.iter().map(|c| (c.0.into(), c.1.into())).collect();
        let names = arrange(&floats, &widths, scale.into(), &bounds);
        for (((name, place), ..), (centre, (x, y))) in points.iter().zip(centres.iter().zip(names))
        {
            draw_mark(area, *place, *centre, 5 * scale)?;
            let style = text(NAME, scale, HPos::Center);
            area.draw(&Text::new(name.clone(), (x as i32, y as i32), style))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cover_neither_marks_nor_each_other() {
        let points = [
            (100.0, 100.0),
            (104.0, 101.0),
            (190.0, 100.0),
            (100.0, 112.0),
        ];
        let widths = [60.0, 60.0, 40.0, 50.0];
        let inside = [0.0, 0.0, 200.0, 200.0];
        let centres = arrange(&points, &widths, 1.0, &inside);
        let spaces: Vec<Space> = centres
            .iter()
            .zip(widths)
            .map(|((x, y), w)| [x - w / 2.0, y - 6.0, x + w / 2.0, y + 6.0])
            .collect();
        for (i, space) in spaces.iter().enumerate() {
            assert!(space[0] >= 0.0 && space[2] <= 200.0, "{space:?}");
            for other in &spaces[i + 1..] {
                assert_eq!(overlap(space, other), 0.0, "{spaces:?}");
            }
            for (x, y) in points {
                assert_eq!(
                    overlap(space, &[x - 4.0, y - 4.0, x + 4.0, y + 4.0]),
                    0.0,
                    "{spaces:?}"
                );
            }
        }
    }
}
