//! The constant weights that are best for each prompt, found by trying them: every point of the simplex over the
//! stated directions whose weights are multiples of `1 / steps` answers once, and the best answer is kept,
//!
//! `y = arg max_w utility(y_w)`, `y_w ~ p_w`, of equals the first.
//!
//! No competitor: it keeps what the rewards that judge it like best, on the very prompt. It bounds what constant
//! weights of a prompt's own could add, from above: part of its lead is the luck of several attempts, which `BestOfN`
//! with as many shows. Asked for by reviewers of arXiv 2407.04181.

use serde::{Deserialize, Serialize};

use super::best_weights::grid;
use super::{Instance, InstanceContext, Method, Parts, Space};
use crate::error::at_least_one;
use crate::mixer::same_experts;
use crate::{
    BASE, Error, Mixed, Mixer, Plan, Preference, Result, Step, mix_logs, mix_probabilities,
};

/// The best constant weights for each prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Oracle {
    /// Steps from 0 to 1. Default 3 (ours: 10 points for three directions).
    pub steps: usize,
    /// Where distributions are averaged. Default: probabilities (paper).
    pub space: Space,
    /// How far to go from the base in log space, 1 being the experts, as in DeRa. Default 1.
    pub lambda: f64,
}

impl Default for Oracle {
    fn default() -> Self {
        Self {
            steps: 3,
            space: Space::Probability,
            lambda: 1.0,
        }
    }
}

impl Method for Oracle {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        let Self {
            steps,
            space,
            lambda,
        } = *self;
        at_least_one("steps", steps)?;
        let beyond = lambda != 1.0;
        if beyond && (space != Space::Log || !(lambda >= 0.0 && lambda.is_finite())) {
            let expected = "1; any other number, of 0 or more, needs space: Log";
            return Err(Error::parameter("lambda", lambda, expected));
        }
        let directions = preference.directions(experts)?;
        let mut names: Vec<String> = directions.clone();
        names.extend(beyond.then(|| BASE.to_string()));
        names.sort();
        names.dedup();
        let points = grid(directions.len(), steps).into_iter().map(|point| {
            let mut weights = vec![0.0; names.len()];
            let number = |expert: &str| names.iter().position(|name| name == expert);
            for (direction, parts) in directions.iter().zip(&point) {
                let expert = number(direction).unwrap_or(0);
                weights[expert] += (lambda * *parts as f64 / steps as f64) as f32;
            }
            if beyond {
                weights[number(BASE).unwrap_or(0)] += (1.0 - lambda) as f32;
            }
            weights
        });
        let points: Vec<Vec<f32>> = points.collect();
        Ok(Plan {
            samples: points.len(),
            ..Plan::new(names, space.requirements(), Points { points, space })
        })
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let far = Self {
            steps: 2,
            space: Space::Log,
            lambda: 2.0,
        };
        vec![Instance::new(Self::default()), Instance::new(far)]
    }
}

/// Mixes each attempt with weights of its own.
#[derive(Clone)]
struct Points {
    /// `[points][experts]`.
    points: Vec<Vec<f32>>,
    space: Space,
}

impl Mixer for Points {
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()> {
        let next = step.next;
        same_experts(step, self.points[0].len())?;
        mixed.each(step, |sequence, out, weights| {
            let attempt = step.history[sequence].request % self.points.len();
            weights.copy_from_slice(&self.points[attempt]);
            let rows: Vec<&[f32]> = (0..next.experts).map(|e| next.row(e, sequence)).collect();
            match self.space {
                Space::Probability => mix_probabilities(&rows, weights, out),
                Space::Log => mix_logs(&rows, weights, out),
            }
        });
        Ok(())
    }
}
