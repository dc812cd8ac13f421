//! Spherical linear interpolation between two experts, tensor by tensor:
//!
//! `θ = sin((1 − t) φ) / sin φ · θ_1 + sin(t φ) / sin φ · θ_2`, φ the angle between the two, t the second's
//! weight
//!
//! Shoemake 1985, as model mergers use it.
//!
//! 1. Nearly parallel tensors (cosine above 0.9995 in size) are interpolated along the line.
//! 2. Works on whole parameters, not on differences from the base.

use serde::{Deserialize, Serialize};

use super::{Instance, Rule, Tensors};
use crate::{Error, Result};

/// From here on the arc is a line.
const PARALLEL: f64 = 0.9995;

/// Along the arc between two experts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slerp {}

impl Rule for Slerp {
    fn merge(&self, t: &Tensors<'_>) -> Vec<f32> {
        let (first, second) = (t.values(0), t.values(1));
        let share = t.weights[1];
        if share == 0.0 {
            return first.into_owned();
        }
        if share == 1.0 {
            return second.into_owned();
        }
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
            products.sum()
        };
        let size = (dot(&first, &first) * dot(&second, &second)).sqrt();
        let cosine = dot(&first, &second) / size;
        // Not a number where one of them is zero: then there is no arc either.
        let (one, two) = if cosine.abs() < PARALLEL {
            let angle = cosine.acos();
            let part = |t: f64| (t * angle).sin() / angle.sin();
            (part(1.0 - share), part(share))
        } else {
            (1.0 - share, share)
        };
        let pairs = first.iter().zip(second.iter());
        pairs
            .map(|(a, b)| (one * f64::from(*a) + two * f64::from(*b)) as f32)
            .collect()
    }

    fn check(&self, experts: usize) -> Result<()> {
        if experts == 2 {
            return Ok(());
        }
        Err(Error::Merge(format!(
            "an arc has two ends, not {experts}; take Soup() for more experts"
        )))
    }

    fn reproduces_single_expert(&self) -> bool {
        true
    }

    fn instances() -> Vec<Instance<Self>> {
        vec![
            Instance::new(Self {}).reference("slerp", &[("a", 0.6), ("c", 0.4)]),
            Instance::new(Self {}).reference("slerp_near", &[("a", 0.6), ("b", 0.4)]),
        ]
    }
}
