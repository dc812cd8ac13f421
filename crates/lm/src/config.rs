//! The inside description of a decoder. Outside formats (`config.json`, GGUF metadata) are read by
//! [`crate::load`] and converted into this once.

use serde::{Deserialize, Serialize};

use crate::parameter::{above_zero, below_one};
use crate::{Error, Result};

/// Widest head that is read (ours); published models have at most 256.
const HEAD_DIM: usize = 1 << 16;
/// Most parameters that a config may ask for (ours): their bytes can be counted in any format.
const PARAMETERS: u128 = 1 << 48;

/// Shape and constants of a LLaMA-family decoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderConfig {
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads` (grouped-query attention, arXiv 2305.13245).
    pub kv_heads: usize,
    /// Width of one head; usually `hidden_size / heads`, but Qwen3 and some Mistrals set it.
    pub head_dim: usize,
    /// Longest sequence in tokens.
    pub context_length: usize,
    /// Added to the mean square inside RMSNorm.
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: Rope,
    /// The head is the transposed embedding.
    pub tied_head: bool,
    /// Biases on the q, k and v projections (Qwen2; LLaMA with `attention_bias`).
    pub qkv_bias: bool,
    /// A bias on the attention's output projection (LLaMA with `attention_bias`).
    pub output_bias: bool,
    /// Biases on gate, up and down (LLaMA with `mlp_bias`).
    pub mlp_bias: bool,
    /// RMSNorm over each head of q and k before RoPE (Qwen3).
    pub qk_norm: bool,
    /// A query sees this many tokens, itself included (Mistral 0.1); `None` is all of them.
    pub sliding_window: Option<usize>,
}

/// Rotary position embedding (arXiv 2104.09864), always in the half-split layout: dimension `j` is
/// rotated with `j + head_dim / 2`. Files in the interleaved layout are permuted when they are read.
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
    /// Each frequency divided by its own factor (GGUF's `rope_freqs.weight`), `head_dim / 2` values.
    Factors(Vec<f32>),
}

impl Rope {
    /// Checks the constants, and that angles follow from them for heads of this width.
    fn validate(&self, head_dim: usize) -> Result<()> {
        let above_zero =
            |name: &str, value: f32| above_zero(format!("rope scaling: {name}"), value);
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
            RopeScaling::Factors(factors) => {
                for (j, factor) in factors.iter().enumerate() {
                    above_zero(&format!("factor {j} of rope_freqs"), *factor)?;
                }
            }
        }
        let angles = self.frequencies(head_dim);
        match angles.iter().position(|f| !f.is_finite()) {
            None => Ok(()),
            Some(pair) => Err(Error::RopeFrequency {
                pair,
                value: angles[pair],
                theta: self.theta,
            }),
        }
    }

    /// Angle per position of each rotated pair, `[head_dim / 2]`, in radians per token.
    ///
    /// ```
    /// use mope_lm::config::{Rope, RopeScaling};
    /// let rope = Rope { theta: 10_000.0, scaling: RopeScaling::Plain };
    /// assert_eq!(rope.frequencies(4), vec![1.0, 0.01]);
    /// ```
    pub fn frequencies(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|j| {
                let freq = 1.0 / (self.theta as f64).powf(2.0 * j as f64 / head_dim as f64);
                let freq = match &self.scaling {
                    RopeScaling::Plain => freq,
                    RopeScaling::Linear(factor) => freq / *factor as f64,
                    RopeScaling::Factors(factors) => freq / factors[j] as f64,
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
}

impl DecoderConfig {
    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// [`Error::Parameter`] for a number that makes no sense; [`Error::Heads`], [`Error::RopeFactors`],
    /// [`Error::RopeRange`] or [`Error::RopeFrequency`] for numbers that do not fit together.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("layers", self.layers),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("context_length", self.context_length),
        ];
        for (name, size) in sizes {
            if size == 0 || size > 1 << 30 {
                return Err(Error::parameter(name, size, "from 1 to 2^30"));
            }
        }
        if self.head_dim > HEAD_DIM {
            return Err(Error::parameter(
                "head_dim",
                self.head_dim,
                "65,536 at most",
            ));
        }
        let parameters = self.parameters_exact();
        if parameters > PARAMETERS {
            return Err(Error::parameter(
                "the number of parameters that these sizes make",
                parameters,
                "2^48 at most",
            ));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::Heads {
                heads: self.heads,
                kv_heads: self.kv_heads,
            });
        }
        if !self.head_dim.is_multiple_of(2) {
            let expected = "even; RoPE rotates pairs";
            return Err(Error::parameter("head_dim", self.head_dim, expected));
        }
        below_one("norm_eps", self.norm_eps)?;
        above_zero("rope theta", self.rope.theta)?;
        if let RopeScaling::Factors(f) = &self.rope.scaling
            && f.len() != self.head_dim / 2
        {
            return Err(Error::RopeFactors {
                factors: f.len(),
                head_dim: self.head_dim,
            });
        }
        self.rope.validate(self.head_dim)?;
        if self.sliding_window == Some(0) {
            return Err(Error::parameter("sliding_window", 0, "at least 1"));
        }
        Ok(())
    }

    /// Number of weights, embedding and head included (a tied head counts once).
    pub fn parameters(&self) -> usize {
        usize::try_from(self.parameters_exact()).unwrap_or(usize::MAX)
    }

    /// The same where it may be more than fits; sizes are below 2^30, so that it fits here.
    fn parameters_exact(&self) -> u128 {
        let [
            vocab,
            hidden,
            intermediate,
            layers,
            heads,
            kv_heads,
            head_dim,
        ] = [
            self.vocab_size,
            self.hidden_size,
            self.intermediate_size,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
        ]
        .map(|size| size as u128);
        let attention = hidden.saturating_mul(head_dim * 2 * (heads + kv_heads));
        let block = attention.saturating_add(hidden * (3 * intermediate + 2));
        let vocabularies = if self.tied_head { 1 } else { 2 };
        let rest = vocabularies * vocab * hidden + hidden;
        layers.saturating_mul(block).saturating_add(rest)
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
}
