//! Texts to vectors, as sentence-transformers makes them: an encoder, its states pooled, and perhaps a projection and a
//! length of 1, by the folder's `modules.json`.

use std::path::Path;

use burn::tensor::{Tensor, TensorData};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::layers::{Activation, Linear};
use super::weights::Weights;
use super::{Encoder, OTHER_HEADS, first};
use crate::load::hf::read_json;
use crate::{DeviceSpec, Error, Result};

/// How a text's states become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pooling {
    Mean,
    First,
    Max,
    /// The sum over the root of the number.
    MeanRoot,
}

/// What follows the pooling.
#[derive(Debug)]
enum Step {
    Dense(Box<Linear>, Option<Activation>),
    Normalise,
}

/// An encoder of texts.
///
/// Loaded once; every call reads its texts in batches of about the same length.
#[derive(Debug)]
pub struct SentenceEncoder {
    encoder: Encoder,
    pooling: Vec<Pooling>,
    steps: Vec<Step>,
    /// Put before every text.
    prompt: String,
    lower_case: bool,
}

/// A line of `modules.json`.
#[derive(Deserialize)]
struct Module {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// `sentence_bert_config.json`.
#[derive(Default, Deserialize)]
struct Reading {
    max_seq_length: Option<usize>,
    #[serde(default)]
    do_lower_case: bool,
}

/// A JSON file that may be missing.
fn optional<T: serde::de::DeserializeOwned + Default>(path: &Path) -> Result<T> {
    match path.is_file() {
        true => read_json(path),
        false => Ok(T::default()),
    }
}

impl SentenceEncoder {
    /// Opens a folder as sentence-transformers saves it. Without `modules.json` it is an encoder whose states are
    /// averaged, as that library has it.
    ///
    /// # Errors
    /// Another family or module by its name; files that are missing or damaged; a device that this build lacks.
    pub fn open(folder: &Path, device: &DeviceSpec) -> Result<Self> {
        let listed = folder.join("modules.json");
        let modules: Vec<Module> = optional(&listed)?;
        let of_encoder = modules.iter().find(|m| last(&m.kind) == "Transformer");
        let inside = of_encoder.map_or_else(|| folder.into(), |m| folder.join(&m.path));
        let reading: Reading = optional(&inside.join("sentence_bert_config.json"))?;
        let (encoder, weights) = Encoder::open(&inside, device, reading.max_seq_length)?;
        weights.finish(
            &[
                &OTHER_HEADS[..],
                &["classifier.", "pre_classifier.", "head."],
            ]
            .concat(),
        )?;
        let mut sentences = Self {
            encoder,
            pooling: Vec::new(),
            steps: Vec::new(),
            prompt: prompt(&folder.join("config_sentence_transformers.json"))?,
            lower_case: reading.do_lower_case,
        };
        for module in &modules {
            sentences.add(module, folder)?;
        }
        if modules.is_empty() {
            sentences.pooling.push(Pooling::Mean);
        }
        if sentences.pooling.is_empty() {
            let message = "no module pools the states of a text's tokens";
            return Err(Error::format(&listed, message));
        }
        Ok(sentences)
    }

    fn add(&mut self, module: &Module, folder: &Path) -> Result<()> {
        let inside = folder.join(&module.path);
        match last(&module.kind) {
            "Transformer" => {}
            "Pooling" => self.pooling = pooling(&inside.join("config.json"))?,
            "Normalize" => self.steps.push(Step::Normalise),
            "Dense" => self.steps.push(dense(&inside, &self.encoder)?),
            other => {
                let what = format!("module '{other}'");
                let supported = "Transformer, Pooling, Dense, Normalize";
                return Err(Error::unsupported(
                    &folder.join("modules.json"),
                    what,
                    supported,
                ));
            }
        }
        Ok(())
    }

    /// The vector of each text, `[texts][width]`.
    ///
    /// # Errors
    /// A text that the tokenizer refuses; [`Error::NoNumbers`].
    pub fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let texts: Vec<String> = texts.iter().map(|text| self.as_read(text)).collect();
        let texts: Vec<_> = texts.iter().map(|text| (text.as_str(), None)).collect();
        self.encoder.read(&texts, |states, lengths| {
            let pooled = self.pooling.iter().map(|p| self.pool(*p, &states, lengths));
            let pooled = Tensor::cat(pooled.collect(), 1);
            self.steps.iter().fold(pooled, |x, step| step.forward(x))
        })
    }

    fn as_read(&self, text: &str) -> String {
        let text = format!("{}{}", self.prompt, text.trim());
        match self.lower_case {
            true => text.to_lowercase(),
            false => text,
        }
    }

