//! A decoder's tensors by what they are for: the one place that knows their names in checkpoints.

use super::Checkpoint;
use crate::Result;
use crate::adapter::Target;

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
    pub attention_norm: V,
    pub query: Linear<M, V>,
    pub key: Linear<M, V>,
    pub value: Linear<M, V>,
    pub output: Linear<M, V>,
    pub query_norm: Option<V>,
    pub key_norm: Option<V>,
    pub feed_forward_norm: V,
    pub gate: Linear<M, V>,
    pub up: Linear<M, V>,
    pub down: Linear<M, V>,
}

impl<M, V> Block<M, V> {
    /// The projection of a target.
    pub fn linear(&self, target: Target) -> &Linear<M, V> {
        match target {
            Target::Query => &self.query,
            Target::Key => &self.key,
            Target::Value => &self.value,
            Target::Output => &self.output,
            Target::Gate => &self.gate,
            Target::Up => &self.up,
            Target::Down => &self.down,
        }
    }
}

impl<M, V> Block<M, V> {
    /// The same block with its matrices in another form.
    pub fn map<N>(&self, linear: impl Fn(&Linear<M, V>) -> Linear<N, V>) -> Block<N, V>
    where
        V: Clone,
    {
        Block {
            attention_norm: self.attention_norm.clone(),
            query: linear(&self.query),
            key: linear(&self.key),
            value: linear(&self.value),
            output: linear(&self.output),
            query_norm: self.query_norm.clone(),
            key_norm: self.key_norm.clone(),
            feed_forward_norm: self.feed_forward_norm.clone(),
            gate: linear(&self.gate),
            up: linear(&self.up),
            down: linear(&self.down),
        }
    }

    /// The same to change.
    pub fn linear_mut(&mut self, target: Target) -> &mut Linear<M, V> {
        match target {
            Target::Query => &mut self.query,
            Target::Key => &mut self.key,
            Target::Value => &mut self.value,
            Target::Output => &mut self.output,
            Target::Gate => &mut self.gate,
            Target::Up => &mut self.up,
            Target::Down => &mut self.down,
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
        let vector = |name: &str, n: usize| Ok(keep(reader.get(name, &[n])?));
        let block = |layer: usize| -> Result<Block<M, V>> {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let linear = |target: Target, bias: bool| -> Result<Linear<M, V>> {
                let (inputs, outputs) = target.size(c);
                let module = format!("model.layers.{layer}.{}", target.module());
                let shape = [outputs, inputs];
                let data = reader.get(&format!("{module}.weight"), &shape)?;
                let bias = bias.then(|| vector(&format!("{module}.bias"), outputs));
                Ok(Linear {
                    matrix: pack(Role::Projection, shape, data),
                    bias: bias.transpose()?,
                })
            };
            let head_norm = |part: &str| {
                let norm = c.qk_norm.then(|| vector(&name(part), c.head_dim));
                norm.transpose()
            };
            Ok(Block {
                attention_norm: vector(&name("input_layernorm"), c.hidden_size)?,
                query: linear(Target::Query, c.qkv_bias)?,
                key: linear(Target::Key, c.qkv_bias)?,
                value: linear(Target::Value, c.qkv_bias)?,
                output: linear(Target::Output, c.output_bias)?,
                query_norm: head_norm("self_attn.q_norm")?,
                key_norm: head_norm("self_attn.k_norm")?,
                feed_forward_norm: vector(&name("post_attention_layernorm"), c.hidden_size)?,
                gate: linear(Target::Gate, c.mlp_bias)?,
                up: linear(Target::Up, c.mlp_bias)?,
                down: linear(Target::Down, c.mlp_bias)?,
            })
        };
        let rows = |name: &str, rows: usize| -> Result<M> {
            let shape = [rows, c.hidden_size];
            Ok(pack(Role::Vocabulary, shape, reader.get(name, &shape)?))
        };
        let embedding = rows("model.embed_tokens.weight", c.vocab_size)?;
        let head = match checkpoint.scores {
            Some(outputs) => Some(rows("score.weight", outputs)),
            None => (!c.tied_head).then(|| rows("lm_head.weight", c.vocab_size)),
        };
        let head = head.transpose()?;
        let blocks = (0..c.layers).map(block).collect::<Result<_>>()?;
        let norm = vector("model.norm.weight", c.hidden_size)?;
        reader.finish()?;
        Ok(Self {
            embedding,
            head,
            blocks,
            norm,
        })
    }
}
