//! Mean utility by strategy with intervals.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::{DotPanel, Failure, Plot, label_width, range};
use crate::Result;
use crate::statistics::Estimate;

/// Mean utilities with 95 % intervals.
#[derive(Debug, Clone)]
pub struct UtilityPlot {
    /// Names of the strategies.
    pub strategies: Vec<String>,
    /// One estimate a strategy.
    pub utilities: Vec<Option<Estimate>>,
    /// Utility of a response that is as good as the reference; a dashed line.
    pub neutral: f64,
}

impl Plot for UtilityPlot {
    fn size(&self) -> (u32, u32) {
        (
            label_width(&self.strategies) + 420,
            90 + 26 * self.strategies.len() as u32,
        )
    }

    fn draw<B>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<(), Failure>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        DotPanel {
            title: "Utility, mean and 95 % interval",
            axis: "utility",
            left: label_width(&self.strategies),
            labels: &self.strategies,
            estimates: &self.utilities,
            range: range(self.utilities.iter().flatten(), self.neutral),
            at: self.neutral,
        }
        .draw(area, scale)
    }
}
