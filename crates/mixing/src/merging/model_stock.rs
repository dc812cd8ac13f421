//! Model stock (arXiv 2403.19522): go from the base towards the experts' mean as far as the experts agree,
//! tensor by tensor:
//!
//! `θ = t · mean_i θ_i + (1 − t) θ_base`, `t = N cos φ / (1 + (N − 1) cos φ)`
//!
//! with cos φ the mean cosine between two experts' differences from the base.
//!
//! 1. Weights play no role: the preference says which experts take part.
//! 2. Experts that disagree (cos φ below 0) leave the base as it is.

use serde::{Deserialize, Serialize};

use super::{EQUAL, Instance, Rule, Tensors};
use crate::{Error, Result};

/// As far from the base as the experts agree.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelStock {}

impl Rule for ModelStock {
    fn merge(&self, t: &Tensors<'_>) -> Vec<f32> {
        let n = t.parts.len();
        let deltas: Vec<Vec<f32>> = (0..n).map(|i| t.delta(i)).collect();
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            products.sum()
        };
        let sizes: Vec<f64> = deltas.iter().map(|d| dot(d, d).sqrt()).collect();
        let mut cosine = 0.0;
        for i in 0..n {
            for j in 0..i {
                let size = sizes[i] * sizes[j];
                // An expert that does not differ agrees with nobody.
                cosine += if size > 0.0 {
                    dot(&deltas[i], &deltas[j]) / size
                } else {
                    0.0
                };
            }
        }
        cosine /= (n * (n - 1) / 2) as f64;
        let count = n as f64;
        let far = (count * cosine / (1.0 + (count - 1.0) * cosine)).clamp(0.0, 1.0);
        let far = if cosine > 0.0 { far } else { 0.0 };
        let value = |(i, base): (usize, &f32)| {
            let sum: f64 = deltas.iter().map(|d| f64::from(d[i])).sum();
            (f64::from(*base) + far * sum / count) as f32
        };
        t.base.iter().enumerate().map(value).collect()
    }

    fn check(&self, experts: usize) -> Result<()> {
        if experts >= 2 {
            return Ok(());
        }
        let message = "agreement needs at least two experts";
        Err(Error::Merge(message.into()))
    }

    fn reproduces_single_expert(&self) -> bool {
        false
    }

    fn instances() -> Vec<Instance<Self>> {
        vec![Instance::new(Self {}).reference("model_stock", EQUAL)]
    }

    fn weighted(&self) -> bool {
        false
    }
}
