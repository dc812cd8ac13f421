//! Reward per dimension with intervals: one panel a dimension, one dot a strategy.

use plotters::coord::Shift;
use plotters::prelude::*;

use super::{DotPanel, Failure, Plot, label_width, range};
use crate::Result;
use crate::statistics::Estimate;

/// Mean normalised rewards, signed so that more is better, with 95 % intervals.
#[derive(Debug, Clone)]
pub struct RewardPlot {
    /// Names of the strategies.
    pub strategies: Vec<String>,
    /// By dimension, one estimate a strategy; `None` where no preference states the dimension.
    pub rewards: Vec<(String, Vec<Option<Estimate>>)>,
}

const PANEL: u32 = 230;

impl Plot for RewardPlot {
    fn size(&self) -> (u32, u32) {
        let panels = PANEL * self.rewards.len().max(1) as u32;
        (
            label_width(&self.strategies) + panels,
            90 + 26 * self.strategies.len() as u32,
        )
    }

    fn draw<B>(&self, area: &DrawingArea<B, Shift>, scale: u32) -> Result<(), Failure>
    where
        B: DrawingBackend,
        B::ErrorType: 'static,
    {
        let all = self.rewards.iter().flat_map(|(_, e)| e.iter().flatten());
        let range = range(all, 0.0);
        let mut rest = area.clone();
        for (i, (dimension, estimates)) in self.rewards.iter().enumerate() {
            let left = if i == 0 {
                label_width(&self.strategies)
            } else {
                12
            };
            let width = if i == 0 { PANEL + left } else { PANEL };
            let (panel, after) = rest.split_horizontally(width * scale);
            rest = after;
            DotPanel {
                title: dimension,
                axis: "reward (sd of the base)",
                left,
                labels: &self.strategies,
                estimates,
                range: range.clone(),
                at: 0.0,
            }
            .draw(&panel, scale)?;
        }
        Ok(())
    }
}
