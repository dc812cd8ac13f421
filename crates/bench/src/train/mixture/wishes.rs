//! Whose wishes a PCM learns to serve, and on which prompts.

use anyhow::Result;
use lm::sampling::{Draws, permutation};
use mixing::Preference;

use super::Mixture;
use crate::train::file::Preferences;

/// Whom an iteration serves.
pub(super) struct Wish {
    pub preference: Preference,
    pub prompts: Vec<usize>,
    pub draws: u64,
}

impl Mixture<'_> {
    /// Preferences of an iteration, each with its prompts: a walk through permutations of all prompts.
    pub(super) fn wishes(&self, number: u64) -> Result<Vec<Wish>> {
        let settings = &self.recipe.settings;
        let seed = self.training.seed.to_le_bytes();
        let all = self.prompts.len() as u64;
        let names: Vec<&String> = self.dimensions.keys().collect();
        let mut wishes = Vec::new();
        for i in 0..settings.preferences as u64 {
            let place = number * settings.preferences as u64 + i;
            let mut draws = Draws::new(&[&seed, b"wish", &place.to_le_bytes()]);
            let mut count = 0;
            let mut draw = || {
                count += 1;
                draws.uniform(count)
            };
            let mut weights: Vec<(String, f64)> = Vec::new();
            match self.recipe.preferences {
                Preferences::Enumerated => {
                    for (bit, name) in names.iter().enumerate() {
                        let dimension = &self.dimensions[*name];
                        let high = place >> bit & 1 == 1;
                        let end = if high {
                            &dimension.high
                        } else {
                            &dimension.low
                        };
                        weights.push((end.clone(), 1.0));
                    }
                }
                Preferences::Dirichlet { alpha } => {
                    let order = permutation(names.len(), &[&seed, b"subset", &place.to_le_bytes()]);
                    let size = 1 + (draw() * names.len() as f64) as usize;
                    for index in order.into_iter().take(size) {
                        let dimension = &self.dimensions[names[index]];
                        let end = if draw() < 0.5 {
                            &dimension.high
                        } else {
                            &dimension.low
                        };
                        weights.push((end.clone(), gamma(alpha, &mut draw).max(1e-3)));
                    }
                }
            }
            weights.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
            let texts = weights.iter().map(|(direction, _)| {
                let known = &self.wordings[direction].train;
                known[((draw() * known.len() as f64) as usize).min(known.len() - 1)].as_str()
            });
            let text = texts.collect::<Vec<_>>().join(" ");
            let prompts = (0..settings.prompts as u64).map(|j| {
                let at = place * settings.prompts as u64 + j;
                let round = (at / all).to_le_bytes();
                permutation(all as usize, &[&seed, b"prompts", &round])[(at % all) as usize]
            });
            wishes.push(Wish {
                preference: Preference {
                    text,
                    importances: weights.into_iter().collect(),
                },
                prompts: prompts.collect(),
                draws: place,
            });
        }
        Ok(wishes)
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
