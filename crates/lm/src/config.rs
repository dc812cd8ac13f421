//! The inside description of a decoder. Outside formats (`config.json`, GGUF metadata) are read by
//! [`crate::load`] and converted into this once.

mod family;
mod rope;

use serde::{Deserialize, Serialize};

pub use family::{Activation, Experts, Family, LayerKind, LayerRope, Layout, Names, Norms};
pub use rope::{Rope, RopeScaling};

use crate::parameter::{above_zero, below_one};
use crate::{Error, Result};

/// Widest head that is read (ours); published models have at most 256.
const HEAD_DIM: usize = 1 << 16;
/// Most parameters that a config may ask for (ours): their bytes can be counted in any format.
const PARAMETERS: u128 = 1 << 48;

/// Shape and constants of a decoder.
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
    /// What sets the family apart from LLaMA; [`Family::default`] where nothing does.
    #[serde(default, skip_serializing_if = "Family::is_llama")]
    pub family: Family,
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
        for rope in self.ropes() {
            above_zero("rope theta", rope.theta)?;
            rope.validate(self.rotated())?;
        }
        if self.sliding_window == Some(0) {
            return Err(Error::parameter("sliding_window", 0, "at least 1"));
        }
        self.validate_family()
    }

    /// The same for what sets the family apart.
    fn validate_family(&self) -> Result<()> {
        let f = &self.family;
        let rotated = self.rotated();
        if rotated == 0 || rotated > self.head_dim || !rotated.is_multiple_of(2) {
            let expected = "even and at most head_dim; RoPE rotates pairs";
            return Err(Error::parameter("rotated dimensions", rotated, expected));
        }
        let numbers = [
            ("attention_scale", f.attention_scale),
            ("attention_cap", f.attention_cap),
            ("logit_cap", f.logit_cap),
            ("embedding_multiplier", Some(f.embedding_multiplier)),
            ("residual_multiplier", Some(f.residual_multiplier)),
            ("logit_divisor", Some(f.logit_divisor)),
        ];
        for (name, number) in numbers {
            number.map_or(Ok(()), |number| above_zero(name, number))?;
        }
        if !f.layers.is_empty() && f.layers.len() != self.layers {
            let expected = "one for each layer, or none";
            return Err(Error::parameter(
                "kinds of layers",
                f.layers.len(),
                expected,
            ));
        }
        let local = |kind: &LayerKind| kind.rope == LayerRope::Local;
        if f.local_rope.is_none() && f.layers.iter().any(local) {
            let expected = "given where layers rotate by it";
            return Err(Error::parameter("local_rope", "none", expected));
        }
        if f.layers.iter().any(|kind| kind.sliding) && self.sliding_window.is_none() {
            let expected = "given where layers have it";
            return Err(Error::parameter("sliding_window", "none", expected));
        }
        let Some(experts) = &f.experts else {
            return Ok(());
        };
        for (name, size) in [
            ("experts", experts.count),
            ("experts of a token", experts.chosen),
            ("moe_intermediate_size", experts.intermediate_size),
            (
                "shared_expert_intermediate_size",
                experts.shared.unwrap_or(1),
            ),
        ] {
            if size == 0 || size > 1 << 30 {
                return Err(Error::parameter(name, size, "from 1 to 2^30"));
            }
        }
        if experts.chosen > experts.count {
            let expected = "at most the number of experts";
            return Err(Error::parameter(
                "experts of a token",
                experts.chosen,
                expected,
            ));
        }
        Ok(())
    }

    /// Dimensions of a head that are rotated.
    pub fn rotated(&self) -> usize {
        self.family.rotated.unwrap_or(self.head_dim)
    }

    /// The rotary embeddings: the model's, and that of its local layers.
    pub fn ropes(&self) -> impl Iterator<Item = &Rope> {
        std::iter::once(&self.rope).chain(&self.family.local_rope)
    }

    /// Which of [`Self::ropes`] a layer has; `None`: it is not rotated.
    pub fn layer_rope(&self, layer: usize) -> Option<usize> {
        match self.family.layers.get(layer).map(|kind| kind.rope) {
            None | Some(LayerRope::Main) => Some(0),
            Some(LayerRope::Local) => Some(1),
            Some(LayerRope::None) => None,
        }
    }

    /// Tokens that a query of a layer sees, itself included; `usize::MAX` is all of them.
    pub fn window(&self, layer: usize) -> usize {
        let window = self.sliding_window.unwrap_or(usize::MAX);
        match self.family.layers.get(layer) {
            Some(kind) if !kind.sliding => usize::MAX,
            _ => window,
        }
    }

    /// What scores of attention are multiplied by.
    pub fn query_scale(&self) -> f32 {
        let plain = (self.head_dim as f32).powf(-0.5);
        self.family.attention_scale.unwrap_or(plain)
    }

    /// The mixture of experts that a layer has in place of a feed-forward layer.
    pub fn experts(&self, layer: usize) -> Option<&Experts> {
        let experts = self.family.experts.as_ref()?;
        (!experts.dense_layers.contains(&layer)).then_some(experts)
    }

    /// What a pass over sequences of these lengths needs that one over shorter ones does not: see [`Rope::stage`].
    pub(crate) fn stage(&self, length: usize) -> usize {
        self.ropes()
            .map(|rope| rope.stage(length))
            .max()
            .unwrap_or(0)
    }

    /// Rotary frequencies depend on the length of the sequence.
    pub(crate) fn depends_on_length(&self) -> bool {
        self.ropes().any(Rope::depends_on_length)
    }

    /// What sets the family apart from the dense models like LLaMA, in words; `None` for these.
    pub fn unlike_llama(&self) -> Option<&'static str> {
        let f = &self.family;
        let plain = Family {
            layout: f.layout,
            ..Family::default()
        };
        let magnified = self.rope.magnitude() != 1.0 || self.depends_on_length();
        [
            (f.experts.is_some(), "experts that a router chooses"),
            (f.norms != Norms::Before, "norms behind attention"),
            (
                f.activation != Activation::Silu,
                "another activation than SiLU",
            ),
            (f.layers != plain.layers, "layers of several kinds"),
            (f.rotated.is_some(), "heads that are rotated in part"),
            (
                magnified,
                "a rope scaling that multiplies scores or follows the length",
            ),
            (*f != plain, "multipliers, caps or norms of its own"),
        ]
        .into_iter()
        .find_map(|(is, what)| is.then_some(what))
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
        let block =
            |feed: u128| attention.saturating_add(hidden.saturating_mul(feed.saturating_add(2)));
        let (dense, routed) = match &self.family.experts {
            None => (layers, 0),
            Some(experts) => {
                let dense = (experts.dense_layers.len() as u128).min(layers);
                (dense, layers - dense)
            }
        };
        let experts = self.family.experts.as_ref().map_or(0, |experts| {
            let shared = experts.shared.unwrap_or(0);
            let [count, width, shared] =
                [experts.count, experts.intermediate_size, shared].map(|size| size as u128);
            count
                .saturating_mul(3 * width + 1)
                .saturating_add(3 * shared)
        });
        let blocks = dense
            .saturating_mul(block(3 * intermediate))
            .saturating_add(routed.saturating_mul(block(experts)));
        let vocabularies = if self.tied_head { 1 } else { 2 };
        let rest = vocabularies * vocab * hidden + hidden;
        blocks.saturating_add(rest)
    }
}
