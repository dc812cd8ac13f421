//! `config.json` of an encoder.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::layers::Activation;
use crate::load::hf::read_json;
use crate::{Error, Result};

/// What can be read.
pub(super) const FAMILIES: &str =
    "model_type bert, roberta, xlm-roberta, distilbert, deberta-v2, modernbert";

/// The families, with what only they have.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Family {
    /// Absolute positions from 0.
    Bert,
    /// Absolute positions from behind the padding token's id.
    Roberta,
    /// Bert without token types, by other names.
    DistilBert,
    /// Relative positions, disentangled.
    Deberta(Deberta),
    /// Rotary positions, local and global layers, gated feed-forward.
    ModernBert(ModernBert),
}

/// What only DeBERTa has.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Deberta {
    /// Half the rows of the table of relative positions.
    pub(super) span: usize,
    /// Buckets of far distances; 0: each distance is its own.
    pub(super) buckets: usize,
    /// Farthest distance.
    pub(super) farthest: usize,
    /// Contents look at positions.
    pub(super) content_to_position: bool,
    /// Positions look at contents.
    pub(super) position_to_content: bool,
    /// The projections of contents serve positions, too.
    pub(super) shared_projections: bool,
    /// The table is normed.
    pub(super) normed: bool,
    /// Absolute positions are added to the embeddings.
    pub(super) absolute: bool,
    /// Width of the embeddings before they are projected.
    pub(super) embedding_size: usize,
    /// Function of the pooler.
    pub(super) pooler: Activation,
}

/// What only ModernBERT has.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ModernBert {
    /// For each layer: base of the angles, and tokens to each side that are seen where not all are.
    pub(super) layers: Vec<(f64, Option<usize>)>,
    pub(super) attention_bias: bool,
    pub(super) mlp_bias: bool,
    pub(super) norm_bias: bool,
    pub(super) classifier_bias: bool,
    pub(super) classifier_activation: Activation,
    /// The classifier reads the mean, not the first token.
    pub(super) classifier_mean: bool,
}

/// Shape of an encoder.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Config {
    pub(super) family: Family,
    pub(super) vocab_size: usize,
    pub(super) hidden_size: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) intermediate_size: usize,
    /// Tokens of a text at most.
    pub(super) context_length: usize,
    /// Rows of the table of positions.
    pub(super) positions: usize,
    /// Row of the first position.
    pub(super) first_position: usize,
    /// Token types; 0: none.
    pub(super) types: usize,
    pub(super) eps: f32,
    pub(super) activation: Activation,
    /// Names of the classes in the order of the logits; one name where there is one output.
    pub(super) labels: Vec<String>,
    /// The outputs are probabilities of their own, not of one choice.
    pub(super) several_labels: bool,
}

/// The fields of a config, with what an absent one means.
struct Fields {
    path: PathBuf,
    map: Map<String, Value>,
}

impl Fields {
    fn get<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let value = self.map.get(name).filter(|v| !v.is_null());
        let read = value.map(|v| serde_json::from_value(v.clone()));
        read.transpose().map_err(|e| {
            let message = format!("field '{name}': {e}");
            Error::format(&self.path, message)
        })
    }

    fn or<T: DeserializeOwned>(&self, name: &str, default: T) -> Result<T> {
        Ok(self.get(name)?.unwrap_or(default))
    }

    fn count(&self, name: &str) -> Result<usize> {
        match self.get(name)? {
            Some(0) | None => Err(Error::format(
                &self.path,
                format!("field '{name}' is to be a number above 0"),
            )),
            Some(count) => Ok(count),
        }
    }

    fn activation(&self, name: &str) -> Result<Activation> {
        let stated: Option<String> = self.get(name)?;
        let stated = stated.unwrap_or_else(|| "gelu".into());
        let known = serde_json::from_value(Value::String(stated.clone()));
        known.map_err(|_| {
            let what = format!("{name} '{stated}'");
            Error::unsupported(&self.path, what, "gelu, gelu_new, relu, silu, tanh")
        })
    }

    /// Names of the classes, by `id2label` or `num_labels`.
    fn labels(&self) -> Result<Vec<String>> {
        let named: Option<Map<String, Value>> = self.get("id2label")?;
        let count = named.as_ref().map(Map::len);
        let count = count.map_or_else(|| self.or("num_labels", 2), Ok)?;
        let label = |i: usize| {
            let name = named.as_ref().and_then(|n| n.get(&i.to_string())?.as_str());
            name.map_or_else(|| format!("LABEL_{i}"), String::from)
        };
        Ok((0..count).map(label).collect())
    }
}

