//! A decoder's tensors by what they are for.

use super::{Checkpoint, Reader};
use crate::Result;
use crate::adapter::Target;
use crate::config::{DecoderConfig, Experts};

/// `y = x Wᵀ + b`.
#[derive(Debug, Clone)]
pub(crate) struct Linear<M, V = Vec<f32>> {
    /// `[out, in]`, as a device keeps it.
    pub matrix: M,
    /// `[out]`.
    pub bias: Option<V>,
}

/// The tensors of one block.
#[derive(Debug, Clone)]
pub(crate) struct Block<M, V = Vec<f32>> {
    /// Before the attention, or behind it where the family has its norms there only.
    pub attention_norm: V,
    /// Behind the attention, beside the one before it.
    pub attention_post_norm: Option<V>,
    pub query: Linear<M, V>,
    pub key: Linear<M, V>,
    pub value: Linear<M, V>,
    pub output: Linear<M, V>,
    pub query_norm: Option<V>,
    pub key_norm: Option<V>,
    /// As for the attention.
    pub feed_forward_norm: V,
    pub feed_forward_post_norm: Option<V>,
    pub feed_forward: FeedForward<M, V>,
}

/// What reads a token by itself.
#[derive(Debug, Clone)]
pub(crate) enum FeedForward<M, V = Vec<f32>> {
    /// All of it reads every token.
    Dense(Gated<M, V>),
    /// A mixture of experts.
    Routed(Box<Routed<M, V>>),
}

/// `down (act(gate x) · up x)`.
#[derive(Debug, Clone)]
pub(crate) struct Gated<M, V = Vec<f32>> {
    pub gate: Linear<M, V>,
    pub up: Linear<M, V>,
    pub down: Linear<M, V>,
}

/// A mixture of experts.
#[derive(Debug, Clone)]
pub(crate) struct Routed<M, V = Vec<f32>> {
    /// `[experts, hidden]`.
    pub router: M,
    pub experts: Vec<Gated<M, V>>,
    pub shared: Option<Shared<M, V>>,
}

/// An expert that reads every token.
#[derive(Debug, Clone)]
pub(crate) struct Shared<M, V = Vec<f32>> {
    pub feed: Gated<M, V>,
    /// `[1, hidden]`; the sigmoid of its product is the expert's weight.
    pub switch: M,
}

impl<M, V> Gated<M, V> {
    /// All of its matrices.
    pub fn linears(&self) -> [&Linear<M, V>; 3] {
        [&self.gate, &self.up, &self.down]
    }
}

impl<M, V> Block<M, V> {
    /// The feed-forward layer of a block that has no experts.
    ///
    /// # Panics
    /// When it has.
    pub fn gated(&self) -> &Gated<M, V> {
        match &self.feed_forward {
            FeedForward::Dense(gated) => gated,
            FeedForward::Routed(_) => unreachable!("only dense blocks are trained"),
        }
    }

    /// The projection of a target in a block that has no experts.
    ///
    /// # Panics
    /// When it has.
    pub fn linear(&self, target: Target) -> &Linear<M, V> {
        match target {
            Target::Query => &self.query,
            Target::Key => &self.key,
            Target::Value => &self.value,
            Target::Output => &self.output,
            Target::Gate => &self.gated().gate,
            Target::Up => &self.gated().up,
            Target::Down => &self.gated().down,
        }
    }

    /// The same block with its matrices in another form.
    ///
    /// # Panics
    /// When it has experts.
    pub fn map<N>(&self, linear: impl Fn(&Linear<M, V>) -> Linear<N, V>) -> Block<N, V>
    where
        V: Clone,
    {
        let gated = self.gated();
        Block {
            attention_norm: self.attention_norm.clone(),
            attention_post_norm: self.attention_post_norm.clone(),
            query: linear(&self.query),
            key: linear(&self.key),
            value: linear(&self.value),
            output: linear(&self.output),
            query_norm: self.query_norm.clone(),
            key_norm: self.key_norm.clone(),
            feed_forward_norm: self.feed_forward_norm.clone(),
            feed_forward_post_norm: self.feed_forward_post_norm.clone(),
            feed_forward: FeedForward::Dense(Gated {
                gate: linear(&gated.gate),
                up: linear(&gated.up),
                down: linear(&gated.down),
            }),
        }
    }

    /// [`Self::linear`] to change.
    ///
    /// # Panics
    /// When the block has experts.
    pub fn linear_mut(&mut self, target: Target) -> &mut Linear<M, V> {
        let gated = match &mut self.feed_forward {
            FeedForward::Dense(gated) => gated,
            FeedForward::Routed(_) => unreachable!("only dense blocks are trained"),
        };
        match target {
            Target::Query => &mut self.query,
            Target::Key => &mut self.key,
            Target::Value => &mut self.value,
            Target::Output => &mut self.output,
            Target::Gate => &mut gated.gate,
            Target::Up => &mut gated.up,
            Target::Down => &mut gated.down,
        }
    }
}

/// All tensors of a decoder.
#[derive(Debug, Clone)]
pub(crate) struct Tensors<M, V = Vec<f32>> {
    /// `[vocab, hidden]`.
    pub embedding: M,
    /// `[vocab, hidden]`; `None`: the embedding is the head, too.
    pub head: Option<M>,
    pub blocks: Vec<Block<M, V>>,
    pub norm: V,
}

/// Which matrix is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The embedding, or an untied head.
    Vocabulary,
    /// A projection of a block.
    Projection,
    /// What chooses experts: a small matrix whose rounding would change which.
    Router,
}

