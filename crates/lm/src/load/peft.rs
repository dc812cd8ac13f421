//! Adapters in the format of Hugging Face's PEFT: `adapter_config.json` and
//! `adapter_model.safetensors`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hf::{read_json, safetensors};
use super::mapped::{Mapped, all_finite};
use crate::adapter::{Adapter, LowRank, place, transposed};
use crate::config::DecoderConfig;
use crate::{Error, Result};

/// The fields of `adapter_config.json` that change the result.
#[derive(Debug, Deserialize)]
struct PeftConfig {
    peft_type: String,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    rank_pattern: HashMap<String, usize>,
    #[serde(default)]
    alpha_pattern: HashMap<String, f64>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    lora_bias: bool,
    bias: Option<String>,
    modules_to_save: Option<Value>,
    trainable_token_indices: Option<Value>,
    base_model_name_or_path: Option<String>,
}

impl PeftConfig {
    /// What of this adapter would be lost if it were read as plain LoRA.
    fn unsupported(&self) -> Option<String> {
        let set = |v: &Option<Value>| match v {
            None | Some(Value::Null) => false,
            Some(Value::Array(list)) => !list.is_empty(),
            Some(Value::Object(map)) => !map.is_empty(),
            Some(_) => true,
        };
        if self.peft_type != "LORA" {
            return Some(format!("peft_type '{}'", self.peft_type));
        }
        if let Some(bias) = self.bias.as_deref().filter(|b| *b != "none") {
            return Some(format!("bias = '{bias}' (trained biases)"));
        }
        let named = [
            ("use_dora (weight-decomposed adapters)", self.use_dora),
            ("fan_in_fan_out", self.fan_in_fan_out),
            ("lora_bias", self.lora_bias),
            (
                "modules_to_save (trained whole modules)",
                set(&self.modules_to_save),
            ),
            (
                "trainable_token_indices",
                set(&self.trainable_token_indices),
            ),
        ];
        named
            .iter()
            .find(|(_, set)| *set)
            .map(|(name, _)| name.to_string())
    }

    /// A pattern's value for a module: the first key that, as a regular expression, matches its
    /// name's end at a dot (PEFT's `get_pattern_key`).
    fn pattern<T: Copy>(patterns: &HashMap<String, T>, module: &str) -> Result<Option<T>, String> {
        let mut keys: Vec<_> = patterns.iter().collect();
        keys.sort_by_key(|(key, _)| *key);
        for (key, value) in keys {
            let regex = regex::Regex::new(&format!(r"^(?:.*\.)?(?:{key})$"))
                .map_err(|e| format!("pattern '{key}': {e}"))?;
            if regex.is_match(module) {
                return Ok(Some(*value));
            }
        }
        Ok(None)
    }
}

/// What an adapter folder says of itself.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Description {
    /// PEFT's name of the method, `LORA` for those that can be loaded.
    pub peft_type: String,
    /// Rank where no pattern says otherwise.
    pub rank: usize,
    /// `lora_alpha`; the update is scaled by alpha / rank.
    pub alpha: f64,
    /// The model that it was trained on, as the config names it.
    pub base: Option<String>,
    /// Tensors by name, with their shapes.
    pub tensors: BTreeMap<String, Vec<usize>>,
    /// Numbers in all tensors together.
    pub parameters: usize,
}

impl Adapter {
    /// Reads what a PEFT folder holds, without a model.
    ///
    /// # Errors
    /// [`Error::Format`] and [`Error::Io`] for damaged or missing files.
    pub fn describe(folder: &Path) -> Result<Description> {
        let peft: PeftConfig = read_json(&folder.join("adapter_config.json"))?;
        let file = Mapped::open(&folder.join("adapter_model.safetensors"))?;
        let stored = safetensors(&file)?.into_iter();
        let tensors: BTreeMap<_, _> = stored.map(|(name, t)| (name, t.shape)).collect();
        Ok(Description {
            peft_type: peft.peft_type,
            rank: peft.r,
            alpha: peft.lora_alpha,
            base: peft.base_model_name_or_path,
            parameters: tensors.values().map(|s| s.iter().product::<usize>()).sum(),
            tensors,
        })
    }

