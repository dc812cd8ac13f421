//! The shape of a PCM, and where it is stored.

use std::path::Path;

use lm::DecoderConfig;
use lm::config::{Rope, RopeScaling};
use serde::{Deserialize, Serialize};

use crate::{Error, Output, Result};

/// Most experts that a PCM mixes, and the widest embeddings that it reads (ours).
const EXPERTS: usize = 1 << 12;
const EMBEDDING: usize = 1 << 20;

/// The file of a PCM's folder that holds its shape.
pub(crate) const CONFIG: &str = "config.json";

/// How the PCM reads the preference.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PreferenceInput {
    /// As text before the prompt (paper).
    Text,
    /// As a vector of importances, added to every input.
    Weights,
    /// Both (default, ours: the text generalises to wordings, the vector to degrees).
    #[default]
    Both,
}

/// What a PCM keeps of the checkpoint that it began as.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// Tokens of its own embeddings, which stay as they were; the base's tokens are the same.
    pub vocabulary: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Positions.
    pub rope: Rope,
    /// Of the norms.
    pub norm_eps: f32,
}

/// Shape of a PCM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PcmConfig {
    /// The experts that its outputs stand for, in their order.
    pub experts: Vec<String>,
    /// Width of the token embeddings that it reads: the base model's.
    pub embedding: usize,
    /// Width of its stream.
    pub hidden: usize,
    /// Blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Width of the feed-forward layers.
    pub intermediate: usize,
    /// How it reads the preference.
    pub preference: PreferenceInput,
    /// It reads the context; without, the weights follow from the preference alone (a learned but
    /// context-free α).
    pub context: bool,
    /// It reads black-box statistics of the experts' distributions at each step.
    pub statistics: bool,
    /// What its outputs do. Default: mix probabilities (paper).
    #[serde(default)]
    pub output: Output,
    /// The checkpoint that it began as; `None`: fresh weights on the base's embeddings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Origin>,
}

impl PcmConfig {
    /// Reads the shape of the PCM in a folder.
    ///
    /// # Errors
    /// A missing or damaged file, numbers that do not fit together.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        let text = lm::load::read_text(&path)?;
        let config: Self = serde_json::from_str(&text).map_err(|e| Error::file(&path, e))?;
        config.validate().map_err(|e| Error::file(&path, e))?;
        Ok(config)
    }

    /// About 1 % of a 135M base: 3 blocks of width 192 on the base's frozen token embeddings (ours).
    pub fn tiny(experts: &[&str], embedding: usize) -> Self {
        Self {
            experts: experts.iter().map(|e| e.to_string()).collect(),
            embedding,
            hidden: 192,
            layers: 3,
            heads: 3,
            intermediate: 512,
            preference: PreferenceInput::Both,
            context: true,
            statistics: false,
            output: Output::default(),
            origin: None,
        }
    }

    /// About 7 % of a 135M base: 5 blocks of width 384 (ours).
    pub fn small(experts: &[&str], embedding: usize) -> Self {
        Self {
            hidden: 384,
            layers: 5,
            heads: 6,
            intermediate: 1024,
            ..Self::tiny(experts, embedding)
        }
    }

    /// The shape of `JackFram/llama-160m`, the likely PCM of the paper: 12 blocks of width 768. The weights
    /// themselves are for another vocabulary than SmolLM2's ([`Pcm::pretrained`](crate::Pcm::pretrained)).
    pub fn llama160m(experts: &[&str], embedding: usize) -> Self {
        Self {
            hidden: 768,
            layers: 12,
            heads: 12,
            intermediate: 3072,
            ..Self::tiny(experts, embedding)
        }
    }

    /// Statistics per step: entropy and top-1 probability of each expert, and the Jensen-Shannon divergence
    /// between the experts.
    pub fn statistics_width(&self) -> usize {
        2 * self.experts.len() + 1
    }

    /// The decoder between inputs and weights.
    pub fn decoder(&self) -> DecoderConfig {
        let plain = Rope {
            theta: 10_000.0,
            scaling: RopeScaling::Plain,
        };
        let origin = self.origin.as_ref();
        DecoderConfig {
            vocab_size: 1,
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            layers: self.layers,
            heads: self.heads,
            kv_heads: origin.map_or(self.heads, |o| o.kv_heads),
            head_dim: self.hidden / self.heads.max(1),
            context_length: 1 << 16,
            norm_eps: origin.map_or(1e-5, |o| o.norm_eps),
            rope: origin.map_or(plain, |o| o.rope.clone()),
            tied_head: false,
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
            sliding_window: None,
            family: lm::config::Family::default(),
        }
    }

    /// Checks that the numbers fit together.
    ///
    /// # Errors
    /// [`Error::NothingToRead`], [`Error::Heads`], [`Error::OwnEmbeddings`] or [`Error::TextWithoutContext`]; those of
    /// [`Output::validate`] and [`DecoderConfig::validate`].
    pub fn validate(&self) -> Result<()> {
        if self.experts.is_empty() || self.embedding == 0 {
            return Err(Error::NothingToRead);
        }
        if self.heads == 0 || !self.hidden.is_multiple_of(self.heads) {
            return Err(Error::Heads {
                width: self.hidden,
                heads: self.heads,
            });
        }
        if self.origin.is_some() && self.embedding != self.hidden {
            return Err(Error::OwnEmbeddings {
                embeddings: self.embedding,
                stream: self.hidden,
            });
        }
        if !self.context && self.preference == PreferenceInput::Text {
            return Err(Error::TextWithoutContext);
        }
        self.output.validate()?;
        if self.experts.len() > EXPERTS || self.embedding > EMBEDDING {
            return Err(Error::Size {
                experts: self.experts.len(),
                embedding: self.embedding,
                most: (EXPERTS, EMBEDDING),
            });
        }
        Ok(self.decoder().validate()?)
    }
}
