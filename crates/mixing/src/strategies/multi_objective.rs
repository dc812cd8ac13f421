//! Multi-objective decoding, MOD (arXiv 2406.18853). Each expert maximises its own reward under an
//! f-divergence to `p_ref`, so its reward is `f'(p_i / p_ref)`; the weighted sum of rewards is maximised by
//! `p ∝ p_ref · f'⁻¹(Σ_i w_i f'(p_i / p_ref))`, with `p_i` the probability of the *sequence* that the token
//! makes:
//!
//! ```text
//! reverse KL, f = x log x          Π p_i^{w_i}                     the beginning cancels out
//! forward KL, f = −log x           (Σ w_i / p_i)⁻¹
//! α,          f' = (1 − x^−α) / α  (Σ w_i p_i^−α)^{−1/α}           α → 0 reverse, α = 1 forward KL
//! Jensen-Shannon, f' = log 2x/(1+x)   p_ref / (Π (1 + p_ref / p_i)^{w_i} − 1)
//! ```
//!
//! 1. Derived from the paper, not from the released code: that leaves the exponent 1/α out, and takes the
//!    probabilities of the next token alone. Forms other than reverse KL carry what each expert has given
//!    the response so far.
//! 2. Jensen-Shannon solves `f'(x) = Σ w_i f'(x_i)` for x in closed form; the paper's constant that
//!    normalises over whole responses is left out as there, the next token is normalised instead.

use std::collections::BTreeMap;

use kernels::{Isa, math};
use serde::{Deserialize, Serialize};

use super::{Instance, InstanceContext, Method, Parts, Strategy};
use crate::mixer::same_experts;
use crate::preference::constant_weights;
use crate::{
    BASE, Error, Mixed, Mixer, Plan, Preference, Requirements, Result, Step, mix_logs, normalise,
};

/// The divergence that the experts were trained under.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub enum Divergence {
    /// That of RLHF, PPO, DPO and REBEL (default, paper).
    #[default]
    ReverseKl,
    /// Forward Kullback-Leibler.
    ForwardKl,
    /// Jensen-Shannon; reads the base, too.
    JensenShannon,
    /// The α-divergence, α above 0 and at most 1.
    Alpha(f64),
}

/// Multi-objective decoding.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mod {
    /// Weight by expert, summing to 1. Default `None`: the importances of the preference.
    #[serde(deserialize_with = "crate::named::unique_option")]
    pub weights: Option<BTreeMap<String, f64>>,
    /// What kept the experts near the base. Default reverse KL (paper).
    pub divergence: Divergence,
}

impl Method for Mod {
    fn plan(&self, preference: &Preference, experts: &[&str]) -> Result<Plan> {
        if let Divergence::Alpha(alpha) = self.divergence
            && !(alpha > 0.0 && alpha <= 1.0)
        {
            let expected = "above 0 and at most 1";
            return Err(Error::parameter("alpha", alpha, expected));
        }
        let mut weights: BTreeMap<String, f64> =
            constant_weights(self.weights.as_ref(), preference, experts)?
                .into_iter()
                .collect();
        if self.divergence == Divergence::JensenShannon {
            weights.entry(BASE.into()).or_default();
        }
        let base = weights.keys().position(|n| n == BASE).unwrap_or(0);
        let (names, weights): (Vec<_>, Vec<_>) =
            weights.into_iter().map(|(n, w)| (n, w as f32)).unzip();
        let divergence = self.divergence;
        let mixer = Combine {
            weights,
            base,
            divergence,
        };
        Ok(Plan::new(names, Requirements::FULL, mixer))
    }

    fn parts(&mut self) -> Parts<'_> {
        Parts::none()
    }

    fn reproduces_single_expert(&self) -> bool {
        true
    }

    fn weighted(&self, weights: BTreeMap<String, f64>) -> Option<Strategy> {
        Some(Strategy::Mod(Self {
            weights: Some(weights),
            ..self.clone()
        }))
    }

    fn instances(_: &InstanceContext<'_>) -> Vec<Instance<Self>> {
        let of = |divergence| {
            let strategy = Self {
                weights: None,
                divergence,
            };
            Instance::new(strategy).multiplies()
        };
        vec![
            of(Divergence::ReverseKl).reference("mod_reverse"),
            of(Divergence::ForwardKl).reference("mod_forward"),
            of(Divergence::Alpha(0.3)).reference("mod_alpha"),
            of(Divergence::JensenShannon).reference("mod_jensen_shannon"),
        ]
    }
}

