//! The preferences that a PCM learns to serve, and the prompts that each of them is given.

use anyhow::Result;
use lm::sampling::{Draws, permutation};
use mixing::Preference;

use super::sampler::Sampler;
use crate::file::Preferences;

/// One preference of an iteration.
pub(super) struct SampledPreference {
    pub preference: Preference,
    /// Indices of its prompts.
    pub prompts: Vec<usize>,
    /// Its number among all preferences of the training, from which its responses are drawn.
    pub draws: u64,
}

impl Sampler<'_> {
    /// Preferences of an iteration, each with its prompts: a walk through permutations of all prompts.
    pub(super) fn sample_preferences(&self, number: u64) -> Result<Vec<SampledPreference>> {
        let settings = &self.recipe.settings;
        let seed = self.training.seed.to_le_bytes();
        let all = self.prompts.len() as u64;
        let mut sampled = Vec::new();
        for i in 0..settings.preferences as u64 {
            let index = number * settings.preferences as u64 + i;
            // The stream's name is part of what is drawn, and so it stays.
            let mut draws = Draws::new(&[&seed, b"wish", &index.to_le_bytes()]);
            let mut count = 0;
            let mut draw = || {
                count += 1;
                draws.uniform(count)
            };
            let mut importances = self.importances(index, &mut draw);
            importances.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            let texts = importances.iter().map(|(direction, _)| {
                let known = &self.wordings[direction].train;
                known[((draw() * known.len() as f64) as usize).min(known.len() - 1)].as_str()
            });
            let text = texts.collect::<Vec<_>>().join(" ");
            let prompts = (0..settings.prompts as u64).map(|j| {
                let at = index * settings.prompts as u64 + j;
                let round = (at / all).to_le_bytes();
                permutation(all as usize, &[&seed, b"prompts", &round])[(at % all) as usize]
            });
            sampled.push(SampledPreference {
                preference: Preference {
                    text,
                    importances: importances.into_iter().collect(),
                },
                prompts: prompts.collect(),
                draws: index,
            });
        }
        Ok(sampled)
    }

    /// Directions of a preference with their importances; `draw` gives uniform numbers from 0 to 1.
    fn importances(&self, index: u64, draw: &mut impl FnMut() -> f64) -> Vec<(String, f64)> {
        let names: Vec<&String> = self.dimensions.keys().collect();
        let end = |name: &String, high: bool| {
            let dimension = &self.dimensions[name];
            let end = if high {
                &dimension.high
            } else {
                &dimension.low
            };
            end.clone()
        };
        let mut importances = Vec::new();
        match self.recipe.preferences {
            Preferences::Enumerated => {
                for (bit, name) in names.iter().enumerate() {
                    importances.push((end(name, index >> bit & 1 == 1), 1.0));
                }
            }
            Preferences::Dirichlet { alpha } => {
                let seed = self.training.seed.to_le_bytes();
                let order = permutation(names.len(), &[&seed, b"subset", &index.to_le_bytes()]);
                let size = 1 + (draw() * names.len() as f64) as usize;
                for name in order.into_iter().take(size).map(|i| names[i]) {
                    let direction = end(name, draw() < 0.5);
                    importances.push((direction, gamma(alpha, draw).max(1e-3)));
                }
            }
        }
        importances
    }
}

/// A Gamma-distributed number of scale 1 (Marsaglia and Tsang 2000; below 1 by the power of a uniform one).
fn gamma(alpha: f64, draw: &mut impl FnMut() -> f64) -> f64 {
    if alpha < 1.0 {
        let power = draw().max(1e-300).powf(1.0 / alpha);
        return gamma(alpha + 1.0, draw) * power;
    }
    let d = alpha - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let radius = (-2.0 * (1.0 - draw()).ln()).sqrt();
        let x = radius * (2.0 * std::f64::consts::PI * draw()).cos();
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - draw()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gamma_has_its_mean_and_variance() {
        for alpha in [0.5, 1.0, 3.0] {
            let mut draws = Draws::new(&[b"gamma"]);
            let mut count = 0;
            let mut draw = || {
                count += 1;
                draws.uniform(count)
            };
            let all: Vec<f64> = (0..20_000).map(|_| gamma(alpha, &mut draw)).collect();
            let mean = all.iter().sum::<f64>() / 20_000.0;
            let variance = all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
            assert!((mean / alpha - 1.0).abs() < 0.05, "{mean}");
            assert!((variance / alpha - 1.0).abs() < 0.1, "{variance}");
        }
    }
}
