//! Choosing the next token from log-probabilities, with randomness that depends on nothing but its
//! key and the token's number.

use std::cell::RefCell;

use kernels::{Isa, math};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::parameter::from_zero_on;
use crate::{Error, Result};

/// How the next token is chosen. Filters apply in the order of transformers: temperature, top-k,
/// top-p, min-p; what is left is renormalised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// Divides the log-probabilities; 0 is greedy. Default 0.7, at which SmolLM2-135M still speaks
    /// (ours, measured; REBEL's settings are 0.5–0.7).
    pub temperature: f32,
    /// Keeps the k likeliest tokens; 0 keeps all (default).
    pub top_k: usize,
    /// Keeps the likeliest tokens until they hold this probability (arXiv 1904.09751); 1 keeps all
    /// (default).
    pub top_p: f32,
    /// Keeps tokens with at least this fraction of the best one's probability (arXiv 2407.01082); 0
    /// keeps all (default).
    pub min_p: f32,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.7,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
        }
    }
}

impl Sampling {
    /// Always the likeliest token; of equals the one with the smallest id.
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
    };

    /// Checks the numbers.
    ///
    /// # Errors
    /// [`Error::Parameter`] for the first that makes no sense.
    pub fn validate(&self) -> Result<()> {
        from_zero_on("temperature", self.temperature)?;
        if self.temperature > 0.0 && (1.0 / self.temperature).is_infinite() {
            return Err(Error::Parameter {
                name: "temperature".into(),
                value: self.temperature.to_string(),
                expected: "0 (greedy), or so large that its inverse is finite",
            });
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            let expected = "above 0 and at most 1";
            return Err(Error::parameter("top_p", self.top_p, expected));
        }
        match (0.0..=1.0).contains(&self.min_p) {
            true => Ok(()),
            false => Err(Error::parameter("min_p", self.min_p, "from 0 to 1")),
        }
    }

    /// Picks a token. `uniform` in [0, 1) decides; greedy sampling ignores it.
    ///
    /// # Errors
    /// Nothing to draw from: a number that is NaN or +∞, only −∞, or no numbers at all.
    ///
    /// ```
    /// use mope_lm::sampling::Sampling;
    /// let log_probs = [0.1f32, 0.6, 0.3].map(f32::ln);
    /// assert_eq!(Sampling::GREEDY.pick(&log_probs, 0.9)?, 1);
    /// let plain = Sampling { temperature: 1.0, ..Sampling::default() };
    /// assert_eq!(plain.pick(&log_probs, 0.05)?, 0);
    /// assert_eq!(plain.pick(&log_probs, 0.95)?, 2);
    /// assert!(plain.pick(&[-1.0, f32::NAN], 0.5).is_err());
    /// # Ok::<(), mope_lm::Error>(())
    /// ```
    pub fn pick(&self, log_probs: &[f32], uniform: f64) -> Result<u32> {
        let best = argmax(log_probs).filter(|best| log_probs[*best].is_finite());
        let Some(best) = best else {
            return Err(Error::NoToken);
        };
        if self.temperature == 0.0 {
            return Ok(best as u32);
        }
        let top = log_probs[best];
        let inverse = 1.0 / self.temperature;
        if self.top_k == 0 && self.top_p >= 1.0 {
            return BUFFER.with_borrow_mut(|weights| {
                weights.clear();
                weights.extend(log_probs.iter().map(|l| (l - top) * inverse));
                Ok(draw_all(weights, self.min_p, uniform))
            });
        }
        let weight = |log_prob: f32| (f64::from(log_prob - top) * f64::from(inverse)).exp();
        let mut order: Vec<u32> = (0..log_probs.len() as u32).collect();
        let by_rank = |&a: &u32, &b: &u32| {
            log_probs[b as usize]
                .total_cmp(&log_probs[a as usize])
                .then(a.cmp(&b))
        };
        if self.top_k > 0 && self.top_k < order.len() {
            order.select_nth_unstable_by(self.top_k - 1, by_rank);
            order.truncate(self.top_k);
        }
        order.sort_unstable_by(by_rank);
        let weights: Vec<f64> = order
            .iter()
            .map(|&id| weight(log_probs[id as usize]))
            .collect();
        let total: f64 = weights.iter().sum();
        let mut mass = 0.0;
        let inside = weights.iter().take_while(|&&w| {
            let before = mass;
            mass += w / total;
            before < f64::from(self.top_p)
        });
        let kept = inside.count().max(1);
        let pairs = order[..kept]
            .iter()
            .map(|&id| id as usize)
            .zip(weights[..kept].iter().copied());
        Ok(draw(pairs, f64::from(self.min_p), uniform))
    }
}