    fn pool(&self, pooling: Pooling, states: &Tensor<3>, lengths: &[usize]) -> Tensor<2> {
        let [lanes, time, hidden] = states.dims();
        let roots = || {
            let roots = lengths.iter().map(|n| (*n as f32).sqrt());
            let roots = TensorData::new(roots.collect::<Vec<f32>>(), [lanes, 1]);
            Tensor::<2>::from_data(roots, &self.encoder.device)
        };
        match pooling {
            Pooling::First => first(states.clone()),
            Pooling::Mean => self.encoder.mean(states.clone(), lengths),
            Pooling::MeanRoot => self.encoder.mean(states.clone(), lengths) * roots(),
            Pooling::Max => {
                let padding = self.encoder.mask(lengths, time) * -1.0 + 1.0;
                let largest = (states.clone() + padding * -1e9).max_dim(1);
                largest.reshape([lanes, hidden])
            }
        }
    }
}

impl Step {
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Dense(linear, activation) => {
                let y = linear.forward(x);
                activation.map_or(y.clone(), |a| a.forward(y))
            }
            Self::Normalise => {
                let length = x.clone().powf_scalar(2.0).sum_dim(1).sqrt();
                x / length.clamp_min(1e-12)
            }
        }
    }
}

/// The last part of a Python name.
fn last(kind: &str) -> &str {
    kind.rsplit('.').next().unwrap_or(kind)
}

/// What is put before a text, by `config_sentence_transformers.json`.
fn prompt(path: &Path) -> Result<String> {
    let config: Map<String, Value> = optional(path)?;
    let named = config.get("default_prompt_name").and_then(Value::as_str);
    let text = named.and_then(|name| config.get("prompts")?.get(name)?.as_str());
    Ok(text.unwrap_or_default().into())
}

/// The config of a pooling module: flags of old, or the names of modes.
fn pooling(path: &Path) -> Result<Vec<Pooling>> {
    let config: Map<String, Value> = read_json(path)?;
    if config.get("include_prompt").and_then(Value::as_bool) == Some(false) {
        return Err(Error::unsupported(
            path,
            "include_prompt: false",
            "prompts that are pooled, too",
        ));
    }
    let mut modes: Vec<String> = match config.get("pooling_mode") {
        Some(Value::String(mode)) => mode.split('+').map(String::from).collect(),
        Some(Value::Array(modes)) => {
            let modes = modes.iter().filter_map(Value::as_str);
            modes.map(String::from).collect()
        }
        _ => Vec::new(),
    };
    let flags = config.iter().filter(|(_, on)| on.as_bool() == Some(true));
    let flags = flags.filter_map(|(name, _)| name.strip_prefix("pooling_mode_"));
    modes.extend(flags.map(String::from));
    // They stand in this order in the vector.
    let known = [
        ("cls", Pooling::First),
        ("max", Pooling::Max),
        ("mean", Pooling::Mean),
        ("mean_sqrt_len", Pooling::MeanRoot),
    ];
    let short = |mode: &str| {
        mode.trim_end_matches("_tokens")
            .trim_end_matches("_token")
            .to_string()
    };
    let modes: Vec<String> = modes.iter().map(|mode| short(mode)).collect();
    if let Some(other) = modes
        .iter()
        .find(|m| !known.iter().any(|(name, _)| name == m))
    {
        let what = format!("pooling by '{other}'");
        return Err(Error::unsupported(
            path,
            what,
            "cls, max, mean, mean_sqrt_len",
        ));
    }
    let asked = |(name, _): &&(&str, Pooling)| modes.iter().any(|mode| mode == name);
    let modes: Vec<Pooling> = known.iter().filter(asked).map(|(_, mode)| *mode).collect();
    match modes.is_empty() {
        true => Err(Error::format(path, "no mode of pooling is on")),
        false => Ok(modes),
    }
}

/// The config of a dense module.
#[derive(Deserialize)]
struct Dense {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    activation_function: Option<String>,
}

fn yes() -> bool {
    true
}

fn dense(folder: &Path, encoder: &Encoder) -> Result<Step> {
    let path = folder.join("config.json");
    let config: Dense = read_json(&path)?;
    let name = config.activation_function.as_deref().map(last);
    let activation = match name {
        None | Some("Identity") => None,
        Some("Tanh") => Some(Activation::Tanh),
        Some("GELU") => Some(Activation::Gelu),
        Some("ReLU") => Some(Activation::Relu),
        Some("SiLU") => Some(Activation::Silu),
        Some(other) => {
            let what = format!("activation_function '{other}'");
            return Err(Error::unsupported(
                &path,
                what,
                "Identity, Tanh, GELU, ReLU, SiLU",
            ));
        }
    };
    let weights = Weights::open(folder, &encoder.device)?;
    let sizes = [config.out_features, config.in_features];
    let linear = weights.linear("linear", sizes, config.bias)?;
    weights.finish(&[])?;
    Ok(Step::Dense(Box::new(linear), activation))
}

/// Cosine of two vectors' angle; 0 where one of them is 0.
///
/// ```
/// use mope_lm::encoders::cosine;
/// assert!((cosine(&[1.0, 1.0], &[3.0, 0.0]) - 0.5f64.sqrt()).abs() < 1e-9);
/// assert_eq!(cosine(&[1.0], &[0.0]), 0.0);
/// ```
pub fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
        products.sum()
    };
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 {
        dot(a, b) / lengths
    } else {
        0.0
    }
}
