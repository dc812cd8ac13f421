//! What sets a family of models apart from LLaMA.

use serde::{Deserialize, Serialize};

use super::Rope;

/// What sets a family of models apart from LLaMA, whose values are the defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Family {
    /// Where RMSNorms stand.
    pub norms: Norms,
    /// What the gate of a feed-forward layer goes through.
    pub activation: Activation,
    /// RMSNorm of q and k runs over all heads together (OLMo 2), where there is one.
    pub wide_qk_norm: bool,
    /// Dimensions of a head that are rotated; `None` is all of them.
    pub rotated: Option<usize>,
    /// Multiplies scores of attention; `None` is `head_dim^(-1/2)`.
    pub attention_scale: Option<f32>,
    /// Scores `s` become `cap · tanh(s / cap)` (Gemma 2).
    pub attention_cap: Option<f32>,
    /// The same for logits.
    pub logit_cap: Option<f32>,
    /// Multiplies embeddings as they enter the residual stream.
    pub embedding_multiplier: f32,
    /// Multiplies what attention and feed-forward layers add to the stream (Granite).
    pub residual_multiplier: f32,
    /// Divides logits (Granite).
    pub logit_divisor: f32,
    /// One for each layer where layers differ in what they see and how they are rotated.
    pub layers: Vec<LayerKind>,
    /// The rotary embedding of layers that say [`LayerRope::Local`].
    pub local_rope: Option<Rope>,
    /// Feed-forward layers are mixtures of experts.
    pub experts: Option<Experts>,
    /// How files hold the tensors.
    pub layout: Layout,
}

impl Default for Family {
    fn default() -> Self {
        Self {
            norms: Norms::default(),
            activation: Activation::default(),
            wide_qk_norm: false,
            rotated: None,
            attention_scale: None,
            attention_cap: None,
            logit_cap: None,
            embedding_multiplier: 1.0,
            residual_multiplier: 1.0,
            logit_divisor: 1.0,
            layers: vec![],
            local_rope: None,
            experts: None,
            layout: Layout::default(),
        }
    }
}

impl Family {
    /// Nothing sets it apart.
    pub fn is_llama(&self) -> bool {
        *self == Self::default()
    }
}

/// Where the RMSNorms of a block stand.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Norms {
    /// Before attention and feed-forward layer.
    #[default]
    Before,
    /// Behind them, before what they give is added to the stream (OLMo 2).
    After,
    /// Before and behind (Gemma 2, GLM-4).
    Around,
}

/// What the gate of a feed-forward layer goes through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activation {
    /// `x / (1 + e^(-x))`.
    #[default]
    Silu,
    /// `x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
}

/// What one layer's attention sees, and how its queries and keys are rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerKind {
    /// Only the sliding window.
    pub sliding: bool,
    /// Which rotary embedding.
    pub rope: LayerRope,
}

/// Which rotary embedding a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LayerRope {
    /// The model's.
    Main,
    /// [`Family::local_rope`].
    Local,
    /// None: nothing tells positions apart (SmolLM3).
    None,
}

/// A mixture of experts in place of a feed-forward layer: the router's most probable experts read a token, and
/// their outputs are added, weighted by their probabilities.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// Experts that read a token.
    pub chosen: usize,
    /// Width of an expert's feed-forward layer.
    pub intermediate_size: usize,
    /// The weights of the chosen experts are divided by their sum.
    pub normalised: bool,
    /// Width of an expert that reads every token, weighted by a sigmoid of its own (Qwen2-MoE).
    pub shared: Option<usize>,
    /// Layers that have an ordinary feed-forward layer, in ascending order.
    pub dense_layers: Vec<usize>,
}

/// How files of Hugging Face hold the tensors of a family. In memory all families are alike: projections stand
/// alone, rotated pairs are half-split, and norms multiply by what is stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Layout {
    /// q, k and v are one matrix, `qkv_proj` (Phi-3).
    pub fused_qkv: bool,
    /// Gate and up are one matrix, `gate_up_proj` (Phi-3, GLM-4).
    pub fused_gate_up: bool,
    /// Rotated pairs lie side by side (GLM-4).
    pub interleaved: bool,
    /// Norms hold `w` and multiply by `1 + w` (Gemma).
    pub norm_offset: bool,
    /// Names of tensors where they differ from LLaMA's.
    pub names: Names,
}

/// Whose names tensors have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Names {
    /// LLaMA's, and those of Gemma and OLMo for the norms that LLaMA lacks.
    #[default]
    Llama,
    /// Norms behind attention and feed-forward layer as GLM-4 calls them.
    Glm,
    /// Experts as Mixtral calls them.
    Mixtral,
}

impl Family {
    /// What a family is whatever its files say: norms, layout, and the multiplier that follows from the width.
    pub(crate) fn of(name: &str, hidden_size: usize) -> Self {
        let plain = Self::default();
        let layout = Layout::default();
        match name {
            "gemma2" | "gemma3" | "gemma3_text" => Self {
                norms: Norms::Around,
                embedding_multiplier: (hidden_size as f32).sqrt(),
                layout: Layout {
                    norm_offset: true,
                    ..layout
                },
                ..plain
            },
            "phi3" => Self {
                layout: Layout {
                    fused_qkv: true,
                    fused_gate_up: true,
                    ..layout
                },
                ..plain
            },
            "olmo2" | "olmo3" => Self {
                norms: Norms::After,
                wide_qk_norm: true,
                ..plain
            },
            "glm" | "glm4" => Self {
                norms: if name == "glm4" {
                    Norms::Around
                } else {
                    Norms::Before
                },
                layout: Layout {
                    fused_gate_up: true,
                    interleaved: true,
                    names: Names::Glm,
                    ..layout
                },
                ..plain
            },
            "mixtral" => Self {
                layout: Layout {
                    names: Names::Mixtral,
                    ..layout
                },
                ..plain
            },
            _ => plain,
        }
    }
}
