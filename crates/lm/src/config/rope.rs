//! Rotary position embedding (arXiv 2104.09864) and how its frequencies are stretched for long contexts.
//!
//! Formulas of the scalings are those of transformers 5 (`modeling_rope_utils.py`).

use serde::{Deserialize, Serialize};

use crate::parameter::above_zero;
use crate::{Error, Result};

/// Rotary position embedding (arXiv 2104.09864), always in the half-split layout: dimension `j` is
/// rotated with `j + rotated / 2`. Files in the interleaved layout are permuted when they are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f32,
    /// How the frequencies are stretched for long contexts.
    pub scaling: RopeScaling,
}

/// Change of the rotary frequencies for long contexts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RopeScaling {
    /// None.
    Plain,
    /// All frequencies divided by the factor.
    Linear(f32),
    /// LLaMA 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// Divides the low frequencies.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are scaled.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are kept.
        high_freq_factor: f32,
        /// Context length before the stretch.
        original_context: f32,
    },
    /// Each frequency divided by its own factor (GGUF's `rope_freqs.weight`), one value for each pair.
    Factors(Vec<f32>),
    /// YaRN (arXiv 2309.00071): as LLaMA 3.1's with a ramp over pairs, and cosines and sines are multiplied.
    Yarn {
        /// Divides the low frequencies.
        factor: f32,
        /// Context length before the stretch.
        original_context: f32,
        /// Pairs that turn more often than this within the original context are kept.
        beta_fast: f32,
        /// Pairs that turn less often are scaled.
        beta_slow: f32,
        /// The ramp begins and ends at whole pairs.
        truncate: bool,
        /// Multiplies cosines and sines.
        attention_factor: f32,
    },
    /// The base grows with the sequence once that is longer than the original context (NTK-aware).
    Dynamic {
        /// How much is stretched.
        factor: f32,
        /// Context length before the stretch.
        original_context: f32,
    },
    /// LongRoPE (arXiv 2402.13753): each frequency divided by its own factor, by `short` in a sequence of at most the
    /// original context and by `long` in longer ones; cosines and sines are multiplied.
    LongRope {
        /// One value for each pair.
        short: Vec<f32>,
        /// The same.
        long: Vec<f32>,
        /// Context length before the stretch.
        original_context: f32,
        /// Multiplies cosines and sines.
        attention_factor: f32,
    },
}