impl Config {
    /// Reads `config.json` of a folder.
    ///
    /// # Errors
    /// Another family by its name, features that would change the result, sizes that make no sense.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let map = read_json(&path)?;
        let f = Fields { path, map };
        let family: Option<String> = f.get("model_type")?;
        let config = match family.as_deref() {
            Some("bert") => f.bert(Family::Bert, 0)?,
            Some("roberta" | "xlm-roberta") => {
                let padding: usize = f.or("pad_token_id", 1)?;
                f.bert(Family::Roberta, padding + 1)?
            }
            Some("distilbert") => f.distilbert()?,
            Some("deberta-v2") => f.deberta()?,
            Some("modernbert") => f.modern_bert()?,
            Some(other) => {
                let what = format!("model_type '{other}'");
                return Err(Error::unsupported(&f.path, what, FAMILIES));
            }
            None => {
                let message = format!("no model_type in it; supported: {FAMILIES}");
                return Err(Error::format(&f.path, message));
            }
        };
        config.validate(&f.path)?;
        Ok(config)
    }

    fn validate(&self, path: &Path) -> Result<()> {
        let fail = |message: &str| Err(Error::format(path, message));
        if !self.hidden_size.is_multiple_of(self.heads) {
            return fail("hidden_size is no multiple of the heads");
        }
        if self.labels.is_empty() {
            return fail("there is no label");
        }
        if self.positions <= self.first_position || self.context_length == 0 {
            return fail("there is no position for a token");
        }
        // Sizes are multiplied with each other; a file's own sizes are compared with them later.
        let largest = 1 << 28;
        let sizes = [
            self.vocab_size,
            self.hidden_size,
            self.layers,
            self.intermediate_size,
            self.positions,
        ];
        if sizes.iter().any(|n| *n > largest) {
            return fail("a size is out of bounds");
        }
        Ok(())
    }
}

impl Fields {
    fn bert(&self, family: Family, first_position: usize) -> Result<Config> {
        let kind: String = self.or("position_embedding_type", "absolute".into())?;
        if kind != "absolute" {
            let what = format!("position_embedding_type '{kind}'");
            return Err(Error::unsupported(&self.path, what, "absolute"));
        }
        if self.or("is_decoder", false)? {
            return Err(Error::unsupported(&self.path, "is_decoder", "encoders"));
        }
        let positions: usize = self.or("max_position_embeddings", 512)?;
        Ok(Config {
            family,
            vocab_size: self.count("vocab_size")?,
            hidden_size: self.count("hidden_size")?,
            layers: self.count("num_hidden_layers")?,
            heads: self.count("num_attention_heads")?,
            intermediate_size: self.count("intermediate_size")?,
            context_length: positions.saturating_sub(first_position),
            positions,
            first_position,
            types: self.or("type_vocab_size", 2)?,
            eps: self.or("layer_norm_eps", 1e-12)?,
            activation: self.activation("hidden_act")?,
            labels: self.labels()?,
            several_labels: self.several_labels()?,
        })
    }

    fn several_labels(&self) -> Result<bool> {
        let problem: Option<String> = self.get("problem_type")?;
        Ok(problem.as_deref() == Some("multi_label_classification"))
    }

    fn distilbert(&self) -> Result<Config> {
        let positions: usize = self.or("max_position_embeddings", 512)?;
        Ok(Config {
            family: Family::DistilBert,
            vocab_size: self.count("vocab_size")?,
            hidden_size: self.count("dim")?,
            layers: self.count("n_layers")?,
            heads: self.count("n_heads")?,
            intermediate_size: self.count("hidden_dim")?,
            context_length: positions,
            positions,
            first_position: 0,
            types: 0,
            eps: 1e-12,
            activation: self.activation("activation")?,
            labels: self.labels()?,
            several_labels: self.several_labels()?,
        })
    }

