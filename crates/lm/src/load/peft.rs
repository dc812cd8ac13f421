//! Adapters in the format of Hugging Face's PEFT: `adapter_config.json` and
//! `adapter_model.safetensors`.
//!
//! Every field that peft 0.21 writes is known here: it is read, it plays no role after training, or it
//! changes what the tensors mean and is refused by its name where it is set. So is a field that is not
//! known, unless it is null, false or empty.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use regex::Regex;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::gguf_adapter;
use super::hf::{parse_json, safetensors};
use super::layout::half_split;
use super::mapped::{Mapped, StoredTensor, all_finite};
use super::read_text;
use crate::adapter::{Adapter, LowRank, Target, place, transposed};
use crate::config::DecoderConfig;
use crate::{Error, Result};

const SUPPORTED: &str = "LoRA on q, k, v, o, gate, up and down projections";

/// Fields that are read.
const READ: [&str; 12] = [
    "peft_type",
    "task_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "init_lora_weights",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
];

/// Fields that matter for training or for other programs only, and those of initialisations, which
/// `init_lora_weights` chooses.
const HARMLESS: [&str; 17] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "layers_pattern",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "merge_weights",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "velora_config",
];

/// Fields that change what the tensors mean where they are set.
const REFUSED: [(&str, &str); 15] = [
    (
        "alora_invocation_tokens",
        "an adapter that is active behind these tokens only",
    ),
    ("arrow_config", "routing among adapters"),
    ("enable_lora", "adapters on parts of a fused projection"),
    ("fan_in_fan_out", "weights that are stored transposed"),
    ("kasa_config", "a base without its smallest singular values"),
    ("layer_replication", "a base with some layers repeated"),
    ("lora_bias", "biases beside the factors"),
    ("megatron_config", "Megatron's parallel layers"),
    ("modules_to_save", "trained whole modules"),
    ("monteclora_config", "factors that are drawn at random"),
    (
        "target_parameters",
        "adapters on parameters that are no modules",
    ),
    ("trainable_token_indices", "trained rows of the embedding"),
    ("use_bdlora", "block-diagonal factors"),
    ("use_dora", "weight-decomposed adapters"),
    ("use_qalora", "pooled inputs"),
];

/// Initialisations that leave the base as it is: the adapter is a plain one then. The others take
/// something out of the base or quantise it, so the tensors are a change of another base than the one
/// that is named.
const PLAIN: [&str; 6] = ["true", "false", "gaussian", "eva", "orthogonal", "mica"];

/// The fields of `adapter_config.json` that are read; defaults are peft's.
#[derive(Debug, Deserialize)]
struct PeftConfig {
    #[serde(default = "eight")]
    r: usize,
    #[serde(default = "eight_point")]
    lora_alpha: f64,
    #[serde(default)]
    rank_pattern: Option<Patterns<usize>>,
    #[serde(default)]
    alpha_pattern: Option<Patterns<f64>>,
    use_rslora: Option<bool>,
    bias: Option<String>,
    task_type: Option<String>,
    init_lora_weights: Option<Value>,
    target_modules: Option<Value>,
    exclude_modules: Option<Value>,
    layers_to_transform: Option<Value>,
    base_model_name_or_path: Option<String>,
}

fn eight() -> usize {
    8
}

fn eight_point() -> f64 {
    8.0
}

/// A pattern by which peft looks for a module: `re.match(rf"(.*\.)?({key})$", module)`.
fn pattern(key: &str) -> Result<Regex, String> {
    Regex::new(&format!(r"^(?:.*\.)?(?:{key})$")).map_err(|e| format!("pattern '{key}': {e}"))
}

/// Values by pattern, in the order of the file: the first that matches counts.
#[derive(Debug)]
struct Patterns<T>(Vec<(String, Regex, T)>);

impl<T: Copy> Patterns<T> {
    /// The value for a module.
    fn get(patterns: Option<&Self>, module: &str) -> Option<T> {
        let mut all = patterns?.0.iter();
        all.find(|(_, regex, _)| regex.is_match(module))
            .map(|(_, _, value)| *value)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Patterns<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Patterns<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of patterns and numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all: Vec<(String, Regex, T)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, T>()? {
                    // As Python's dict: a key that comes twice keeps its rank and takes the last value.
                    if let Some(earlier) = all.iter_mut().find(|(k, _, _)| *k == key) {
                        earlier.2 = value;
                        continue;
                    }
                    let regex = pattern(&key).map_err(serde::de::Error::custom)?;
                    all.push((key, regex, value));
                }
                Ok(Patterns(all))
            }
        }
        deserializer.deserialize_map(InOrder(std::marker::PhantomData))
    }
}