impl<M, V> Tensors<M, V> {
    /// Reads a checkpoint, one tensor at a time; `pack` makes a matrix of `[outputs, inputs]`
    /// numbers, `keep` a vector.
    ///
    /// # Errors
    /// A missing, misshapen or unknown tensor.
    pub fn read(
        checkpoint: &Checkpoint,
        pack: impl Fn(Role, [usize; 2], Vec<f32>) -> M,
        keep: impl Fn(Vec<f32>) -> V,
    ) -> Result<Self> {
        let c = checkpoint.config();
        let reader = checkpoint.reader();
        let from = From {
            config: c,
            reader: &reader,
            pack: &pack,
            keep: &keep,
        };
        let embedding = from.rows("model.embed_tokens.weight", c.vocab_size)?;
        let head = match checkpoint.scores {
            Some(outputs) => Some(from.rows("score.weight", outputs)),
            None => (!c.tied_head).then(|| from.rows("lm_head.weight", c.vocab_size)),
        };
        let head = head.transpose()?;
        let blocks = (0..c.layers).map(|layer| from.block(layer));
        let blocks = blocks.collect::<Result<_>>()?;
        let norm = from.vector("model.norm.weight", c.hidden_size)?;
        reader.finish()?;
        Ok(Self {
            embedding,
            head,
            blocks,
            norm,
        })
    }
}

/// Where tensors are read from, and what becomes of them.
struct From<'a, P, K> {
    config: &'a DecoderConfig,
    reader: &'a Reader<'a>,
    pack: &'a P,
    keep: &'a K,
}

impl<M, V, P, K> From<'_, P, K>
where
    P: Fn(Role, [usize; 2], Vec<f32>) -> M,
    K: Fn(Vec<f32>) -> V,
{
    fn vector(&self, name: &str, n: usize) -> Result<V> {
        Ok((self.keep)(self.reader.get(name, &[n])?))
    }

    fn matrix(&self, role: Role, name: &str, shape: [usize; 2]) -> Result<M> {
        Ok((self.pack)(role, shape, self.reader.get(name, &shape)?))
    }

    /// The embedding, or a head.
    fn rows(&self, name: &str, rows: usize) -> Result<M> {
        let shape = [rows, self.config.hidden_size];
        self.matrix(Role::Vocabulary, name, shape)
    }

    fn linear(
        &self,
        module: &str,
        [outputs, inputs]: [usize; 2],
        bias: bool,
    ) -> Result<Linear<M, V>> {
        let weight = format!("{module}.weight");
        let matrix = self.matrix(Role::Projection, &weight, [outputs, inputs])?;
        let bias = bias.then(|| self.vector(&format!("{module}.bias"), outputs));
        Ok(Linear {
            matrix,
            bias: bias.transpose()?,
        })
    }

    fn block(&self, layer: usize) -> Result<Block<M, V>> {
        let c = self.config;
        let names = c.norm_names();
        let norm =
            |name: &str, n: usize| self.vector(&format!("model.layers.{layer}.{name}.weight"), n);
        let post = |name: Option<&str>| name.map(|name| norm(name, c.hidden_size)).transpose();
        let head_norm = |name: &str, which: usize| {
            let width = c.qk_norm_widths().map(|widths| widths[which]);
            width.map(|n| norm(name, n)).transpose()
        };
        let linear = |target: Target| {
            let (inputs, outputs) = target.size(c);
            let module = format!("model.layers.{layer}.{}", target.module());
            self.linear(&module, [outputs, inputs], c.has_bias(target))
        };
        Ok(Block {
            attention_norm: norm(names.attention, c.hidden_size)?,
            attention_post_norm: post(names.attention_post)?,
            query: linear(Target::Query)?,
            key: linear(Target::Key)?,
            value: linear(Target::Value)?,
            output: linear(Target::Output)?,
            query_norm: head_norm("self_attn.q_norm", 0)?,
            key_norm: head_norm("self_attn.k_norm", 1)?,
            feed_forward_norm: norm(names.feed_forward, c.hidden_size)?,
            feed_forward_post_norm: post(names.feed_forward_post)?,
            feed_forward: match c.experts(layer) {
                None => FeedForward::Dense(Gated {
                    gate: linear(Target::Gate)?,
                    up: linear(Target::Up)?,
                    down: linear(Target::Down)?,
                }),
                Some(experts) => FeedForward::Routed(Box::new(self.routed(layer, experts)?)),
            },
        })
    }

    fn routed(&self, layer: usize, experts: &Experts) -> Result<Routed<M, V>> {
        let hidden = self.config.hidden_size;
        let name = |part: &str| format!("model.layers.{layer}.mlp.{part}");
        let gated = |module: &str, width: usize| -> Result<Gated<M, V>> {
            let linear =
                |part: &str, shape| self.linear(&name(&format!("{module}.{part}")), shape, false);
            Ok(Gated {
                gate: linear("gate_proj", [width, hidden])?,
                up: linear("up_proj", [width, hidden])?,
                down: linear("down_proj", [hidden, width])?,
            })
        };
        let expert = |e: usize| gated(&format!("experts.{e}"), experts.intermediate_size);
        let shared = |width: usize| -> Result<Shared<M, V>> {
            Ok(Shared {
                feed: gated("shared_expert", width)?,
                switch: self.matrix(
                    Role::Router,
                    &name("shared_expert_gate.weight"),
                    [1, hidden],
                )?,
            })
        };
        Ok(Routed {
            router: self.matrix(Role::Router, &name("gate.weight"), [experts.count, hidden])?,
            experts: (0..experts.count).map(expert).collect::<Result<_>>()?,
            shared: experts.shared.map(shared).transpose()?,
        })
    }
}
