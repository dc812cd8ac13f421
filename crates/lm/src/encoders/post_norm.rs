//! BERT and its kin: embeddings with absolute positions, and blocks that norm what they add,
//!
//! ```text
//! x = norm(x + Wo · attention(Wq x, Wk x, Wv x))
//! x = norm(x + Wdown · f(Wup x))
//! ```
//!
//! BERT (arXiv 1810.04805), RoBERTa (1907.11692, positions from behind the padding token on), DistilBERT (1910.01108, no
//! token types) are this by other names. DeBERTa-v2 and v3 (2006.03654, 2111.09543) add what contents and relative
//! positions say of each other to the scores ([`super::relative`]).

use burn::tensor::{Bool, Int, Tensor};

use super::Batch;
use super::config::{Config, Deberta, Family};
use super::layers::{Activation, LayerNorm, Linear, attend, split_heads};
use super::relative::{Pass, Relative};
use super::weights::Weights;
use crate::Result;

/// The blocks of a post-norm encoder on a device.
#[derive(Debug)]
pub(super) struct PostNorm {
    words: Tensor<2>,
    /// Absolute positions, and the row of the first.
    positions: Option<(Tensor<2>, usize)>,
    types: Option<Tensor<2>>,
    norm: LayerNorm,
    /// From the embeddings' width to the blocks'.
    wider: Option<Linear>,
    relative: Option<Relative>,
    blocks: Vec<Block>,
    heads: usize,
    activation: Activation,
}

/// One block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) query: Linear,
    pub(super) key: Linear,
    value: Linear,
    /// Projections of relative positions, where they are not those of contents.
    pub(super) position_query: Option<Linear>,
    pub(super) position_key: Option<Linear>,
    output: Linear,
    attention_norm: LayerNorm,
    up: Linear,
    down: Linear,
    norm: LayerNorm,
}

/// What a family calls its tensors.
struct Names {
    /// Start of all names, with the layer's number behind it.
    layers: &'static str,
    query: &'static str,
    key: &'static str,
    value: &'static str,
    output: &'static str,
    attention_norm: &'static str,
    up: &'static str,
    down: &'static str,
    norm: &'static str,
}

const BERT: Names = Names {
    layers: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    output: "attention.output.dense",
    attention_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    norm: "output.LayerNorm",
};

const DISTILBERT: Names = Names {
    layers: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    output: "attention.out_lin",
    attention_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    norm: "output_layer_norm",
};

const DEBERTA: Names = Names {
    query: "attention.self.query_proj",
    key: "attention.self.key_proj",
    value: "attention.self.value_proj",
    ..BERT
};

impl PostNorm {
    /// Reads the tensors whose names start with `prefix`.
    pub(super) fn read(config: &Config, weights: &Weights, prefix: &str) -> Result<Self> {
        let (names, deberta) = match &config.family {
            Family::DistilBert => (DISTILBERT, None),
            Family::Deberta(deberta) => (DEBERTA, Some(deberta)),
            _ => (BERT, None),
        };
        let (c, hidden) = (config, config.hidden_size);
        let width = deberta.map_or(hidden, |d| d.embedding_size);
        let table = |name: &str, rows: usize| {
            weights.matrix(&format!("{prefix}embeddings.{name}.weight"), [rows, width])
        };
        let absolute = deberta.is_none_or(|d| d.absolute);
        let positions = absolute.then(|| table("position_embeddings", c.positions));
        let types = (c.types > 0).then(|| table("token_type_embeddings", c.types));
        let wider = (width != hidden).then(|| {
            let name = format!("{prefix}embeddings.embed_proj");
            weights.linear(&name, [hidden, width], false)
        });
        let relative = deberta.map(|d| Relative::read(d, config, weights, prefix));
        let block = |layer| Block::read(layer, config, &names, deberta, weights, prefix);
        Ok(Self {
            words: table("word_embeddings", c.vocab_size)?,
            positions: positions
                .transpose()?
                .map(|table| (table, c.first_position)),
            types: types.transpose()?,
            norm: weights.norm(
                &format!("{prefix}embeddings.LayerNorm"),
                hidden,
                true,
                c.eps,
            )?,
            wider: wider.transpose()?,
            relative: relative.transpose()?,
            blocks: (0..c.layers).map(block).collect::<Result<_>>()?,
            heads: c.heads,
            activation: c.activation,
        })
    }

    /// The last hidden states, `[lanes, time, hidden]`.
    pub(super) fn forward(&self, batch: &Batch) -> Tensor<3> {
        let [lanes, time] = batch.shape;
        let rows = |table: &Tensor<2>, ids: Tensor<1, Int>| {
            let width = table.dims()[1];
            table.clone().select(0, ids).reshape([lanes, time, width])
        };
        let mut x = rows(&self.words, batch.ids.clone());
        if let Some((table, first)) = &self.positions {
            x = x + table.clone().narrow(0, *first, time).unsqueeze();
        }
        if let Some(table) = &self.types {
            x = x + rows(table, batch.types.clone());
        }
        if let Some(wider) = &self.wider {
            x = wider.forward(x);
        }
        x = self.norm.forward(x);
        let relative = self.relative.as_ref().map(|r| r.pass(time));
        for block in &self.blocks {
            x = block.forward(x, self, relative.as_ref(), &batch.hidden);
        }
        x
    }
}

impl Block {
    fn read(
        layer: usize,
        c: &Config,
        names: &Names,
        deberta: Option<&Deberta>,
        weights: &Weights,
        prefix: &str,
    ) -> Result<Self> {
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let start = format!("{prefix}{}.{layer}.", names.layers);
        let square = |name: &str| weights.linear(&format!("{start}{name}"), [hidden, hidden], true);
        let norm = |name: &str| weights.norm(&format!("{start}{name}"), hidden, true, c.eps);
        let separate = |wanted: fn(&Deberta) -> bool, name: &str| -> Result<Option<Linear>> {
            let asked = deberta.is_some_and(|d| !d.shared_projections && wanted(d));
            asked
                .then(|| square(&format!("attention.self.{name}")))
                .transpose()
        };
        Ok(Self {
            query: square(names.query)?,
            key: square(names.key)?,
            value: square(names.value)?,
            position_query: separate(|d| d.position_to_content, "pos_query_proj")?,
            position_key: separate(|d| d.content_to_position, "pos_key_proj")?,
            output: square(names.output)?,
            attention_norm: norm(names.attention_norm)?,
            up: weights.linear(&format!("{start}{}", names.up), [inner, hidden], true)?,
            down: weights.linear(&format!("{start}{}", names.down), [hidden, inner], true)?,
            norm: norm(names.norm)?,
        })
    }

    fn forward(
        &self,
        x: Tensor<3>,
        of: &PostNorm,
        relative: Option<&Pass<'_>>,
        hidden: &Tensor<4, Bool>,
    ) -> Tensor<3> {
        let project = |linear: &Linear| split_heads(linear.forward(x.clone()), of.heads);
        let [q, k, v] = [&self.query, &self.key, &self.value].map(project);
        let terms = relative.map_or(1, Pass::terms);
        let scale = ((q.dims()[3] * terms) as f32).powf(-0.5);
        let more = relative.map(|pass| pass.scores(self, &q, &k, of.heads) * scale);
        let mixed = attend([q, k, v], scale, more, hidden);
        let x = self.attention_norm.forward(x + self.output.forward(mixed));
        let inner = of.activation.forward(self.up.forward(x.clone()));
        self.norm.forward(x + self.down.forward(inner))
    }
}