/// A field has a value that says something.
fn set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

impl PeftConfig {
    /// Reads `adapter_config.json`.
    ///
    /// # Errors
    /// Another method than LoRA by its name, before its fields are looked at; a field that changes what the
    /// tensors mean; an unknown field that is set.
    fn read(path: &Path) -> Result<Self> {
        let text = read_text(path)?;
        let fields: Map<String, Value> = parse_json(path, &text)?;
        let unsupported = |what: String| Error::unsupported(path, what, SUPPORTED);
        match fields.get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            Some(Value::String(kind)) => return Err(unsupported(format!("peft_type '{kind}'"))),
            _ => {
                let message = "no peft_type in it; an adapter is a folder as peft saves it";
                return Err(Error::format(path, message));
            }
        }
        for (name, value) in fields.iter().filter(|(_, value)| set(value)) {
            let name = name.as_str();
            if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
                return Err(unsupported(format!("{name} ({why})")));
            }
            if !READ.contains(&name) && !HARMLESS.contains(&name) {
                let shown: String = value.to_string().chars().take(60).collect();
                return Err(unsupported(format!(
                    "{name} = {shown} (a field that peft 0.21 does not know)"
                )));
            }
        }
        let peft: Self = parse_json(path, &text)?;
        match peft.unsupported() {
            Some(what) => Err(unsupported(what)),
            None => Ok(peft),
        }
    }

    /// What of the fields that are read would be lost if this were taken for plain LoRA.
    fn unsupported(&self) -> Option<String> {
        if let Some(bias) = self.bias.as_deref().filter(|b| *b != "none") {
            return Some(format!("bias = '{bias}' (trained biases)"));
        }
        let tasks = ["CAUSAL_LM", "FEATURE_EXTRACTION"];
        if let Some(task) = self.task_type.as_deref().filter(|t| !tasks.contains(t)) {
            return Some(format!("task_type '{task}'"));
        }
        let init = match &self.init_lora_weights {
            None | Some(Value::Null) => return None,
            Some(Value::String(text)) => text.to_lowercase(),
            Some(other) => other.to_string(),
        };
        (!PLAIN.contains(&init.as_str())).then(|| {
            format!(
                "init_lora_weights = '{init}' (the base was changed, too; convert the adapter when saving it, by \
                 peft's path_initial_model_for_weight_conversion)"
            )
        })
    }

    /// Refuses tensors of a module that the config leaves out, which peft would not load.
    fn targets(&self, path: &Path, layer: usize, module: &str) -> Result<()> {
        let listed = |names: &Option<Value>| names.as_ref().and_then(|n| listed(n, module));
        let layers = self.layers_to_transform.as_ref().and_then(|v| match v {
            Value::Number(only) => Some(only.as_u64() == Some(layer as u64)),
            Value::Array(all) if !all.is_empty() => Some(all.contains(&layer.into())),
            _ => None,
        });
        let left_out = [
            ("exclude_modules", listed(&self.exclude_modules).map(|l| !l)),
            ("target_modules", listed(&self.target_modules)),
            ("layers_to_transform", layers),
        ];
        match left_out.iter().find(|(_, taken)| *taken == Some(false)) {
            None => Ok(()),
            Some((field, _)) => Err(Error::format(
                path,
                format!(
                    "the adapter has tensors for '{module}', which {field} leaves out: config and tensors are of two \
                     adapters; save it again"
                ),
            )),
        }
    }
}

