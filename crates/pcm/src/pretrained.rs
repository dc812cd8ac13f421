//! A PCM that begins as a pretrained decoder (arXiv 2407.04181, there a LLaMA of 160M): its blocks, and its embeddings
//! of the base's tokens, which stay as they are. The vocabularies must be the same.

use std::path::Path;
use std::sync::Arc;

use lm::adapter::Target;
use lm::load::Checkpoint;
use lm::tuning::{Blocks, Layout, Part, normal};
use lm::{DecoderConfig, Tokenizer};

use crate::{Error, Origin, Pcm, PcmConfig, Result};

impl Pcm {
    /// A PCM with the blocks and the embeddings of a checkpoint, in its shape; all else is as [`Pcm::new`] has it.
    /// `base` is the tokenizer of the experts' base.
    ///
    /// # Errors
    /// A checkpoint that cannot be read, whose vocabulary is another than the base's, or with biases, norms of heads
    /// or a window.
    pub fn pretrained(
        config: &PcmConfig,
        path: &Path,
        base: &Tokenizer,
        seed: u64,
    ) -> Result<Self> {
        let checkpoint = Checkpoint::open(path)?;
        let shape = checkpoint.config();
        same_vocabulary(path, &Tokenizer::load(&checkpoint)?, base)?;
        let config = in_shape_of(path, shape, config)?;
        let d = shape.hidden_size;
        let reader = checkpoint.reader();
        let table = reader.get("model.embed_tokens.weight", &[shape.vocab_size, d])?;
        let decoder = config.decoder();
        let layout = Layout::new(&decoder);
        let mut blocks = vec![0.0; layout.len()];
        let mut put = |part: Part, name: &str, shape: &[usize]| -> Result<()> {
            blocks[layout.place(part)].copy_from_slice(&reader.get(name, shape)?);
            Ok(())
        };
        for layer in 0..shape.layers {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            put(Part::AttentionNorm(layer), &name("input_layernorm"), &[d])?;
            let after = name("post_attention_layernorm");
            put(Part::FeedForwardNorm(layer), &after, &[d])?;
            for target in Target::ALL {
                let (inputs, outputs) = target.size(shape);
                let matrix = name(target.module());
                put(Part::Matrix(layer, target), &matrix, &[outputs, inputs])?;
            }
        }
        put(Part::LastNorm, "model.norm.weight", &[d])?;
        let zeros = Blocks::zeros(&decoder)?;
        let mut pcm = Self::over(&config, zeros);
        let mut values = pcm.values().to_vec();
        values[pcm.places.blocks.clone()].copy_from_slice(&blocks);
        for (i, row) in values[pcm.places.projection.clone()]
            .chunks_mut(d)
            .enumerate()
        {
            row[i] = 1.0;
        }
        // What it reads beside the tokens is as large as they are.
        let squares = table.iter().map(|v| f64::from(*v).powi(2));
        let size = (squares.sum::<f64>() / table.len().max(1) as f64).sqrt();
        for (range, sd, name) in [
            (pcm.places.preference.clone(), size, "preference"),
            (pcm.places.statistics.clone(), 0.3 * size, "statistics"),
        ] {
            let parts = [&seed.to_le_bytes()[..], name.as_bytes()];
            let fresh = normal(range.len(), sd, &parts);
            values[range].copy_from_slice(&fresh);
        }
        pcm.set_values(&values);
        pcm.table = Arc::new(table);
        Ok(pcm)
    }
}

/// The config in the shape of a checkpoint, which must be one that a PCM's blocks can take.
fn in_shape_of(path: &Path, shape: &DecoderConfig, config: &PcmConfig) -> Result<PcmConfig> {
    let refuse = |what: String| Err(Error::file(path, what));
    if let Some(what) = shape.unlike_llama() {
        return refuse(format!(
            "a PCM's blocks are like LLaMA's, this model has {what}"
        ));
    }
    if shape.sliding_window.is_some() {
        return refuse("a PCM reads its whole context, this model a window".into());
    }
    if shape.head_dim * shape.heads != shape.hidden_size {
        return refuse(format!(
            "{} heads of width {} in a stream of {}; a PCM's heads fill its stream",
            shape.heads, shape.head_dim, shape.hidden_size
        ));
    }
    let config = PcmConfig {
        embedding: shape.hidden_size,
        hidden: shape.hidden_size,
        layers: shape.layers,
        heads: shape.heads,
        intermediate: shape.intermediate_size,
        origin: Some(Origin {
            vocabulary: shape.vocab_size,
            kv_heads: shape.kv_heads,
            rope: shape.rope.clone(),
            norm_eps: shape.norm_eps,
        }),
        ..config.clone()
    };
    config.validate()?;
    if shape.qkv_bias || shape.output_bias || shape.mlp_bias || shape.qk_norm {
        return refuse("a PCM's blocks have no biases and no norms of heads".into());
    }
    Ok(config)
}

/// Refuses a checkpoint whose tokens are not the base's.
fn same_vocabulary(path: &Path, tokenizer: &Tokenizer, base: &Tokenizer) -> Result<()> {
    let differ = |what: String| {
        Err(Error::file(
            path,
            format!(
                "{what}; a PCM reads the base's tokens, so a pretrained one needs the base's vocabulary: take one of \
                 the presets, which begin with fresh weights, or a checkpoint of the base's family"
            ),
        ))
    };
    let (size, expected) = (tokenizer.vocab_size(), base.vocab_size());
    if size != expected {
        return differ(format!(
            "its vocabulary has {size} tokens, the base's {expected}"
        ));
    }
    for id in 0..size as u32 {
        let (piece, expected) = (tokenizer.piece(id), base.piece(id));
        if piece != expected {
            return differ(format!(
                "its token {id} is {piece:?}, the base's {expected:?}"
            ));
        }
    }
    Ok(())
}