thread_local! {
    /// Weights of a vocabulary: too many to ask the system for at every token.
    static BUFFER: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// [`draw`] over `e^w` of a whole vocabulary, the largest being 1: first the piece of it, then the token.
fn draw_all(weights: &mut [f32], least: f32, uniform: f64) -> u32 {
    const PIECE: usize = 1024;
    let isa = Isa::best();
    math::exp_all(isa, weights);
    if least > 0.0 {
        weights
            .iter_mut()
            .filter(|w| **w < least)
            .for_each(|w| *w = 0.0);
    }
    let masses: Vec<f64> = weights.chunks(PIECE).map(|p| math::sum(isa, p)).collect();
    let mut left = uniform * masses.iter().sum::<f64>();
    let mut piece = 0;
    while piece + 1 < masses.len() && left >= masses[piece] {
        left -= masses[piece];
        piece += 1;
    }
    let mut last = None;
    for (i, weight) in weights.iter().enumerate().skip(piece * PIECE) {
        if *weight > 0.0 {
            last = Some(i);
            if left < f64::from(*weight) {
                break;
            }
            left -= f64::from(*weight);
        }
    }
    // Rounding may leave nothing after the last piece that has mass.
    last.or_else(|| argmax(weights)).unwrap_or(0) as u32
}

/// Index of the largest value, the first of equals; `None` where there is none or one of them is NaN.
pub fn argmax(values: &[f32]) -> Option<usize> {
    let top = math::peak(Isa::best(), values);
    values.iter().position(|v| *v == top)
}

/// Inverse of the cumulative distribution over the weights that reach `least`, in the order given.
fn draw(weights: impl Iterator<Item = (usize, f64)> + Clone, least: f64, uniform: f64) -> u32 {
    let weights = weights.filter(|&(_, w)| w > 0.0 && w >= least);
    let mut left = uniform * weights.clone().map(|(_, w)| w).sum::<f64>();
    let mut last = 0;
    for (id, weight) in weights {
        last = id;
        if left < weight {
            break;
        }
        left -= weight;
    }
    last as u32
}

/// Leaves the `k` likeliest tokens and renormalises them; of equals those with the smallest ids. The others
/// become impossible.
///
/// ```
/// let mut row = [0.5f32, 0.3, 0.2].map(f32::ln);
/// mope_lm::sampling::keep_likeliest(&mut row, 2);
/// assert!((row[0].exp() - 0.625).abs() < 1e-6 && row[2] == f32::NEG_INFINITY);
/// ```
pub fn keep_likeliest(row: &mut [f32], k: usize) {
    if k == 0 || k >= row.len() {
        return;
    }
    // The likeliest so far, best first; few of a vocabulary's tokens get past the last of them.
    let mut best: Vec<(f32, usize)> = Vec::with_capacity(k + 1);
    for (id, &value) in row.iter().enumerate() {
        if best.len() == k && best.last().is_some_and(|last| value <= last.0) {
            continue;
        }
        let rank = best.partition_point(|(other, _)| *other >= value);
        best.insert(rank, (value, id));
        best.truncate(k);
    }
    let mut values: Vec<f32> = best.iter().map(|(value, _)| *value).collect();
    log_softmax(&mut values);
    row.fill(f32::NEG_INFINITY);
    for ((_, id), value) in best.iter().zip(values) {
        row[*id] = value;
    }
}

/// Turns logits into log-probabilities in nats, `x - log Σ exp x`, the sum in f64 of parts. Returns that
/// normaliser: NaN, and with it the whole row, where a logit is NaN or +∞, all are −∞, or the sum is lost in the
/// rounding of very large logits.
///
/// ```
/// let mut row = [0.0, 3f32.ln()];
/// mope_lm::sampling::log_softmax(&mut row);
/// assert!((row[0] - 0.25f32.ln()).abs() < 1e-6);
/// ```
pub fn log_softmax(row: &mut [f32]) -> f32 {
    math::log_softmax(Isa::best(), row)
}

/// The numbers below `n` in an order that `parts` name (Fisher-Yates).
///
/// ```
/// let order = mope_lm::sampling::permutation(5, &[b"a"]);
/// assert_eq!(order, mope_lm::sampling::permutation(5, &[b"a"]));
/// assert_eq!(order.iter().sum::<usize>(), 10);
/// ```
pub fn permutation(n: usize, parts: &[&[u8]]) -> Vec<usize> {
    let mut draws = Draws::new(parts);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let j = (draws.uniform(i) * (i + 1) as f64) as usize;
        order.swap(i, j);
    }
    order
}

/// Random numbers of one response: ChaCha8 keyed by a SHA-256 of what names the response, counted by
/// the token. A draw depends on neither batch, order nor how often others drew.
#[derive(Debug, Clone)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// Keys the generator by all `parts`, such as seed, prompt, preference, strategy, sample.
    pub fn new(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(ChaCha8Rng::from_seed(hash.finalize().into()))
    }

    /// The numbers of [`Self::uniform`] from 0 to `count`.
    pub fn uniforms(&mut self, count: usize) -> Vec<f64> {
        self.0.set_word_pos(0);
        let next = |_| (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
        (0..count).map(next).collect()
    }

    /// Independent randomness for the n-th of several tries at the same response; the 0th is this one.
    pub fn attempt(&self, n: usize) -> Self {
        let mut draws = self.clone();
        draws.0.set_stream(n as u64);
        draws
    }

    /// The uniform number in [0, 1) of token `index`, 53 bits.
    ///
    /// ```
    /// use mope_lm::sampling::Draws;
    /// let mut draws = Draws::new(&[b"seed 1", b"prompt"]);
    /// let third = draws.uniform(2);
    /// assert_ne!(draws.uniform(0), third);
    /// assert_eq!(draws.uniform(2), third);
    /// ```
    pub fn uniform(&mut self, index: usize) -> f64 {
        self.0.set_word_pos(index as u128 * 2);
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}