impl Rope {
    /// Checks the constants, and that angles follow from them where `rotated` dimensions of a head are.
    pub(super) fn validate(&self, rotated: usize) -> Result<()> {
        let pairs = rotated / 2;
        let above_zero =
            |name: &str, value: f32| above_zero(format!("rope scaling: {name}"), value);
        let all_above_zero = |name: &str, factors: &[f32]| {
            let mut all = factors.iter().enumerate();
            all.try_for_each(|(j, factor)| above_zero(&format!("factor {j} of {name}"), *factor))
        };
        match &self.scaling {
            RopeScaling::Plain => {}
            RopeScaling::Linear(factor) => above_zero("factor", *factor)?,
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                above_zero("factor", *factor)?;
                above_zero("low_freq_factor", *low_freq_factor)?;
                above_zero("high_freq_factor", *high_freq_factor)?;
                above_zero("original_max_position_embeddings", *original_context)?;
                if low_freq_factor >= high_freq_factor {
                    let (low, high) = (*low_freq_factor, *high_freq_factor);
                    return Err(Error::RopeRange { low, high });
                }
            }
            RopeScaling::Factors(factors) => all_above_zero("rope_freqs", factors)?,
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
                ..
            } => {
                above_zero("factor", *factor)?;
                above_zero("original_max_position_embeddings", *original_context)?;
                above_zero("beta_fast", *beta_fast)?;
                above_zero("beta_slow", *beta_slow)?;
                above_zero("attention_factor", *attention_factor)?;
            }
            RopeScaling::Dynamic {
                factor,
                original_context,
            } => {
                above_zero("factor", *factor)?;
                above_zero("max_position_embeddings", *original_context)?;
                if rotated < 4 {
                    let expected = "at least 4 with a dynamic rope scaling";
                    return Err(Error::parameter("head_dim", rotated, expected));
                }
            }
            RopeScaling::LongRope {
                short,
                long,
                original_context,
                attention_factor,
            } => {
                above_zero("original_max_position_embeddings", *original_context)?;
                above_zero("attention_factor", *attention_factor)?;
                all_above_zero("short_factor", short)?;
                all_above_zero("long_factor", long)?;
            }
        }
        let listed = match &self.scaling {
            RopeScaling::Factors(factors) => vec![factors],
            RopeScaling::LongRope { short, long, .. } => vec![short, long],
            _ => vec![],
        };
        if let Some(factors) = listed.iter().find(|f| f.len() != pairs) {
            return Err(Error::RopeFactors {
                factors: factors.len(),
                head_dim: rotated,
            });
        }
        for length in [0, 1 << 30] {
            let angles = self.frequencies_at(rotated, length);
            if let Some(pair) = angles.iter().position(|f| !f.is_finite()) {
                return Err(Error::RopeFrequency {
                    pair,
                    value: angles[pair],
                    theta: self.theta,
                });
            }
        }
        Ok(())
    }

    /// Angle per position of each rotated pair, `[rotated / 2]`, in radians per token, in sequences of at most the
    /// original context.
    ///
    /// ```
    /// use mope_lm::config::{Rope, RopeScaling};
    /// let rope = Rope { theta: 10_000.0, scaling: RopeScaling::Plain };
    /// assert_eq!(rope.frequencies(4), vec![1.0, 0.01]);
    /// ```
    pub fn frequencies(&self, rotated: usize) -> Vec<f32> {
        self.frequencies_at(rotated, 0)
    }

    /// The same in a sequence of `length` tokens.
    pub fn frequencies_at(&self, rotated: usize, length: usize) -> Vec<f32> {
        let theta = match self.scaling {
            RopeScaling::Dynamic {
                factor,
                original_context,
            } => {
                let [theta, factor, context] =
                    [self.theta, factor, original_context].map(f64::from);
                let stretch = factor * (length as f64).max(context) / context - (factor - 1.0);
                theta * stretch.powf(rotated as f64 / (rotated as f64 - 2.0))
            }
            _ => self.theta as f64,
        };
        let ramp = self.yarn_ramp(rotated);
        (0..rotated / 2)
            .map(|j| {
                let freq = 1.0 / theta.powf(2.0 * j as f64 / rotated as f64);
                let freq = match &self.scaling {
                    RopeScaling::Plain | RopeScaling::Dynamic { .. } => freq,
                    RopeScaling::Linear(factor) => freq / *factor as f64,
                    RopeScaling::Factors(factors) => freq / factors[j] as f64,
                    RopeScaling::LongRope { short, long, .. } => {
                        let factors = if self.stage(length) == 0 { short } else { long };
                        freq / factors[j] as f64
                    }
                    RopeScaling::Yarn { factor, .. } => {
                        let (low, high) = ramp;
                        let scaled = ((j as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        freq / f64::from(*factor) * scaled + freq * (1.0 - scaled)
                    }
                    &RopeScaling::Llama3 {
                        factor,
                        low_freq_factor,
                        high_freq_factor,
                        original_context,
                    } => {
                        let [factor, low, high, context] =
                            [factor, low_freq_factor, high_freq_factor, original_context]
                                .map(f64::from);
                        let wavelength = 2.0 * std::f64::consts::PI / freq;
                        if wavelength < context / high {
                            freq
                        } else if wavelength > context / low {
                            freq / factor
                        } else {
                            let ramp = (context / wavelength - low) / (high - low);
                            (1.0 - ramp) * freq / factor + ramp * freq
                        }
                    }
                };
                freq as f32
            })
            .collect()
    }

    /// Where YaRN's ramp begins and ends, in pairs.
    fn yarn_ramp(&self, rotated: usize) -> (f64, f64) {
        let RopeScaling::Yarn {
            original_context,
            beta_fast,
            beta_slow,
            truncate,
            ..
        } = self.scaling
        else {
            return (0.0, 1.0);
        };
        let rotated = rotated as f64;
        let pair = |turns: f32| {
            let wavelength =
                f64::from(original_context) / (f64::from(turns) * std::f64::consts::TAU);
            rotated * wavelength.ln() / (2.0 * f64::from(self.theta).ln())
        };
        let (low, high) = (pair(beta_fast), pair(beta_slow));
        let (low, high) = match truncate {
            true => (low.floor(), high.ceil()),
            false => (low, high),
        };
        let (low, high) = (low.max(0.0), high.min(rotated - 1.0));
        (low, if low == high { high + 0.001 } else { high })
    }

    /// Multiplies cosines and sines.
    pub fn magnitude(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn {
                attention_factor, ..
            }
            | RopeScaling::LongRope {
                attention_factor, ..
            } => attention_factor,
            _ => 1.0,
        }
    }

    /// Which frequencies a sequence of `length` tokens has: those of equal stages are the same. 0 are those of
    /// [`Self::frequencies`].
    pub fn stage(&self, length: usize) -> usize {
        match self.scaling {
            RopeScaling::LongRope {
                original_context, ..
            } => usize::from(length as f64 > f64::from(original_context)),
            RopeScaling::Dynamic {
                original_context, ..
            } if length as f64 > f64::from(original_context) => length,
            _ => 0,
        }
    }

    /// Frequencies depend on the length of the sequence.
    pub fn depends_on_length(&self) -> bool {
        use RopeScaling::{Dynamic, LongRope};
        matches!(self.scaling, Dynamic { .. } | LongRope { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        let plain = Rope {
            theta: 500_000.0,
            scaling: RopeScaling::Plain,
        }
        .frequencies(128);
        let scaled = Rope {
            theta: 500_000.0,
            scaling,
        }
        .frequencies(128);
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[63] / plain[63] - 0.125).abs() < 1e-6);
        // transformers' `_compute_llama3_parameters` for the same numbers, j = 32.
        assert!(scaled[32] < plain[32] && scaled[32] > plain[32] / 8.0);
    }

    #[test]
    fn stages_change_behind_the_original_context() {
        let of = |scaling| Rope {
            theta: 10_000.0,
            scaling,
        };
        let dynamic = of(RopeScaling::Dynamic {
            factor: 2.0,
            original_context: 8.0,
        });
        assert_eq!([8, 9, 10].map(|n| dynamic.stage(n)), [0, 9, 10]);
        // theta (2 · 16 / 8 - 1)^(4 / 2) = 90,000 at 16 tokens.
        assert_eq!(dynamic.frequencies_at(4, 8), [1.0, 0.01]);
        assert_eq!(dynamic.frequencies_at(4, 16), [1.0, 1.0 / 300.0]);
        let long = of(RopeScaling::LongRope {
            short: vec![1.0, 2.0],
            long: vec![4.0, 8.0],
            original_context: 8.0,
            attention_factor: 1.5,
        });
        assert_eq!([8, 9, 10].map(|n| long.stage(n)), [0, 1, 1]);
        assert_eq!(long.frequencies_at(4, 8), [1.0, 0.005]);
        assert_eq!(long.frequencies_at(4, 9), [0.25, 0.00125]);
        assert_eq!(long.magnitude(), 1.5);
    }
}