    fn deberta(&self) -> Result<Config> {
        let unsupported = |what: &str, instead| Err(Error::unsupported(&self.path, what, instead));
        if !self.or("relative_attention", false)? {
            return unsupported("relative_attention: false", "relative attention");
        }
        if self.or("conv_kernel_size", 0)? > 0 {
            return unsupported("conv_kernel_size", "DeBERTa without convolution");
        }
        let terms: Value = self.or("pos_att_type", Value::Array(Vec::new()))?;
        let terms: Vec<String> = match terms {
            Value::String(text) => text.split('|').map(|t| t.trim().to_lowercase()).collect(),
            Value::Array(list) => {
                let texts = list.iter().filter_map(Value::as_str);
                texts.map(str::to_lowercase).collect()
            }
            _ => return unsupported("pos_att_type", "c2p, p2c"),
        };
        if terms.iter().any(|t| !["c2p", "p2c"].contains(&t.as_str())) {
            return unsupported(&format!("pos_att_type {terms:?}"), "c2p, p2c");
        }
        let mut config = self.bert(Family::Bert, 0)?;
        config.eps = self.or("layer_norm_eps", 1e-7)?;
        config.types = self.or("type_vocab_size", 0)?;
        let stated: i64 = self.or("max_relative_positions", -1)?;
        let farthest = usize::try_from(stated).ok().filter(|n| *n > 0);
        let farthest = farthest.unwrap_or(config.positions);
        let buckets: i64 = self.or("position_buckets", -1)?;
        let buckets = usize::try_from(buckets).unwrap_or(0);
        let norm: String = self.or("norm_rel_ebd", "none".into())?;
        let pooler = self.get::<String>("pooler_hidden_act")?;
        let pooler = match pooler {
            Some(_) => self.activation("pooler_hidden_act")?,
            None => Activation::Gelu,
        };
        config.family = Family::Deberta(Deberta {
            span: if buckets > 0 { buckets } else { farthest },
            buckets,
            farthest,
            content_to_position: terms.iter().any(|t| t == "c2p"),
            position_to_content: terms.iter().any(|t| t == "p2c"),
            shared_projections: self.or("share_att_key", false)?,
            normed: norm.split('|').any(|n| n.trim() == "layer_norm"),
            absolute: self.or("position_biased_input", true)?,
            embedding_size: self.or("embedding_size", config.hidden_size)?,
            pooler,
        });
        Ok(config)
    }

    fn modern_bert(&self) -> Result<Config> {
        let layers = self.count("num_hidden_layers")?;
        let every: usize = self.or("global_attn_every_n_layers", 3)?;
        let kinds: Option<Vec<String>> = self.get("layer_types")?;
        let is_global = |i: usize| match &kinds {
            Some(kinds) => kinds.get(i).is_some_and(|k| k == "full_attention"),
            None => i.is_multiple_of(every.max(1)),
        };
        let local: usize = self.or("local_attention", 128)?;
        // transformers 5 nests the bases by kind of layer.
        let nested = |kind: &str| {
            let parameters = self.map.get("rope_parameters")?.get(kind)?;
            parameters.get("rope_theta")?.as_f64()
        };
        let global_base = nested("full_attention");
        let global_base =
            global_base.map_or_else(|| self.or("global_rope_theta", 160_000.0), Ok)?;
        let local_base = nested("sliding_attention");
        let local_base = local_base.map_or_else(|| self.or("local_rope_theta", 10_000.0), Ok)?;
        let layer = |i| match is_global(i) {
            true => (global_base, None),
            false => (local_base, Some(local / 2)),
        };
        let pooling: String = self.or("classifier_pooling", "cls".into())?;
        let context_length = self.or("max_position_embeddings", 8192)?;
        Ok(Config {
            family: Family::ModernBert(ModernBert {
                layers: (0..layers).map(layer).collect(),
                attention_bias: self.or("attention_bias", false)?,
                mlp_bias: self.or("mlp_bias", false)?,
                norm_bias: self.or("norm_bias", false)?,
                classifier_bias: self.or("classifier_bias", false)?,
                classifier_activation: self.activation("classifier_activation")?,
                classifier_mean: pooling == "mean",
            }),
            vocab_size: self.count("vocab_size")?,
            hidden_size: self.count("hidden_size")?,
            layers,
            heads: self.count("num_attention_heads")?,
            intermediate_size: self.count("intermediate_size")?,
            context_length,
            positions: context_length,
            first_position: 0,
            types: 0,
            eps: self.or("norm_eps", 1e-5)?,
            activation: self.activation("hidden_activation")?,
            labels: self.labels()?,
            several_labels: self.several_labels()?,
        })
    }
}