    /// Reads a PEFT folder for a model of shape `config`. In one piece: most of it are the refusals of what is not
    /// supported, each before what follows from it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the name of anything but LoRA on the seven projections (DoRA,
    /// trained biases, saved modules, embeddings); [`Error::Shape`] when it was made for another
    /// model; [`Error::Format`] for damaged or incomplete files; [`Error::NotFinite`] for NaN and infinity.
    pub fn load(folder: &Path, config: &DecoderConfig) -> Result<Self> {
        let config_path = folder.join("adapter_config.json");
        let peft: PeftConfig = read_json(&config_path)?;
        let supported = "LoRA on q, k, v, o, gate, up and down projections";
        if let Some(what) = peft.unsupported() {
            return Err(Error::unsupported(&config_path, what, supported));
        }
        let path = folder.join("adapter_model.safetensors");
        if !path.is_file() && folder.join("adapter_model.bin").is_file() {
            let hint = "adapter_model.safetensors (save the adapter again with safetensors)";
            return Err(Error::unsupported(folder, "adapter_model.bin", hint));
        }
        let file = Mapped::open(&path)?;
        let mut stored = safetensors(&file)?;
        let mut names: Vec<String> = stored.keys().cloned().collect();
        names.sort();
        let mut pairs = HashMap::new();
        for name in &names {
            let Some(module) = name.strip_suffix(".lora_A.weight") else {
                continue;
            };
            let short = module.strip_prefix("base_model.model.").unwrap_or(module);
            let Some((layer, target)) = place(module) else {
                return Err(Error::unsupported(
                    &path,
                    format!("an adapter on '{short}'"),
                    supported,
                ));
            };
            let partner = format!("{module}.lora_B.weight");
            let (Some(a), Some(b)) = (stored.remove(name), stored.remove(&partner)) else {
                return Err(Error::MissingTensor {
                    path,
                    tensor: partner,
                });
            };
            let invalid = |e: String| Error::format(&config_path, e);
            let rank = PeftConfig::pattern(&peft.rank_pattern, short)
                .map_err(invalid)?
                .unwrap_or(peft.r);
            let alpha = PeftConfig::pattern(&peft.alpha_pattern, short).map_err(invalid)?;
            let (inputs, outputs) = target.size(config);
            let check = |tensor: &str, got: &[usize], expected: [usize; 2]| {
                if got == expected && layer < config.layers && rank > 0 {
                    return Ok(());
                }
                Err(Error::Shape {
                    path: path.clone(),
                    tensor: tensor.into(),
                    expected: expected.into(),
                    got: got.into(),
                })
            };
            check(name, &a.shape, [rank, inputs])?;
            check(&partner, &b.shape, [outputs, rank])?;
            let root = if peft.use_rslora {
                (rank as f64).sqrt()
            } else {
                rank as f64
            };
            let scale = (alpha.unwrap_or(peft.lora_alpha) / root) as f32;
            if !scale.is_finite() {
                let alpha = alpha.unwrap_or(peft.lora_alpha);
                return Err(invalid(format!(
                    "lora_alpha {alpha} over rank {rank} is no 32-bit number for '{short}'; correct it, or train the \
                     adapter again"
                )));
            }
            let a = transposed(&file.read(name, &a)?, rank, inputs);
            let (shape, mut b) = (b.shape.clone(), file.read(&partner, &b)?);
            b.iter_mut().for_each(|v| *v *= scale);
            all_finite(&path, &format!("{partner} (scaled by {scale})"), &shape, &b)?;
            let b = transposed(&b, outputs, rank);
            pairs.insert((layer, target), LowRank { rank, a, b });
        }
        if let Some(name) = stored.keys().min() {
            return Err(Error::unsupported(
                &path,
                format!("tensor '{name}'"),
                supported,
            ));
        }
        if pairs.is_empty() {
            return Err(Error::format(&path, "the adapter has no tensors"));
        }
        Ok(Self { pairs })
    }
}