#[derive(Clone)]
struct Combine {
    /// `[experts]`, on the simplex.
    weights: Vec<f32>,
    /// Where the base is, for Jensen-Shannon.
    base: usize,
    divergence: Divergence,
}

impl Mixer for Combine {
    fn mix(&mut self, step: &Step<'_>, mixed: &mut Mixed) -> Result<()> {
        same_experts(step, self.weights.len())?;
        mixed.each(step, |sequence, out, weights| {
            weights.copy_from_slice(&self.weights);
            let rows: Vec<&[f32]> = (0..weights.len())
                .map(|e| step.next.row(e, sequence))
                .collect();
            let sums = &step.history[sequence].log_probs;
            if let Some(only) = weights.iter().position(|w| *w == 1.0) {
                out.copy_from_slice(rows[only]);
                return;
            }
            match self.divergence {
                Divergence::ReverseKl => return mix_logs(&rows, weights, out),
                Divergence::ForwardKl => power_mean(1.0, &rows, weights, sums, out),
                Divergence::Alpha(alpha) => power_mean(alpha as f32, &rows, weights, sums, out),
                Divergence::JensenShannon => jensen_shannon(self.base, &rows, weights, sums, out),
            }
            normalise(out);
        });
        Ok(())
    }
}

/// `out = −(1/α) log Σ_i exp(log w_i − α (sums_i + rows_i))`, up to a constant.
fn power_mean(alpha: f32, rows: &[&[f32]], weights: &[f32], sums: &[f64], out: &mut [f32]) {
    let used = || (0..rows.len()).filter(|&i| weights[i] != 0.0);
    let least = used().map(|i| sums[i]).fold(f64::INFINITY, f64::min);
    let shift = |i: usize| weights[i].ln() - alpha * (sums[i] - least) as f32;
    out.fill(f32::NEG_INFINITY);
    for i in used() {
        let shift = shift(i);
        for (most, row) in out.iter_mut().zip(rows[i]) {
            *most = most.max(shift - alpha * row);
        }
    }
    let (mut total, mut term) = (vec![0.0; out.len()], vec![0.0; out.len()]);
    for i in used() {
        let shift = shift(i);
        for ((term, row), most) in term.iter_mut().zip(rows[i]).zip(&*out) {
            *term = shift - alpha * row - most;
        }
        math::exp_add(Isa::best(), &mut total, 1.0, &term);
    }
    math::ln_all(Isa::best(), &mut total);
    for (out, total) in out.iter_mut().zip(&total) {
        // One expert of positive weight rules the token out.
        let sum = if *out == f32::INFINITY {
            *out
        } else {
            *out + total
        };
        *out = -sum / alpha;
    }
}

/// `out = l_ref − log(exp(Σ_i w_i softplus(l_ref − l_i)) − 1)` with `l = sums + rows`, up to a constant.
fn jensen_shannon(base: usize, rows: &[&[f32]], weights: &[f32], sums: &[f64], out: &mut [f32]) {
    let isa = Isa::best();
    let used = || (0..rows.len()).filter(|&i| weights[i] != 0.0);
    let ahead = |i: usize| sums[base] - sums[i];
    // Where all experts find the response far likelier than the base does, softplus is the exponential and
    // a common factor comes out of the sum: numbers stay in reach.
    let nearest = used().map(ahead).fold(f64::NEG_INFINITY, f64::max);
    let out_of_reach = (nearest + 40.0).min(0.0);
    out.fill(0.0);
    for i in used() {
        let shift = (ahead(i) - out_of_reach) as f32;
        math::softplus_add(isa, out, weights[i], shift, rows[base], rows[i]);
    }
    math::ln_exp_m1_all(isa, out);
    for (out, reference) in out.iter_mut().zip(rows[base]) {
        let value = reference - *out;
        *out = if value.is_finite() {
            value
        } else {
            f32::NEG_INFINITY
        };
    }
}