/// Whether peft finds a module by `names`: a list of names or ends of names, or one regular expression;
/// `None` where it does not say, or in words that cannot be read here.
fn listed(names: &Value, module: &str) -> Option<bool> {
    match names {
        Value::String(all) if all == "all-linear" => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(regex) => {
            let regex = Regex::new(&format!("^(?:{regex})$")).ok()?;
            Some(regex.is_match(module))
        }
        Value::Array(list) if !list.is_empty() => Some(list.iter().any(|name| {
            let rest = name.as_str().and_then(|name| module.strip_suffix(name));
            rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })),
        _ => None,
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

/// Where the tensors of an adapter folder are.
fn tensors_file(folder: &Path) -> Result<std::path::PathBuf> {
    let path = folder.join("adapter_model.safetensors");
    if !path.is_file() && folder.join("adapter_model.bin").is_file() {
        let hint = "adapter_model.safetensors (save the adapter again with safetensors)";
        return Err(Error::unsupported(folder, "adapter_model.bin", hint));
    }
    Ok(path)
}

/// The two tensors of a module, and where they come from.
struct Stored<'a> {
    file: &'a Mapped,
    /// As peft names the module, without `base_model.model.`.
    module: &'a str,
    /// The inside's matrices that it joins; most often one.
    targets: &'a [Target],
    /// Names and tensors of A and B.
    a: (&'a str, StoredTensor),
    b: (&'a str, StoredTensor),
}

impl Stored<'_> {
    /// The pair of each matrix, the scale folded into B.
    fn read(
        &self,
        config_path: &Path,
        peft: &PeftConfig,
        config: &DecoderConfig,
    ) -> Result<Vec<LowRank>> {
        let path = self.file.path();
        let module = self.module;
        let rank = Patterns::get(peft.rank_pattern.as_ref(), module).unwrap_or(peft.r);
        if rank == 0 {
            let message = format!("the rank for '{module}' is 0: nothing can be adapted by it");
            return Err(Error::format(config_path, message));
        }
        let (inputs, outputs) = joined_size(self.targets, config);
        for ((name, tensor), expected) in [(&self.a, [rank, inputs]), (&self.b, [outputs, rank])] {
            if tensor.shape != expected {
                return Err(Error::Shape {
                    path: path.into(),
                    tensor: (*name).into(),
                    expected: expected.into(),
                    got: tensor.shape.clone(),
                });
            }
        }
        let root = match peft.use_rslora.unwrap_or(false) {
            true => (rank as f64).sqrt(),
            false => rank as f64,
        };
        let alpha = Patterns::get(peft.alpha_pattern.as_ref(), module);
        let alpha = alpha.unwrap_or(peft.lora_alpha);
        let scale = (alpha / root) as f32;
        if !scale.is_finite() {
            return Err(Error::format(
                config_path,
                format!(
                    "lora_alpha {alpha} over rank {rank} is no 32-bit number for '{module}'; correct it, or train the \
                     adapter again"
                ),
            ));
        }
        let a = transposed(&self.file.read(self.a.0, &self.a.1)?, rank, inputs);
        let (name, tensor) = &self.b;
        let mut b = self.file.read(name, tensor)?;
        b.iter_mut().for_each(|v| *v *= scale);
        all_finite(
            path,
            &format!("{name} (scaled by {scale})"),
            &tensor.shape,
            &b,
        )?;
        Ok(pairs(config, self.targets, rank, &a, b))
    }
}

/// Inputs and outputs of matrices that are joined.
pub(super) fn joined_size(targets: &[Target], config: &DecoderConfig) -> (usize, usize) {
    let sizes = targets.iter().map(|target| target.size(config));
    sizes.fold((0, 0), |(_, rows), (inputs, outputs)| {
        (inputs, rows + outputs)
    })
}

/// One pair for each matrix of a module, from `A [inputs, rank]` and `B [outputs, rank]` in a file's conventions.
pub(super) fn pairs(
    config: &DecoderConfig,
    targets: &[Target],
    rank: usize,
    a: &[f32],
    mut b: Vec<f32>,
) -> Vec<LowRank> {
    let mut first = 0;
    let pair = |target: &Target| {
        let outputs = target.size(config).1;
        let rows = &mut b[first * rank..(first + outputs) * rank];
        first += outputs;
        if config.family.layout.interleaved && matches!(target, Target::Query | Target::Key) {
            half_split(config, rank, rows, true);
        }
        let b = transposed(rows, outputs, rank);
        let a = a.to_vec();
        LowRank { rank, a, b }
    };
    targets.iter().map(pair).collect()
}

/// Layer and matrices of a module by its name in files of this family; `None` for a module that it lacks.
pub(super) fn matrices(config: &DecoderConfig, module: &str) -> Option<(usize, Vec<Target>)> {
    let layout = config.family.layout;
    let joined = [
        (layout.fused_qkv, "qkv_proj", "q_proj", &Target::ALL[..3]),
        (
            layout.fused_gate_up,
            "gate_up_proj",
            "gate_proj",
            &Target::ALL[4..6],
        ),
    ];
    for (joins, name, part, targets) in joined.into_iter().filter(|(joins, ..)| *joins) {
        let (layer, target) = match module.strip_suffix(name) {
            Some(before) => place(&format!("{before}{part}"))?,
            None => continue,
        };
        debug_assert!(joins && target == targets[0]);
        return Some((layer, targets.to_vec()));
    }
    let (layer, target) = place(module)?;
    let is_joined = joined
        .iter()
        .any(|(joins, .., all)| *joins && all.contains(&target));
    let is_routed = target.is_feed_forward() && config.experts(layer).is_some();
    (!is_joined && !is_routed).then(|| (layer, vec![target]))
}

impl Adapter {
    /// At this path is an adapter: a PEFT folder, or a `.gguf` file that says so.
    pub fn is_at(path: &Path) -> bool {
        path.join("adapter_config.json").is_file() || gguf_adapter::says_adapter(path)
    }

    /// Reads what a PEFT folder or a LoRA in a `.gguf` file holds, without a model.
    ///
    /// # Errors
    /// [`Error::Unsupported`] as [`Self::load`] says; [`Error::Format`] and [`Error::Io`] for damaged or missing
    /// files.
    pub fn describe(folder: &Path) -> Result<Description> {
        if gguf_adapter::is_file(folder) {
            return gguf_adapter::describe(folder);
        }
        let peft = PeftConfig::read(&folder.join("adapter_config.json"))?;
        let file = Mapped::open(&folder.join("adapter_model.safetensors"))?;
        let stored = safetensors(&file)?.into_iter();
        let tensors: BTreeMap<_, _> = stored.map(|(name, t)| (name, t.shape)).collect();
        Ok(Description {
            peft_type: "LORA".into(),
            rank: peft.r,
            alpha: peft.lora_alpha,
            base: peft.base_model_name_or_path,
            parameters: tensors.values().map(|s| s.iter().product::<usize>()).sum(),
            tensors,
        })
    }

    /// Reads a PEFT folder, or a LoRA in a `.gguf` file, for a model of shape `config`. In one piece: most of it are the refusals of what is not
    /// supported, each before what follows from it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with the name of anything but LoRA on the projections of the model: another method,
    /// a field that changes what the tensors mean or that is not known, another module;
    /// [`Error::Shape`] when it was made for another model; [`Error::Format`] for damaged or incomplete
    /// files; [`Error::NotFinite`] for NaN and infinity.
    pub fn load(folder: &Path, config: &DecoderConfig) -> Result<Self> {
        if gguf_adapter::is_file(folder) {
            let pairs = gguf_adapter::load(folder, config)?;
            return Ok(Self { pairs });
        }
        let config_path = folder.join("adapter_config.json");
        let peft = PeftConfig::read(&config_path)?;
        let path = tensors_file(folder)?;
        let file = Mapped::open(&path)?;
        let mut stored = safetensors(&file)?;
        let mut names: Vec<String> = stored.keys().cloned().collect();
        names.sort();
        let mut pairs = HashMap::new();
        for name in &names {
            let Some(long) = name.strip_suffix(".lora_A.weight") else {
                continue;
            };
            let module = long.strip_prefix("base_model.model.").unwrap_or(long);
            let Some((layer, targets)) = matrices(config, module) else {
                let what = format!("an adapter on '{module}'");
                return Err(Error::unsupported(&path, what, SUPPORTED));
            };
            if layer >= config.layers {
                let layers = config.layers;
                let message = format!(
                    "an adapter on '{module}', but the model has {layers} layers: it was made for another model"
                );
                return Err(Error::format(&path, message));
            }
            peft.targets(&path, layer, module)?;
            let partner = format!("{long}.lora_B.weight");
            let (Some(a), Some(b)) = (stored.remove(name), stored.remove(&partner)) else {
                return Err(Error::MissingTensor {
                    path,
                    tensor: partner,
                });
            };
            let pair = Stored {
                file: &file,
                module,
                targets: &targets,
                a: (name, a),
                b: (&partner, b),
            };
            let read = pair.read(&config_path, &peft, config)?;
            for (target, pair) in targets.into_iter().zip(read) {
                if pairs.insert((layer, target), pair).is_some() {
                    let message = format!(
                        "two adapters for {} of layer {layer}, the second on '{module}': only one can be applied",
                        target.module()
                    );
                    return Err(Error::format(&path, message));
                }
            }
        }
        if let Some(name) = stored.keys().min() {
            return Err(Error::unsupported(
                &path,
                format!("tensor '{name}'"),
                SUPPORTED,
            ));
        }
        if pairs.is_empty() {
            return Err(Error::format(&path, "the adapter has no tensors"));
        }
        Ok(Self { pairs })
    }
}
